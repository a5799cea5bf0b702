//! The entries as the command line shows them.

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, QueryResult, Value};

use crate::domain::Money;
use crate::storage::convert::{millis, time};
use crate::storage::rows::statement;
use crate::storage::{StorageError, Store};

/// An entry as shown.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct EntryView {
    /// Its number, which grows.
    pub entry: i64,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// Whose balance it moved; `None` = there is no such user.
    pub user: Option<String>,
    /// `charge`, `credit`, `adjustment` or `reversal`.
    pub kind: String,
    /// By how much.
    pub amount: Money,
    /// The request that it charges or gives back.
    pub request_id: Option<String>,
    /// Which command made it; `None` = a settled request.
    pub command: Option<String>,
    /// The command's idempotency key.
    pub idempotency_key: Option<String>,
    /// What was said of it.
    pub note: Option<String>,
}

impl Store {
    /// A page of the ledger, oldest first: entries made at or after `since` behind the entry `after`, of
    /// one user or of all. An empty page is the end.
    ///
    /// # Errors
    /// [`StorageError::NotFound`] when there is no such user.
    pub async fn ledger_entries(
        &self,
        user: Option<&str>,
        since: DateTime<Utc>,
        after: i64,
        limit: u64,
    ) -> Result<Vec<EntryView>, StorageError> {
        let mut values: Vec<Value> = vec![millis(since).into(), after.into()];
        let mut of_user = "";
        if let Some(user) = user {
            values.push(self.id_of("user", "users", user).await?.into());
            of_user = "AND l.user_id = ? ";
        }
        values.push(limit.into());
        let sql = format!(
            "SELECT l.id, l.created_at, u.name, l.kind, l.amount_nanos, l.request_id, l.command, \
             l.idempotency_key, l.note FROM ledger_entries l LEFT JOIN users u ON u.id = l.user_id \
             WHERE l.created_at >= ? AND l.id > ? {of_user}ORDER BY l.id LIMIT ?"
        );
        let reader = &self.inner.pools.reader;
        let rows = reader.query_all_raw(statement(sql, values)).await?;
        rows.iter().map(view).collect()
    }
}

fn view(row: &QueryResult) -> Result<EntryView, StorageError> {
    Ok(EntryView {
        entry: row.try_get_by_index(0)?,
        created_at: time(row.try_get_by_index(1)?)?,
        user: row.try_get_by_index(2)?,
        kind: row.try_get_by_index(3)?,
        amount: Money(row.try_get_by_index(4)?),
        request_id: row.try_get_by_index(5)?,
        command: row.try_get_by_index(6)?,
        idempotency_key: row.try_get_by_index(7)?,
        note: row.try_get_by_index(8)?,
    })
}
