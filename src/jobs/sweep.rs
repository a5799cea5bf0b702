//! Forgets live state that has ended by itself (bindings, cool-downs, old responses) and takes back
//! the leases of processes that are dead.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chrono::Utc;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;

use crate::state::LiveState;

/// What has ended is never used, only kept, so memory would not need it as often; but the slots of a
/// dead process are missed by those who wait (see [`crate::state::OWNER_LIFE`]).
const INTERVAL: Duration = Duration::from_secs(15);

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
