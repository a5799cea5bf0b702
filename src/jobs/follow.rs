//! Follows the store: when an operator changes something with a command, the running server sees it
//! within a second.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use chrono::{TimeDelta, Utc};
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use tokio::sync::Mutex;

use super::metrics::JobMetrics;
use crate::billing::book::{Payer, Pays};
use crate::billing::price_map::Prices;
use crate::domain::{Account, ConditionKind, Directory};
use crate::proxy::Rooms;
use crate::proxy::snapshot::Snapshot;
use crate::scheduler::effect::quota_change;
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
    /// The last entry of the ledger whose reversals are counted in the book.
    reversed: Arc<AtomicI64>,
    metrics: JobMetrics,
}

impl Follower {
    /// A follower of `store`. `money` is shared with whoever writes balances; `reversed` is the last entry of
    /// the ledger that the windows in memory reflect.
    pub fn new(
        store: Store,
        rooms: Arc<Rooms>,
        prices: Arc<arc_swap::ArcSwap<Prices>>,
        money: Arc<Mutex<()>>,
        reversed: i64,
        metrics: JobMetrics,
    ) -> Follower {
        Follower {
            store,
            rooms,
            prices,
            money,
            turn: Arc::default(),
            stale: Arc::default(),
            reversed: Arc::new(AtomicI64::new(reversed)),
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
            self.rooms.book.refresh(balances, spent);
            self.take_back().await?;
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
        self.follow_quotas(&directory).await;
        let snapshot = Snapshot::new(directory, &self.prices.load());
        self.rooms.snapshot.store(Arc::new(snapshot));
        // Requests in line look again: an account may have been added, or a limit raised.
        self.rooms.changes.send_replace(());
        self.stale.store(false, Ordering::Relaxed);
        self.metrics.reloads.inc();
        Ok(())
    }

    /// Charges that were given back by a command leave the windows they were counted in.
    async fn take_back(&self) -> Result<(), StorageError> {
        let reversals = self
            .store
            .reversals(self.reversed.load(Ordering::Relaxed))
            .await?;
        for counted in reversals.charges {
            let Some(pays) = Pays::of(counted.billing_type) else {
                continue;
            };
            let payer = Payer {
                user: counted.user,
                key: counted.key,
                group: counted.group,
                pays,
            };
            let book = &self.rooms.book;
            book.reversed(&payer, counted.charge, counted.at);
        }
        self.reversed.store(reversals.upto, Ordering::Relaxed);
        Ok(())
    }

    /// What of the accounts' quotas is used up now decides whether they may be chosen: at the start, and
    /// whenever the operator may have changed a quota or resumed an account.
    pub async fn follow_quotas(&self, directory: &Directory) {
        for account in directory.accounts() {
            self.follow_quota(account).await;
        }
    }

    async fn follow_quota(&self, account: &Account) {
        let now = Utc::now();
        let (state, id) = (&self.rooms.state, account.id);
        let exhausted = self.rooms.quotas.exhausted(account, now);
        let change = quota_change(state.conditions().of(id), exhausted.as_ref(), now);
        let mut done = Ok(());
        if change.lift {
            // What began in this very moment as well.
            let before = now + TimeDelta::milliseconds(1);
            let lifted = state.lift_conditions(id, Some(ConditionKind::QuotaExhausted), before);
            done = lifted.await.map(drop);
        }
        if let (Ok(()), Some(condition)) = (&done, change.set) {
            done = state.set_condition(id, condition).await.map(drop);
        }
        if let Err(error) = done {
            log::warn!(
                "the quota of account {:?} is not followed: {error}",
                account.name
            );
        }
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
