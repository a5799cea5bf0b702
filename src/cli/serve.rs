//! `tollgate serve`

use std::path::Path;

use super::open::{self, Failure};
use crate::app::{App, Origin, StopSignal};
use crate::logging;

/// Serves until a signal ends it.
pub fn run(file: Option<&Path>) -> Result<(), Failure> {
    let config = open::config(file)?;
    logging::init(&config.logging);
    let origin = Origin {
        file: file.map(Path::to_path_buf),
        env: open::environment(),
    };
    App::build(config, origin)?.serve(StopSignal::default())?;
    Ok(())
}
