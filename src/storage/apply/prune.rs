//! What `--prune` does to objects that the file no longer names.

use std::collections::{HashMap, HashSet};

use sea_orm::ActiveValue::Set;
use sea_orm::{ActiveModelTrait, ColumnTrait, EntityTrait, QueryFilter};

use super::pass::Pass;
use crate::storage::StorageError;
use crate::storage::entities::{
    account, api_key, channel, error_rule, group, price_override, subscription, user,
};

impl Pass<'_> {
    /// Disables what the file does not name. Rows stay, since records and entries refer to them;
    /// only price overrides, to which nothing refers, go.
    pub(super) async fn prune(&mut self) -> Result<(), StorageError> {
        let (held, resources) = (self.held, self.resources);
        let rows = held.groups.values().filter(|row| row.enabled);
        self.disable(
            "groups",
            rows.map(|row| (row.id, &row.name)),
            resources.groups.iter().map(|r| &r.name),
            group::Column::Id,
            group::ActiveModel {
                enabled: Set(false),
                ..Default::default()
            },
        )
        .await?;
        let rows = held.accounts.values().filter(|row| row.enabled);
        self.disable(
            "accounts",
            rows.map(|row| (row.id, &row.name)),
            resources.accounts.iter().map(|r| &r.name),
            account::Column::Id,
            account::ActiveModel {
                enabled: Set(false),
                ..Default::default()
            },
        )
        .await?;
        let rows = held.users.values().filter(|row| row.enabled);
        self.disable(
            "users",
            rows.map(|row| (row.id, &row.name)),
            resources.users.iter().map(|r| &r.name),
            user::Column::Id,
            user::ActiveModel {
                enabled: Set(false),
                ..Default::default()
            },
        )
        .await?;
        let rows = held.api_keys.values().filter(|row| row.enabled);
        self.disable(
            "api_keys",
            rows.map(|row| (row.id, &row.name)),
            resources.api_keys.iter().map(|r| &r.name),
            api_key::Column::Id,
            api_key::ActiveModel {
                enabled: Set(false),
                ..Default::default()
            },
        )
        .await?;
        let named: HashSet<(i64, i64)> = resources
            .subscriptions
            .iter()
            .filter_map(|r| Some((*self.user_ids.get(&r.user)?, *self.group_ids.get(&r.group)?)))
            .collect();
        let unnamed = held.subscriptions.values().filter(|row| row.enabled);
        for row in unnamed.filter(|row| !named.contains(&(row.user_id, row.group_id))) {
            let off = subscription::ActiveModel {
                enabled: Set(false),
                ..Default::default()
            };
            self.update(subscription::Column::Id, row.id, Some(off))
                .await?;
            let user = name_of(&self.user_ids, row.user_id);
            let group = name_of(&self.group_ids, row.group_id);
            let removed = format!("subscriptions/{user}/{group}");
            self.report.removed.push(removed);
        }
        let rows = held.channels.values().filter(|row| row.enabled);
        self.disable(
            "channels",
            rows.map(|row| (row.id, &row.name)),
            resources.channels.iter().map(|r| &r.name),
            channel::Column::Id,
            channel::ActiveModel {
                enabled: Set(false),
                ..Default::default()
            },
        )
        .await?;
        let rows = held.error_rules.values().filter(|row| row.enabled);
        self.disable(
            "error_passthrough_rules",
            rows.map(|row| (row.id, &row.name)),
            resources.error_passthrough_rules.iter().map(|r| &r.name),
            error_rule::Column::Id,
            error_rule::ActiveModel {
                enabled: Set(false),
                ..Default::default()
            },
        )
        .await?;
        for model in held.prices.keys() {
            if !resources.prices.contains_key(model) {
                price_override::Entity::delete_many()
                    .filter(price_override::Column::Model.eq(model.as_str()))
                    .exec(self.txn)
                    .await?;
                self.report.removed.push(format!("prices/{model}"));
            }
        }
        Ok(())
    }

    /// Writes `off` to every enabled row that is not named.
    async fn disable<A: ActiveModelTrait>(
        &mut self,
        kind: &str,
        enabled: impl Iterator<Item = (i64, &String)>,
        named: impl Iterator<Item = &String>,
        id_column: <A::Entity as EntityTrait>::Column,
        off: A,
    ) -> Result<(), StorageError> {
        let named: HashSet<&String> = named.collect();
        for (id, name) in enabled.filter(|(_, name)| !named.contains(name)) {
            self.update(id_column, id, Some(off.clone())).await?;
            self.report.removed.push(format!("{kind}/{name}"));
        }
        Ok(())
    }
}

/// The name of an id, which foreign keys see to that there is.
fn name_of(ids: &HashMap<String, i64>, id: i64) -> &str {
    let found = ids.iter().find(|(_, its_id)| **its_id == id);
    found.map_or("", |(name, _)| name)
}
