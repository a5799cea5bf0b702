//! Follows the store: when an operator changes something with a command, the running server sees it
//! within a second.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use chrono::Utc;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use tokio::sync::Mutex;

use super::metrics::JobMetrics;
use crate::billing::price_map::Prices;
use crate::proxy::Rooms;
use crate::proxy::snapshot::Snapshot;
use crate::storage::{StorageError, Store};

/// Between looks at the change counter: one small read each.
const INTERVAL: Duration = Duration::from_millis(250);

/// Keeps the rooms' picture of the store current. Cheap to clone.
#[derive(Clone)]
pub struct Follower {
    store: Store,
    rooms: Arc<Rooms>,
    /// Prices without the operator's overrides.
    prices: Arc<arc_swap::ArcSwap<Prices>>,
    money: Arc<Mutex<()>>,
    turn: Arc<Mutex<()>>,
    stale: Arc<AtomicBool>,
    metrics: JobMetrics,
}

impl Follower {
    /// A follower of `store`. `money` is shared with whoever writes balances.
    pub fn new(
        store: Store,
        rooms: Arc<Rooms>,
        prices: Arc<arc_swap::ArcSwap<Prices>>,
        money: Arc<Mutex<()>>,
        metrics: JobMetrics,
    ) -> Follower {
        Follower {
            store,
            rooms,
            prices,
            money,
            turn: Arc::default(),
            stale: Arc::default(),
            metrics,
        }
    }

    /// Reads everything anew and swaps it in.
    pub async fn reload(&self) -> Result<(), StorageError> {
        // One at a time: an older picture must not follow a newer one.
        let _turn = self.turn.lock().await;
        let multiplier = self.rooms.config.load().billing.default_rate_multiplier;
        let directory = self.store.load_directory(multiplier).await?;
        {
            // While nothing is being written: what is read then is consistent with what is pending.
            let _money = self.money.lock().await;
            let balances = self.store.balances().await?;
            let spent = self.store.key_spend().await?;
            self.rooms.balances.refresh(balances, spent);
        }
        for account in directory.accounts() {
            if let Some(resumed) = account.resumed_at
                && let Err(error) = self
                    .rooms
                    .state
                    .lift_conditions(account.id, None, resumed)
                    .await
            {
                log::warn!("account {:?} stays cooled down: {error}", account.name);
            }
        }
        let snapshot = Snapshot::new(directory, &self.prices.load());
        self.rooms.snapshot.store(Arc::new(snapshot));
        // Requests in line look again: an account may have been added, or a limit raised.
        self.rooms.changes.send_replace(());
        self.stale.store(false, Ordering::Relaxed);
        self.metrics.reloads.inc();
        Ok(())
    }

    /// The picture has to be made anew even if the store does not change.
    pub fn again(&self) {
        self.stale.store(true, Ordering::Relaxed);
    }

    async fn look(&self) -> Result<(), StorageError> {
        let version = self.store.version().await?;
        let stale = self.stale.load(Ordering::Relaxed);
        if stale || version != self.rooms.snapshot.load().directory.version {
            let began = Utc::now();
            self.reload().await?;
            log::info!(
                "configured objects read anew in {} ms",
                (Utc::now() - began).num_milliseconds()
            );
        }
        Ok(())
    }
}

#[async_trait]
impl BackgroundService for Follower {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let mut failing = false;
        loop {
            tokio::select! {
                () = tokio::time::sleep(INTERVAL) => {}
                _ = shutdown.changed() => return,
            }
            match self.look().await {
                Ok(()) => failing = false,
                Err(error) => {
                    self.metrics.reload_errors.inc();
                    // Once for each outage, not four times a second.
                    if !std::mem::replace(&mut failing, true) {
                        log::error!("the store cannot be read, the last picture stays: {error}");
                    }
                }
            }
        }
    }
}
