//! The accounts' conditions and strikes, as the running server last wrote them. They are live state
//! that is only kept here: writing them is no change of configuration, so the change counter stays.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DatabaseTransaction, QueryResult, Value};

use super::convert::{millis, optional_time, time, whole};
use super::rows::{chunks, statement, tuples};
use super::{StorageError, Store};
use crate::domain::{AccountId, Condition, ConditionKind, Conditions};

/// What is different between two pictures of the conditions.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ConditionChanges {
    /// Those that are new or are not as they were.
    pub set: Vec<(AccountId, Condition)>,
    /// The places (kind and model) at which there is none any more.
    pub gone: Vec<(AccountId, ConditionKind, Option<String>)>,
}

impl ConditionChanges {
    /// What has to be done to `before` to have `after`.
    pub fn between(before: &Conditions, after: &Conditions) -> ConditionChanges {
        let mut changes = ConditionChanges::default();
        for (&account, list) in &after.0 {
            let before = before.of(account);
            let new = list.iter().filter(|c| !before.contains(c));
            changes.set.extend(new.map(|c| (account, c.clone())));
        }
        for (&account, list) in &before.0 {
            let after = after.of(account);
            let gone = list
                .iter()
                .filter(|c| !after.iter().any(|d| c.same_place(d)));
            changes
                .gone
                .extend(gone.map(|c| (account, c.kind, c.model.clone())));
        }
        changes
    }

    /// Whether there is no difference.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.gone.is_empty()
    }

    /// How many places differ.
    pub fn len(&self) -> usize {
        self.set.len() + self.gone.len()
    }
}

impl Store {
    /// Every condition that was saved and not removed, ended ones and those from before the last
    /// `accounts resume` included: whoever restores them has the clock and the accounts.
    ///
    /// # Errors
    /// [`StorageError`] when the database or a row cannot be read.
    pub async fn load_conditions(&self) -> Result<Vec<(AccountId, Condition)>, StorageError> {
        let rows = self
            .inner
            .pools
            .reader
            .query_all_raw(statement(SELECT, Vec::new()))
            .await?;
        rows.iter().map(condition).collect()
    }

    /// Writes a difference, in one transaction; the change counter stays as it is. Doing it again is
    /// harmless.
    ///
    /// # Errors
    /// [`StorageError`] when the database cannot be written; then nothing of it was.
    pub async fn save_conditions(&self, changes: &ConditionChanges) -> Result<(), StorageError> {
        if changes.is_empty() {
            return Ok(());
        }
        let txn = self.begin_write().await?;
        for chunk in chunks(&changes.gone) {
            let sql = format!(
                "DELETE FROM account_conditions WHERE (account_id, kind, model) IN (VALUES {})",
                tuples(chunk.len(), 3)
            );
            let values = chunk.iter().flat_map(|(account, kind, model)| {
                [account.0.into(), kind.as_str().into(), place(model).into()]
            });
            txn.execute_raw(statement(sql, values.collect())).await?;
        }
        for chunk in chunks(&changes.set) {
            let sql = format!(
                "INSERT INTO account_conditions ({COLUMNS}) VALUES {} \
                 ON CONFLICT (account_id, kind, model) DO UPDATE SET reason = excluded.reason, \
                 status = excluded.status, since = excluded.since, until = excluded.until",
                tuples(chunk.len(), 7)
            );
            let values = chunk.iter().flat_map(|(account, c)| row(*account, c));
            txn.execute_raw(statement(sql, values.collect())).await?;
        }
        txn.commit().await?;
        Ok(())
    }

    /// When each account was struck, as last saved.
    ///
    /// # Errors
    /// [`StorageError`] when the database or a row cannot be read.
    pub async fn load_strikes(&self) -> Result<Vec<(AccountId, DateTime<Utc>)>, StorageError> {
        let sql =
            "SELECT account_id, struck_at FROM account_strikes ORDER BY struck_at, account_id";
        self.inner
            .pools
            .reader
            .query_all_raw(statement(sql, Vec::new()))
            .await?
            .iter()
            .map(|row| {
                let account = AccountId(row.try_get_by_index(0)?);
                Ok((account, time(row.try_get_by_index(1)?)?))
            })
            .collect()
    }

