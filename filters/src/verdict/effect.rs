//! What an upstream's answer means for the account that gave it.

use std::time::Duration;

/// What is to be remembered about an account. Texts are for the operator: bounded, without secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// It has used up what it may use.
    RateLimited {
        /// Until when, from now; never zero.
        lasts: Duration,
        /// Who said so.
        source: LimitSource,
        /// What is limited.
        scope: LimitScope,
    },
    /// Its provider asks everybody to stay away.
    Overloaded {
        /// Until when, from now; never zero.
        lasts: Duration,
    },
    /// Out for a while: by an operator's rule, or because the refusal may pass.
    TempUnschedulable {
        /// Until when, from now; never zero.
        lasts: Duration,
        /// Why.
        reason: String,
    },
    /// Out until an operator says otherwise.
    Error {
        /// Why.
        message: String,
    },
    /// Out for a while at first, until an operator says otherwise when it happens again.
    Strike(Strike),
    /// It failed for now: others are to be preferred.
    Failing,
}

impl Effect {
    /// A short name for logs and metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Effect::None => "none",
            Effect::RateLimited { .. } => "rate_limited",
            Effect::Overloaded { .. } => "overloaded",
            Effect::TempUnschedulable { .. } => "temp_unschedulable",
            Effect::Error { .. } => "error",
            Effect::Strike(_) => "strike",
            Effect::Failing => "failing",
        }
    }
}

/// One refusal of a kind that is an accident now and then and a decision when it comes again and again
/// (SPEC 15.3). Whoever counts them asks [`Strike::effect`] what this one comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Strike {
    /// How far back strikes count.
    pub window: Duration,
    /// The strike that is the last.
    pub limit: u32,
    /// How long the account is out for one before it.
    pub lasts: Duration,
    /// Why.
    pub message: String,
}

impl Strike {
    /// The effect of the `count`th strike within [`Strike::window`], this one included.
    pub fn effect(self, count: u32) -> Effect {
        match count < self.limit {
            true => Effect::TempUnschedulable {
                lasts: self.lasts,
                reason: self.message,
            },
            false => Effect::Error {
                message: self.message,
            },
        }
    }
}

/// What a limit is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitScope {
    /// Everything the account may use.
    Account,
    /// The model of the request only.
    Model,
}

/// Who said how long a limit lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitSource {
    /// The `x-codex-*` headers: the window of five hours is used up.
    CodexFiveHours,
    /// The `x-codex-*` headers: the window of seven days is used up.
    CodexSevenDays,
    /// The `x-codex-*` headers, neither window being used up: the later reset.
    CodexLater,
    /// The error object of the body.
    Body,
    /// `retry-after` or `retry-after-ms`.
    RetryAfter,
    /// The `anthropic-ratelimit-unified-5h-*` headers: used up, or the sooner reset.
    AnthropicFiveHours,
    /// The `anthropic-ratelimit-unified-7d-*` headers: used up, or the sooner reset.
    AnthropicSevenDays,
    /// The `anthropic-ratelimit-unified-reset` header.
    AnthropicReset,
    /// Nobody: our own [`super::Cooldowns::rate_limited`].
    Setting,
}

impl LimitSource {
    /// A short name for logs and views.
    pub const fn as_str(self) -> &'static str {
        match self {
            LimitSource::CodexFiveHours => "codex_5h",
            LimitSource::CodexSevenDays => "codex_7d",
            LimitSource::CodexLater => "codex_later",
            LimitSource::Body => "body",
            LimitSource::RetryAfter => "retry_after",
            LimitSource::AnthropicFiveHours => "anthropic_5h",
            LimitSource::AnthropicSevenDays => "anthropic_7d",
            LimitSource::AnthropicReset => "anthropic_reset",
            LimitSource::Setting => "setting",
        }
    }
}
