//! The row a resource wants. What the resource does not decide (ids, balances, spend, pauses) is
//! taken over from the held row, so that comparing the two shows exactly what the operator changed.

use tollgate_filters::passthrough::Rule;

use crate::config::resources::{
    AccountResource, ApiKeyResource, ChannelResource, GroupResource, SubscriptionResource,
    UserResource,
};
use crate::domain::{Money, Secret};
use crate::storage::convert::{
    ChannelOptions, match_mode_name, millionths, millis, nanos, seal_credentials,
    subscription_name, to_json, unseal_credentials, unseal_proxy,
};
use crate::storage::entities::{account, api_key, channel, error_rule, group, subscription, user};
use crate::storage::seal::{Sealer, hint};
use crate::storage::{KeyHasher, StorageError};

/// The row of a group.
pub(super) fn group(
    resource: &GroupResource,
    held: Option<&group::Model>,
    now: i64,
) -> Result<group::Model, StorageError> {
    Ok(group::Model {
        id: held.map_or(0, |row| row.id),
        name: resource.name.clone(),
        enabled: resource.enabled,
        platform: resource.platform.as_str().to_owned(),
        rate_multiplier_millionths: resource.rate_multiplier.map(millionths),
        subscription_type: subscription_name(resource.subscription_type).to_owned(),
        daily_limit_nanos: nanos(resource.daily_limit),
        weekly_limit_nanos: nanos(resource.weekly_limit),
        monthly_limit_nanos: nanos(resource.monthly_limit),
        rpm_limit: i64::from(resource.rpm_limit),
        options: to_json(&resource.options)?,
        created_at: held.map_or(now, |row| row.created_at),
    })
}

/// The row of an account. Sealing the same value twice gives different bytes, so what is already
/// held sealed is kept when it opens to the same.
pub(super) fn account(
    resource: &AccountResource,
    held: Option<&account::Model>,
    sealer: &Sealer,
    now: i64,
) -> Result<account::Model, StorageError> {
    Ok(account::Model {
        id: held.map_or(0, |row| row.id),
        name: resource.name.clone(),
        enabled: resource.enabled,
        platform: resource.platform.as_str().to_owned(),
        account_type: resource.account_type.as_str().to_owned(),
        credentials_sealed: credentials(resource, held, sealer)?,
        concurrency: i64::from(resource.concurrency),
        priority: i64::from(resource.priority),
        model_mapping: to_json(&resource.model_mapping)?,
        rate_multiplier_millionths: millionths(resource.rate_multiplier),
        load_factor: resource.load_factor.map(i64::from),
        schedulable: resource.schedulable,
        expires_at: resource.expires_at.map(millis),
        proxy_sealed: proxy(resource, held, sealer)?,
        extra: to_json(&resource.extra)?,
        paused: held.is_some_and(|row| row.paused),
        resumed_at: held.and_then(|row| row.resumed_at),
        created_at: held.map_or(now, |row| row.created_at),
    })
}

fn credentials(
    resource: &AccountResource,
    held: Option<&account::Model>,
    sealer: &Sealer,
) -> Result<Vec<u8>, StorageError> {
    if let Some(row) = held {
        let same = unseal_credentials(sealer, &row.credentials_sealed, &row.name)
            .is_ok_and(|credentials| credentials == resource.credentials);
        if same {
            return Ok(row.credentials_sealed.clone());
        }
    }
    seal_credentials(sealer, &resource.credentials)
}

fn proxy(
    resource: &AccountResource,
    held: Option<&account::Model>,
    sealer: &Sealer,
) -> Result<Option<Vec<u8>>, StorageError> {
    if let Some(row) = held {
        let same = unseal_proxy(sealer, row.proxy_sealed.as_deref(), &row.name)
            .is_ok_and(|proxy| proxy == resource.proxy);
        if same {
            return Ok(row.proxy_sealed.clone());
        }
    }
    resource
        .proxy
        .as_ref()
        .map(|url| sealer.seal(url.expose().as_bytes()))
        .transpose()
}

/// The row of a user. A new one starts at zero: its opening balance is posted to the ledger.
pub(super) fn user(resource: &UserResource, held: Option<&user::Model>, now: i64) -> user::Model {
    user::Model {
        id: held.map_or(0, |row| row.id),
        name: resource.name.clone(),
        enabled: resource.enabled,
        balance_nanos: held.map_or(0, |row| row.balance_nanos),
        concurrency: i64::from(resource.concurrency),
        rpm_limit: i64::from(resource.rpm_limit),
        created_at: held.map_or(now, |row| row.created_at),
    }
}

