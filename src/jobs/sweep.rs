//! Forgets live state that has ended by itself: bindings and cool-downs.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chrono::Utc;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;

use crate::state::LiveState;

/// What has ended is never used, only kept; once a minute is soon enough for memory.
const INTERVAL: Duration = Duration::from_secs(60);

/// The sweeper.
pub struct Sweeper {
    state: Arc<dyn LiveState>,
}

impl Sweeper {
    /// A sweeper of `state`.
    pub fn new(state: Arc<dyn LiveState>) -> Sweeper {
        Sweeper { state }
    }
}

#[async_trait]
impl BackgroundService for Sweeper {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(INTERVAL) => self.state.sweep(Utc::now()),
                _ = shutdown.changed() => return,
            }
        }
    }
}
