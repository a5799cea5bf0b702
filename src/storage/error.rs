//! What can go wrong in the store.

use std::path::PathBuf;

use sea_orm::{DbErr, RuntimeErr};

/// Why the store could not do what it was asked. Nothing was changed, whichever it is.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The database failed (disk full, file damaged, a constraint).
    #[error("database: {0}")]
    Db(#[source] DbErr),
    /// Another process held the write lock for longer than the busy time-out.
    #[error("the database is busy: another process has been writing for too long")]
    Locked,
    /// A stored value cannot be read as what it should be.
    #[error("the database holds something unreadable: {0}")]
    Corrupt(String),
    /// A name that does not exist.
    #[error("there is no {kind} named {name}")]
    NotFound {
        /// `group`, `account`, `user`, `key` or `usage record`.
        kind: &'static str,
        /// The name (or names, comma-separated) that was asked for.
        name: String,
    },
    /// It was done before, and not in the same way: what was, and how.
    #[error("{0}")]
    Conflict(String),
    /// The request makes no sense; every reason, one a line.
    #[error("{}", .0.join("\n"))]
    Invalid(Vec<String>),
    /// A sealed value could not be opened.
    #[error("{0} cannot be unsealed: it was damaged or written under another secret")]
    Sealed(String),
    /// The system gave no random bytes for a key or a nonce.
    #[error("the system gives no random numbers")]
    NoRandomness,
    /// The database belongs to another `security.secret`.
    #[error("{} was made with another security.secret; start with that one", .0.display())]
    WrongSecret(PathBuf),
    /// The database was migrated by a newer version of the program.
    #[error("the database was made by a newer version of tollgate (it knows {0:?})")]
    Newer(String),
    /// The data directory cannot be used.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

impl From<DbErr> for StorageError {
    fn from(error: DbErr) -> StorageError {
        if is_busy(&error) {
            StorageError::Locked
        } else {
            StorageError::Db(error)
        }
    }
}

impl From<sea_orm::sqlx::Error> for StorageError {
    fn from(error: sea_orm::sqlx::Error) -> StorageError {
        DbErr::Exec(RuntimeErr::SqlxError(error.into())).into()
    }
}

/// Whether SQLite answered `SQLITE_BUSY` (5) in one of its extended forms.
fn is_busy(error: &DbErr) -> bool {
    let (DbErr::Conn(RuntimeErr::SqlxError(inner))
    | DbErr::Exec(RuntimeErr::SqlxError(inner))
    | DbErr::Query(RuntimeErr::SqlxError(inner))) = error
    else {
        return false;
    };
    inner
        .as_database_error()
        .and_then(|e| e.code()?.parse::<i32>().ok())
        .is_some_and(|code| code & 0xff == 5)
}