/// The row of a subscription. One that says nothing of its start starts when it is first applied.
pub(super) fn subscription(
    resource: &SubscriptionResource,
    held: Option<&subscription::Model>,
    (user_id, group_id): (i64, i64),
    now: i64,
) -> subscription::Model {
    let first_applied = held.map_or(now, |row| row.starts_at);
    subscription::Model {
        id: held.map_or(0, |row| row.id),
        user_id,
        group_id,
        starts_at: resource.starts_at.map_or(first_applied, millis),
        expires_at: millis(resource.expires_at),
        status: resource.status.as_str().to_owned(),
        enabled: resource.enabled,
        created_at: held.map_or(now, |row| row.created_at),
    }
}

/// The row of a channel.
pub(super) fn channel(
    resource: &ChannelResource,
    held: Option<&channel::Model>,
    now: i64,
) -> Result<channel::Model, StorageError> {
    let mapping = resource.model_mapping.iter();
    let options = ChannelOptions {
        model_mapping: mapping
            .map(|(platform, mapping)| {
                let pairs = mapping.iter();
                let pairs = pairs.map(|(model, name)| (model.to_owned(), name.to_owned()));
                (*platform, pairs.collect())
            })
            .collect(),
        restrict_models: resource.restrict_models,
        billing_model_source: resource.billing_model_source,
    };
    Ok(channel::Model {
        id: held.map_or(0, |row| row.id),
        name: resource.name.clone(),
        enabled: resource.enabled,
        options: to_json(&options)?,
        prices: to_json(&resource.prices)?,
        created_at: held.map_or(now, |row| row.created_at),
    })
}

/// The row of an error passthrough rule.
pub(super) fn error_rule(
    rule: &Rule,
    held: Option<&error_rule::Model>,
    now: i64,
) -> Result<error_rule::Model, StorageError> {
    Ok(error_rule::Model {
        id: held.map_or(0, |row| row.id),
        name: rule.name.clone(),
        enabled: rule.enabled,
        priority: i64::from(rule.priority),
        error_codes: to_json(&rule.error_codes)?,
        keywords: to_json(&rule.keywords)?,
        match_mode: match_mode_name(rule.match_mode).to_owned(),
        platforms: to_json(&rule.platforms)?,
        passthrough_code: rule.passthrough_code,
        response_code: rule.response_code.map(i64::from),
        passthrough_body: rule.passthrough_body,
        custom_message: rule.custom_message.clone(),
        skip_monitoring: rule.skip_monitoring,
        description: rule.description.clone(),
        created_at: held.map_or(now, |row| row.created_at),
    })
}

/// The row of a key. `text` is the key as given or as generated for a new one; `None` keeps what
/// is held.
pub(super) fn api_key(
    resource: &ApiKeyResource,
    held: Option<&api_key::Model>,
    text: Option<&Secret>,
    (user_id, group_id): (i64, Option<i64>),
    hasher: &KeyHasher,
    now: i64,
) -> Result<api_key::Model, StorageError> {
    let (key_hash, hint) = match (text, held) {
        (Some(text), _) => (hasher.hash(text.expose()).0.to_vec(), hint(text.expose())),
        (None, Some(row)) => (row.key_hash.clone(), row.hint.clone()),
        (None, None) => {
            let problem = format!("api_keys/{}: key: is missing", resource.name);
            return Err(StorageError::Invalid(vec![problem]));
        }
    };
    let [limit_5h, limit_1d, limit_7d]: [Option<Money>; 3] = resource.rate_limits;
    Ok(api_key::Model {
        id: held.map_or(0, |row| row.id),
        name: resource.name.clone(),
        enabled: resource.enabled,
        key_hash,
        hint,
        user_id: Some(user_id),
        group_id,
        quota_nanos: nanos(resource.quota),
        quota_used_nanos: held.map_or(0, |row| row.quota_used_nanos),
        rate_limit_5h_nanos: nanos(limit_5h),
        rate_limit_1d_nanos: nanos(limit_1d),
        rate_limit_7d_nanos: nanos(limit_7d),
        expires_at: resource.expires_at.map(millis),
        ip_allow: to_json(&resource.ip_allow)?,
        ip_deny: to_json(&resource.ip_deny)?,
        created_at: held.map_or(now, |row| row.created_at),
    })
}
