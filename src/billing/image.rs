//! What images cost where no tokens were counted for them (SPEC 4.8, 11.5).

use super::pricing::Exact;
use crate::domain::price::{ModelPrice, Price};
use crate::domain::{Group, Money};

/// What an image of the smallest size costs where neither group nor model says: 0.134 USD.
const DEFAULT_PRICE: Price = Price(134_000_000_000_000);
/// Femto-dollars in a nano-dollar.
const FEMTOS_PER_NANO: i64 = 1_000_000;

/// Sizes of images that have a price of their own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ImageSize {
    /// 1024 × 1024.
    OneK,
    /// Everything else that is asked for in pixels, and what is not said.
    TwoK,
    /// Only where it is asked for by that name.
    FourK,
}

impl ImageSize {
    /// All of them.
    pub const ALL: [ImageSize; 3] = [ImageSize::OneK, ImageSize::TwoK, ImageSize::FourK];

    /// Of a size as requests give it, e.g. `1536x1024`, `auto` or `4K`; blank = not given.
    pub fn of(size: &str) -> ImageSize {
        let size = size.trim();
        if size == "1024x1024" || size.eq_ignore_ascii_case("1k") {
            ImageSize::OneK
        } else if size.eq_ignore_ascii_case("4k") {
            ImageSize::FourK
        } else {
            ImageSize::TwoK
        }
    }

    /// The name in records and in a channel's `tier_label`.
    pub const fn as_str(self) -> &'static str {
        match self {
            ImageSize::OneK => "1K",
            ImageSize::TwoK => "2K",
            ImageSize::FourK => "4K",
        }
    }

    /// The key in a group's `image_prices`.
    const fn key(self) -> &'static str {
        match self {
            ImageSize::OneK => "1k",
            ImageSize::TwoK => "2k",
            ImageSize::FourK => "4k",
        }
    }

    /// What it costs relative to the smallest, in halves.
    const fn halves(self) -> u64 {
        match self {
            ImageSize::OneK => 2,
            ImageSize::TwoK => 3,
            ImageSize::FourK => 4,
        }
    }
}

/// One image at list price: the group's price for the size, else the model's price × 1, 1.5 or 2 by
/// size, else the same of 0.134 USD.
pub fn unit_price(group: &Group, model: Option<&ModelPrice>, size: ImageSize) -> Exact {
    if let Some(price) = group_price(group, size) {
        return Exact::of(1, price);
    }
    let price = model
        .and_then(|model| model.output_image)
        .unwrap_or(DEFAULT_PRICE);
    // Exact counts in half femto-dollars, so that half a price is no fraction.
    Exact::halves(i128::from(price.0)).times(size.halves())
}

fn group_price(group: &Group, size: ImageSize) -> Option<Price> {
    let text = group
        .options
        .get("image_prices")?
        .get(size.key())?
        .as_str()?;
    // Checked when it was applied; a store edited by other means falls back.
    let price: Money = text.parse().ok()?;
    (price.0 >= 0).then(|| Price(price.0.saturating_mul(FEMTOS_PER_NANO)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::billing::quote::fixtures::group;

    fn cost(group: &Group, model: Option<&ModelPrice>, size: ImageSize) -> String {
        unit_price(group, model, size).cost().to_string()
    }

    #[test]
    fn sizes_are_read() {
        for (size, read) in [
            ("1024x1024", "1K"),
            ("1k", "1K"),
            ("1536x1024", "2K"),
            ("4096x4096", "2K"),
            ("auto", "2K"),
            ("", "2K"),
            ("2K", "2K"),
            (" 4k ", "4K"),
        ] {
            assert_eq!(ImageSize::of(size).as_str(), read, "{size:?}");
        }
    }

    #[test]
    fn the_group_then_the_model_then_the_default_has_the_price() {
        let plain = group();
        let mut priced = group();
        priced.options.insert(
            "image_prices".into(),
            serde_json::json!({"2k": "0.05", "4k": "free"}),
        );
        let model = ModelPrice {
            output_image: Some(Price(40_000_000_000_000)),
            ..ModelPrice::default()
        };
        let model = Some(&model);
        for (group, model, prices) in [
            (&plain, None, ["0.134", "0.201", "0.268"]),
            (&plain, model, ["0.04", "0.06", "0.08"]),
            (&priced, model, ["0.04", "0.05", "0.08"]),
            (&priced, None, ["0.134", "0.05", "0.268"]),
        ] {
            assert_eq!(ImageSize::ALL.map(|size| cost(group, model, size)), prices);
        }
    }
}
