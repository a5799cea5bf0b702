//! What the store holds before an apply, by name.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use sea_orm::{DatabaseTransaction, EntityTrait};

use crate::storage::StorageError;
use crate::storage::entities::{
    account, account_group, api_key, channel, channel_group, error_rule, group, price_override,
    subscription, user, user_multiplier,
};

/// Every configured row, by name (prices by model), and the relations by the owner's id.
pub(super) struct Held {
    pub(super) groups: BTreeMap<String, group::Model>,
    pub(super) accounts: BTreeMap<String, account::Model>,
    pub(super) users: BTreeMap<String, user::Model>,
    pub(super) api_keys: BTreeMap<String, api_key::Model>,
    /// By user id and group id.
    pub(super) subscriptions: BTreeMap<(i64, i64), subscription::Model>,
    pub(super) channels: BTreeMap<String, channel::Model>,
    pub(super) error_rules: BTreeMap<String, error_rule::Model>,
    pub(super) prices: BTreeMap<String, price_override::Model>,
    /// Account id → ids of its groups.
    pub(super) account_groups: HashMap<i64, BTreeSet<i64>>,
    /// Channel id → ids of its groups.
    pub(super) channel_groups: HashMap<i64, BTreeSet<i64>>,
    /// User id → group id → multiplier in millionths.
    pub(super) multipliers: HashMap<i64, BTreeMap<i64, i64>>,
}

impl Held {
    pub(super) async fn load(txn: &DatabaseTransaction) -> Result<Held, StorageError> {
        let mut account_groups: HashMap<i64, BTreeSet<i64>> = HashMap::new();
        for link in account_group::Entity::find().all(txn).await? {
            account_groups
                .entry(link.account_id)
                .or_default()
                .insert(link.group_id);
        }
        let mut channel_groups: HashMap<i64, BTreeSet<i64>> = HashMap::new();
        for link in channel_group::Entity::find().all(txn).await? {
            channel_groups
                .entry(link.channel_id)
                .or_default()
                .insert(link.group_id);
        }
        let subscriptions = subscription::Entity::find().all(txn).await?;
        let mut multipliers: HashMap<i64, BTreeMap<i64, i64>> = HashMap::new();
        for row in user_multiplier::Entity::find().all(txn).await? {
            multipliers
                .entry(row.user_id)
                .or_default()
                .insert(row.group_id, row.multiplier_millionths);
        }
        Ok(Held {
            groups: by_name(group::Entity::find().all(txn).await?, |r| &r.name),
            accounts: by_name(account::Entity::find().all(txn).await?, |r| &r.name),
            users: by_name(user::Entity::find().all(txn).await?, |r| &r.name),
            api_keys: by_name(api_key::Entity::find().all(txn).await?, |r| &r.name),
            subscriptions: subscriptions
                .into_iter()
                .map(|row| ((row.user_id, row.group_id), row))
                .collect(),
            channels: by_name(channel::Entity::find().all(txn).await?, |r| &r.name),
            error_rules: by_name(error_rule::Entity::find().all(txn).await?, |r| &r.name),
            prices: by_name(price_override::Entity::find().all(txn).await?, |r| &r.model),
            account_groups,
            channel_groups,
            multipliers,
        })
    }
}

fn by_name<M>(rows: Vec<M>, name: fn(&M) -> &String) -> BTreeMap<String, M> {
    rows.into_iter().map(|r| (name(&r).clone(), r)).collect()
}
