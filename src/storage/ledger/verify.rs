//! Does everything that was ever charged still agree? Balances with the ledger, the ledger with the
//! usage records, and what keys have used with both.

use std::fmt;

use sea_orm::{ConnectionTrait, DbErr, QueryResult};

use crate::domain::Money;
use crate::storage::rows::statement;
use crate::storage::{StorageError, Store};

/// So many of each kind are told: who has more knows enough.
const MOST: u32 = 1_000;

/// Two sums that should be the same and are not. There should never be one.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(tag = "mismatch", rename_all = "snake_case")]
pub enum LedgerMismatch {
    /// A user's balance is not the sum of the ledger entries.
    Balance {
        /// The user's name.
        user: String,
        /// The stored balance.
        balance: Money,
        /// The sum of the entries.
        entries: Money,
    },
    /// A request has not been charged what its record says that the balance pays.
    Charge {
        /// The request.
        request_id: String,
        /// What the record says; `None` = there is no such record.
        record: Option<Money>,
        /// What its entry charges; `None` = it has none, or it is another user's.
        entry: Option<Money>,
    },
    /// A request has been given back something else than what the balance paid for it.
    Reversal {
        /// The request.
        request_id: String,
        /// What the balance paid; `None` = there is no such record.
        record: Option<Money>,
        /// What its entry gives back.
        entry: Money,
    },
    /// The used quota of a key is not the sum of what its requests were charged and not given back.
    Quota {
        /// The key's name.
        key: String,
        /// The stored quota used.
        used: Money,
        /// That sum.
        charges: Money,
    },
    /// An entry that nothing of ours makes.
    Entry {
        /// Its number.
        entry: i64,
        /// The number of its user.
        user_id: i64,
        /// `charge`, `credit`, `adjustment` or `reversal`.
        kind: String,
        /// Its amount.
        amount: Money,
        /// What is wrong with it.
        problem: String,
    },
    /// Something that is there cannot be read, so that nobody can say whether it agrees.
    Unreadable {
        /// What was looked at.
        check: &'static str,
        /// Why it could not be read.
        problem: String,
    },
}

impl fmt::Display for LedgerMismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or_none = |amount: &Option<Money>| amount.map_or("none".into(), |a| a.to_string());
        match self {
            LedgerMismatch::Balance {
                user,
                balance,
                entries,
            } => write!(
                f,
                "user {user}: balance {balance}, sum of entries {entries}"
            ),
            LedgerMismatch::Charge {
                request_id,
                record,
                entry,
            } => {
                let (record, entry) = (or_none(record), or_none(entry));
                write!(f, "request {request_id}: record {record}, charged {entry}")
            }
            LedgerMismatch::Reversal {
                request_id,
                record,
                entry,
            } => {
                let record = or_none(record);
                write!(
                    f,
                    "request {request_id}: record {record}, given back {entry}"
                )
            }
            LedgerMismatch::Quota { key, used, charges } => {
                write!(f, "key {key}: quota used {used}, sum of charges {charges}")
            }
            LedgerMismatch::Entry {
                entry,
                user_id,
                kind,
                amount,
                problem,
            } => write!(
                f,
                "entry {entry} (user {user_id}, {kind}, {amount}): {problem}"
            ),
            LedgerMismatch::Unreadable { check, problem } => {
                write!(f, "{check} cannot be checked: {problem}")
            }
        }
    }
}

// Sums are made of whole dollars and of the rest apart: whatever somebody has written there, SQLite
// can add it up. Two such sums are one when the rests differ by what the dollars do.

/// Each balance is the sum of its entries.
const BALANCES: &str = "SELECT u.name, u.balance_nanos, \
         COALESCE(SUM(l.amount_nanos / 1000000000), 0) AS dollars, \
         COALESCE(SUM(l.amount_nanos % 1000000000), 0) AS nanos \
     FROM users u LEFT JOIN ledger_entries l ON l.user_id = u.id \
     GROUP BY u.id \
     HAVING (nanos - u.balance_nanos % 1000000000) % 1000000000 <> 0 \
         OR (nanos - u.balance_nanos % 1000000000) / 1000000000 \
            + dollars - u.balance_nanos / 1000000000 <> 0 \
     ORDER BY u.name LIMIT ?";
/// Each record that the balance pays has one charge of that amount, and no other has one. Unique by
/// request and kind, an entry cannot be there twice.
const CHARGES: &str = "SELECT e.request_id, \
         iif(c.billing_type = 'balance', e.charge_nanos, 0) AS due, l.amount_nanos AS charged \
     FROM usage_entries e CROSS JOIN usage_contexts c ON c.id = e.context_id \
     LEFT JOIN ledger_entries l \
         ON l.request_id = e.request_id AND l.kind = 'charge' AND l.user_id = e.user_id \
     WHERE due <> COALESCE(-charged, 0) LIMIT ?";
/// Each entry that names a request belongs to a record of the same user.
const ORPHANS: &str = "SELECT l.request_id, NULL, l.amount_nanos FROM ledger_entries l \
     LEFT JOIN usage_entries e ON e.request_id = l.request_id AND e.user_id = l.user_id \
     WHERE l.kind = 'charge' AND e.id IS NULL LIMIT ?";
/// What is given back is what the balance paid: nothing, where a subscription did.
const REVERSALS: &str = "SELECT l.request_id, \
         iif(c.billing_type <> 'balance', 0, e.charge_nanos) AS due, l.amount_nanos \
     FROM ledger_entries l \
     LEFT JOIN usage_entries e ON e.request_id = l.request_id AND e.user_id = l.user_id \
     LEFT JOIN usage_contexts c ON c.id = e.context_id \
     WHERE l.kind = 'reversal' AND l.request_id IS NOT NULL \
         AND (e.id IS NULL OR due <> l.amount_nanos) LIMIT ?";
