//! Says every few seconds that this process still runs, so that its leases stay its own.

use std::sync::Arc;

use async_trait::async_trait;
use chrono::Utc;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;

use crate::state::{LiveState, OWNER_RENEWAL};

/// The heartbeat of this process.
pub struct Heartbeat {
    state: Arc<dyn LiveState>,
}

impl Heartbeat {
    /// A heartbeat towards `state`.
    pub fn new(state: Arc<dyn LiveState>) -> Heartbeat {
        Heartbeat { state }
    }
}

#[async_trait]
impl BackgroundService for Heartbeat {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        loop {
            if let Err(error) = self.state.renew(Utc::now()).await {
                log::warn!("the leases of this process are not renewed: {error}");
            }
            tokio::select! {
                () = tokio::time::sleep(OWNER_RENEWAL) => {}
                _ = shutdown.changed() => return,
            }
        }
    }
}
