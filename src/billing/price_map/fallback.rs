//! Prices of names the map does not have: families of Claude and GPT models, and a small table of
//! last resort, so that a new variant or a bare price map does not make requests free of charge.

use super::{GPT_5_4_THRESHOLD_TOKENS, Layer};
use crate::domain::price::{LongContext, ModelPrice, Price};

/// Parts of a `gpt-*` name that are looked at; bounds the work a long name can cause.
const MAX_PARTS: usize = 12;

/// A row of the table: millionths of a dollar per million tokens.
struct Row {
    input: i64,
    output: i64,
    cache_write: Option<i64>,
    cache_read: i64,
    priority: Option<[i64; 3]>,
}

const fn price(micros: i64) -> Option<Price> {
    // 10⁻⁶ USD per 10⁶ tokens is 10⁻¹² USD per token.
    Some(Price(micros * 1_000))
}

const fn model(row: Row) -> ModelPrice {
    let [input_priority, output_priority, cache_read_priority] = match row.priority {
        Some([input, output, cache_read]) => [price(input), price(output), price(cache_read)],
        None => [None, None, None],
    };
    ModelPrice {
        input: price(row.input),
        output: price(row.output),
        cache_creation: match row.cache_write {
            Some(micros) => price(micros),
            None => None,
        },
        cache_creation_1h: None,
        cache_read: price(row.cache_read),
        input_priority,
        output_priority,
        cache_read_priority,
        output_image: None,
        output_image_token: None,
        long_context: None,
        max_input_tokens: None,
        max_output_tokens: None,
    }
}

const fn simple(input: i64, output: i64, cache_write: Option<i64>, cache_read: i64) -> ModelPrice {
    model(Row {
        input,
        output,
        cache_write,
        cache_read,
        priority: None,
    })
}

/// A `gpt-*` row: cache writes at the input price, everything twice in the `priority` tier.
const fn doubling(input: i64, output: i64, cache_read: i64) -> ModelPrice {
    model(Row {
        input,
        output,
        cache_write: Some(input),
        cache_read,
        priority: Some([input * 2, output * 2, cache_read * 2]),
    })
}

static OPUS: ModelPrice = simple(5_000_000, 25_000_000, Some(6_250_000), 500_000);
static OLDER_OPUS: ModelPrice = simple(15_000_000, 75_000_000, Some(18_750_000), 1_500_000);
static SONNET: ModelPrice = simple(3_000_000, 15_000_000, Some(3_750_000), 300_000);
static HAIKU_3_5: ModelPrice = simple(1_000_000, 5_000_000, Some(1_250_000), 100_000);
static HAIKU_3: ModelPrice = simple(250_000, 1_250_000, Some(300_000), 30_000);
static GEMINI_3_1_PRO: ModelPrice = simple(2_000_000, 12_000_000, Some(2_000_000), 200_000);
static GPT_5_4: ModelPrice = ModelPrice {
    long_context: Some(LongContext {
        threshold_tokens: GPT_5_4_THRESHOLD_TOKENS,
        input: price(5_000_000),
        output: price(22_500_000),
        input_priority: price(10_000_000),
        output_priority: price(45_000_000),
    }),
    ..doubling(2_500_000, 15_000_000, 250_000)
};
static GPT_5_4_MINI: ModelPrice = simple(750_000, 4_500_000, None, 75_000);
static GPT_5_4_NANO: ModelPrice = simple(200_000, 1_250_000, None, 20_000);
static GPT_5_2: ModelPrice = doubling(1_750_000, 14_000_000, 175_000);
static GPT_CODEX: ModelPrice = doubling(1_500_000, 12_000_000, 150_000);

/// A family of Claude models.
struct Family {
    /// What a name of the family contains. A version is not followed by a minor version:
    /// `opus-4` is not in `claude-opus-4-8`.
    marks: &'static [&'static str],
    /// Names whose price in the map is the family's; the first that is there counts.
    names: &'static [&'static str],
    /// Where the map has none of them.
    last_resort: &'static ModelPrice,
}

