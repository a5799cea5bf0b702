//! The JSON of `GET /v1/usage` (SPEC 12.2), from what is known to what is written. Pure.

use chrono::{DateTime, Utc};
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use super::{Standing, WindowStanding};
use crate::domain::{
    ApiKey, ApiKeyStatus, Group, KEY_WINDOWS, Money, Subscription, SubscriptionType,
};
use crate::storage::{KeyStatistics, UsageSums};

/// All amounts are in it.
const UNIT: &str = "USD";
/// Where a key has limits of its own.
const QUOTA_LIMITED: &str = "quota_limited";
/// Where its user's money or subscription is the only limit.
const UNRESTRICTED: &str = "unrestricted";
/// The plan of who pays from a balance.
const WALLET: &str = "Wallet balance";
/// What is left where nothing is limited.
const UNLIMITED: Money = Money::from_usd(-1);

/// An amount as a JSON number with exactly its digits: a float would show some that are not there.
#[derive(Clone, Copy)]
struct Usd(Money);

impl Serialize for Usd {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        RawValue::from_string(self.0.to_string())
            .map_err(serde::ser::Error::custom)?
            .serialize(serializer)
    }
}

#[derive(Serialize)]
struct Body<'a> {
    mode: &'static str,
    #[serde(rename = "isValid")]
    is_valid: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<ApiKeyStatus>,
    #[serde(rename = "planName", skip_serializing_if = "Option::is_none")]
    plan_name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    quota: Option<Quota>,
    #[serde(skip_serializing_if = "Option::is_none")]
    remaining: Option<Usd>,
    unit: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    balance: Option<Usd>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reserved: Option<Usd>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    rate_limits: Vec<RateLimit>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subscription: Option<SubscriptionBlock>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<DateTime<Utc>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    days_until_expiry: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    model_stats: Option<Vec<ModelSums<'a>>>,
}

#[derive(Serialize)]
struct Quota {
    limit: Usd,
    used: Usd,
    remaining: Usd,
    unit: &'static str,
}

#[derive(Serialize)]
struct RateLimit {
    window: &'static str,
    limit: Usd,
    used: Usd,
    remaining: Usd,
    #[serde(skip_serializing_if = "Option::is_none")]
    window_start: Option<DateTime<Utc>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reset_at: Option<DateTime<Utc>>,
}

#[derive(Serialize)]
struct SubscriptionBlock {
    daily_usage_usd: Usd,
    weekly_usage_usd: Usd,
    monthly_usage_usd: Usd,
    daily_limit_usd: Option<Usd>,
    weekly_limit_usd: Option<Usd>,
    monthly_limit_usd: Option<Usd>,
    expires_at: DateTime<Utc>,
}

#[derive(Serialize)]
struct Sums {
    requests: u64,
    input_tokens: u64,
    output_tokens: u64,
    cache_creation_tokens: u64,
    cache_read_tokens: u64,
    total_tokens: u64,
    cost: Usd,
    actual_cost: Usd,
}

impl From<&UsageSums> for Sums {
    fn from(sums: &UsageSums) -> Sums {
        Sums {
            requests: sums.requests,
            input_tokens: sums.input_tokens,
            output_tokens: sums.output_tokens,
            cache_creation_tokens: sums.cache_creation_tokens,
            cache_read_tokens: sums.cache_read_tokens,
            total_tokens: sums.total_tokens(),
            cost: Usd(sums.cost),
            actual_cost: Usd(sums.charge),
        }
    }
}

#[derive(Serialize)]
struct Usage {
    today: Sums,
    total: Sums,
    average_duration_ms: u64,
    rpm: u64,
    tpm: u64,
}

#[derive(Serialize)]
struct ModelSums<'a> {
    model: &'a str,
    #[serde(flatten)]
    sums: Sums,
}

/// The answer as JSON. Limits that are absent or not positive are none.
pub fn body(
    standing: &Standing,
    key: &ApiKey,
    group: &Group,
    subscription: Option<&Subscription>,
    statistics: Option<&KeyStatistics>,
    now: DateTime<Utc>,
) -> Vec<u8> {
    let mut body = Body {
        mode: UNRESTRICTED,
        is_valid: true,
        status: None,
        plan_name: None,
        quota: None,
        remaining: None,
        unit: UNIT,
        balance: None,
        reserved: None,
        rate_limits: Vec::new(),
        subscription: None,
        expires_at: None,
        days_until_expiry: None,
        usage: statistics.map(usage),
        model_stats: statistics.map(models),
    };
    let quota = limit(key.quota);
    if quota.is_some() || key.rate_limits.into_iter().any(|l| limit(l).is_some()) {
        body.limited_by_key(standing, key, now);
    } else if group.subscription_type == SubscriptionType::Subscription {
        body.plan_name = Some(&group.name);
        if let Some(subscription) = subscription {
            body.paid_by_subscription(standing, group, subscription, now);
        }
    } else {
        body.plan_name = Some(WALLET);
        body.remaining = Some(Usd(standing.balance));
        body.balance = Some(Usd(standing.balance));
        body.reserved = Some(Usd(standing.reserved));
    }
    serde_json::to_vec(&body).expect("names as keys, numbers and texts as values")
}

