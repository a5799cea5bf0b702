//! What the server reads: the whole configuration as one consistent [`Directory`], and the sums
//! that change with every request. A handful of bulk queries, whatever the number of objects.

use std::collections::HashMap;

use sea_orm::{DatabaseTransaction, EntityTrait, QueryOrder, QuerySelect};
use tollgate_filters::passthrough::Rule;

use super::convert::{
    account_type, channel as channel_from_row, error_rule, from_json, multiplier, optional_time,
    platform, price, strings, subscription_status, subscription_type, time, unseal_credentials,
    unseal_proxy, whole,
};
use super::entities::{
    account, account_group, api_key, channel, channel_group, error_rule as rule, group,
    price_override, subscription, user, user_multiplier,
};
use super::seal::Sealer;
use super::{StorageError, Store, meta};
use crate::domain::account::options;
use crate::domain::price::PriceMap;
use crate::domain::{
    Account, AccountId, ApiKey, ApiKeyId, ApiKeyStatus, Channel, Directory, Group, GroupId,
    KeyHash, Money, Multiplier, Objects, Subscription, SubscriptionId, SubscriptionStatus, User,
    UserId, UserStatus,
};

impl Store {
    /// Everything configured, as of one moment, credentials unsealed. A group that names no
    /// multiplier gets `default_multiplier`. A key's status is `Active` or `Disabled` here: expiry
    /// and quota are for the caller to check, with its clock and the current spend.
    ///
    /// # Errors
    /// [`StorageError::Sealed`] or [`StorageError::Corrupt`] when a row cannot be read.
    pub async fn load_directory(
        &self,
        default_multiplier: Multiplier,
    ) -> Result<Directory, StorageError> {
        let txn = self.begin_read().await?;
        let version = meta::version(&txn).await?;
        let groups = groups(&txn, default_multiplier).await?;
        let accounts = accounts(&txn, &self.inner.sealer).await?;
        let users = users(&txn).await?;
        let keys = keys(&txn).await?;
        let subscriptions = subscriptions(&txn).await?;
        let channels = channels(&txn).await?;
        let rules = error_rules(&txn).await?;
        let prices = price_overrides(&txn).await?;
        txn.rollback().await?;
        Ok(Directory::new(Objects {
            version,
            groups,
            accounts,
            users,
            keys,
            subscriptions,
            channels,
            error_rules: rules,
            price_overrides: prices,
        }))
    }

    /// Every user's balance.
    ///
    /// # Errors
    /// [`StorageError`] when the database cannot be read.
    pub async fn balances(&self) -> Result<Vec<(UserId, Money)>, StorageError> {
        let rows: Vec<(i64, i64)> = user::Entity::find()
            .select_only()
            .columns([user::Column::Id, user::Column::BalanceNanos])
            .into_tuple()
            .all(&self.inner.pools.reader)
            .await?;
        Ok(rows
            .into_iter()
            .map(|(id, nanos)| (UserId(id), Money(nanos)))
            .collect())
    }

    /// What every key has used of its whole-life quota.
    ///
    /// # Errors
    /// [`StorageError`] when the database cannot be read.
    pub async fn key_spend(&self) -> Result<Vec<(ApiKeyId, Money)>, StorageError> {
        let rows: Vec<(i64, i64)> = api_key::Entity::find()
            .select_only()
            .columns([api_key::Column::Id, api_key::Column::QuotaUsedNanos])
            .into_tuple()
            .all(&self.inner.pools.reader)
            .await?;
        Ok(rows
            .into_iter()
            .map(|(id, nanos)| (ApiKeyId(id), Money(nanos)))
            .collect())
    }
}

async fn groups(
    txn: &DatabaseTransaction,
    default_multiplier: Multiplier,
) -> Result<Vec<Group>, StorageError> {
    let rows = group::Entity::find().all(txn).await?;
    rows.into_iter()
        .map(|row| {
            Ok(Group {
                id: GroupId(row.id),
                enabled: row.enabled,
                platform: platform(&row.platform)?,
                rate_multiplier: match row.rate_multiplier_millionths {
                    Some(millionths) => multiplier(millionths)?,
                    None => default_multiplier,
                },
                subscription_type: subscription_type(&row.subscription_type)?,
                daily_limit: row.daily_limit_nanos.map(Money),
                weekly_limit: row.weekly_limit_nanos.map(Money),
                monthly_limit: row.monthly_limit_nanos.map(Money),
                rpm_limit: whole(row.rpm_limit)?,
                options: from_json(&row.options)?,
                name: row.name,
            })
        })
        .collect()
}

