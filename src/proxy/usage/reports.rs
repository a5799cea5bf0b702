//! Statistics for `GET /v1/usage`, the only thing that a request's answer reads from the database: for a
//! bounded time, and so few at once that whoever asks again and again keeps nobody else from it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::storage::{KeySpan, KeyStatistics, StorageError, Store};

/// An answer waits no longer for its statistics. They take milliseconds.
const TIME_LIMIT: Duration = Duration::from_secs(2);
/// Statistics that are read at once.
const AT_ONCE: usize = 4;

/// Reads statistics.
#[derive(Debug)]
pub struct Reports {
    store: Store,
    free: Arc<Semaphore>,
}

/// Why an answer goes without statistics.
#[derive(Debug, thiserror::Error)]
enum Left {
    #[error("too many are being read")]
    Busy,
    #[error("they took longer than {} s", TIME_LIMIT.as_secs())]
    Slow,
    #[error(transparent)]
    Failed(#[from] StorageError),
    #[error("the task ended early")]
    Ended,
}

impl Reports {
    /// From this store.
    pub fn new(store: Store) -> Reports {
        Reports {
            store,
            free: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }

    /// The statistics of a key, or `None` where they cannot be had in time.
    pub async fn of(&self, span: KeySpan) -> Option<KeyStatistics> {
        match self.read(span).await {
            Ok(statistics) => Some(statistics),
            // A client that asks too often is no matter for the operator.
            Err(error @ Left::Busy) => {
                log::debug!("statistics of a key are left out: {error}");
                None
            }
            Err(error) => {
                log::warn!("statistics of a key are left out: {error}");
                None
            }
        }
    }

    async fn read(&self, span: KeySpan) -> Result<KeyStatistics, Left> {
        let place = self.free.clone().try_acquire_owned();
        let place = place.map_err(|_| Left::Busy)?;
        let store = self.store.clone();
        // Its own task: the database goes on with a question that nobody waits for any more, and the
        // place is free only when it is done.
        let reading = tokio::spawn(async move {
            let _place = place;
            store.key_statistics(&span).await
        });
        match tokio::time::timeout(TIME_LIMIT, reading).await {
            Ok(Ok(statistics)) => Ok(statistics?),
            Ok(Err(_)) => Err(Left::Ended),
            Err(_) => Err(Left::Slow),
        }
    }
}

#[cfg(test)]
mod tests {
    use chrono::Utc;

    use super::*;
    use crate::domain::{ApiKeyId, Secret, UserId};

    fn span() -> KeySpan {
        let now = Utc::now();
        KeySpan {
            key: ApiKeyId(1),
            user: UserId(1),
            now,
            today: now,
            from: now,
            to: now,
        }
    }

    #[tokio::test]
    async fn beyond_a_few_at_once_and_after_a_failure_there_are_none() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path(), &Secret::new("a secret for tests"))
            .await
            .unwrap();
        let reports = Reports::new(store.clone());
        assert_eq!(reports.of(span()).await, Some(KeyStatistics::default()));
        assert_eq!(reports.free.available_permits(), AT_ONCE, "given back");
        let all = reports
            .free
            .clone()
            .try_acquire_many_owned(AT_ONCE as u32)
            .unwrap();
        assert_eq!(reports.of(span()).await, None, "no place");
        drop(all);
        assert!(reports.of(span()).await.is_some());
        store.close().await.unwrap();
        assert_eq!(reports.of(span()).await, None, "no database");
        assert_eq!(reports.free.available_permits(), AT_ONCE);
    }
}
