//! From rows to views, with a few bulk queries each.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use sea_orm::{
    ColumnTrait, DatabaseTransaction, EntityTrait, QueryFilter, QueryOrder, QuerySelect,
};

use super::paid::windows_shown;
use super::{
    AccountView, ConditionView, GroupView, KeyView, RateLimitsView, RuleView, SessionWindowView,
    UserView,
};
use crate::domain::account::Intent;
use crate::domain::account::seen_window::{Permille, SeenWindow};
use crate::domain::egress::EgressProxy;
use crate::domain::{
    AccountId, AccountStatus, ApiKeyId, ApiKeyStatus, Condition, KEY_WINDOWS, ModelMapping, Money,
    Multiplier, Secret, UserId, Window,
};
use crate::storage::convert::{
    account_type, error_rule, from_json, match_mode_name, multiplier, optional_time, platform,
    strings, subscription_type, time, unseal_credentials, unseal_proxy, whole,
};
use crate::storage::entities::{
    account, account_group, api_key, error_rule as rule, group, user, user_multiplier,
};
use crate::storage::{StorageError, Store, conditions, session_windows};

impl Store {
    /// Groups in name order: all, or the one of this name (an empty list if there is none).
    ///
    /// # Errors
    /// [`StorageError`] when the database cannot be read.
    pub async fn list_groups(&self, name: Option<&str>) -> Result<Vec<GroupView>, StorageError> {
        let txn = self.begin_read().await?;
        let mut query = group::Entity::find().order_by_asc(group::Column::Name);
        if let Some(name) = name {
            query = query.filter(group::Column::Name.eq(name));
        }
        let rows = query.all(&txn).await?;
        let names = account_names(&txn).await?;
        let mut accounts = links(&txn, |link| (link.group_id, link.account_id), &names).await?;
        txn.rollback().await?;
        rows.into_iter()
            .map(|row| {
                Ok(GroupView {
                    enabled: row.enabled,
                    platform: platform(&row.platform)?,
                    rate_multiplier: row.rate_multiplier_millionths.map(multiplier).transpose()?,
                    subscription_type: subscription_type(&row.subscription_type)?,
                    daily_limit_usd: row.daily_limit_nanos.map(Money),
                    weekly_limit_usd: row.weekly_limit_nanos.map(Money),
                    monthly_limit_usd: row.monthly_limit_nanos.map(Money),
                    rpm_limit: whole(row.rpm_limit)?,
                    options: from_json(&row.options)?,
                    accounts: accounts.remove(&row.id).unwrap_or_default(),
                    created_at: time(row.created_at)?,
                    name: row.name,
                })
            })
            .collect()
    }

    /// Accounts in name order, their status as of `now`: all, or the one of this name (an empty
    /// list if there is none).
    ///
    /// # Errors
    /// [`StorageError`] when the database cannot be read or a credential not be unsealed.
    pub async fn list_accounts(
        &self,
        name: Option<&str>,
        now: DateTime<Utc>,
    ) -> Result<Vec<AccountView>, StorageError> {
        let txn = self.begin_read().await?;
        let mut query = account::Entity::find().order_by_asc(account::Column::Name);
        if let Some(name) = name {
            query = query.filter(account::Column::Name.eq(name));
        }
        let rows = query.all(&txn).await?;
        let names = group_names(&txn).await?;
        let mut groups = links(&txn, |link| (link.account_id, link.group_id), &names).await?;
        let mut conditions = conditions::by_account(&txn).await?;
        let mut windows = session_windows::by_account(&txn).await?;
        txn.rollback().await?;
        rows.into_iter()
            .map(|row| {
                let resumed_at = optional_time(row.resumed_at)?;
                let mut conditions = conditions.remove(&AccountId(row.id)).unwrap_or_default();
                conditions.retain(|c| c.holds(now) && resumed_at.is_none_or(|at| c.since >= at));
                let intent = Intent {
                    enabled: row.enabled,
                    paused: row.paused,
                    schedulable: row.schedulable,
                    expires_at: optional_time(row.expires_at)?,
                };
                let (status, until) = AccountStatus::of(intent, &conditions, now);
                let sealed = row.proxy_sealed.as_deref();
                let proxy = unseal_proxy(&self.inner.sealer, sealed, &row.name)?;
                let credentials =
                    unseal_credentials(&self.inner.sealer, &row.credentials_sealed, &row.name)?;
                Ok(AccountView {
                    status,
                    until,
                    conditions: conditions.into_iter().map(shown).collect(),
                    session_window: windows.remove(&AccountId(row.id)).map(window_shown),
                    enabled: row.enabled,
                    platform: platform(&row.platform)?,
                    account_type: account_type(&row.account_type)?,
                    base_url: credentials.base_url.as_deref().map(without_userinfo),
                    credential_set: !credentials.api_key.is_empty()
                        || !credentials.other.is_empty(),
                    groups: groups.remove(&row.id).unwrap_or_default(),
                    concurrency: whole(row.concurrency)?,
                    priority: whole(row.priority)?,
                    model_mapping: ModelMapping::new(from_json(&row.model_mapping)?),
                    rate_multiplier: multiplier(row.rate_multiplier_millionths)?,
                    load_factor: row.load_factor.map(whole).transpose()?,
                    schedulable: row.schedulable,
                    paused: row.paused,
                    resumed_at,
                    expires_at: intent.expires_at,
                    proxy_set: proxy.is_some(),
                    proxy: proxy.map(|address| proxy_shown(&address)),
                    extra: from_json(&row.extra)?,
                    created_at: time(row.created_at)?,
                    name: row.name,
                })
            })
            .collect()
    }

