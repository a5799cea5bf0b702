//! Accounts and the groups they serve.

use std::collections::{BTreeSet, HashMap};

use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, QuerySelect};

use super::columns::{difference, insert};
use super::pass::{Fate, Pass, id_of};
use super::wanted;
use crate::storage::StorageError;
use crate::storage::entities::{account, account_group};

impl Pass<'_> {
    pub(super) async fn accounts(&mut self) -> Result<(), StorageError> {
        let mut new = Vec::new();
        for resource in &self.resources.accounts {
            if resource.groups.is_empty() {
                let warning = format!("accounts/{}: is in no group, so never used", resource.name);
                self.report.warnings.push(warning);
            }
            let held = self.held.accounts.get(&resource.name);
            let row = wanted::account(resource, held, self.sealer, self.now)?;
            let fate = match held {
                None => {
                    new.push(row);
                    Fate::Created
                }
                Some(held) => {
                    let change = difference(held, &row);
                    let fate = self.update(account::Column::Id, held.id, change).await?;
                    fate.or(self.replace_groups(held.id, &resource.groups).await?)
                }
            };
            self.note(fate, "accounts", &resource.name);
        }
        insert(self.txn, new).await?;
        let ids: HashMap<String, i64> = account::Entity::find()
            .select_only()
            .columns([account::Column::Name, account::Column::Id])
            .into_tuple::<(String, i64)>()
            .all(self.txn)
            .await?
            .into_iter()
            .collect();
        let mut links = Vec::new();
        for resource in &self.resources.accounts {
            if !self.held.accounts.contains_key(&resource.name) {
                let account_id = id_of(&ids, &resource.name)?;
                links.extend(self.links(account_id, &resource.groups)?);
            }
        }
        insert(self.txn, links).await
    }

    async fn replace_groups(
        &self,
        account_id: i64,
        groups: &[String],
    ) -> Result<Fate, StorageError> {
        let wanted = self.links(account_id, groups)?;
        let ids: BTreeSet<i64> = wanted.iter().map(|link| link.group_id).collect();
        if self
            .held
            .account_groups
            .get(&account_id)
            .cloned()
            .unwrap_or_default()
            == ids
        {
            return Ok(Fate::Left);
        }
        account_group::Entity::delete_many()
            .filter(account_group::Column::AccountId.eq(account_id))
            .exec(self.txn)
            .await?;
        insert(self.txn, wanted).await?;
        Ok(Fate::Changed)
    }

    /// The links of an account to its groups, each once.
    fn links(
        &self,
        account_id: i64,
        groups: &[String],
    ) -> Result<Vec<account_group::Model>, StorageError> {
        let mut ids = BTreeSet::new();
        for name in groups {
            ids.insert(id_of(&self.group_ids, name)?);
        }
        Ok(ids
            .into_iter()
            .map(|group_id| account_group::Model {
                account_id,
                group_id,
            })
            .collect())
    }
}
