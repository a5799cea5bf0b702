//! Checks the books now and then: every balance is the sum of its ledger entries, every charge has its
//! record. There is never a difference; if there were one, the operator should hear of it from us.

use std::time::Duration;

use async_trait::async_trait;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;

use super::metrics::JobMetrics;
use crate::storage::Store;

/// After the start, when what was left in the journal has been written.
const FIRST: Duration = Duration::from_secs(60);
/// It reads all there is; nobody waits for it.
const INTERVAL: Duration = Duration::from_secs(3600);
/// Differences named in the log.
const NAMED: usize = 10;

/// The verifier.
pub struct Verifier {
    store: Store,
    metrics: JobMetrics,
}

impl Verifier {
    /// A verifier of `store`.
    pub fn new(store: Store, metrics: JobMetrics) -> Verifier {
        Verifier { store, metrics }
    }

    async fn verify(&self) {
        match self.store.verify_ledger().await {
            Ok(wrong) => {
                self.metrics.ledger_checks.inc();
                let count = i64::try_from(wrong.len()).unwrap_or(i64::MAX);
                self.metrics.ledger_mismatches.set(count);
                for mismatch in wrong.iter().take(NAMED) {
                    log::error!("the ledger does not add up: {mismatch}");
                }
                if wrong.len() > NAMED {
                    log::error!(
                        "{} more differences in the ledger; `tollgate ledger verify` lists them",
                        wrong.len() - NAMED
                    );
                }
            }
            Err(error) => log::warn!("the ledger could not be checked: {error}"),
        }
    }
}

#[async_trait]
impl BackgroundService for Verifier {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let mut pause = FIRST;
        loop {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = shutdown.changed() => return,
            }
            self.verify().await;
            pause = INTERVAL;
        }
    }
}
