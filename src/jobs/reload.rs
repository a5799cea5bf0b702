//! SIGHUP: the configuration and the price map are read again. What cannot change in a running
//! server is named in the log; a mistake leaves everything as it was.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use tokio::signal::unix::{SignalKind, signal};

use super::follow::Follower;
use crate::billing::price_map::Prices;
use crate::config::{self, Config};
use crate::proxy::Rooms;

/// Reads again what was read at the start.
pub struct Reloader {
    file: Option<PathBuf>,
    env: BTreeMap<String, String>,
    rooms: Arc<Rooms>,
    prices: Arc<ArcSwap<Prices>>,
    follower: Follower,
}

impl Reloader {
    /// A reloader of `file` and `env`, as they were given at the start.
    pub fn new(
        file: Option<PathBuf>,
        env: BTreeMap<String, String>,
        rooms: Arc<Rooms>,
        prices: Arc<ArcSwap<Prices>>,
        follower: Follower,
    ) -> Reloader {
        Reloader {
            file,
            env,
            rooms,
            prices,
            follower,
        }
    }

    async fn reload(&self) -> Result<(), String> {
        let old = self.rooms.config.load_full();
        let new = config::load(self.file.as_deref(), &self.env).map_err(|e| e.to_string())?;
        let prices = Prices::configured(&new).map_err(|e| e.to_string())?;
        for what in fixed_differences(&old, &new) {
            log::warn!("{what} has changed; it takes effect at the next start");
        }
        log::set_max_level(new.logging.level);
        self.prices.store(Arc::new(prices));
        self.rooms.config.store(Arc::new(new));
        // The configuration has changed by now; only the store could not be read again, which the
        // follower goes on trying.
        if let Err(error) = self.follower.reload().await {
            log::error!("the store cannot be read, the last picture stays: {error}");
            self.follower.again();
        }
        Ok(())
    }
}

/// Sections that a running server cannot change.
fn fixed_differences(old: &Config, new: &Config) -> Vec<&'static str> {
    let server = |c: &Config| {
        (
            c.server.listen.clone(),
            c.server.h2c,
            c.server.threads,
            c.server.max_inflight_body_bytes,
        )
    };
    [
        (
            "server (except max_body_bytes and trusted_proxies)",
            server(old) != server(new),
        ),
        ("admin", old.admin != new.admin),
        ("data_dir", old.data_dir != new.data_dir),
        ("security", old.secret != new.secret),
        (
            "billing.journal",
            old.billing.journal != new.billing.journal,
        ),
        ("timezone", old.timezone != new.timezone),
        ("logging.format", old.logging.format != new.logging.format),
    ]
    .into_iter()
    .filter_map(|(name, differs)| differs.then_some(name))
    .collect()
}

#[async_trait]
impl BackgroundService for Reloader {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let mut hangup = match signal(SignalKind::hangup()) {
            Ok(hangup) => hangup,
            Err(error) => {
                log::error!("SIGHUP cannot be watched: {error}");
                return;
            }
        };
        loop {
            tokio::select! {
                _ = hangup.recv() => match self.reload().await {
                    Ok(()) => log::info!("configuration read again"),
                    Err(error) => log::error!("configuration not changed: {error}"),
                },
                _ = shutdown.changed() => return,
            }
        }
    }
}
