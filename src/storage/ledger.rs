//! The ledger: every change of a balance is one entry, and a balance is the sum of its entries.
//! Both are written in one transaction, and never apart: here, and for the charges of requests in
//! `settle.rs`. What commands enter is in `ledger/commands.rs`, what they show in `ledger/list.rs`;
//! `ledger/verify.rs` looks whether all of it still agrees.

mod commands;
mod list;
mod verify;

use std::collections::BTreeMap;

use sea_orm::{ConnectionTrait, DatabaseTransaction, Value};

pub use commands::{Counted, Posted, Posting, Reversals};
pub use list::EntryView;
pub use verify::LedgerMismatch;

use super::StorageError;
use super::convert::now_millis;
use super::rows::{chunks, statement, tuples};
use crate::domain::{Money, UserId};

/// What an entry is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum EntryKind {
    /// Money paid in.
    Credit,
    /// An operator's correction downwards.
    Adjustment,
    /// The charge of a request given back.
    Reversal,
}

impl EntryKind {
    fn as_str(self) -> &'static str {
        match self {
            EntryKind::Credit => "credit",
            EntryKind::Adjustment => "adjustment",
            EntryKind::Reversal => "reversal",
        }
    }
}

/// One entry to be appended.
pub(super) struct Entry<'a> {
    pub(super) user: UserId,
    pub(super) kind: EntryKind,
    pub(super) amount: Money,
    pub(super) request_id: Option<&'a str>,
    pub(super) posting: Posting<'a>,
}

/// Appends entries and moves the balances of their users by the same amounts.
pub(super) async fn post(
    txn: &DatabaseTransaction,
    entries: &[Entry<'_>],
) -> Result<(), StorageError> {
    let created_at = now_millis();
    for chunk in chunks(entries) {
        let sql = format!(
            "INSERT INTO ledger_entries (user_id, kind, amount_nanos, request_id, note, \
             idempotency_key, command, created_at) VALUES {}",
            tuples(chunk.len(), 8)
        );
        let values = chunk.iter().flat_map(|entry| {
            [
                entry.user.0.into(),
                entry.kind.as_str().into(),
                entry.amount.0.into(),
                entry.request_id.map(str::to_owned).into(),
                entry.posting.note.map(str::to_owned).into(),
                entry.posting.idempotency_key.map(str::to_owned).into(),
                entry.posting.command.map(str::to_owned).into(),
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

/// A correction downwards is an adjustment, everything else a credit.
pub(super) fn kind_of(amount: Money) -> EntryKind {
    if amount < Money::ZERO {
        EntryKind::Adjustment
    } else {
        EntryKind::Credit
    }
}
