//! The usage record: what one request used and what it costs. Immutable once written.

use chrono::{DateTime, TimeDelta, Utc};
use tollgate_filters::usage::TokenUsage;

use super::{AccountId, ApiKeyId, GroupId, Money, Multiplier, Platform, PricingMode, UserId};

/// How a request ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The client got the whole answer.
    Ok,
    /// The provider refused or failed.
    UpstreamError,
    /// The client left before the end.
    ClientGone,
    /// The answer was cut short (upstream reset, stall, shutdown).
    Interrupted,
}

impl Outcome {
    /// The name in records and metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Outcome::Ok => "ok",
            Outcome::UpstreamError => "upstream_error",
            Outcome::ClientGone => "client_gone",
            Outcome::Interrupted => "interrupted",
        }
    }
}

/// Where the token counts come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum UsageSource {
    /// The provider reported them.
    Reported,
    /// We estimated them from what was sent.
    Estimated,
    /// Nothing was reported and no output was seen.
    None,
}

impl UsageSource {
    /// The name in records and metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            UsageSource::Reported => "reported",
            UsageSource::Estimated => "estimated",
            UsageSource::None => "none",
        }
    }
}

/// Who pays.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BillingType {
    /// The user's balance.
    Balance,
    /// A subscription.
    Subscription,
    /// Nobody (simple mode).
    None,
}

impl BillingType {
    /// The name in records.
    pub const fn as_str(self) -> &'static str {
        match self {
            BillingType::Balance => "balance",
            BillingType::Subscription => "subscription",
            BillingType::None => "none",
        }
    }
}

/// One attempt, as the record tells it.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct AttemptTrace {
    /// Name of the account at that time.
    pub account: String,
    /// How it ended, a short bounded label: `answered`, a verdict, or a transport error.
    pub result: String,
    /// Upstream status, where there was an answer.
    pub status: Option<u16>,
    /// From its choice to its end, milliseconds.
    pub duration_ms: u64,
}

/// One request that was sent to an upstream, whatever became of it. Names of users, keys, groups
/// and accounts are kept beside their ids, so that history stays readable after a rename.
#[derive(Clone, PartialEq, Debug)]
pub struct UsageRecord {
    /// Our request id, the idempotency key; also the response header `x-request-id`.
    pub request_id: String,
    /// The client's own `X-Request-Id`, as recorded only.
    pub client_request_id: Option<String>,
    /// The provider's request id.
    pub upstream_request_id: Option<String>,
    /// When the request arrived.
    pub created_at: DateTime<Utc>,
    /// Who asked.
    pub user_id: UserId,
    /// Name at that time.
    pub user: String,
    /// With which key.
    pub api_key_id: ApiKeyId,
    /// Name at that time.
    pub api_key: String,
    /// In which group.
    pub group_id: GroupId,
    /// Name at that time.
    pub group: String,
    /// The first group, when a fallback group served the request.
    pub fallback_from_group: Option<String>,
    /// The account of the last attempt.
    pub account_id: AccountId,
    /// Name at that time.
    pub account: String,
    /// The account's platform.
    pub platform: Platform,
    /// Our endpoint, e.g. `/v1/responses`.
    pub endpoint: String,
    /// The path used upstream.
    pub upstream_endpoint: String,
    /// The model the client asked for.
    pub requested_model: String,
    /// The model that is billed.
    pub model: String,
    /// The model named to the provider.
    pub upstream_model: String,
    /// Distinct names joined with `→`, when there was a mapping.
    pub model_mapping_chain: Option<String>,
    /// Whether the client asked for a stream.
    pub stream: bool,
    /// HTTP status the client got.
    pub status: u16,
    /// How it ended.
    pub outcome: Outcome,
    /// Token counts by class.
    pub tokens: TokenUsage,
    /// Images produced.
    pub image_count: u32,
    /// At list price.
    pub cost: Money,
    /// What the user pays.
    pub charge: Money,
    /// `charge` ÷ `cost`.
    pub rate_multiplier: Multiplier,
    /// What the account's own statistics and quotas count: `cost` × this.
    pub account_rate_multiplier: Multiplier,
    /// Who pays.
    pub billing_type: BillingType,
    /// By token, request or image.
    pub billing_mode: PricingMode,
    /// The channel whose mapping or prices applied.
    pub channel: Option<String>,
    /// The size or interval whose price applied, where a channel or image price has several.
    pub billing_tier: Option<String>,
    /// Whether a price was known. If not, `cost` and `charge` are zero.
    pub priced: bool,
    /// `priority`, `flex` or as the client wrote it.
    pub service_tier: Option<String>,
    /// Reasoning effort asked for.
    pub reasoning_effort: Option<String>,
    /// Upstream tries.
    pub attempts: u32,
    /// Changes of account among them.
    pub account_switches: u32,
    /// Every attempt in order, where there was more than one; else empty.
    pub trail: Vec<AttemptTrace>,
    /// From arrival to end, milliseconds.
    pub duration_ms: u64,
    /// From arrival to the first real output, milliseconds.
    pub first_token_ms: Option<u64>,
    /// Where the counts come from.
    pub usage_source: UsageSource,
    /// Whether the client left before the end.
    pub client_disconnected: bool,
    /// Client address.
    pub ip: Option<String>,
    /// Client's User-Agent, cut to a sane length.
    pub user_agent: Option<String>,
}