    /// Error passthrough rules in the order in which they are asked: all, or the one of this name
    /// (an empty list if there is none).
    ///
    /// # Errors
    /// [`StorageError`] when the database or a row cannot be read.
    pub async fn list_rules(&self, name: Option<&str>) -> Result<Vec<RuleView>, StorageError> {
        let mut query = rule::Entity::find()
            .order_by_asc(rule::Column::Priority)
            .order_by_asc(rule::Column::Name);
        if let Some(name) = name {
            query = query.filter(rule::Column::Name.eq(name));
        }
        let rows = query.all(&self.inner.pools.reader).await?;
        rows.into_iter()
            .map(|row| {
                let created_at = time(row.created_at)?;
                let rule = error_rule(row)?;
                Ok(RuleView {
                    name: rule.name,
                    enabled: rule.enabled,
                    priority: rule.priority,
                    error_codes: rule.error_codes,
                    keywords: rule.keywords,
                    match_mode: match_mode_name(rule.match_mode),
                    platforms: rule.platforms,
                    passthrough_code: rule.passthrough_code,
                    response_code: rule.response_code,
                    passthrough_body: rule.passthrough_body,
                    custom_message: rule.custom_message,
                    skip_monitoring: rule.skip_monitoring,
                    description: rule.description,
                    created_at,
                })
            })
            .collect()
    }

    /// Users in name order: all, or the one of this name (an empty list if there is none). `reserved`
    /// is what running requests hold of whose money: the store knows of none.
    ///
    /// # Errors
    /// [`StorageError`] when the database cannot be read.
    pub async fn list_users(
        &self,
        name: Option<&str>,
        reserved: &HashMap<UserId, Money>,
    ) -> Result<Vec<UserView>, StorageError> {
        let txn = self.begin_read().await?;
        let mut query = user::Entity::find().order_by_asc(user::Column::Name);
        if let Some(name) = name {
            query = query.filter(user::Column::Name.eq(name));
        }
        let rows = query.all(&txn).await?;
        let groups = group_names(&txn).await?;
        let mut multipliers: HashMap<i64, BTreeMap<String, Multiplier>> = HashMap::new();
        for row in user_multiplier::Entity::find().all(&txn).await? {
            if let Some(name) = groups.get(&row.group_id) {
                multipliers
                    .entry(row.user_id)
                    .or_default()
                    .insert(name.clone(), multiplier(row.multiplier_millionths)?);
            }
        }
        txn.rollback().await?;
        rows.into_iter()
            .map(|row| {
                let balance = Money(row.balance_nanos);
                let reserved = reserved.get(&UserId(row.id)).copied().unwrap_or_default();
                Ok(UserView {
                    enabled: row.enabled,
                    balance,
                    reserved,
                    available: balance - reserved,
                    concurrency: whole(row.concurrency)?,
                    rpm_limit: whole(row.rpm_limit)?,
                    group_multipliers: multipliers.remove(&row.id).unwrap_or_default(),
                    created_at: time(row.created_at)?,
                    name: row.name,
                })
            })
            .collect()
    }