impl Body<'_> {
    fn limited_by_key(&mut self, standing: &Standing, key: &ApiKey, now: DateTime<Utc>) {
        self.mode = QUOTA_LIMITED;
        self.quota = limit(key.quota).map(|limit| Quota {
            limit: Usd(limit),
            used: Usd(standing.key_spent),
            remaining: Usd(left(limit, standing.key_spent)),
            unit: UNIT,
        });
        let windows = KEY_WINDOWS.into_iter().zip(key.rate_limits);
        for ((kind, amount), window) in windows.zip(standing.key_windows) {
            let Some(limit) = limit(amount) else {
                continue;
            };
            let WindowStanding { used, span } = window;
            self.rate_limits.push(RateLimit {
                window: kind.as_str(),
                limit: Usd(limit),
                used: Usd(used),
                remaining: Usd(left(limit, used)),
                window_start: span.map(|(start, _)| start),
                reset_at: span.map(|(_, end)| end),
            });
        }
        // Without a quota the narrowest window says how far one gets.
        let windows = self.rate_limits.iter().map(|limit| limit.remaining.0);
        let quota = self.quota.as_ref().map(|quota| quota.remaining.0);
        self.remaining = quota.or(windows.min()).map(Usd);
        self.expires_at = key.expires_at;
        self.days_until_expiry = key.expires_at.map(|end| (end - now).num_days().max(0));
        self.status = Some(status(key, standing, now));
        self.is_valid = key.status != ApiKeyStatus::Disabled;
    }

    fn paid_by_subscription(
        &mut self,
        standing: &Standing,
        group: &Group,
        subscription: &Subscription,
        now: DateTime<Utc>,
    ) {
        let [day, week, month] = standing.subscription_windows.map(|window| window.used);
        let limits = [group.daily_limit, group.weekly_limit, group.monthly_limit].map(limit);
        let lefts = limits.iter().zip([day, week, month]);
        let lefts = lefts.filter_map(|(limit, used)| Some(left((*limit)?, used)));
        self.remaining = Some(Usd(lefts.min().unwrap_or(UNLIMITED)));
        self.is_valid = subscription.is_valid(now);
        let [daily, weekly, monthly] = limits.map(|limit| limit.map(Usd));
        self.subscription = Some(SubscriptionBlock {
            daily_usage_usd: Usd(day),
            weekly_usage_usd: Usd(week),
            monthly_usage_usd: Usd(month),
            daily_limit_usd: daily,
            weekly_limit_usd: weekly,
            monthly_limit_usd: monthly,
            expires_at: subscription.expires_at,
        });
    }
}

fn limit(amount: Option<Money>) -> Option<Money> {
    amount.filter(|amount| amount.is_positive())
}

fn left(limit: Money, used: Money) -> Money {
    (limit - used).max(Money::ZERO)
}

/// The key's status as a request would meet it now, which the stored one may not say yet.
fn status(key: &ApiKey, standing: &Standing, now: DateTime<Utc>) -> ApiKeyStatus {
    match key.status {
        ApiKeyStatus::Active if key.expires_at.is_some_and(|end| end <= now) => {
            ApiKeyStatus::Expired
        }
        ApiKeyStatus::Active if limit(key.quota).is_some_and(|q| standing.key_spent >= q) => {
            ApiKeyStatus::QuotaExhausted
        }
        stored => stored,
    }
}

fn usage(statistics: &KeyStatistics) -> Usage {
    Usage {
        today: Sums::from(&statistics.today),
        total: Sums::from(&statistics.total),
        average_duration_ms: statistics.average_duration_ms,
        rpm: statistics.minute.requests,
        tpm: statistics.minute.total_tokens(),
    }
}

fn models(statistics: &KeyStatistics) -> Vec<ModelSums<'_>> {
    let models = statistics.models.iter();
    models
        .map(|(model, sums)| ModelSums {
            model,
            sums: Sums::from(sums),
        })
        .collect()
}

#[cfg(test)]
pub(super) mod tests;
