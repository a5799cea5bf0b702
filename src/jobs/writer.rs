//! Writes finished usage records to the database, in batches, off the request path.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use chrono_tz::Tz;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use tokio::sync::Mutex;

use super::metrics::JobMetrics;
use crate::billing::balances::Balances;
use crate::billing::outbox::Outbox;
use crate::domain::{ApiKeyId, Money, UsageRecord, UserId};
use crate::storage::{StorageError, Store};

/// Records in one transaction: large enough that its cost is shared, small enough to be quick.
const BATCH: usize = 2000;
/// A first record waits this long for company: every transaction is a flush to the disk and some
/// changes of threads. Well below the second within which a record is to be visible.
const LINGER: Duration = Duration::from_millis(50);
/// After a failure the next try waits this long, doubling up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The writer. Cheap to clone.
#[derive(Clone)]
pub struct Writer {
    store: Store,
    outbox: Arc<Outbox>,
    balances: Arc<Balances>,
    /// Held while money is written or read, so that the two never cross.
    money: Arc<Mutex<()>>,
    /// Where days begin.
    tz: Tz,
    metrics: JobMetrics,
}

impl Writer {
    /// A writer from `outbox` to `store`. `money` is shared with whoever reads balances.
    pub fn new(
        store: Store,
        outbox: Arc<Outbox>,
        balances: Arc<Balances>,
        money: Arc<Mutex<()>>,
        tz: Tz,
        metrics: JobMetrics,
    ) -> Writer {
        Writer {
            store,
            outbox,
            balances,
            money,
            tz,
            metrics,
        }
    }

    /// Writes one batch; how many records it held.
    async fn write_batch(&self) -> Result<usize, StorageError> {
        let batch = self.outbox.batch(BATCH);
        if batch.is_empty() {
            return Ok(0);
        }
        let _money = self.money.lock().await;
        let began = Instant::now();
        let settled = self.store.settle(&batch, None, self.tz).await?;
        let (mut by_user, mut by_key) = totals(&batch);
        for (user, stored) in settled.balances {
            let charge = by_user.remove(&user).unwrap_or_default();
            self.balances.written_user(user, stored, charge);
        }
        for (key, stored) in settled.spend {
            let charge = by_key.remove(&key).unwrap_or_default();
            self.balances.written_key(key, stored, charge);
        }
        self.outbox.written(batch.len());
        self.metrics.written.inc_by(settled.inserted as u64);
        self.metrics
            .write_seconds
            .observe(began.elapsed().as_secs_f64());
        Ok(batch.len())
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
                        return self.outbox.len();
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
            self.outbox.len()
        );
    }
}

fn totals(batch: &[Arc<UsageRecord>]) -> (HashMap<UserId, Money>, HashMap<ApiKeyId, Money>) {
    let mut by_user: HashMap<UserId, Money> = HashMap::new();
    let mut by_key: HashMap<ApiKeyId, Money> = HashMap::new();
    for record in batch {
        *by_user.entry(record.user_id).or_default() += record.charge;
        *by_key.entry(record.api_key_id).or_default() += record.charge;
    }
    (by_user, by_key)
}

#[async_trait]
impl BackgroundService for Writer {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let mut pause = FIRST_PAUSE;
        loop {
            tokio::select! {
                () = self.outbox.filled() => {}
                // What is left then is written by `flush`, after the last request has ended.
                _ = shutdown.changed() => return,
            }
            if self.outbox.len() < BATCH {
                tokio::time::sleep(LINGER).await;
            }
            match self.write_batch().await {
                Ok(_) => pause = FIRST_PAUSE,
                Err(error) => {
                    self.complain(&error);
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }
}
