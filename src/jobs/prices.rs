//! Follows the price map's file: when `tollgate prices update` or somebody else has replaced it, the
//! running server prices by the new one within a second. A file with mistakes changes nothing.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;

use super::follow::Follower;
use crate::billing::price_map::Prices;
use crate::billing::price_map::source::{Source, Stamp};
use crate::proxy::Rooms;

/// Between looks at the file: one `stat` each.
const INTERVAL: Duration = Duration::from_millis(500);

/// Looks at the file and takes it over.
pub struct PriceWatch {
    rooms: Arc<Rooms>,
    prices: Arc<ArcSwap<Prices>>,
    follower: Follower,
    /// The file as it was when the server read its prices.
    at_start: (Source, Stamp),
}

impl PriceWatch {
    /// Of the server that has these rooms. `at_start` is the file as it was before its prices were
    /// read, so that no change is missed.
    pub fn new(
        rooms: Arc<Rooms>,
        prices: Arc<ArcSwap<Prices>>,
        follower: Follower,
        at_start: (Source, Stamp),
    ) -> PriceWatch {
        PriceWatch {
            rooms,
            prices,
            follower,
            at_start,
        }
    }

    async fn take_over(&self, source: &Source) {
        match source.load() {
            Ok(prices) => {
                self.prices.store(Arc::new(prices));
                // The follower lays the operator's overrides over them; it tries again by itself.
                if let Err(error) = self.follower.reload().await {
                    log::error!("the store cannot be read, the last prices stay for now: {error}");
                    self.follower.again();
                }
                log::info!("{}", taken_over(source));
            }
            Err(error) => log::error!("the prices stay as they were: {error}"),
        }
    }
}

/// What is said of the prices in use from now on.
fn taken_over(source: &Source) -> String {
    let path = source.path().display();
    if source.is_file() {
        format!("price map {path} read")
    } else {
        format!("there is no price map {path} any more: the built-in one is used")
    }
}

#[async_trait]
impl BackgroundService for PriceWatch {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let mut known = self.at_start.clone();
        loop {
            tokio::select! {
                () = tokio::time::sleep(INTERVAL) => {}
                _ = shutdown.changed() => return,
            }
            let source = Source::of(&self.rooms.config.load());
            let stamp = source.stamp();
            if (&source, stamp) != (&known.0, known.1) {
                self.take_over(&source).await;
                // Also where it could not be read: said once, and tried again when it changes.
                known = (source, stamp);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_which_prices_are_used() {
        let dir = tempfile::tempdir().unwrap();
        let source = Source::of(&crate::config::default_with(dir.path()));
        assert!(taken_over(&source).ends_with("prices.json any more: the built-in one is used"));
        std::fs::write(dir.path().join("prices.json"), "{}").unwrap();
        assert!(taken_over(&source).ends_with("prices.json read"));
    }
}
