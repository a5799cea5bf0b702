//! Does everything that was ever charged still agree? Balances with the ledger, the ledger with the
//! usage records, and what keys have used with both.

use std::fmt;

use sea_orm::{ConnectionTrait, DatabaseTransaction, QueryResult};

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
        }
    }
}

/// Each balance is the sum of its entries.
const BALANCES: &str = "SELECT u.name, u.balance_nanos, COALESCE(SUM(l.amount_nanos), 0) AS entries \
     FROM users u LEFT JOIN ledger_entries l ON l.user_id = u.id \
     GROUP BY u.id HAVING u.balance_nanos <> entries ORDER BY u.name LIMIT ?";
/// Each record that the balance pays has one charge of that amount, and no other has one. Unique by
/// request and kind, an entry cannot be there twice.
const CHARGES: &str = "SELECT e.request_id, \
         iif(c.billing_type = 'balance', e.charge_nanos, 0) AS due, -l.amount_nanos AS charged \
     FROM usage_entries e CROSS JOIN usage_contexts c ON c.id = e.context_id \
     LEFT JOIN ledger_entries l \
         ON l.request_id = e.request_id AND l.kind = 'charge' AND l.user_id = e.user_id \
     WHERE due <> COALESCE(charged, 0) LIMIT ?";
/// Each entry that names a request belongs to a record of the same user.
const ORPHANS: &str = "SELECT l.request_id, NULL, -l.amount_nanos FROM ledger_entries l \
     LEFT JOIN usage_entries e ON e.request_id = l.request_id AND e.user_id = l.user_id \
     WHERE l.kind = 'charge' AND e.id IS NULL LIMIT ?";
/// What is given back is what the balance paid: nothing, where a subscription did.
const REVERSALS: &str = "SELECT l.request_id, \
         iif(c.billing_type <> 'balance', 0, e.charge_nanos) AS due, l.amount_nanos \
     FROM ledger_entries l \
     LEFT JOIN usage_entries e ON e.request_id = l.request_id AND e.user_id = l.user_id \
     LEFT JOIN usage_contexts c ON c.id = e.context_id \
     WHERE l.kind = 'reversal' AND (e.id IS NULL OR due <> l.amount_nanos) LIMIT ?";
/// Keys count charges, whoever paid, but for those given back.
const QUOTAS: &str = "WITH charged AS ( \
         SELECT c.api_key_id AS id, SUM(e.charge_nanos) AS charges \
         FROM usage_entries e CROSS JOIN usage_contexts c ON c.id = e.context_id \
         WHERE c.billing_type <> 'none' AND e.charge_nanos > 0 AND NOT EXISTS ( \
             SELECT 1 FROM ledger_entries l \
             WHERE l.request_id = e.request_id AND l.kind = 'reversal') \
         GROUP BY c.api_key_id) \
     SELECT k.name, k.quota_used_nanos, COALESCE(charged.charges, 0) AS charges \
     FROM api_keys k LEFT JOIN charged ON charged.id = k.id \
     WHERE k.quota_used_nanos <> COALESCE(charged.charges, 0) ORDER BY k.name LIMIT ?";

impl Store {
    /// Every sum that does not agree with the entries it is of, as of one moment, at most a thousand
    /// of each kind; empty when all is well. It reads every record, in another thread's time: some
    /// seconds for millions.
    ///
    /// # Errors
    /// [`StorageError`] when the database cannot be read.
    pub async fn verify_ledger(&self) -> Result<Vec<LedgerMismatch>, StorageError> {
        let txn = self.begin_read().await?;
        let mut found = Vec::new();
        for row in ask(&txn, BALANCES).await? {
            found.push(LedgerMismatch::Balance {
                user: row.try_get_by_index(0)?,
                balance: Money(row.try_get_by_index(1)?),
                entries: Money(row.try_get_by_index(2)?),
            });
        }
        for sql in [CHARGES, ORPHANS] {
            for row in ask(&txn, sql).await? {
                found.push(LedgerMismatch::Charge {
                    request_id: row.try_get_by_index(0)?,
                    record: row.try_get_by_index::<Option<i64>>(1)?.map(Money),
                    entry: row.try_get_by_index::<Option<i64>>(2)?.map(Money),
                });
            }
        }
        for row in ask(&txn, REVERSALS).await? {
            found.push(LedgerMismatch::Reversal {
                request_id: row.try_get_by_index(0)?,
                record: row.try_get_by_index::<Option<i64>>(1)?.map(Money),
                entry: Money(row.try_get_by_index(2)?),
            });
        }
        for row in ask(&txn, QUOTAS).await? {
            found.push(LedgerMismatch::Quota {
                key: row.try_get_by_index(0)?,
                used: Money(row.try_get_by_index(1)?),
                charges: Money(row.try_get_by_index(2)?),
            });
        }
        txn.rollback().await?;
        Ok(found)
    }
}

async fn ask(txn: &DatabaseTransaction, sql: &str) -> Result<Vec<QueryResult>, StorageError> {
    Ok(txn.query_all_raw(statement(sql, vec![MOST.into()])).await?)
}
