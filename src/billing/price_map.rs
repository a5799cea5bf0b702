//! The price map: which prices apply to a model's name.
//!
//! A server builds [`Prices`] when it starts (built in, or from a file in LiteLLM's format), lays
//! the operator's overrides over them whenever those change, and asks [`Prices::lookup`] once per
//! request. A name need not be in the map: [`Prices::lookup`] says how a known one is found for it.

mod explain;
mod fallback;
pub mod source;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};

pub use self::explain::{Difference, Found, Origin};
pub use self::source::Source;
use crate::config::Config;
use crate::domain::price::{LongContext, ModelPrice, Price, PriceMap, parse_entry};
use crate::domain::text::OneLine;

/// The copy of conf/prices.json this program was built with; conf/PRICES.md says where it is from.
const BUILT_IN: &str = include_str!("../../conf/prices.json");
/// LiteLLM's entry that explains the format.
const SAMPLE: &str = "sample_spec";
/// Prefixes LiteLLM puts before a provider's own model names; they are known without, too.
const PROVIDER_PREFIXES: [&str; 3] = ["openai/", "anthropic/", "gemini/"];
/// Above this context a gpt-5.4 request costs twice the input and 1.5 times the output price.
/// <https://developers.openai.com/api/docs/pricing>
const GPT_5_4_THRESHOLD_TOKENS: u64 = 272_000;