    /// Writes when each account was struck, in place of what was saved before: there are a handful
    /// at most. The change counter stays as it is.
    ///
    /// # Errors
    /// [`StorageError`] when the database cannot be written; then nothing was changed.
    pub async fn save_strikes(
        &self,
        strikes: &[(AccountId, DateTime<Utc>)],
    ) -> Result<(), StorageError> {
        let txn = self.begin_write().await?;
        txn.execute_raw(statement("DELETE FROM account_strikes", Vec::new()))
            .await?;
        for chunk in chunks(strikes) {
            let sql = format!(
                "INSERT INTO account_strikes (account_id, struck_at) VALUES {}",
                tuples(chunk.len(), 2)
            );
            let values = chunk
                .iter()
                .flat_map(|(account, at)| [account.0.into(), millis(*at).into()]);
            txn.execute_raw(statement(sql, values.collect())).await?;
        }
        txn.commit().await?;
        Ok(())
    }
}

const COLUMNS: &str = "account_id, kind, model, reason, status, since, until";
const SELECT: &str = "SELECT account_id, kind, model, reason, status, since, until \
                      FROM account_conditions ORDER BY account_id, kind, model";

/// The saved conditions by account.
pub(super) async fn by_account(
    txn: &DatabaseTransaction,
) -> Result<HashMap<AccountId, Vec<Condition>>, StorageError> {
    let mut all: HashMap<AccountId, Vec<Condition>> = HashMap::new();
    for row in txn.query_all_raw(statement(SELECT, Vec::new())).await? {
        let (account, condition) = condition(&row)?;
        all.entry(account).or_default().push(condition);
    }
    Ok(all)
}

/// Removes what began before `before` at an account, and its strikes.
pub(super) async fn lift(
    txn: &DatabaseTransaction,
    account: i64,
    before: DateTime<Utc>,
) -> Result<(), StorageError> {
    for (sql, values) in [
        (
            "DELETE FROM account_conditions WHERE account_id = ? AND since < ?",
            vec![account.into(), millis(before).into()],
        ),
        (
            "DELETE FROM account_strikes WHERE account_id = ?",
            vec![account.into()],
        ),
    ] {
        txn.execute_raw(statement(sql, values)).await?;
    }
    Ok(())
}

/// The model as stored: a part of the primary key, so never NULL. No request is for the model `""`.
fn place(model: &Option<String>) -> String {
    model.clone().unwrap_or_default()
}

fn row(account: AccountId, condition: &Condition) -> [Value; 7] {
    [
        account.0.into(),
        condition.kind.as_str().into(),
        place(&condition.model).into(),
        condition.reason.clone().into(),
        condition.status.map(i64::from).into(),
        millis(condition.since).into(),
        condition.until.map(millis).into(),
    ]
}

fn condition(row: &QueryResult) -> Result<(AccountId, Condition), StorageError> {
    let kind: String = row.try_get_by_index(1)?;
    let model: String = row.try_get_by_index(2)?;
    let status: Option<i64> = row.try_get_by_index(4)?;
    let condition = Condition {
        kind: ConditionKind::parse(&kind)
            .ok_or_else(|| StorageError::Corrupt(format!("a kind of condition: {kind:?}")))?,
        model: Some(model).filter(|model| !model.is_empty()),
        reason: row.try_get_by_index(3)?,
        status: status.map(whole).transpose()?,
        since: time(row.try_get_by_index(5)?)?,
        until: optional_time(row.try_get_by_index(6)?)?,
    };
    Ok((AccountId(row.try_get_by_index(0)?), condition))
}
