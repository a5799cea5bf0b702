//! A gate a test opens: use it wherever a test needs "not yet" on the other side, in place of a
//! sleep.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{Notify, Semaphore};

use crate::LIMIT;

/// Closed when made. Clones are the same gate.
#[derive(Clone, Debug)]
pub struct Gate {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    permits: Semaphore,
    reached: AtomicUsize,
    changed: Notify,
}

impl Default for Gate {
    fn default() -> Self {
        Self::new()
    }
}

impl Gate {
    /// A closed gate.
    pub fn new() -> Self {
        Self {
            inner: Arc::new(Inner {
                permits: Semaphore::new(0),
                reached: AtomicUsize::new(0),
                changed: Notify::new(),
            }),
        }
    }

    /// Lets everybody through, now and later.
    pub fn open(&self) {
        self.inner.permits.close();
    }

    /// Lets the next `count` passages through and stays closed for the rest.
    pub fn release(&self, count: usize) {
        self.inner.permits.add_permits(count);
    }

    /// How often somebody came to the gate, let through or not.
    pub fn reached(&self) -> usize {
        self.inner.reached.load(Ordering::Acquire)
    }

    /// Waits until somebody came to the gate for the `count`-th time.
    ///
    /// # Panics
    /// When that takes longer than [`LIMIT`].
    pub async fn wait_reached(&self, count: usize) {
        let waited = tokio::time::timeout(LIMIT, async {
            loop {
                let changed = self.inner.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if self.reached() >= count {
                    return;
                }
                changed.await;
            }
        });
        if waited.await.is_err() {
            panic!(
                "gate reached {} times, expected {count}",
                self.inner.reached.load(Ordering::Acquire)
            );
        }
    }

    /// Counts an arrival at the gate; [`Gate::pass`] after it may be cancelled and tried again.
    pub(crate) fn arrive(&self) {
        self.inner.reached.fetch_add(1, Ordering::AcqRel);
        self.inner.changed.notify_waiters();
    }

    /// Waits for the gate. An opened gate is a closed semaphore, hence the ignored error.
    pub(crate) async fn pass(&self) {
        if let Ok(permit) = self.inner.permits.acquire().await {
            permit.forget();
        }
    }
}