/// Why a price map was refused.
#[derive(Debug, thiserror::Error)]
pub enum PriceError {
    /// Not a JSON object.
    #[error("not a JSON object of models: {0}")]
    Json(#[from] serde_json::Error),
    /// Entries that cannot be read: model, field and what is wrong, for each.
    #[error("{}", .0.join("\n"))]
    Entries(Vec<String>),
}

/// Why a price map file was refused; one mistake a line.
#[derive(Debug, thiserror::Error)]
#[error("{}", lines(setting, path, problems))]
pub struct PriceFileError {
    /// What in the configuration led to it.
    pub setting: &'static str,
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it, never empty.
    pub problems: Vec<String>,
}

fn lines(setting: &str, path: &Path, problems: &[String]) -> String {
    let line = |problem: &String| format!("{setting}: {}: {problem}", path.display());
    problems.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Prices by model name.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Prices {
    /// The operator's own.
    overrides: Layer,
    /// The price map.
    map: Arc<Layer>,
}

impl Prices {
    /// The price map of the configuration; see [`Source`].
    ///
    /// # Errors
    /// When its file cannot be read, is no price map or prices no model at all.
    pub fn configured(config: &Config) -> Result<Prices, PriceFileError> {
        Source::of(config).load()
    }

    /// The map this program was built with.
    pub fn built_in() -> Prices {
        Prices::from_json(BUILT_IN).expect("conf/prices.json is read by a test")
    }

    /// Reads a LiteLLM-style price map. `sample_spec` and entries that price no tokens are skipped.
    ///
    /// # Errors
    /// [`PriceError::Json`] when it is not a JSON object; [`PriceError::Entries`] names every entry
    /// with a bad price.
    pub fn from_json(json: &str) -> Result<Prices, PriceError> {
        let entries: Map<String, Value> = serde_json::from_str(json)?;
        let mut map = PriceMap::with_capacity(entries.len());
        let mut mistakes = Vec::new();
        for (model, entry) in entries {
            if model == SAMPLE {
                continue;
            }
            let parsed = match &entry {
                Value::Object(entry) => parse_entry(entry),
                _ => Err("not an object".to_owned()),
            };
            match parsed {
                Ok(Some(price)) => {
                    map.insert(model, price);
                }
                Ok(None) => {}
                Err(mistake) => mistakes.push(format!("{}: {mistake}", OneLine(&model))),
            }
        }
        if !mistakes.is_empty() {
            return Err(PriceError::Entries(mistakes));
        }
        Ok(Prices {
            overrides: Layer::default(),
            map: Arc::new(Layer::new(&map)),
        })
    }

    /// This price map under `overrides`, which take the place of any earlier ones. An override
    /// replaces the whole entry: what it leaves out is not taken from the entry below.
    pub fn with_overrides(&self, overrides: &PriceMap) -> Prices {
        Prices {
            overrides: Layer::new(overrides),
            map: self.map.clone(),
        }
    }

    /// The prices of a model, or `None` when nothing is known of it. In this order:
    ///
    /// 1. the name itself, without `models/` or `publishers/google/models/`, its last path segment;
    ///    the same with `-4-5-` written `-4.5-`: among the overrides;
    /// 2. an override of the name without its date (`-20250929`, `-2025-09-29`) and version
    ///    (`-v1:0`);
    /// 3. as 1, in the price map;
    /// 4. an entry of either that differs only by its date or version;
    /// 5. a fine-tuned model (`ft:MODEL:ORGANISATION::ID`) as `ft:MODEL`, then as `MODEL`;
    /// 6. Claude models by family;
    /// 7. `gpt-*` without date and variant, finally as gpt-5.4;
    /// 8. a table for what the map lacks.
    ///
    /// The families (6 to 8) know the price map only: an override is for the model it names.
    pub fn lookup(&self, model: &str) -> Option<&ModelPrice> {
        self.as_written(model).or_else(|| self.search(model))
    }

    /// The entry of exactly that name, where it is what a search would find: nearly every request names its
    /// model so, and asks several times.
    fn as_written(&self, name: &str) -> Option<&ModelPrice> {
        // An override of the name without its date would go before an entry of the map.
        let layer = match self.overrides.models.is_empty() {
            true => &*self.map,
            false => &self.overrides,
        };
        let found = layer.models.get(name);
        found.filter(|_| !name.is_empty() && !name.ends_with('/'))
    }

    fn search(&self, model: &str) -> Option<&ModelPrice> {
        let name = model.trim().to_lowercase();
        let candidates = candidates(&name);
        if let Some(tuned) = candidates.iter().find_map(|name| name.strip_prefix("ft:")) {
            // The part behind the model is the customer's, and says nothing about the price.
            let model = tuned.split(':').next().unwrap_or(tuned);
            return self
                .exact(&candidates)
                .or_else(|| self.known(&[&format!("ft:{model}")]))
                .or_else(|| self.find(model));
        }
        self.find(&name)
    }

    /// As [`Prices::lookup`], of a name in lower case that is not a fine-tuned model's.
    fn find(&self, name: &str) -> Option<&ModelPrice> {
        let candidates = candidates(name);
        let last = candidates[candidates.len() - 1];
        if last.is_empty() {
            return None;
        }
        self.known(&candidates)
            .or_else(|| fallback::claude(&self.map, last))
            .or_else(|| fallback::gpt(&self.map, last))
            .or_else(|| fallback::other(last))
    }

    /// The model itself, perhaps under another date.
    fn known(&self, candidates: &[&str]) -> Option<&ModelPrice> {
        let undated = |name: &&str| self.overrides.models.get(&base(name));
        self.overrides
            .exact(candidates)
            .or_else(|| {
                let any = !self.overrides.models.is_empty();
                any.then(|| candidates.iter().find_map(undated))?
            })
            .or_else(|| self.map.exact(candidates))
            .or_else(|| candidates.iter().find_map(|name| self.by_base(&base(name))))
    }

    fn exact(&self, candidates: &[&str]) -> Option<&ModelPrice> {
        let below = || self.map.exact(candidates);
        self.overrides.exact(candidates).or_else(below)
    }

    /// An entry that differs by its date only, of two the one the map would choose of its own.
    fn by_base(&self, base: &str) -> Option<&ModelPrice> {
        let (ours, theirs) = (self.overrides.bases.get(base), self.map.bases.get(base));
        match (ours, theirs) {
            (Some(ours), Some(theirs)) if ours != theirs && is_better(theirs, ours, base) => {
                self.map.models.get(theirs)
            }
            (Some(ours), _) => self.overrides.models.get(ours),
            (None, _) => self.map.by_base(base),
        }
    }

    /// Whether no name has a price.
    pub fn is_empty(&self) -> bool {
        self.overrides.models.is_empty() && self.map.models.is_empty()
    }
}

/// Prices of one source, by name.
#[derive(Clone, PartialEq, Debug, Default)]
struct Layer {
    /// Names are lower case.
    models: HashMap<String, ModelPrice>,
    /// Name without date and version suffix → the name in `models`.
    bases: HashMap<String, String>,
}

impl Layer {
    fn new(prices: &PriceMap) -> Layer {
        let mut models = HashMap::with_capacity(prices.len());
        // Prefixed names first, so that of two names for one model the plain one wins.
        let (prefixed, plain): (Vec<_>, Vec<_>) = prices
            .iter()
            .map(|(model, price)| (model.trim().to_lowercase(), price))
            .partition(|(model, _)| own_name(model).is_some());
        for (model, price) in prefixed.into_iter().chain(plain) {
            let price = with_family_rule(&model, price);
            if let Some(own) = own_name(&model) {
                models.insert(own.to_owned(), price.clone());
            }
            models.insert(model, price);
        }
        let bases = bases(&models);
        Layer { models, bases }
    }

    /// The first of these names that is here, as written or with a dot in its version.
    fn exact(&self, candidates: &[&str]) -> Option<&ModelPrice> {
        let dotted = |name: &&str| self.models.get(&name.replace("-4-5-", "-4.5-"));
        candidates
            .iter()
            .find_map(|name| self.models.get(*name))
            .or_else(|| candidates.iter().find_map(dotted))
    }

    /// The entry of that name, or one that differs by its date only.
    fn by_base(&self, base: &str) -> Option<&ModelPrice> {
        self.bases.get(base).and_then(|name| self.models.get(name))
    }
}

/// The ways to read a name, the last one its last path segment.
fn candidates(name: &str) -> [&str; 4] {
    [
        name,
        name.strip_prefix("models/").unwrap_or(name),
        name.strip_prefix("publishers/google/models/")
            .unwrap_or(name),
        name.rsplit('/').next().unwrap_or(name),
    ]
}

/// The provider's own name in a LiteLLM name.
fn own_name(model: &str) -> Option<&str> {
    PROVIDER_PREFIXES
        .iter()
        .find_map(|prefix| model.strip_prefix(prefix))
}

/// The name without dates (`20250929`, `2025-09-29`) and parts with a colon.
fn base(name: &str) -> String {
    // The one colon that belongs to the model.
    let (tuned, name) = match name.strip_prefix("ft:") {
        Some(model) => ("ft:", model),
        None => ("", name),
    };
    let digits =
        |part: &str, count| part.len() == count && part.bytes().all(|b| b.is_ascii_digit());
    let parts: Vec<&str> = name.split('-').collect();
    let mut kept = Vec::with_capacity(parts.len());
    let mut at = 0;
    while let Some(part) = parts.get(at) {
        if let [year, month, day, ..] = parts[at..]
            && digits(year, 4)
            && digits(month, 2)
            && digits(day, 2)
        {
            at += 3;
            continue;
        }
        if !digits(part, 8) && !part.contains(':') {
            kept.push(*part);
        }
        at += 1;
    }
    if kept.is_empty() {
        return String::new();
    }
    format!("{tuned}{}", kept.join("-"))
}

/// Of several entries with one base the undated one counts, else the last by name: the newest.
fn bases(models: &HashMap<String, ModelPrice>) -> HashMap<String, String> {
    let mut bases: HashMap<String, String> = HashMap::with_capacity(models.len());
    for name in models.keys() {
        let base = base(name);
        if base.is_empty() {
            continue;
        }
        match bases.get_mut(&base) {
            Some(chosen) if !is_better(name, chosen, &base) => {}
            Some(chosen) => chosen.clone_from(name),
            None => {
                bases.insert(base, name.clone());
            }
        }
    }
    bases
}

/// Whether `name` stands for `base` rather than `other` does.
fn is_better(name: &str, other: &str, base: &str) -> bool {
    other != base && (name == base || name > other)
}

/// Attaches the long-context prices of the gpt-5.4 family, unless the entry has its own. The small
/// models of that name are not of the family: their context window ends at the threshold.
fn with_family_rule(model: &str, price: &ModelPrice) -> ModelPrice {
    let name = model.rsplit('/').next().unwrap_or(model);
    let in_family = name
        .strip_prefix("gpt-5.4")
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
        && !name.starts_with("gpt-5.4-mini")
        && !name.starts_with("gpt-5.4-nano");
    let mut price = price.clone();
    if in_family && price.long_context.is_none() {
        let twice = |price: Option<Price>| price.map(|p| Price(p.0.saturating_mul(2)));
        let half_more = |price: Option<Price>| {
            price.map(|Price(femtos)| Price(femtos.saturating_add(femtos / 2 + femtos % 2)))
        };
        price.long_context = Some(LongContext {
            threshold_tokens: GPT_5_4_THRESHOLD_TOKENS,
            input: twice(price.input),
            output: half_more(price.output),
            input_priority: twice(price.input_priority),
            output_priority: half_more(price.output_priority),
        });
    }
    price
}

#[cfg(test)]
mod tests;
