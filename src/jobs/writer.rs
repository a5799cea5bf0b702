//! Writes finished usage records to the database, in batches, off the request path.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use chrono::Utc;
use chrono_tz::Tz;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use tokio::sync::Mutex;

use super::metrics::JobMetrics;
use crate::domain::UsageRecord;
use crate::proxy::Rooms;
use crate::scheduler::effect::quota_exhausted;
use crate::storage::{StorageError, Store};

/// Records in one transaction: large enough that its cost is shared, small enough to be quick.
const BATCH: usize = 2000;
/// A first record waits this long for company: every transaction is a flush to the disk and some
/// changes of threads. Well below the second within which a record is to be visible.
const LINGER: Duration = Duration::from_millis(50);
/// Under load it waits longer: what many records have in common (a transaction, a flush, the last page of
/// each index) is then written once for more of them.
const LOADED_LINGER: Duration = Duration::from_millis(200);
/// A batch of so many records is load.
const LOADED: usize = 64;
/// After a failure the next try waits this long, doubling up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The writer. Cheap to clone.
#[derive(Clone)]
pub struct Writer {
    store: Store,
    rooms: Arc<Rooms>,
    tz: Tz,
    /// Held while money is written or read, so that the two never cross.
    money: Arc<Mutex<()>>,
    metrics: JobMetrics,
}

impl Writer {
    /// A writer from the journal of `rooms` to `store`. Days begin in `tz`; `money` is shared with whoever
    /// reads balances.
    pub fn new(
        store: Store,
        rooms: Arc<Rooms>,
        tz: Tz,
        money: Arc<Mutex<()>>,
        metrics: JobMetrics,
    ) -> Writer {
        Writer {
            store,
            rooms,
            tz,
            money,
            metrics,
        }
    }

    /// Writes one batch; how many records it held.
    async fn write_batch(&self) -> Result<usize, StorageError> {
        let batch = self.rooms.journal.batch(BATCH);
        if batch.records.is_empty() {
            return Ok(0);
        }
        let _money = self.money.lock().await;
        let began = Instant::now();
        let settled = self
            .store
            .settle(&batch.records, batch.upto, self.tz)
            .await?;
        self.rooms
            .book
            .written(&batch.records, &settled.balances, &settled.spend);
        // Only now: what is in the database for good need not be kept here.
        self.rooms.journal.applied(batch.records.len(), batch.upto);
        self.count_for_accounts(&batch.records).await;
        self.metrics.written.inc_by(settled.inserted as u64);
        self.metrics.put_aside.inc_by(settled.put_aside as u64);
        self.metrics
            .write_seconds
            .observe(began.elapsed().as_secs_f64());
        Ok(batch.records.len())
    }

    /// Counts what the records cost their accounts; one whose quota is used up by it is not chosen any more.
    /// Here rather than where a request ends: memory counts the same records in the same order as the
    /// database.
    async fn count_for_accounts(&self, records: &[Arc<UsageRecord>]) {
        let snapshot = self.rooms.snapshot.load_full();
        for record in records {
            let Some(account) = snapshot.directory.account(record.account_id) else {
                continue;
            };
            let Some(exhausted) = self.rooms.quotas.count(record, &account.quota) else {
                continue;
            };
            let condition = quota_exhausted(&exhausted, Utc::now());
            log::info!(
                target: "tollgate::accounts",
                "account" = account.name.as_str(),
                "condition" = condition.kind.as_str(),
                "reason" = condition.reason.as_str();
                "account is out"
            );
            if let Err(error) = self.rooms.state.set_condition(account.id, condition).await {
                log::warn!("account {:?} keeps being chosen: {error}", account.name);
            }
        }
    }

    /// Writes until nothing is left or `deadline` passes; how many records are left.
    pub async fn flush(&self, deadline: Instant) -> usize {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.write_batch().await {
                Ok(0) => return 0,
                Ok(_) => pause = FIRST_PAUSE,
                Err(error) => {
                    self.complain(&error);
                    if Instant::now() + pause >= deadline {
                        return self.rooms.journal.len();
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    fn complain(&self, error: &StorageError) {
        self.metrics.write_errors.inc();
        log::error!(
            "{} usage records cannot be written and are kept: {error}",
            self.rooms.journal.len()
        );
    }
}

#[async_trait]
impl BackgroundService for Writer {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let mut pause = FIRST_PAUSE;
        let mut linger = LINGER;
        loop {
            tokio::select! {
                () = self.rooms.journal.filled() => {}
                // What is left then is written by `flush`, after the last request has ended.
                _ = shutdown.changed() => return,
            }
            if self.rooms.journal.len() < BATCH {
                tokio::time::sleep(linger).await;
            }
            match self.write_batch().await {
                Ok(written) => {
                    pause = FIRST_PAUSE;
                    linger = if written < LOADED {
                        LINGER
                    } else {
                        LOADED_LINGER
                    };
                }
                Err(error) => {
                    self.complain(&error);
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }
}
