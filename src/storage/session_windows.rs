//! What the accounts' providers last said about their session windows, and what the accounts have cost lately. The
//! first is live state that is only kept here: writing it is no change of configuration, so the change counter stays.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DatabaseTransaction, QueryResult};

use super::convert::{millis, optional_time, time, whole};
use super::rows::{chunks, statement, tuples};
use super::{StorageError, Store};
use crate::domain::account::seen_window::{Permille, SeenWindow, Span, session_status};
use crate::domain::{AccountId, Money, Platform};

const COLUMNS: &str =
    "account_id, status, starts_at, ends_at, used_permille, week_used_permille, seen_at";

impl Store {
    /// The session windows as last saved, those that are over included.
    ///
    /// # Errors
    /// [`StorageError`] when the database or a row cannot be read.
    pub async fn load_session_windows(&self) -> Result<Vec<(AccountId, SeenWindow)>, StorageError> {
        let sql = format!("SELECT {COLUMNS} FROM account_session_windows ORDER BY account_id");
        let reader = &self.inner.pools.reader;
        let rows = reader.query_all_raw(statement(sql, Vec::new())).await?;
        rows.iter().map(window).collect()
    }

    /// Writes session windows in place of what was saved of their accounts, in one transaction.
    ///
    /// # Errors
    /// [`StorageError`] when the database cannot be written; then nothing of it was.
    pub async fn save_session_windows(
        &self,
        windows: &BTreeMap<AccountId, SeenWindow>,
    ) -> Result<(), StorageError> {
        if windows.is_empty() {
            return Ok(());
        }
        let windows: Vec<_> = windows.iter().collect();
        let txn = self.begin_write().await?;
        for chunk in chunks(&windows) {
            let sql = format!(
                "INSERT INTO account_session_windows ({COLUMNS}) VALUES {} \
                 ON CONFLICT (account_id) DO UPDATE SET status = excluded.status, \
                 starts_at = excluded.starts_at, ends_at = excluded.ends_at, \
                 used_permille = excluded.used_permille, \
                 week_used_permille = excluded.week_used_permille, seen_at = excluded.seen_at",
                tuples(chunk.len(), 7)
            );
            let values = chunk.iter().flat_map(|(account, window)| {
                let part = |part: Option<Permille>| part.map(|part| i64::from(part.0));
                [
                    account.0.into(),
                    window.status.as_str().into(),
                    window.span.map(|span| millis(span.start)).into(),
                    window.span.map(|span| millis(span.end)).into(),
                    part(window.used).into(),
                    part(window.week_used).into(),
                    millis(window.seen_at).into(),
                ]
            });
            txn.execute_raw(statement(sql, values.collect())).await?;
        }
        txn.commit().await?;
        Ok(())
    }

    /// What accounts of this platform have cost at list price, by the minute (since 1970 UTC) in which their requests
    /// ended: of the requests that began at `since` or later.
    ///
    /// # Errors
    /// [`StorageError`] when the database cannot be read.
    pub async fn costs_by_minute(
        &self,
        platform: Platform,
        since: DateTime<Utc>,
    ) -> Result<Vec<(AccountId, i64, Money)>, StorageError> {
        let sql = "SELECT c.details ->> 'account_id', (e.created_at + e.duration_ms) / 60000, SUM(e.cost_nanos) \
                   FROM usage_entries e CROSS JOIN usage_contexts c ON c.id = e.context_id \
                   WHERE e.created_at >= ? AND e.cost_nanos > 0 AND c.details ->> 'platform' = ? \
                   GROUP BY 1, 2 ORDER BY 1, 2";
        let values = vec![millis(since).into(), platform.as_str().into()];
        let reader = &self.inner.pools.reader;
        let rows = reader.query_all_raw(statement(sql, values)).await?;
        rows.iter()
            .map(|row| {
                let account = AccountId(row.try_get_by_index(0)?);
                let cost = Money(row.try_get_by_index(2)?);
                Ok((account, row.try_get_by_index(1)?, cost))
            })
            .collect()
    }
}

/// The saved windows by account.
pub(super) async fn by_account(
    txn: &DatabaseTransaction,
) -> Result<HashMap<AccountId, SeenWindow>, StorageError> {
    let sql = format!("SELECT {COLUMNS} FROM account_session_windows");
    let rows = txn.query_all_raw(statement(sql, Vec::new())).await?;
    rows.iter().map(window).collect()
}

fn window(row: &QueryResult) -> Result<(AccountId, SeenWindow), StorageError> {
    let status: String = row.try_get_by_index(1)?;
    let part = |index| -> Result<Option<Permille>, StorageError> {
        let part: Option<i64> = row.try_get_by_index(index)?;
        Ok(part.map(whole).transpose()?.map(Permille))
    };
    let (start, end) = (
        optional_time(row.try_get_by_index(2)?)?,
        optional_time(row.try_get_by_index(3)?)?,
    );
    let window = SeenWindow {
        status: session_status(&status)
            .ok_or_else(|| StorageError::Corrupt(format!("the status of a window: {status:?}")))?,
        span: start.zip(end).map(|(start, end)| Span { start, end }),
        used: part(4)?,
        week_used: part(5)?,
        seen_at: time(row.try_get_by_index(6)?)?,
    };
    Ok((AccountId(row.try_get_by_index(0)?), window))
}
