//! The ledger: every change of a balance is one entry, and a balance is the sum of its entries.
//! Both are written in one transaction, and never apart: here, and for the charges of requests in
//! `settle.rs`.

use std::collections::BTreeMap;

use sea_orm::{
    ColumnTrait, ConnectionTrait, DatabaseTransaction, EntityTrait, QueryFilter, QuerySelect, Value,
};

use super::convert::now_millis;
use super::entities::user;
use super::rows::{chunks, statement, tuples};
use super::{StorageError, Store, meta};
use crate::domain::{Money, UserId};

/// Largest balance either way, in nano-dollars: nine billion dollars, short of `i64`'s range, so
/// that no sum can leave it unnoticed.
const MAX_BALANCE_NANOS: i64 = 9_000_000_000_000_000_000;

/// What an entry is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum EntryKind {
    /// Money paid in.
    Credit,
    /// An operator's correction downwards.
    Adjustment,
}

impl EntryKind {
    fn as_str(self) -> &'static str {
        match self {
            EntryKind::Credit => "credit",
            EntryKind::Adjustment => "adjustment",
        }
    }
}

/// One entry to be appended.
pub(super) struct Entry<'a> {
    pub(super) user: UserId,
    pub(super) kind: EntryKind,
    pub(super) amount: Money,
    pub(super) request_id: Option<&'a str>,
    pub(super) note: Option<&'a str>,
}

/// A user whose balance is not the sum of the ledger entries. There should never be one.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct LedgerMismatch {
    /// The user's name.
    pub user: String,
    /// The stored balance.
    pub balance: Money,
    /// The sum of the entries.
    pub entries: Money,
}

/// Appends entries and moves the balances of their users by the same amounts.
pub(super) async fn post(
    txn: &DatabaseTransaction,
    entries: &[Entry<'_>],
) -> Result<(), StorageError> {
    let created_at = now_millis();
    for chunk in chunks(entries) {
        let sql = format!(
            "INSERT INTO ledger_entries (user_id, kind, amount_nanos, request_id, note, created_at) \
             VALUES {}",
            tuples(chunk.len(), 6)
        );
        let values = chunk.iter().flat_map(|entry| {
            [
                entry.user.0.into(),
                entry.kind.as_str().into(),
                entry.amount.0.into(),
                entry.request_id.map(str::to_owned).into(),
                entry.note.map(str::to_owned).into(),
                created_at.into(),
            ]
        });
        txn.execute_raw(statement(sql, values.collect())).await?;
    }
    let mut sums: BTreeMap<i64, i64> = BTreeMap::new();
    for entry in entries {
        let sum = sums.entry(entry.user.0).or_default();
        *sum = sum.saturating_add(entry.amount.0);
    }
    add(txn, "users", "balance_nanos", &sums).await
}

/// `column = column + amount` for many ids of `table`, in SQL: a balance is never read, changed in
/// memory and written back.
pub(super) async fn add(
    txn: &DatabaseTransaction,
    table: &'static str,
    column: &'static str,
    amounts: &BTreeMap<i64, i64>,
) -> Result<(), StorageError> {
    let amounts: Vec<(i64, i64)> = amounts.iter().map(|(id, sum)| (*id, *sum)).collect();
    for chunk in chunks(&amounts) {
        // Columns of a VALUES list have no other names in SQLite.
        let sql = format!(
            "UPDATE {table} SET {column} = {column} + delta.column2 \
             FROM (VALUES {}) AS delta WHERE {table}.id = delta.column1",
            tuples(chunk.len(), 2)
        );
        let values: Vec<Value> = chunk
            .iter()
            .flat_map(|(id, amount)| [(*id).into(), (*amount).into()])
            .collect();
        txn.execute_raw(statement(sql, values)).await?;
    }
    Ok(())
}

impl Store {
    /// Adds `amount` to a balance, with a ledger entry; a negative amount takes it away and is
    /// entered as an adjustment. Returns the new balance.
    ///
    /// # Errors
    /// [`StorageError::NotFound`] for an unknown user; [`StorageError::Invalid`] for an amount of
    /// nothing or a balance beyond nine billion dollars.
    pub async fn credit(&self, user: &str, amount: Money) -> Result<Money, StorageError> {
        if amount == Money::ZERO {
            return Err(StorageError::Invalid(vec!["amount: is zero".to_owned()]));
        }
        let txn = self.begin_write().await?;
        let (id, balance) = find_balance(&txn, user).await?;
        let new = balance.0.checked_add(amount.0);
        if new.is_none_or(|new| new.unsigned_abs() > MAX_BALANCE_NANOS.unsigned_abs()) {
            return Err(StorageError::Invalid(vec![format!(
                "amount: {amount} takes the balance of {user} ({balance}) out of range"
            )]));
        }
        let entry = Entry {
            user: UserId(id),
            kind: kind_of(amount),
            amount,
            request_id: None,
            note: None,
        };
        post(&txn, &[entry]).await?;
        let (_, balance) = find_balance(&txn, user).await?;
        meta::bump_version(&txn).await?;
        txn.commit().await?;
        Ok(balance)
    }

    /// Users whose balance is not the sum of their ledger entries; empty when all is well.
    ///
    /// # Errors
    /// [`StorageError`] when the database cannot be read.
    pub async fn verify_ledger(&self) -> Result<Vec<LedgerMismatch>, StorageError> {
        let sql = "SELECT u.name, u.balance_nanos, COALESCE(SUM(e.amount_nanos), 0) AS entries \
                   FROM users u LEFT JOIN ledger_entries e ON e.user_id = u.id \
                   GROUP BY u.id HAVING u.balance_nanos <> entries ORDER BY u.name";
        self.inner
            .pools
            .reader
            .query_all_raw(statement(sql, Vec::new()))
            .await?
            .iter()
            .map(|row| {
                Ok(LedgerMismatch {
                    user: row.try_get_by_index(0)?,
                    balance: Money(row.try_get_by_index(1)?),
                    entries: Money(row.try_get_by_index(2)?),
                })
            })
            .collect()
    }
}

/// A correction downwards is an adjustment, everything else a credit.
pub(super) fn kind_of(amount: Money) -> EntryKind {
    if amount < Money::ZERO {
        EntryKind::Adjustment
    } else {
        EntryKind::Credit
    }
}

async fn find_balance(txn: &DatabaseTransaction, name: &str) -> Result<(i64, Money), StorageError> {
    let found: Option<(i64, i64)> = user::Entity::find()
        .select_only()
        .columns([user::Column::Id, user::Column::BalanceNanos])
        .filter(user::Column::Name.eq(name))
        .into_tuple()
        .one(txn)
        .await?;
    found
        .map(|(id, nanos)| (id, Money(nanos)))
        .ok_or_else(|| StorageError::NotFound {
            kind: "user",
            name: name.to_owned(),
        })
}
