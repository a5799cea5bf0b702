//! Resource files as written to [`Resources`] as checked: several files, several documents each,
//! every mistake named at once.

mod access;
mod accounts;
mod channel_prices;
mod channels;
mod groups;
mod options;
mod rules;
mod subscriptions;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use super::check::working_directory;
use super::field::{Field, Table};
use super::mistakes::{Mistake, Mistakes};
use super::raw::Input;
use super::report::{Origin, Report};
use super::resources::Resources;
use crate::domain::money::DecimalError;
use crate::domain::price::{
    FieldUse, PriceMap, field_use, is_price, known_fields, parse_entry, parse_price,
};
use crate::domain::{Money, Multiplier};

/// What a resource file may name.
const KINDS: &[&str] = &[
    "groups",
    "accounts",
    "users",
    "api_keys",
    "subscriptions",
    "channels",
    "error_passthrough_rules",
    "prices",
];

/// Reads resource files (`-` = standard input). Secrets written `${NAME}` come from `env`. The
/// second part of the result is what is no mistake but worth saying.
///
/// # Errors
/// Every mistake of all files.
pub fn load_resources(
    files: &[PathBuf],
    env: &BTreeMap<String, String>,
) -> Result<(Resources, Vec<String>), Mistakes> {
    let mut mistakes = Vec::new();
    let base = working_directory(&mut mistakes);
    let mut seen = HashSet::new();
    let mut inputs = Vec::new();
    for file in files {
        if !seen.insert(file) {
            mistakes.push(Mistake {
                place: file.display().to_string(),
                value: None,
                problem: "named twice".into(),
                expected: "each file once".into(),
            });
        } else if file == Path::new("-") {
            inputs.extend(Input::read_stdin(base.clone(), &mut mistakes));
        } else {
            inputs.extend(Input::read(file, &mut mistakes));
        }
    }
    check(&inputs, &base, env, mistakes)
}

fn check(
    inputs: &[Input],
    base: &Path,
    env: &BTreeMap<String, String>,
    mut mistakes: Vec<Mistake>,
) -> Result<(Resources, Vec<String>), Mistakes> {
    let report = Report::new(inputs, env, base);
    let mut resources = Resources::default();
    let mut names = Names::default();
    for (i, input) in inputs.iter().enumerate() {
        for (document, node) in input.documents.iter().enumerate() {
            let origin = Origin {
                input: Some(i),
                document,
                env: None,
            };
            let top = Field::top(node, origin, &report);
            // A document of comments only.
            if !top.is_null()
                && let Some(table) = top.table(KINDS)
            {
                read_document(&table, &mut resources, &mut names);
            }
        }
    }
    let (found, mut warnings) = report.finish();
    mistakes.extend(found);
    if !mistakes.is_empty() {
        return Err(Mistakes(mistakes));
    }
    warnings.extend(resources.unused_subscriptions());
    if resources == Resources::default() {
        warnings.push("the files name no resources at all".to_string());
    }
    Ok((resources, warnings))
}

fn read_document<'a>(table: &Table<'a>, resources: &mut Resources, names: &mut Names<'a>) {
    let each = |kind: &'static str, of_what: &str| {
        let list = table.get(kind).and_then(|field| field.items(of_what));
        list.unwrap_or_default()
    };
    for item in each("groups", "groups") {
        resources.groups.extend(groups::group(&item, names));
    }
    for item in each("accounts", "accounts") {
        resources.accounts.extend(accounts::account(&item, names));
    }
    for item in each("users", "users") {
        resources.users.extend(access::user(&item, names));
    }
    for item in each("api_keys", "API keys") {
        resources.api_keys.extend(access::api_key(&item, names));
    }
    for item in each("error_passthrough_rules", "error passthrough rules") {
        resources
            .error_passthrough_rules
            .extend(rules::rule(&item, names));
    }
    for item in each("subscriptions", "subscriptions") {
        let subscription = subscriptions::subscription(&item, names);
        resources.subscriptions.extend(subscription);
    }
    for item in each("channels", "channels") {
        resources.channels.extend(channels::channel(&item, names));
    }
    if let Some(field) = table.get("prices") {
        prices(&field, &mut resources.prices, names);
    }
}

