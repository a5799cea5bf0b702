//! Where the price map comes from: the file of the configuration, else the one that
//! `tollgate prices update` has put into the data directory, else the built-in one.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::{PriceError, PriceFileError, Prices};
use crate::config::Config;

/// The updated price map, inside the data directory.
const UPDATED_FILE: &str = "prices.json";

/// A place for a price map.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Source {
    path: PathBuf,
    /// The configuration names the file: it must be there.
    configured: bool,
}

/// By which a change of a file is seen without reading it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stamp(Option<(SystemTime, u64)>);

impl Source {
    /// That of a configuration.
    pub fn of(config: &Config) -> Source {
        match &config.billing.prices {
            Some(path) => Source {
                path: path.clone(),
                configured: true,
            },
            None => Source {
                path: config.data_dir.join(UPDATED_FILE),
                configured: false,
            },
        }
    }

    /// The file, whether or not it is there.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether there is a file, so that the built-in map is not used.
    pub fn is_file(&self) -> bool {
        self.configured || self.path.exists()
    }

    /// What the file looks like from outside; a missing one has a stamp, too.
    pub fn stamp(&self) -> Stamp {
        let seen = std::fs::metadata(&self.path)
            .and_then(|metadata| Ok((metadata.modified()?, metadata.len())));
        Stamp(seen.ok())
    }

    /// The prices.
    ///
    /// # Errors
    /// When the file cannot be read, is no price map or prices no model at all.
    pub fn load(&self) -> Result<Prices, PriceFileError> {
        if !self.is_file() {
            return Ok(Prices::built_in());
        }
        let json = std::fs::read_to_string(&self.path)
            .map_err(|error| self.refused(vec![error.to_string()]))?;
        read(&json).map_err(|problems| self.refused(problems))
    }

    fn refused(&self, problems: Vec<String>) -> PriceFileError {
        PriceFileError {
            setting: if self.configured {
                "billing.prices"
            } else {
                "data_dir"
            },
            path: self.path.clone(),
            problems,
        }
    }
}

/// Reads a price map that is to be used in place of the built-in one.
///
/// # Errors
/// Every mistake; also when no model has a price, as then every request would be free of charge, and
/// hardly anybody means that.
pub fn read(json: &str) -> Result<Prices, Vec<String>> {
    let prices = Prices::from_json(json).map_err(|error| match error {
        PriceError::Entries(mistakes) => mistakes,
        error @ PriceError::Json(_) => vec![error.to_string()],
    })?;
    if prices.is_empty() {
        return Err(vec![
            "no model in it has an input_cost_per_token or output_cost_per_token".to_owned(),
        ]);
    }
    Ok(prices)
}
