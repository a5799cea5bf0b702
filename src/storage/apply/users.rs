//! Users, their multipliers and their opening balances.

use std::collections::BTreeMap;

use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, QuerySelect};

use super::columns::{difference, insert};
use super::pass::{Fate, Pass, id_of};
use super::wanted;
use crate::domain::{Money, Multiplier, UserId};
use crate::storage::StorageError;
use crate::storage::convert::millionths;
use crate::storage::entities::{user, user_multiplier};
use crate::storage::ledger::{self, Entry, Posting};

impl Pass<'_> {
    pub(super) async fn users(&mut self) -> Result<(), StorageError> {
        let mut new = Vec::new();
        for resource in &self.resources.users {
            let held = self.held.users.get(&resource.name);
            let row = wanted::user(resource, held, self.now);
            let fate = match held {
                None => {
                    new.push(row);
                    Fate::Created
                }
                Some(held) => {
                    let change = difference(held, &row);
                    let fate = self.update(user::Column::Id, held.id, change).await?;
                    fate.or(self
                        .replace_multipliers(held.id, &resource.group_multipliers)
                        .await?)
                }
            };
            self.note(fate, "users", &resource.name);
        }
        insert(self.txn, new).await?;
        let ids = user::Entity::find()
            .select_only()
            .columns([user::Column::Name, user::Column::Id])
            .into_tuple::<(String, i64)>()
            .all(self.txn)
            .await?;
        self.user_ids = ids.into_iter().collect();
        self.complete_new_users().await
    }

    /// Multipliers and opening balances, for which the new users' ids were needed.
    async fn complete_new_users(&self) -> Result<(), StorageError> {
        let mut multipliers = Vec::new();
        let mut openings = Vec::new();
        for resource in &self.resources.users {
            if self.held.users.contains_key(&resource.name) {
                continue;
            }
            let user_id = id_of(&self.user_ids, &resource.name)?;
            for (name, multiplier) in &resource.group_multipliers {
                multipliers.push(user_multiplier::Model {
                    user_id,
                    group_id: id_of(&self.group_ids, name)?,
                    multiplier_millionths: millionths(*multiplier),
                });
            }
            if let Some(amount) = resource.balance.filter(|b| *b != Money::ZERO) {
                openings.push(Entry {
                    user: UserId(user_id),
                    kind: ledger::kind_of(amount),
                    amount,
                    request_id: None,
                    posting: Posting {
                        note: Some("opening balance"),
                        command: Some("apply"),
                        ..Posting::default()
                    },
                });
            }
        }
        insert(self.txn, multipliers).await?;
        ledger::post(self.txn, &openings).await
    }

    async fn replace_multipliers(
        &self,
        user_id: i64,
        multipliers: &BTreeMap<String, Multiplier>,
    ) -> Result<Fate, StorageError> {
        let mut wanted = BTreeMap::new();
        for (name, multiplier) in multipliers {
            wanted.insert(id_of(&self.group_ids, name)?, millionths(*multiplier));
        }
        if self
            .held
            .multipliers
            .get(&user_id)
            .cloned()
            .unwrap_or_default()
            == wanted
        {
            return Ok(Fate::Left);
        }
        user_multiplier::Entity::delete_many()
            .filter(user_multiplier::Column::UserId.eq(user_id))
            .exec(self.txn)
            .await?;
        let rows = wanted
            .into_iter()
            .map(|(group_id, multiplier_millionths)| user_multiplier::Model {
                user_id,
                group_id,
                multiplier_millionths,
            })
            .collect();
        insert(self.txn, rows).await?;
        Ok(Fate::Changed)
    }
}
