//! API keys: given, generated, or rotated.

use std::collections::HashMap;

use sea_orm::ConnectionTrait;

use super::columns::{difference, insert};
use super::pass::{Fate, Pass, id_of};
use super::wanted;
use crate::domain::Secret;
use crate::storage::StorageError;
use crate::storage::entities::api_key;
use crate::storage::rows::statement;
use crate::storage::seal::generate_key;

impl Pass<'_> {
    pub(super) async fn api_keys(&mut self) -> Result<(), StorageError> {
        self.free_rotated_hashes().await?;
        let mut new = Vec::new();
        for resource in &self.resources.api_keys {
            let held = self.held.api_keys.get(&resource.name);
            let generated: Option<Secret> = match (&resource.key, held) {
                (None, None) => Some(generate_key()?),
                _ => None,
            };
            let text = resource.key.as_ref().or(generated.as_ref());
            let group_id = match &resource.group {
                Some(group) => Some(id_of(&self.group_ids, group)?),
                None => {
                    let warning =
                        format!("api_keys/{}: has no group, so is refused", resource.name);
                    self.report.warnings.push(warning);
                    None
                }
            };
            let owners = (id_of(&self.user_ids, &resource.user)?, group_id);
            let row = wanted::api_key(resource, held, text, owners, self.hasher, self.now)?;
            let fate = match held {
                None => {
                    new.push(row);
                    Fate::Created
                }
                Some(held) => {
                    let change = difference(held, &row);
                    self.update(api_key::Column::Id, held.id, change).await?
                }
            };
            self.note(fate, "api_keys", &resource.name);
            if let Some(key) = generated {
                self.report
                    .generated_keys
                    .push((resource.name.clone(), key));
            }
        }
        insert(self.txn, new).await
    }

    /// Keys may trade their texts within one file. A text that another key still holds is taken
    /// from it first, or the unique index would refuse it; the holder gets its new one in turn.
    async fn free_rotated_hashes(&self) -> Result<(), StorageError> {
        let holders: HashMap<&[u8], &api_key::Model> = self
            .held
            .api_keys
            .values()
            .map(|row| (row.key_hash.as_slice(), row))
            .collect();
        for resource in &self.resources.api_keys {
            let Some(key) = &resource.key else { continue };
            let hash = self.hasher.hash(key.expose());
            if let Some(holder) = holders.get(hash.0.as_slice())
                && holder.name != resource.name
            {
                let sql = "UPDATE api_keys SET key_hash = randomblob(32) WHERE id = ?";
                self.txn
                    .execute_raw(statement(sql, vec![holder.id.into()]))
                    .await?;
            }
        }
        Ok(())
    }
}
