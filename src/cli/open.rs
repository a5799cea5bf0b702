//! What most commands begin with: the configuration is read, the store opened.

use std::collections::BTreeMap;
use std::path::Path;

use crate::app::{AppError, first_start};
use crate::config::{self, Config};
use crate::storage::{StorageError, Store};

/// Why a command failed: what the person who gave it is told.
#[derive(Debug)]
pub enum Failure {
    /// One or more lines.
    Message(String),
}

impl From<StorageError> for Failure {
    fn from(error: StorageError) -> Failure {
        Failure::Message(error.to_string())
    }
}

impl From<AppError> for Failure {
    fn from(error: AppError) -> Failure {
        Failure::Message(error.to_string())
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Failure {
        Failure::Message(error.to_string())
    }
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Failure {
        Failure::Message(error.to_string())
    }
}

/// The environment as the configuration sees it. Variables that are no text are left out.
pub fn environment() -> BTreeMap<String, String> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

/// The configuration of `file` and the environment.
pub fn config(file: Option<&Path>) -> Result<Config, Failure> {
    config::load(file, &environment()).map_err(|mistakes| {
        Failure::Message(format!("the configuration has mistakes:\n{mistakes}"))
    })
}

/// Runs `work` with the store of that configuration, which must be there: in a wrong folder a
/// command should say so, not show an empty store of its own making.
pub fn with_store<T>(
    file: Option<&Path>,
    work: impl AsyncFnOnce(&Store) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let config = config(file)?;
    if !first_start::has_store(&config) {
        return Err(Failure::Message(format!(
            "there is no store in {} (data_dir); is a -c FILE missing? \
             `tollgate apply` and `tollgate serve` make one",
            config.data_dir.display()
        )));
    }
    with_store_of(&config, work)
}

/// Runs `work` with the store of this configuration, made if it is not there.
pub fn with_store_of<T>(
    config: &Config,
    work: impl AsyncFnOnce(&Store) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let secret = first_start::secret(config)?;
    runtime.block_on(async {
        let store = Store::open(&config.data_dir, &secret).await?;
        let result = work(&store).await;
        // What was done is done, whatever becomes of the connection.
        if let Err(error) = store.close().await {
            eprintln!("warning: the store did not close well: {error}");
        }
        result
    })
}
