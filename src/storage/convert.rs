//! Between rows and domain types. A row that does not fit is [`StorageError::Corrupt`].

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::de::DeserializeOwned;
use tollgate_filters::passthrough::{MatchMode, Rule};

use super::StorageError;
use super::entities::{channel, error_rule, price_override};
use super::seal::Sealer;
use crate::domain::price::ModelPrice;
use crate::domain::{
    AccountType, BillingModelSource, Channel, ChannelId, Credentials, GroupId, ModelMapping, Money,
    Multiplier, Platform, Secret, SubscriptionStatus, SubscriptionType,
};

/// Milliseconds since 1970 UTC.
pub(super) fn millis(time: DateTime<Utc>) -> i64 {
    time.timestamp_millis()
}

/// This moment as it is stored.
pub(super) fn now_millis() -> i64 {
    millis(Utc::now())
}

/// A stored time.
pub(super) fn time(millis: i64) -> Result<DateTime<Utc>, StorageError> {
    DateTime::from_timestamp_millis(millis).ok_or_else(|| corrupt("a time", &millis))
}

/// A stored time that may be missing.
pub(super) fn optional_time(millis: Option<i64>) -> Result<Option<DateTime<Utc>>, StorageError> {
    millis.map(time).transpose()
}

/// A count, multiplier or limit that is never negative.
pub(super) fn whole<T: TryFrom<i64>>(value: i64) -> Result<T, StorageError> {
    T::try_from(value).map_err(|_| corrupt("a number", &value))
}

/// Millionths as stored. The domain bounds multipliers far below `i64::MAX`.
pub(super) fn millionths(multiplier: Multiplier) -> i64 {
    i64::try_from(multiplier.0).unwrap_or(i64::MAX)
}

/// A stored multiplier.
pub(super) fn multiplier(millionths: i64) -> Result<Multiplier, StorageError> {
    whole(millionths).map(Multiplier)
}

/// Nano-dollars as stored.
pub(super) fn nanos(amount: Option<Money>) -> Option<i64> {
    amount.map(|amount| amount.0)
}

/// A platform by its stored name.
pub(super) fn platform(name: &str) -> Result<Platform, StorageError> {
    Platform::parse(name).ok_or_else(|| corrupt("a platform", &name))
}

/// An account type by its stored name.
pub(super) fn account_type(name: &str) -> Result<AccountType, StorageError> {
    [
        AccountType::ApiKey,
        AccountType::Oauth,
        AccountType::SetupToken,
        AccountType::Upstream,
    ]
    .into_iter()
    .find(|t| t.as_str() == name)
    .ok_or_else(|| corrupt("an account type", &name))
}

/// The stored name of a subscription type.
pub(super) fn subscription_name(kind: SubscriptionType) -> &'static str {
    match kind {
        SubscriptionType::Standard => "standard",
        SubscriptionType::Subscription => "subscription",
    }
}

/// A subscription type by its stored name.
pub(super) fn subscription_type(name: &str) -> Result<SubscriptionType, StorageError> {
    [SubscriptionType::Standard, SubscriptionType::Subscription]
        .into_iter()
        .find(|t| subscription_name(*t) == name)
        .ok_or_else(|| corrupt("a subscription type", &name))
}

/// A subscription's status by its stored name.
pub(super) fn subscription_status(name: &str) -> Result<SubscriptionStatus, StorageError> {
    [
        SubscriptionStatus::Active,
        SubscriptionStatus::Suspended,
        SubscriptionStatus::Expired,
    ]
    .into_iter()
    .find(|status| status.as_str() == name)
    .ok_or_else(|| corrupt("a subscription's status", &name))
}

/// What a channel's `options` hold.
#[derive(serde::Serialize, serde::Deserialize)]
pub(super) struct ChannelOptions {
    pub(super) model_mapping: BTreeMap<Platform, BTreeMap<String, String>>,
    pub(super) restrict_models: bool,
    pub(super) billing_model_source: BillingModelSource,
}

/// A channel from its row and the ids of its groups.
pub(super) fn channel(row: channel::Model, groups: Vec<GroupId>) -> Result<Channel, StorageError> {
    let options: ChannelOptions = from_json(&row.options)?;
    let mapping = options.model_mapping.into_iter();
    Ok(Channel {
        id: ChannelId(row.id),
        enabled: row.enabled,
        groups,
        model_mapping: mapping
            .map(|(platform, pairs)| (platform, ModelMapping::new(pairs)))
            .collect(),
        restrict_models: options.restrict_models,
        billing_model_source: options.billing_model_source,
        prices: from_json(&row.prices)?,
        name: row.name,
    })
}