    /// Keys in name order, their status as of `now`: all, or the one of this name (an empty list
    /// if there is none).
    ///
    /// # Errors
    /// [`StorageError`] when the database cannot be read.
    pub async fn list_keys(
        &self,
        name: Option<&str>,
        now: DateTime<Utc>,
        tz: Tz,
    ) -> Result<Vec<KeyView>, StorageError> {
        let used: HashMap<ApiKeyId, [Window; 3]> = self.key_windows().await?.into_iter().collect();
        let txn = self.begin_read().await?;
        let mut query = api_key::Entity::find().order_by_asc(api_key::Column::Name);
        if let Some(name) = name {
            query = query.filter(api_key::Column::Name.eq(name));
        }
        let rows = query.all(&txn).await?;
        let groups = group_names(&txn).await?;
        let users = user_names(&txn).await?;
        txn.rollback().await?;
        rows.into_iter()
            .map(|row| {
                let expires_at = optional_time(row.expires_at)?;
                Ok(KeyView {
                    hint: row.hint,
                    user: row.user_id.and_then(|id| users.get(&id).cloned()),
                    group: row.group_id.and_then(|id| groups.get(&id).cloned()),
                    status: if !row.enabled {
                        ApiKeyStatus::Disabled
                    } else if expires_at.is_some_and(|end| end <= now) {
                        ApiKeyStatus::Expired
                    } else if row.quota_nanos.is_some_and(|q| row.quota_used_nanos >= q) {
                        ApiKeyStatus::QuotaExhausted
                    } else {
                        ApiKeyStatus::Active
                    },
                    quota: row.quota_nanos.map(Money),
                    quota_used: Money(row.quota_used_nanos),
                    rate_limits: RateLimitsView {
                        five_hours: row.rate_limit_5h_nanos.map(Money),
                        one_day: row.rate_limit_1d_nanos.map(Money),
                        seven_days: row.rate_limit_7d_nanos.map(Money),
                    },
                    windows: windows_shown(
                        KEY_WINDOWS,
                        used.get(&ApiKeyId(row.id)).copied().unwrap_or_default(),
                        [
                            row.rate_limit_5h_nanos,
                            row.rate_limit_1d_nanos,
                            row.rate_limit_7d_nanos,
                        ],
                        now,
                        tz,
                    ),
                    expires_at,
                    ip_allow: strings(&row.ip_allow)?,
                    ip_deny: strings(&row.ip_deny)?,
                    created_at: time(row.created_at)?,
                    name: row.name,
                })
            })
            .collect()
    }
}

fn window_shown(window: SeenWindow) -> SessionWindowView {
    SessionWindowView {
        status: window.status.as_str(),
        starts_at: window.span.map(|span| span.start),
        ends_at: window.span.map(|span| span.end),
        used_percent: window.used.map(Permille::percent),
        week_used_percent: window.week_used.map(Permille::percent),
        seen_at: window.seen_at,
    }
}

fn shown(condition: Condition) -> ConditionView {
    ConditionView {
        kind: condition.kind,
        model: condition.model,
        since: condition.since,
        until: condition.until,
        status: condition.status,
        reason: condition.reason,
    }
}

pub(super) async fn group_names(
    txn: &DatabaseTransaction,
) -> Result<HashMap<i64, String>, StorageError> {
    let rows: Vec<(i64, String)> = group::Entity::find()
        .select_only()
        .columns([group::Column::Id, group::Column::Name])
        .into_tuple()
        .all(txn)
        .await?;
    Ok(rows.into_iter().collect())
}

async fn account_names(txn: &DatabaseTransaction) -> Result<HashMap<i64, String>, StorageError> {
    let rows: Vec<(i64, String)> = account::Entity::find()
        .select_only()
        .columns([account::Column::Id, account::Column::Name])
        .into_tuple()
        .all(txn)
        .await?;
    Ok(rows.into_iter().collect())
}

pub(super) async fn user_names(
    txn: &DatabaseTransaction,
) -> Result<HashMap<i64, String>, StorageError> {
    let rows: Vec<(i64, String)> = user::Entity::find()
        .select_only()
        .columns([user::Column::Id, user::Column::Name])
        .into_tuple()
        .all(txn)
        .await?;
    Ok(rows.into_iter().collect())
}

/// The sorted names at the far end of the links between accounts and groups; `ends` gives the near
/// and the far id of one.
async fn links(
    txn: &DatabaseTransaction,
    ends: fn(&account_group::Model) -> (i64, i64),
    names: &HashMap<i64, String>,
) -> Result<HashMap<i64, Vec<String>>, StorageError> {
    let mut lists: HashMap<i64, Vec<String>> = HashMap::new();
    for link in account_group::Entity::find().all(txn).await? {
        let (near, far) = ends(&link);
        if let Some(name) = names.get(&far) {
            lists.entry(near).or_default().push(name.clone());
        }
    }
    for list in lists.values_mut() {
        list.sort();
    }
    Ok(lists)
}

/// A URL without the `user:password@` that it may carry.
fn without_userinfo(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at(end);
    let host = authority
        .rsplit_once('@')
        .map_or(authority, |(_, host)| host);
    format!("{scheme}://{host}{tail}")
}

/// An egress proxy without user name and password.
fn proxy_shown(address: &Secret) -> String {
    EgressProxy::parse(address.expose())
        .map_or_else(|_| "(not readable)".to_owned(), |proxy| proxy.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_in_a_url_is_not_shown() {
        for (url, shown) in [
            ("https://api.openai.com", "https://api.openai.com"),
            (
                "https://u:p@host:8443/v1?a=b@c",
                "https://host:8443/v1?a=b@c",
            ),
            ("http://u@p@host", "http://host"),
            ("https://host/path@x", "https://host/path@x"),
            ("not a url", "not a url"),
        ] {
            assert_eq!(without_userinfo(url), shown);
        }
        for (url, shown) in [
            ("socks5h://proxy", "socks5://proxy:1080"),
            ("http://u:p@proxy", "http://proxy:80"),
            ("http://u:p/w@x@h:80", "(not readable)"),
            ("u:p", "(not readable)"),
        ] {
            assert_eq!(proxy_shown(&Secret::new(url)), shown);
        }
    }
}