async fn accounts(
    txn: &DatabaseTransaction,
    sealer: &Sealer,
) -> Result<Vec<Account>, StorageError> {
    let mut groups: HashMap<i64, Vec<GroupId>> = HashMap::new();
    let links = account_group::Entity::find()
        .order_by_asc(account_group::Column::GroupId)
        .all(txn)
        .await?;
    for link in links {
        groups
            .entry(link.account_id)
            .or_default()
            .push(GroupId(link.group_id));
    }
    let rows = account::Entity::find().all(txn).await?;
    rows.into_iter()
        .map(|row| {
            let extra = from_json(&row.extra)?;
            Ok(Account {
                id: AccountId(row.id),
                enabled: row.enabled,
                platform: platform(&row.platform)?,
                account_type: account_type(&row.account_type)?,
                credentials: unseal_credentials(sealer, &row.credentials_sealed, &row.name)?,
                groups: groups.remove(&row.id).unwrap_or_default(),
                concurrency: whole(row.concurrency)?,
                priority: whole(row.priority)?,
                model_mapping: crate::domain::ModelMapping::new(from_json(&row.model_mapping)?),
                rate_multiplier: multiplier(row.rate_multiplier_millionths)?,
                load_factor: row.load_factor.map(whole).transpose()?,
                schedulable: row.schedulable,
                expires_at: optional_time(row.expires_at)?,
                proxy: unseal_proxy(sealer, row.proxy_sealed.as_deref(), &row.name)?,
                error_policy: understood(&row.name, options::error_policy(&extra)),
                quota: understood(&row.name, options::account_quota(&extra)),
                soft_limits: understood(&row.name, options::soft_limits(&extra)),
                habits: understood(&row.name, options::habits(&extra)),
                extra,
                paused: row.paused,
                resumed_at: optional_time(row.resumed_at)?,
                name: row.name,
            })
        })
        .collect()
}

/// What an account's options say. What cannot be read (an earlier version stored options as they were
/// written) is said and left out: the account goes on without it.
fn understood<T>(name: &str, (read, problems): (T, Vec<String>)) -> T {
    for problem in problems {
        log::warn!("accounts/{name}: extra.{problem}; left out");
    }
    read
}

async fn users(txn: &DatabaseTransaction) -> Result<Vec<User>, StorageError> {
    let mut multipliers: HashMap<i64, HashMap<GroupId, Multiplier>> = HashMap::new();
    for row in user_multiplier::Entity::find().all(txn).await? {
        multipliers.entry(row.user_id).or_default().insert(
            GroupId(row.group_id),
            multiplier(row.multiplier_millionths)?,
        );
    }
    let rows = user::Entity::find().all(txn).await?;
    rows.into_iter()
        .map(|row| {
            Ok(User {
                id: UserId(row.id),
                status: if row.enabled {
                    UserStatus::Active
                } else {
                    UserStatus::Disabled
                },
                concurrency: whole(row.concurrency)?,
                rpm_limit: whole(row.rpm_limit)?,
                group_multipliers: multipliers.remove(&row.id).unwrap_or_default(),
                name: row.name,
            })
        })
        .collect()
}

async fn keys(txn: &DatabaseTransaction) -> Result<Vec<ApiKey>, StorageError> {
    let rows = api_key::Entity::find().all(txn).await?;
    rows.into_iter()
        .map(|row| {
            let hash = row.key_hash.try_into().map_err(|_| {
                StorageError::Corrupt(format!("the key hash of api_keys/{}", row.name))
            })?;
            Ok(ApiKey {
                id: ApiKeyId(row.id),
                hash: KeyHash(hash),
                hint: row.hint,
                user: row.user_id.map(UserId),
                group: row.group_id.map(GroupId),
                status: if row.enabled {
                    ApiKeyStatus::Active
                } else {
                    ApiKeyStatus::Disabled
                },
                quota: row.quota_nanos.map(Money),
                rate_limits: [
                    row.rate_limit_5h_nanos.map(Money),
                    row.rate_limit_1d_nanos.map(Money),
                    row.rate_limit_7d_nanos.map(Money),
                ],
                expires_at: optional_time(row.expires_at)?,
                ip_allow: strings(&row.ip_allow)?,
                ip_deny: strings(&row.ip_deny)?,
                name: row.name,
            })
        })
        .collect()
}

/// A disabled one is suspended, whatever its status.
async fn subscriptions(txn: &DatabaseTransaction) -> Result<Vec<Subscription>, StorageError> {
    let rows = subscription::Entity::find().all(txn).await?;
    rows.into_iter()
        .map(|row| {
            Ok(Subscription {
                id: SubscriptionId(row.id),
                user: UserId(row.user_id),
                group: GroupId(row.group_id),
                starts_at: time(row.starts_at)?,
                expires_at: time(row.expires_at)?,
                status: if row.enabled {
                    subscription_status(&row.status)?
                } else {
                    SubscriptionStatus::Suspended
                },
            })
        })
        .collect()
}

async fn channels(txn: &DatabaseTransaction) -> Result<Vec<Channel>, StorageError> {
    let mut groups: HashMap<i64, Vec<GroupId>> = HashMap::new();
    let links = channel_group::Entity::find()
        .order_by_asc(channel_group::Column::GroupId)
        .all(txn)
        .await?;
    for link in links {
        let groups = groups.entry(link.channel_id).or_default();
        groups.push(GroupId(link.group_id));
    }
    let rows = channel::Entity::find().all(txn).await?;
    rows.into_iter()
        .map(|row| {
            let groups = groups.remove(&row.id).unwrap_or_default();
            channel_from_row(row, groups)
        })
        .collect()
}

async fn error_rules(txn: &DatabaseTransaction) -> Result<Vec<Rule>, StorageError> {
    let rows = rule::Entity::find().all(txn).await?;
    rows.into_iter().map(error_rule).collect()
}

async fn price_overrides(txn: &DatabaseTransaction) -> Result<PriceMap, StorageError> {
    let rows = price_override::Entity::find().all(txn).await?;
    rows.into_iter()
        .map(|row| Ok((row.model.clone(), price(&row)?)))
        .collect()
}
