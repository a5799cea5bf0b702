//! `tollgate prices ...`

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde_json::{Map, Value, json};

use super::open::{self, Failure};
use super::{Output, table};
use crate::app::first_start;
use crate::billing::price_map::{Found, Origin, Prices, Source, source};
use crate::config::Config;
use crate::domain::price::Price;
use crate::domain::text::OneLine;

/// Commands on prices.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show which entry is used for a model's name, and what it costs.
    Show {
        /// A model's name, as clients or accounts write it.
        model: String,
        /// How.
        #[command(flatten)]
        output: Output,
    },
    /// Check a price map and put it where the server reads it. A running server follows within a
    /// second.
    #[command(after_help = "\
        The map is written to where billing.prices points, else to prices.json in data_dir, which is \
        then used in place of the built-in one. What was there is kept beside it as *.bak.")]
    Update {
        /// A file in the format of LiteLLM's model_prices_and_context_window.json; `-` is standard
        /// input.
        file: PathBuf,
    },
}

/// Runs one.
pub fn run(file: Option<&Path>, command: Command) -> Result<(), Failure> {
    let config = open::config(file)?;
    match command {
        Command::Show { model, output } => show(&config, &model, output.json),
        Command::Update { file } => update(&config, &file),
    }
}

fn show(config: &Config, model: &str, json: bool) -> Result<(), Failure> {
    let place = Source::of(config);
    let mut prices = load(&place)?;
    if first_start::has_store(config) {
        let multiplier = config.billing.default_rate_multiplier;
        let directory = open::with_store_of(config, async |store| {
            Ok(store.load_directory(multiplier).await?)
        })?;
        prices = prices.with_overrides(&directory.price_overrides);
    }
    let Some(found) = prices.explain(model) else {
        return Err(Failure::Message(format!(
            "no price is known for {:?}: its requests cost nothing until `prices:` of the resources, \
             a channel or the price map has one",
            OneLine(model).to_string()
        )));
    };
    table::show(&shown(model, &found, &place), json)
}

/// What is shown of a model: only what is known, prices of tokens per million.
fn shown(model: &str, found: &Found<'_>, place: &Source) -> Value {
    let from = match found.origin {
        Origin::Override => "prices: of the resources".to_owned(),
        Origin::Map if place.is_file() => place.path().display().to_string(),
        Origin::Map => "built-in price map".to_owned(),
        Origin::Table => "built-in table of model families".to_owned(),
    };
    let mut fields = Map::new();
    let mut put = |name: &str, value: Value| {
        if !value.is_null() {
            fields.insert(name.to_owned(), value);
        }
    };
    put("model", model.into());
    put("entry", found.entry.into());
    put("from", from.into());
    let price = found.price;
    let per_million = |price: Option<Price>| json!(price.map(Price::per_million));
    for (name, price) in [
        ("input_per_million", price.input),
        ("output_per_million", price.output),
        ("cache_write_per_million", price.cache_creation),
        ("cache_write_1h_per_million", price.cache_creation_1h),
        ("cache_read_per_million", price.cache_read),
        ("input_priority_per_million", price.input_priority),
        ("output_priority_per_million", price.output_priority),
        ("cache_read_priority_per_million", price.cache_read_priority),
        ("image_output_per_million", price.output_image_token),
    ] {
        put(name, per_million(price));
    }
    put(
        "per_image",
        json!(price.output_image.map(|price| price.to_string())),
    );
    if let Some(long) = price.long_context {
        put("long_context_above_tokens", json!(long.threshold_tokens));
        for (name, price) in [
            ("long_input_per_million", long.input),
            ("long_output_per_million", long.output),
            ("long_input_priority_per_million", long.input_priority),
            ("long_output_priority_per_million", long.output_priority),
        ] {
            put(name, per_million(price));
        }
    }
    put("max_input_tokens", json!(price.max_input_tokens));
    put("max_output_tokens", json!(price.max_output_tokens));
    Value::Object(fields)
}

