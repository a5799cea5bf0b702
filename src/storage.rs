//! What is remembered: the configured objects, usage records, and the ledger with its balances,
//! in one SQLite file. Come here for anything that must survive a restart; not for live state
//! (slots, windows, sticky keys), and never from the request path: it reads the
//! [`Directory`](crate::domain::Directory) that was loaded from here.
//!
//! | question | file |
//! |---|---|
//! | how is the file opened, shared and protected? | `open.rs`, `seal.rs`, `meta.rs` |
//! | what is in it? | `migrations/`, `entities/`, `convert.rs` |
//! | how does it come to hold what the operator wrote? | `apply.rs`, `operate.rs` |
//! | what does the server read? | `directory.rs` |
//! | what of the live state outlives a restart? | `conditions.rs`, `responses.rs` |
//! | how does a request become a record and a charge? | `settle.rs`, `context.rs`, `ledger.rs` |
//! | what becomes of a record that belongs to nobody here? | `aside.rs` |
//! | what has been used of limits, and how far is the journal applied? | `windows.rs`, `watermark.rs` |
//! | what does the command line show? | `usage.rs`, `totals.rs`, `views.rs` |
//! | what is the holder of a key told about its use? | `reports.rs` |

mod apply;
mod aside;
mod conditions;
mod context;
mod convert;
mod directory;
mod entities;
mod error;
mod ledger;
mod meta;
mod migrations;
mod open;
mod operate;
mod reports;
mod responses;
mod rows;
mod seal;
mod session_windows;
mod settle;
#[cfg(test)]
mod tests;
mod totals;
mod usage;
mod views;
mod watermark;
mod windows;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sea_orm::{DatabaseTransaction, EntityTrait, PaginatorTrait, TransactionTrait};

pub use apply::{ApplyOptions, ApplyReport};
pub use conditions::ConditionChanges;
pub use error::StorageError;
pub use ledger::{Counted, EntryView, LedgerMismatch, Posted, Posting, Reversals};
pub use operate::Names;
pub use reports::{KeySpan, KeyStatistics, UsageSums};
pub use seal::KeyHasher;
pub use settle::Settled;
pub use totals::{UsageBy, UsageTotal};
pub use usage::{UsageCursor, UsageFilter, UsageRecordView};
pub use views::{
    AccountView, ChannelView, ConditionView, GroupView, KeyView, RateLimitsView, RuleView,
    SessionWindowView, SubscriptionView, UserView, WindowView,
};

use crate::domain::Secret;
use seal::Sealer;

/// The store of one data directory. Cheap to clone; any number of processes may have the same
/// directory open at once.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    data_dir: PathBuf,
    pools: open::Pools,
    hasher: KeyHasher,
    sealer: Sealer,
    contexts: parking_lot::Mutex<context::KnownContexts>,
    owners: parking_lot::Mutex<aside::KnownOwners>,
}

impl Store {
    /// Opens the store in `data_dir`, creating and migrating it as needed.
    ///
    /// # Errors
    /// [`StorageError::WrongSecret`] when the database was made with another secret,
    /// [`StorageError::Newer`] when a newer version made it, [`StorageError::Io`] when the
    /// directory cannot be used.
    pub async fn open(data_dir: &Path, secret: &Secret) -> Result<Store, StorageError> {
        Ok(Store {
            inner: Arc::new(Inner {
                pools: open::open(data_dir, secret).await?,
                data_dir: data_dir.to_owned(),
                hasher: KeyHasher::new(secret),
                sealer: Sealer::new(secret),
                contexts: Default::default(),
                owners: Default::default(),
            }),
        })
    }

    /// Closes the connections (of all clones) and folds the write-ahead log into the file.
    ///
    /// # Errors
    /// [`StorageError::Db`] when a connection could not be closed cleanly.
    pub async fn close(&self) -> Result<(), StorageError> {
        self.inner.pools.reader.close_by_ref().await?;
        self.inner.pools.writer.close_by_ref().await?;
        Ok(())
    }

    /// Hashes presented keys as the store does.
    pub fn hasher(&self) -> &KeyHasher {
        &self.inner.hasher
    }

    /// A random number that was made with the database and stays with its copies: a journal that was
    /// written beside another database is known by it.
    pub fn database_id(&self) -> u64 {
        self.inner.pools.id
    }

    /// The change counter: it grows with every change of configuration (`apply`, new keys,
    /// pausing, credits), not with settlements.
    ///
    /// # Errors
    /// [`StorageError`] when the database cannot be read.
    pub async fn version(&self) -> Result<i64, StorageError> {
        meta::version(&self.inner.pools.reader).await
    }

    /// Whether there is not a single group, account, user or key.
    ///
    /// # Errors
    /// [`StorageError`] when the database cannot be read.
    pub async fn is_empty(&self) -> Result<bool, StorageError> {
        let txn = self.begin_read().await?;
        let rows = entities::group::Entity::find().count(&txn).await?
            + entities::account::Entity::find().count(&txn).await?
            + entities::user::Entity::find().count(&txn).await?
            + entities::api_key::Entity::find().count(&txn).await?;
        Ok(rows == 0)
    }

    /// A transaction whose reads all see the same state.
    async fn begin_read(&self) -> Result<DatabaseTransaction, StorageError> {
        Ok(self.inner.pools.reader.begin().await?)
    }

    /// A transaction that holds the write lock; dropped without a commit it changes nothing.
    async fn begin_write(&self) -> Result<DatabaseTransaction, StorageError> {
        open::begin_write(&self.inner.pools.writer).await
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Store(…)")
    }
}