fn prices<'a>(field: &Field<'a>, prices: &mut PriceMap, names: &mut Names<'a>) {
    for (model, field) in field.pairs("model names to prices").unwrap_or_default() {
        // Models are looked up by their name in lower case.
        let name = model.trim().to_lowercase();
        if name.is_empty() {
            field.bad("a price without a model name", "a model name");
            continue;
        }
        names.unique("price", name.clone(), &field);
        let known: Vec<&str> = known_fields().collect();
        field.no_other_keys(&known, |key| field_use(key) != FieldUse::Unknown);
        // Numbers go on as their text, so that they are read exactly.
        let Some(entries) = field.pairs("prices such as input_cost_per_token") else {
            continue;
        };
        let mut wrong = false;
        for (key, value) in &entries {
            if field_use(key) == FieldUse::Unused {
                value.warn("not used: this price does not depend on the length of a request");
            }
            if is_price(key)
                && !value.is_null()
                && let Err(problem) = parse_price(&value.json_with_number_texts())
            {
                value.bad(problem.to_string(), "USD for one, such as 0.00000125");
                wrong = true;
            }
        }
        if wrong {
            continue;
        }
        let entry = entries
            .iter()
            .map(|(key, value)| ((*key).to_string(), value.json_with_number_texts()))
            .collect();
        match parse_entry(&entry) {
            Ok(Some(price)) => {
                for (given, missing, free) in [
                    (price.input, "output_cost_per_token", price.output.is_none()),
                    (price.output, "input_cost_per_token", price.input.is_none()),
                ] {
                    if given.is_some() && free {
                        field.warn(format!("without {missing}: those tokens cost nothing"));
                    }
                }
                prices.insert(name, price);
            }
            Ok(None) => field.bad(
                "a model without a price",
                "input_cost_per_token or output_cost_per_token, USD per token",
            ),
            // Each was read just now; whatever else it may be is a mistake as well.
            Err(problem) => field.bad(problem, "USD for one, such as 0.00000125"),
        }
    }
}

/// The names given so far, by kind: each is unique across all files.
#[derive(Default)]
struct Names<'a>(HashMap<(&'static str, String), Field<'a>>);

impl<'a> Names<'a> {
    /// Notes a mistake at `field` when its kind has that name already.
    fn unique(&mut self, kind: &'static str, name: String, field: &Field<'a>) {
        if let Some(first) = self.0.get(&(kind, name.clone())) {
            field.bad(
                format!(
                    "the same {kind} is already at {}",
                    first.place_seen_from(field)
                ),
                "each of them once",
            );
        } else {
            self.0.insert((kind, name), field.clone());
        }
    }
}

/// The name of an entry, unique in its kind.
fn unique_name<'a>(table: &Table<'a>, kind: &'static str, names: &mut Names<'a>) -> Option<String> {
    let field = table.required("name", "a unique name")?;
    let name = field.name()?;
    names.unique(kind, name.to_string(), &field);
    Some(name.to_string())
}

/// A multiplier.
fn multiplier(field: &Field<'_>) -> Option<Multiplier> {
    field.decimal("a decimal number of at most 6 digits behind the point, such as \"1.0\"")
}

/// A limit in USD. Zero is refused: some read it as "no limit", others as "nothing".
fn limit(field: &Field<'_>) -> Option<Money> {
    const EXPECTED: &str = "USD above zero, such as \"25.00\", or null for no limit";
    let money: Money = field.decimal(EXPECTED)?;
    if !money.is_positive() {
        field.bad("not above zero", EXPECTED);
        return None;
    }
    Some(money)
}

/// An amount in USD that is not a debt.
fn amount(field: &Field<'_>) -> Option<Money> {
    const EXPECTED: &str = "USD, such as \"10.00\"";
    let money: Money = field.decimal(EXPECTED)?;
    if money < Money::ZERO {
        field.bad(DecimalError::Negative.to_string(), EXPECTED);
        return None;
    }
    Some(money)
}

/// A count of something, 0 = off or unlimited.
fn count(field: &Field<'_>, zero_is: &str) -> Option<u32> {
    field.whole(
        0..=i128::from(u32::MAX),
        &format!("a whole number, 0 = {zero_is}"),
    )
}

#[cfg(test)]
mod tests;
