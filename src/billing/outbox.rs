//! Finished usage records on their way to the database.
//!
//! A request hands its record over and is done; the writer (`jobs/writer.rs`) takes batches, and a
//! record leaves the outbox only when the database has committed it. Records are idempotent by
//! request id, so a batch that is written twice counts once.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::balances::Balances;
use crate::domain::UsageRecord;

/// Records held at most before new requests are refused. At about 1 KiB each: some 100 MiB. Only
/// reached when the database cannot be written for a long time.
pub const OUTBOX_LIMIT: usize = 100_000;

/// The queue between requests and the writer.
#[derive(Debug)]
pub struct Outbox {
    balances: Arc<Balances>,
    queue: Mutex<VecDeque<Arc<UsageRecord>>>,
    filled: Notify,
}

impl Outbox {
    /// An empty outbox that counts charges in `balances`.
    pub fn new(balances: Arc<Balances>) -> Arc<Outbox> {
        Arc::new(Outbox {
            balances,
            queue: Mutex::default(),
            filled: Notify::new(),
        })
    }

    /// Takes a record over. Never blocks, never drops. The charge counts at once.
    pub fn push(&self, record: UsageRecord) {
        self.balances
            .settle(record.user_id, record.api_key_id, record.charge);
        self.queue.lock().push_back(Arc::new(record));
        self.filled.notify_one();
    }

    /// Records not yet in the database.
    pub fn len(&self) -> usize {
        self.queue.lock().len()
    }

    /// Whether everything is in the database.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether so much is unwritten that no new request should be taken.
    pub fn is_full(&self) -> bool {
        self.len() >= OUTBOX_LIMIT
    }

    /// Returns when there is something to write.
    pub async fn filled(&self) {
        while self.is_empty() {
            self.filled.notified().await;
        }
    }

    /// The oldest records; they stay here until [`Outbox::written`].
    pub fn batch(&self, most: usize) -> Vec<Arc<UsageRecord>> {
        self.queue.lock().iter().take(most).cloned().collect()
    }

    /// The oldest `count` records are committed.
    pub fn written(&self, count: usize) {
        let mut queue = self.queue.lock();
        let count = count.min(queue.len());
        queue.drain(..count);
    }
}