impl UsageRecord {
    /// When the request ended: the moment at which its charge counts towards windows. In whole
    /// milliseconds, as everything that is stored: what is counted in memory and what is read back
    /// from the database begin at the same moment.
    pub fn settled_at(&self) -> DateTime<Utc> {
        let began = DateTime::from_timestamp_millis(self.created_at.timestamp_millis());
        let began = began.unwrap_or(self.created_at);
        let span = i64::try_from(self.duration_ms)
            .ok()
            .and_then(TimeDelta::try_milliseconds);
        span.and_then(|span| began.checked_add_signed(span))
            .unwrap_or(began)
    }

    /// What the account's quotas count.
    pub fn account_cost(&self) -> Money {
        self.account_rate_multiplier.of(self.cost)
    }
}

#[cfg(test)]
impl UsageRecord {
    /// A record for tests, which write down what they are about.
    pub(crate) fn blank(request_id: &str) -> UsageRecord {
        UsageRecord {
            request_id: request_id.to_owned(),
            client_request_id: None,
            upstream_request_id: None,
            created_at: DateTime::from_timestamp(1_790_000_000, 0).unwrap_or_default(),
            user_id: UserId(1),
            user: "alice".into(),
            api_key_id: ApiKeyId(1),
            api_key: "k".into(),
            group_id: GroupId(1),
            group: "main".into(),
            fallback_from_group: None,
            account_id: AccountId(1),
            account: "a1".into(),
            platform: Platform::OpenAi,
            endpoint: "/v1/responses".into(),
            upstream_endpoint: "/v1/responses".into(),
            requested_model: "gpt-5-mini".into(),
            model: "gpt-5-mini".into(),
            upstream_model: "gpt-5-mini".into(),
            model_mapping_chain: None,
            stream: true,
            status: 0,
            outcome: Outcome::Interrupted,
            tokens: TokenUsage::default(),
            image_count: 0,
            cost: Money::ZERO,
            charge: Money::ZERO,
            rate_multiplier: Multiplier::ONE,
            account_rate_multiplier: Multiplier::ONE,
            billing_type: BillingType::Balance,
            billing_mode: PricingMode::Token,
            channel: None,
            billing_tier: None,
            priced: true,
            service_tier: None,
            reasoning_effort: None,
            attempts: 1,
            account_switches: 0,
            trail: Vec::new(),
            duration_ms: 0,
            first_token_ms: None,
            usage_source: UsageSource::None,
            client_disconnected: false,
            ip: None,
            user_agent: None,
        }
    }
}