/// A value as JSON text. Maps and lists of strings and JSON values always serialise.
pub(super) fn to_json<T: serde::Serialize>(value: &T) -> Result<String, StorageError> {
    serde_json::to_string(value).map_err(|e| StorageError::Corrupt(e.to_string()))
}

/// A value from JSON text.
pub(super) fn from_json<T: DeserializeOwned>(text: &str) -> Result<T, StorageError> {
    serde_json::from_str(text).map_err(|e| corrupt("JSON", &e.to_string()))
}

/// A list of strings; the empty list, by far the commonest, without parsing.
pub(super) fn strings(text: &str) -> Result<Vec<String>, StorageError> {
    if text == "[]" {
        return Ok(Vec::new());
    }
    from_json(text)
}

/// What is sealed of an account: the whole credential, its address included, so that nobody who
/// can only write to the file can send a provider key elsewhere.
#[derive(serde::Serialize, serde::Deserialize)]
struct SealedCredentials {
    api_key: String,
    base_url: Option<String>,
    other: BTreeMap<String, String>,
}

/// Seals a credential.
pub(super) fn seal_credentials(
    sealer: &Sealer,
    credentials: &Credentials,
) -> Result<Vec<u8>, StorageError> {
    let plain = SealedCredentials {
        api_key: credentials.api_key.expose().to_owned(),
        base_url: credentials.base_url.clone(),
        other: credentials
            .other
            .iter()
            .map(|(name, value)| (name.clone(), value.expose().to_owned()))
            .collect(),
    };
    sealer.seal(to_json(&plain)?.as_bytes())
}

/// Opens the credential of the account `name`.
pub(super) fn unseal_credentials(
    sealer: &Sealer,
    sealed: &[u8],
    name: &str,
) -> Result<Credentials, StorageError> {
    let what = format!("the credential of accounts/{name}");
    let plain = sealer.unseal(sealed, &what)?;
    // The parser's message could quote a secret, so it is not passed on.
    let plain: SealedCredentials =
        serde_json::from_slice(&plain).map_err(|_| StorageError::Corrupt(what))?;
    Ok(Credentials {
        api_key: Secret::new(plain.api_key),
        base_url: plain.base_url,
        other: plain
            .other
            .into_iter()
            .map(|(name, value)| (name, Secret::new(value)))
            .collect(),
    })
}

/// Opens the egress proxy URL of the account `name`.
pub(super) fn unseal_proxy(
    sealer: &Sealer,
    sealed: Option<&[u8]>,
    name: &str,
) -> Result<Option<Secret>, StorageError> {
    let Some(sealed) = sealed else {
        return Ok(None);
    };
    let what = format!("the proxy of accounts/{name}");
    let plain = sealer.unseal(sealed, &what)?;
    let text = String::from_utf8(plain).map_err(|_| StorageError::Corrupt(what))?;
    Ok(Some(Secret::new(text)))
}

/// The stored name of a match mode.
pub(super) fn match_mode_name(mode: MatchMode) -> &'static str {
    match mode {
        MatchMode::Any => "any",
        MatchMode::All => "all",
    }
}

/// An error passthrough rule from its row.
pub(super) fn error_rule(row: error_rule::Model) -> Result<Rule, StorageError> {
    Ok(Rule {
        enabled: row.enabled,
        priority: whole(row.priority)?,
        error_codes: from_json(&row.error_codes)?,
        keywords: from_json(&row.keywords)?,
        match_mode: [MatchMode::Any, MatchMode::All]
            .into_iter()
            .find(|mode| match_mode_name(*mode) == row.match_mode)
            .ok_or_else(|| corrupt("a match mode", &row.match_mode))?,
        platforms: strings(&row.platforms)?,
        passthrough_code: row.passthrough_code,
        response_code: row.response_code.map(whole).transpose()?,
        passthrough_body: row.passthrough_body,
        custom_message: row.custom_message,
        skip_monitoring: row.skip_monitoring,
        description: row.description,
        name: row.name,
    })
}

/// A price override as a row.
pub(super) fn price_row(
    model: &str,
    price: &ModelPrice,
) -> Result<price_override::Model, StorageError> {
    Ok(price_override::Model {
        model: model.to_owned(),
        price: to_json(price)?,
    })
}

/// A price override from its row.
pub(super) fn price(row: &price_override::Model) -> Result<ModelPrice, StorageError> {
    from_json(&row.price)
}

fn corrupt(what: &str, value: &dyn std::fmt::Debug) -> StorageError {
    StorageError::Corrupt(format!("{what}: {value:?}"))
}