/// Keys count charges, whoever paid, but for those given back.
const QUOTAS: &str = "WITH charged AS ( \
         SELECT c.api_key_id AS id, SUM(e.charge_nanos / 1000000000) AS dollars, \
             SUM(e.charge_nanos % 1000000000) AS nanos \
         FROM usage_entries e CROSS JOIN usage_contexts c ON c.id = e.context_id \
         WHERE c.billing_type <> 'none' AND e.charge_nanos > 0 AND NOT EXISTS ( \
             SELECT 1 FROM ledger_entries l \
             WHERE l.request_id = e.request_id AND l.kind = 'reversal') \
         GROUP BY c.api_key_id), \
     sums AS ( \
         SELECT k.name, k.quota_used_nanos AS used, COALESCE(charged.dollars, 0) AS dollars, \
             COALESCE(charged.nanos, 0) AS nanos \
         FROM api_keys k LEFT JOIN charged ON charged.id = k.id) \
     SELECT name, used, dollars, nanos FROM sums \
     WHERE (nanos - used % 1000000000) % 1000000000 <> 0 \
         OR (nanos - used % 1000000000) / 1000000000 + dollars - used / 1000000000 <> 0 \
     ORDER BY name LIMIT ?";
/// Each entry is of a user and has the sign of its kind; charges and reversals name their request.
const ENTRIES: &str = "SELECT l.id, l.user_id, l.kind, l.amount_nanos, \
         iif(u.id IS NULL, 'there is no such user', \
             iif(l.kind = 'reversal' AND l.request_id IS NULL, 'names no request', \
                 'has the wrong sign')) \
     FROM ledger_entries l LEFT JOIN users u ON u.id = l.user_id \
     WHERE u.id IS NULL \
         OR (l.kind = 'reversal' AND l.request_id IS NULL) \
         OR (l.kind IN ('charge', 'adjustment') AND l.amount_nanos > 0) \
         OR (l.kind IN ('credit', 'reversal') AND l.amount_nanos < 0) \
     ORDER BY l.id LIMIT ?";

/// How a row of a check is told.
type Tell = fn(&QueryResult) -> Result<LedgerMismatch, DbErr>;

/// The checks: what is looked at, the question for what does not agree, and how its rows are told.
const CHECKS: [(&str, &str, Tell); 6] = [
    ("balances", BALANCES, |row| {
        Ok(LedgerMismatch::Balance {
            user: row.try_get_by_index(0)?,
            balance: Money(row.try_get_by_index(1)?),
            entries: sum(row)?,
        })
    }),
    ("charges", CHARGES, charge),
    ("entries of charges", ORPHANS, charge),
    ("reversals", REVERSALS, |row| {
        Ok(LedgerMismatch::Reversal {
            request_id: row.try_get_by_index(0)?,
            record: row.try_get_by_index::<Option<i64>>(1)?.map(Money),
            entry: Money(row.try_get_by_index(2)?),
        })
    }),
    ("quotas", QUOTAS, |row| {
        Ok(LedgerMismatch::Quota {
            key: row.try_get_by_index(0)?,
            used: Money(row.try_get_by_index(1)?),
            charges: sum(row)?,
        })
    }),
    ("entries", ENTRIES, |row| {
        Ok(LedgerMismatch::Entry {
            entry: row.try_get_by_index(0)?,
            user_id: row.try_get_by_index(1)?,
            kind: row.try_get_by_index(2)?,
            amount: Money(row.try_get_by_index(3)?),
            problem: row.try_get_by_index(4)?,
        })
    }),
];

fn charge(row: &QueryResult) -> Result<LedgerMismatch, DbErr> {
    let entry = row.try_get_by_index::<Option<i64>>(2)?;
    Ok(LedgerMismatch::Charge {
        request_id: row.try_get_by_index(0)?,
        record: row.try_get_by_index::<Option<i64>>(1)?.map(Money),
        entry: entry.map(|amount| Money(amount.saturating_neg())),
    })
}

/// The sum in the third and fourth column; what no amount can hold is shown as the most there is.
fn sum(row: &QueryResult) -> Result<Money, DbErr> {
    let (dollars, nanos): (i64, i64) = (row.try_get_by_index(2)?, row.try_get_by_index(3)?);
    let sum = i128::from(dollars) * 1_000_000_000 + i128::from(nanos);
    Ok(Money(i64::try_from(sum).unwrap_or(if sum < 0 {
        i64::MIN
    } else {
        i64::MAX
    })))
}

impl Store {
    /// Every sum that does not agree with the entries it is of, and every entry that nothing of ours makes,
    /// as of one moment, at most a thousand of each kind; empty when all is well. What cannot be read
    /// is told as well, and hides nothing else. It reads every record, in another thread's time: some
    /// seconds for millions.
    ///
    /// # Errors
    /// [`StorageError`] when the database cannot be used at all.
    pub async fn verify_ledger(&self) -> Result<Vec<LedgerMismatch>, StorageError> {
        let txn = self.begin_read().await?;
        let mut found = Vec::new();
        for (check, sql, tell) in CHECKS {
            let unreadable = |error: DbErr| LedgerMismatch::Unreadable {
                check,
                problem: error.to_string(),
            };
            match txn.query_all_raw(statement(sql, vec![MOST.into()])).await {
                Ok(rows) => {
                    found.extend(rows.iter().map(|row| tell(row).unwrap_or_else(unreadable)))
                }
                Err(error) => match StorageError::from(error) {
                    StorageError::Db(error) => found.push(unreadable(error)),
                    other => return Err(other),
                },
            }
        }
        txn.rollback().await?;
        Ok(found)
    }
}
