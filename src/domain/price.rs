//! Prices per model, as data. How a request is priced is the billing room's matter.

use std::collections::HashMap;

/// A price per token (or image) in femto-dollars (10⁻¹⁵ USD): every price of the published maps is
/// a whole number of them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash)]
pub struct Price(pub i64);

/// Prices of one model. `None` = the price map says nothing.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ModelPrice {
    /// Uncached input token.
    pub input: Option<Price>,
    /// Output token.
    pub output: Option<Price>,
    /// Token written to the 5-minute cache.
    pub cache_creation: Option<Price>,
    /// Token written to the 1-hour cache.
    pub cache_creation_1h: Option<Price>,
    /// Token read from the cache.
    pub cache_read: Option<Price>,
    /// `priority` tier.
    pub input_priority: Option<Price>,
    /// `priority` tier.
    pub output_priority: Option<Price>,
    /// `priority` tier.
    pub cache_read_priority: Option<Price>,
    /// One image.
    pub output_image: Option<Price>,
    /// One token of an image.
    pub output_image_token: Option<Price>,
}

/// Model name → prices.
pub type PriceMap = HashMap<String, ModelPrice>;