/// The first family that a name mentions is its own; the bare words at the end take newer and
/// unversioned names.
static CLAUDE_FAMILIES: [Family; 13] = [
    Family {
        marks: &["opus-4-7", "opus-4.7"],
        names: &[
            "claude-opus-4-7",
            "claude-opus-4.7",
            "claude-opus-4-6",
            "claude-opus-4.6",
        ],
        last_resort: &OPUS,
    },
    Family {
        marks: &["opus-4-6", "opus-4.6"],
        names: &["claude-opus-4-6", "claude-opus-4.6"],
        last_resort: &OPUS,
    },
    Family {
        marks: &["opus-4-5", "opus-4.5"],
        names: &["claude-opus-4-5", "claude-opus-4.5"],
        last_resort: &OPUS,
    },
    Family {
        marks: &["opus-4", "opus-4-0", "opus-4.0", "opus-4-1", "opus-4.1"],
        names: &[
            "claude-opus-4-1",
            "claude-opus-4.1",
            "claude-opus-4",
            "claude-3-opus",
        ],
        last_resort: &OLDER_OPUS,
    },
    Family {
        marks: &["3-opus", "opus-3"],
        names: &["claude-3-opus"],
        last_resort: &OLDER_OPUS,
    },
    Family {
        marks: &["sonnet-4-5", "sonnet-4.5"],
        names: &["claude-sonnet-4-5", "claude-sonnet-4.5", "claude-sonnet-4"],
        last_resort: &SONNET,
    },
    Family {
        marks: &["sonnet-4", "sonnet-4-0", "sonnet-4.0"],
        names: &["claude-sonnet-4", "claude-sonnet-4-0", "claude-3-5-sonnet"],
        last_resort: &SONNET,
    },
    Family {
        marks: &["3-5-sonnet", "3.5-sonnet", "sonnet-3-5", "sonnet-3.5"],
        names: &["claude-3-5-sonnet", "claude-3.5-sonnet"],
        last_resort: &SONNET,
    },
    Family {
        marks: &["3-sonnet", "sonnet-3"],
        names: &["claude-3-sonnet"],
        last_resort: &SONNET,
    },
    Family {
        marks: &["3-5-haiku", "3.5-haiku", "haiku-3-5", "haiku-3.5"],
        names: &["claude-3-5-haiku", "claude-3.5-haiku"],
        last_resort: &HAIKU_3_5,
    },
    Family {
        marks: &["3-haiku", "haiku-3"],
        names: &["claude-3-haiku"],
        last_resort: &HAIKU_3,
    },
    Family {
        marks: &["opus"],
        names: &["claude-opus-4-7", "claude-opus-4-6", "claude-opus-4-5"],
        last_resort: &OPUS,
    },
    Family {
        marks: &["haiku"],
        names: &["claude-haiku-4-5", "claude-3-5-haiku"],
        last_resort: &HAIKU_3_5,
    },
];

/// Everything else of Anthropic's.
static CLAUDE: Family = Family {
    marks: &["sonnet", "claude"],
    names: &["claude-sonnet-4", "claude-sonnet-4-5", "claude-sonnet-4.5"],
    last_resort: &SONNET,
};

/// Claude models by family. A variant of a known model (`claude-opus-4-8-thinking`) has its price.
pub(super) fn claude<'p>(prices: &'p Layer, name: &str) -> Option<&'p ModelPrice> {
    let variant_of = |shorter: &str| {
        // `claude-opus-4` would be found in any later Opus 4.
        let known = prices.models.get(shorter);
        known.filter(|_| mentions(name, shorter))
    };
    if let Some(known) = name
        .starts_with("claude-")
        .then(|| shortened(name, 3).find_map(variant_of))
        .flatten()
    {
        return Some(known);
    }
    let family = CLAUDE_FAMILIES
        .iter()
        .chain([&CLAUDE])
        .find(|family| family.marks.iter().any(|mark| mentions(name, mark)))?;
    let in_map = |name: &&str| prices.models.get(*name).or_else(|| prices.by_base(name));
    Some(
        family
            .names
            .iter()
            .find_map(in_map)
            .unwrap_or(family.last_resort),
    )
}

/// `gpt-*` models: the name shortened part by part, which drops dates and variants, down to
/// `gpt-X`; then as gpt-5.4.
pub(super) fn gpt<'p>(prices: &'p Layer, name: &str) -> Option<&'p ModelPrice> {
    if !name.starts_with("gpt-") {
        return None;
    }
    let known = |name: &str| {
        let model = |name: &str| prices.models.get(name);
        let in_map = model(name).or_else(|| match name {
            "gpt-5.3-codex-spark" => model("gpt-5.1-codex"),
            "gpt-5.3-codex" => model("gpt-5.2-codex"),
            _ => None,
        });
        in_map.or(match name {
            "gpt-5.4" => Some(&GPT_5_4),
            "gpt-5.4-mini" => Some(&GPT_5_4_MINI),
            "gpt-5.4-nano" => Some(&GPT_5_4_NANO),
            "gpt-5.2" => Some(&GPT_5_2),
            "gpt-5.1-codex" | "gpt-5.3-codex" | "gpt-5.3-codex-spark" => Some(&GPT_CODEX),
            _ => None,
        })
    };
    shortened(name, 2)
        .find_map(known)
        .or_else(|| known("gpt-5.4"))
}

/// What is neither Claude nor GPT.
pub(super) fn other(name: &str) -> Option<&'static ModelPrice> {
    ["gemini-3.1-pro", "gemini-3-1-pro"]
        .iter()
        .any(|mark| name.starts_with(mark))
        .then_some(&GEMINI_3_1_PRO)
}

/// The name and what is left of it when parts are taken from its end, down to `least` parts; of a
/// name of very many parts only the first ones are looked at.
fn shortened(name: &str, least: usize) -> impl Iterator<Item = &str> {
    let ends: Vec<usize> = name
        .match_indices('-')
        .map(|(at, _)| at)
        .take(MAX_PARTS)
        .chain([name.len()])
        .collect();
    ends.into_iter()
        .skip(least - 1)
        .rev()
        .map(|end| &name[..end])
}

/// Whether `name` contains `mark`, not as the beginning of a longer number or of a minor version.
fn mentions(name: &str, mark: &str) -> bool {
    name.match_indices(mark).any(|(at, _)| {
        let rest = &name[at + mark.len()..];
        if !mark.ends_with(|c: char| c.is_ascii_digit()) {
            return true;
        }
        let (minor, separated) = match rest.strip_prefix(['-', '.']) {
            Some(minor) => (minor, true),
            None => (rest, false),
        };
        let digits = minor.bytes().take_while(u8::is_ascii_digit).count();
        // Longer than two digits behind a separator is a date.
        digits == 0 || (separated && digits > 2)
    })
}
