//! Channels: model mapping, restriction and prices that an operator binds to groups. What follows from
//! them for a request is `billing::channel`'s matter.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::price::Price;
use super::{ChannelId, GroupId, ModelMapping, Platform};

/// Which name of a model is billed (SPEC 4.7).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BillingModelSource {
    /// What the client asked for.
    Requested,
    /// What the channel made of it.
    #[default]
    ChannelMapped,
    /// What the account's upstream calls it.
    Upstream,
}

/// What a price is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PricingMode {
    /// Tokens by class.
    #[default]
    Token,
    /// One price a request.
    PerRequest,
    /// One price an image.
    Image,
}

impl PricingMode {
    /// The name in resources and records.
    pub const fn as_str(self) -> &'static str {
        match self {
            PricingMode::Token => "token",
            PricingMode::PerRequest => "per_request",
            PricingMode::Image => "image",
        }
    }
}

/// A channel as the request path sees it.
#[derive(Clone, PartialEq, Debug)]
pub struct Channel {
    /// Row id.
    pub id: ChannelId,
    /// Unique name.
    pub name: String,
    /// Operator's intent; a disabled channel does nothing.
    pub enabled: bool,
    /// Groups it is bound to; a group has at most one channel.
    pub groups: Vec<GroupId>,
    /// By platform, keys in lower case: exact or trailing `*`.
    pub model_mapping: BTreeMap<Platform, ModelMapping>,
    /// Only models with a price of the channel's own may be used.
    pub restrict_models: bool,
    /// Which name is billed.
    pub billing_model_source: BillingModelSource,
    /// In the order of the resources.
    pub prices: Vec<ChannelPrice>,
}

/// Prices of some models. A price that is `None` is the model's own (SPEC 4.7).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ChannelPrice {
    /// For groups of this platform.
    pub platform: Platform,
    /// In lower case, exact or trailing `*`.
    pub models: Vec<String>,
    /// What is counted.
    pub billing_mode: PricingMode,
    /// Prices without or outside the intervals.
    pub prices: ClassPrices,
    /// Prices by length of the request or by size of the image, in the order of the resources.
    pub intervals: Vec<PriceInterval>,
}

/// Prices by class; per token, request or image, never per million.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ClassPrices {
    /// Uncached input token.
    pub input: Option<Price>,
    /// Output token.
    pub output: Option<Price>,
    /// Token written to a cache.
    pub cache_write: Option<Price>,
    /// Token read from a cache.
    pub cache_read: Option<Price>,
    /// Output token of an image.
    pub image_output: Option<Price>,
    /// One request, or one image.
    pub per_request: Option<Price>,
}

/// Prices that hold where the context (input + cache read, tokens) is in `(min_tokens, max_tokens]`,
/// or the image has the size `tier_label`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PriceInterval {
    /// Exclusive.
    pub min_tokens: u64,
    /// Inclusive; `None` = no end.
    pub max_tokens: Option<u64>,
    /// A size such as `2K`, for `per_request` and `image`.
    pub tier_label: Option<String>,
    /// What it costs there.
    pub prices: ClassPrices,
}

impl PriceInterval {
    /// Whether a context of so many tokens is in it.
    pub fn contains(&self, context_tokens: u64) -> bool {
        context_tokens > self.min_tokens && self.max_tokens.is_none_or(|max| context_tokens <= max)
    }
}