fn update(config: &Config, file: &Path) -> Result<(), Failure> {
    let failed = |error: io::Error| Failure::Message(format!("{}: {error}", file.display()));
    let mut json = String::new();
    if file == Path::new("-") {
        io::stdin().read_to_string(&mut json).map_err(failed)?;
    } else {
        json = fs::read_to_string(file).map_err(failed)?;
    }
    let new = source::read(&json).map_err(|mistakes| {
        let lines: Vec<String> = mistakes
            .iter()
            .map(|mistake| format!("{}: {mistake}", file.display()))
            .collect();
        Failure::Message(format!("nothing was changed:\n{}", lines.join("\n")))
    })?;
    let place = Source::of(config);
    // One that cannot be read is about to be mended.
    let old = place.load().unwrap_or_default();
    let kept = replace(place.path(), json.as_bytes())
        .map_err(|error| Failure::Message(format!("{}: {error}", place.path().display())))?;
    let what = new.difference(&old);
    let kept = match kept {
        Some(kept) => format!("; what was there is now {}", kept.display()),
        None => String::new(),
    };
    table::write_out(&format!(
        "{} names: {} new, {} changed, {} gone; written to {}{kept}\n",
        what.names,
        what.added,
        what.changed,
        what.removed,
        place.path().display(),
    ))
}

fn load(place: &Source) -> Result<Prices, Failure> {
    place
        .load()
        .map_err(|error| Failure::Message(error.to_string()))
}

/// Puts a file in place of another in one step, and tells where the other is kept. At every moment
/// there is one or the other.
fn replace(path: &Path, content: &[u8]) -> io::Result<Option<PathBuf>> {
    // A link stays one: what it points to is replaced.
    let path = match fs::canonicalize(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Err(_) => path.to_owned(),
        Ok(path) => path,
    };
    if let Some(folder) = path.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)?;
    }
    let beside = |suffix: &str| {
        let mut name = path.clone().into_os_string();
        name.push(suffix);
        PathBuf::from(name)
    };
    let (fresh, kept) = (beside(".new"), beside(".bak"));
    let write = || {
        let mut file = File::create(&fresh)?;
        file.write_all(content)?;
        file.sync_all()?;
        let had_one = path.exists();
        if had_one {
            // Whoever may read the old one may read the new one.
            fs::set_permissions(&fresh, fs::metadata(&path)?.permissions())?;
            fs::copy(&path, &kept)?;
        }
        fs::rename(&fresh, &path)?;
        Ok(had_one.then_some(kept))
    };
    let done = write();
    if done.is_err() {
        // What is half written helps nobody.
        let _ = fs::remove_file(&fresh);
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_and_the_old_one_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data/prices.json");
        let read = |path: &Path| fs::read_to_string(path).unwrap();
        assert_eq!(replace(&path, b"one").unwrap(), None);
        let kept = replace(&path, b"two").unwrap().unwrap();
        assert_eq!((read(&path), read(&kept)), ("two".into(), "one".into()));
        let kept = replace(&path, b"three").unwrap().unwrap();
        assert_eq!((read(&path), read(&kept)), ("three".into(), "two".into()));
        let files = fs::read_dir(path.parent().unwrap()).unwrap().count();
        assert_eq!(files, 2, "nothing else is left");
        // A folder in its place is not touched.
        let folder = folder.path().join("data");
        assert!(replace(&folder, b"four").is_err());
        assert!(folder.is_dir());
    }

    #[test]
    fn every_price_is_shown_per_million() {
        let prices = Prices::from_json(
            r#"{"m": {"input_cost_per_token": 2.5e-06, "output_cost_per_token": 1e-15,
                "cache_creation_input_token_cost_above_1hr": 6e-6, "output_cost_per_image": 0.0000000001,
                "input_cost_per_token_above_200k_tokens": 5e-06, "max_output_tokens": 9}}"#,
        )
        .unwrap();
        let place = Source::of(&crate::config::load(None, &Default::default()).unwrap());
        let found = prices.explain("M-2025-01-01").unwrap();
        assert_eq!(
            shown("M-2025-01-01", &found, &place),
            json!({
                "model": "M-2025-01-01", "entry": "m", "from": "built-in price map",
                "input_per_million": "2.5", "output_per_million": "0.000000001",
                "cache_write_1h_per_million": "6", "per_image": "0.0000000001",
                "long_context_above_tokens": 200_000, "long_input_per_million": "5",
                "max_output_tokens": 9,
            })
        );
    }
}
