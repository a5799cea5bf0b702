//! Entries that an operator's commands make: credits, debits and refunds. A command may be repeated
//! with its idempotency key: it is entered once and answered alike.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use chrono_tz::Tz;
use sea_orm::{
    ColumnTrait, ConnectionTrait, DatabaseTransaction, EntityTrait, QueryFilter, QueryResult,
    QuerySelect,
};

use super::{Entry, EntryKind, add, post};
use crate::domain::text::is_name;
use crate::domain::{
    ApiKeyId, BillingType, GroupId, KEY_WINDOWS, Money, SUBSCRIPTION_WINDOWS, UserId, Window,
    WindowKind,
};
use crate::storage::convert::time;
use crate::storage::entities::user;
use crate::storage::rows::statement;
use crate::storage::windows::window;
use crate::storage::{StorageError, Store, meta};

/// Largest balance either way, in nano-dollars: nine billion dollars, short of `i64`'s range, so
/// that no sum can leave it unnoticed.
const MAX_BALANCE_NANOS: i64 = 9_000_000_000_000_000_000;
/// Longest note, in characters: a line for whoever reads the ledger, not a document.
const MAX_NOTE_CHARS: usize = 1_000;

/// What a command says of the entry it makes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Posting<'a> {
    /// The entry is made once for this key, however often the command is repeated.
    pub idempotency_key: Option<&'a str>,
    /// In words.
    pub note: Option<&'a str>,
    /// Which command it is.
    pub command: Option<&'a str>,
}

/// An entry that was made, now or when the command was given first.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct Posted {
    /// Whose balance it moved.
    pub user: String,
    /// By how much: negative for a debit, zero for the refund of what a subscription paid.
    pub amount: Money,
    /// Such a refund: of which subscription, and what is taken from its windows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subscription: Option<(String, Money)>,
    /// The balance right after it.
    pub balance: Money,
    /// Whether it was made before, by a command with the same idempotency key.
    pub repeated: bool,
}

/// Charges that were given back.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Reversals {
    /// The last entry of the ledger that was looked at: to ask from there the next time.
    pub upto: i64,
    /// What they had counted, in the order in which they were given back.
    pub charges: Vec<Counted>,
}

/// A charge and what it was counted in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Counted {
    /// The user of its request.
    pub user: UserId,
    /// Its key.
    pub key: ApiKeyId,
    /// Its group: with the user, its subscription.
    pub group: GroupId,
    /// Who paid.
    pub billing_type: BillingType,
    /// The charge.
    pub charge: Money,
    /// When it was counted: [`settled_at`](crate::domain::UsageRecord::settled_at).
    pub at: DateTime<Utc>,
}

impl Counted {
    /// Takes the charge back from a window that it is in. One that was settled before its window began
    /// is in it too, but nothing says so: there it stays counted.
    pub fn take_from(&self, window: &mut Window, kind: WindowKind, tz: Tz) {
        let begun = window.start.is_some_and(|start| start <= self.at);
        let runs = window.resets_at(kind, tz).is_some_and(|end| self.at < end);
        if begun && runs {
            window.used = (window.used - self.charge).max(Money::ZERO);
        }
    }

    /// From the columns of [`COUNTED`].
    fn of(row: &QueryResult) -> Result<Counted, StorageError> {
        let created_at = time(row.try_get_by_index(5)?)?;
        let span = TimeDelta::try_milliseconds(row.try_get_by_index(6)?);
        let at = span.and_then(|span| created_at.checked_add_signed(span));
        let billing_type: String = row.try_get_by_index(3)?;
        let types = [
            BillingType::Balance,
            BillingType::Subscription,
            BillingType::None,
        ];
        Ok(Counted {
            user: UserId(row.try_get_by_index(0)?),
            key: ApiKeyId(row.try_get_by_index(1)?),
            group: GroupId(row.try_get_by_index(2)?),
            billing_type: types
                .into_iter()
                .find(|t| t.as_str() == billing_type)
                .ok_or_else(|| {
                    StorageError::Corrupt(format!("a billing type: {billing_type:?}"))
                })?,
            charge: Money(row.try_get_by_index(4)?),
            at: at.unwrap_or(created_at),
        })
    }
}

/// The columns that [`Counted::of`] reads, of `usage_entries e` and `usage_contexts c`.
const COUNTED: &str = "e.user_id, c.api_key_id, c.details ->> 'group_id', c.billing_type, \
     e.charge_nanos, e.created_at, e.duration_ms";

impl Store {
    /// Adds `amount` to a balance, with a ledger entry.
    ///
    /// # Errors
    /// [`StorageError::NotFound`] for an unknown user; [`StorageError::Invalid`] for an amount that is
    /// not above zero, a balance beyond nine billion dollars, an unusable key or note;
    /// [`StorageError::Conflict`] when the idempotency key was used for something else.
    pub async fn credit(
        &self,
        user: &str,
        amount: Money,
        posting: Posting<'_>,
    ) -> Result<Posted, StorageError> {
        self.correct(user, EntryKind::Credit, amount, posting).await
    }

    /// Takes `amount` from a balance, with an adjustment in the ledger; the balance may go below zero.
    ///
    /// # Errors
    /// Those of [`Store::credit`].
    pub async fn debit(
        &self,
        user: &str,
        amount: Money,
        posting: Posting<'_>,
    ) -> Result<Posted, StorageError> {
        self.correct(user, EntryKind::Adjustment, amount, posting)
            .await
    }

    async fn correct(
        &self,
        user: &str,
        kind: EntryKind,
        amount: Money,
        posting: Posting<'_>,
    ) -> Result<Posted, StorageError> {
        if !amount.is_positive() {
            let problem = format!("amount: must be more than 0, not {amount}");
            return Err(StorageError::Invalid(vec![problem]));
        }
        check(posting)?;
        let amount = match kind {
            EntryKind::Adjustment => -amount,
            EntryKind::Credit | EntryKind::Reversal => amount,
        };
        let txn = self.begin_write().await?;
        let (id, balance) = find_balance(&txn, user).await?;
        let entry = Entry {
            user: id,
            kind,
            amount,
            request_id: None,
            posting,
        };
        if let Some(posted) = made_before(&txn, &entry, user).await? {
            return Ok(posted);
        }
        let new = balance.0.checked_add(amount.0);
        if new.is_none_or(|new| new.unsigned_abs() > MAX_BALANCE_NANOS.unsigned_abs()) {
            return Err(StorageError::Invalid(vec![format!(
                "amount: {amount} takes the balance of {user} ({balance}) out of range"
            )]));
        }
        enter(txn, &entry, user).await
    }

    /// Gives the charge of a request back, once: to the balance, if that paid. The key's used quota and
    /// those windows of the key and the subscription that the charge is in are lowered by it. The
    /// record stays as it is, and so does what its account has used: the provider was paid.
    ///
    /// # Errors
    /// [`StorageError::NotFound`] for a request without a record; [`StorageError::Invalid`] for one
    /// that charged nothing; [`StorageError::Conflict`] when it was refunded already (other than with
    /// the same idempotency key) or the key was used for something else.
    pub async fn refund(
        &self,
        request_id: &str,
        posting: Posting<'_>,
        tz: Tz,
    ) -> Result<Posted, StorageError> {
        check(posting)?;
        let txn = self.begin_write().await?;
        let (charge, user, group) = find_charge(&txn, request_id).await?;
        let subscription = (charge.billing_type == BillingType::Subscription)
            .then(|| (format!("{user}/{group}"), charge.charge));
        let posted = |posted| Posted {
            subscription,
            ..posted
        };
        let entry = Entry {
            user: charge.user,
            kind: EntryKind::Reversal,
            amount: match charge.billing_type {
                BillingType::Balance => charge.charge,
                BillingType::Subscription | BillingType::None => Money::ZERO,
            },
            request_id: Some(request_id),
            posting,
        };
        if let Some(before) = made_before(&txn, &entry, &user).await? {
            return Ok(posted(before));
        }
        if charge.billing_type == BillingType::None || !charge.charge.is_positive() {
            let problem = format!("the request {request_id} was charged nothing");
            return Err(StorageError::Invalid(vec![problem]));
        }
        let sql =
            "SELECT created_at FROM ledger_entries WHERE request_id = ? AND kind = 'reversal'";
        let values = vec![request_id.into()];
        if let Some(row) = txn.query_one_raw(statement(sql, values)).await? {
            let at = time(row.try_get_by_index(0)?)?.to_rfc3339();
            return Err(StorageError::Conflict(format!(
                "the request {request_id} was refunded at {at}"
            )));
        }
        let used = BTreeMap::from([(charge.key.0, -charge.charge.0)]);
        add(&txn, "api_keys", "quota_used_nanos", &used).await?;
        let (user_id, key, group_id) = (charge.user.0, charge.key.0, charge.group.0);
        let of_key = ("key_windows", "api_key_id = ?", vec![key.into()]);
        lower(&txn, &charge, KEY_WINDOWS, of_key, tz).await?;
        if charge.billing_type == BillingType::Subscription {
            let of_subscription = (
                "subscription_windows",
                "user_id = ? AND group_id = ?",
                vec![user_id.into(), group_id.into()],
            );
            lower(&txn, &charge, SUBSCRIPTION_WINDOWS, of_subscription, tz).await?;
        }
        Ok(posted(enter(txn, &entry, &user).await?))
    }

    /// Charges given back after the ledger's entry `after`: a running server counts windows in memory
    /// and takes them from there. Ask [`Store::last_entry`] before the windows are first read.
    ///
    /// # Errors
    /// [`StorageError`] when the database cannot be read.
    pub async fn reversals(&self, after: i64) -> Result<Reversals, StorageError> {
        let sql = format!(
            "SELECT {COUNTED}, l.id FROM ledger_entries l \
             CROSS JOIN usage_entries e ON e.request_id = l.request_id \
             CROSS JOIN usage_contexts c ON c.id = e.context_id \
             WHERE l.id > ? AND l.kind = 'reversal' ORDER BY l.id"
        );
        // Read first: what is entered from here on is for the next time.
        let upto = self.last_entry().await?.max(after);
        let reader = &self.inner.pools.reader;
        let mut charges = Vec::new();
        for row in reader
            .query_all_raw(statement(sql, vec![after.into()]))
            .await?
        {
            if row.try_get_by_index::<i64>(7)? <= upto {
                charges.push(Counted::of(&row)?);
            }
        }
        Ok(Reversals { upto, charges })
    }

    /// The number of the ledger's last entry; 0 = it has none.
    ///
    /// # Errors
    /// [`StorageError`] when the database cannot be read.
    pub async fn last_entry(&self) -> Result<i64, StorageError> {
        let sql = "SELECT COALESCE(MAX(id), 0) FROM ledger_entries";
        let reader = &self.inner.pools.reader;
        let row = reader.query_one_raw(statement(sql, Vec::new())).await?;
        Ok(row.map_or(Ok(0), |row| row.try_get_by_index(0))?)
    }
}

/// Refuses a key or a note that nobody could read again.
fn check(posting: Posting<'_>) -> Result<(), StorageError> {
    let mut problems = Vec::new();
    if posting.idempotency_key.is_some_and(|key| !is_name(key)) {
        let rule = crate::domain::text::NAME_RULE;
        problems.push(format!("idempotency key: not usable; {rule}"));
    }
    if let Some(note) = posting.note
        && (note.chars().count() > MAX_NOTE_CHARS || note.chars().any(char::is_control))
    {
        problems.push(format!(
            "note: one line of at most {MAX_NOTE_CHARS} characters"
        ));
    }
    if problems.is_empty() {
        Ok(())
    } else {
        Err(StorageError::Invalid(problems))
    }
}

/// The answer of the first time, if an entry was made with this idempotency key.
async fn made_before(
    txn: &DatabaseTransaction,
    entry: &Entry<'_>,
    user: &str,
) -> Result<Option<Posted>, StorageError> {
    let Some(key) = entry.posting.idempotency_key else {
        return Ok(None);
    };
    // Entries are appended and balances moved together, so the sum up to an entry is what the balance
    // was right after it.
    let sql = "SELECT user_id, kind, amount_nanos, request_id, note, \
               (SELECT SUM(amount_nanos) FROM ledger_entries \
                WHERE user_id = made.user_id AND id <= made.id) \
               FROM ledger_entries AS made WHERE idempotency_key = ?";
    let Some(row) = txn.query_one_raw(statement(sql, vec![key.into()])).await? else {
        return Ok(None);
    };
    let kind: String = row.try_get_by_index(1)?;
    let request_id: Option<String> = row.try_get_by_index(3)?;
    let note: Option<String> = row.try_get_by_index(4)?;
    let same = UserId(row.try_get_by_index(0)?) == entry.user
        && kind == entry.kind.as_str()
        && Money(row.try_get_by_index(2)?) == entry.amount
        && request_id.as_deref() == entry.request_id
        && note.as_deref() == entry.posting.note;
    if !same {
        return Err(StorageError::Conflict(format!(
            "the idempotency key {key:?} was used for another entry ({kind})"
        )));
    }
    Ok(Some(Posted {
        user: user.to_owned(),
        amount: entry.amount,
        subscription: None,
        balance: Money(row.try_get_by_index(5)?),
        repeated: true,
    }))
}

/// Appends the entry and commits.
async fn enter(
    txn: DatabaseTransaction,
    entry: &Entry<'_>,
    user: &str,
) -> Result<Posted, StorageError> {
    post(&txn, std::slice::from_ref(entry)).await?;
    let (_, balance) = find_balance(&txn, user).await?;
    meta::bump_version(&txn).await?;
    txn.commit().await?;
    Ok(Posted {
        user: user.to_owned(),
        amount: entry.amount,
        subscription: None,
        balance,
        repeated: false,
    })
}

/// Takes a charge back from the windows of one key or subscription.
async fn lower(
    txn: &DatabaseTransaction,
    charge: &Counted,
    kinds: [WindowKind; 3],
    (table, whose, ids): (&str, &str, Vec<sea_orm::Value>),
    tz: Tz,
) -> Result<(), StorageError> {
    let columns = |what: &str| kinds.map(|kind| format!("{what}_{}", kind.as_str()));
    let (starts, used) = (columns("start"), columns("used"));
    let sql = format!(
        "SELECT {}, {} FROM {table} WHERE {whose}",
        starts.join(", "),
        used.join(", ")
    );
    let row = txn.query_one_raw(statement(sql, ids.clone())).await?;
    let Some(row) = row else { return Ok(()) };
    let mut values = Vec::with_capacity(kinds.len() + ids.len());
    for (place, kind) in kinds.into_iter().enumerate() {
        let (start, used) = (place, kinds.len() + place);
        let mut window = window(row.try_get_by_index(start)?, row.try_get_by_index(used)?)?;
        charge.take_from(&mut window, kind, tz);
        values.push(window.used.0.into());
    }
    values.extend(ids);
    let sql = format!(
        "UPDATE {table} SET {} = ? WHERE {whose}",
        used.join(" = ?, ")
    );
    txn.execute_raw(statement(sql, values)).await?;
    Ok(())
}

/// The charge of a request, its user's name and its group's name at the time.
async fn find_charge(
    txn: &DatabaseTransaction,
    request_id: &str,
) -> Result<(Counted, String, String), StorageError> {
    let sql = format!(
        "SELECT {COUNTED}, u.name, c.group_name FROM usage_entries e \
         CROSS JOIN usage_contexts c ON c.id = e.context_id \
         CROSS JOIN users u ON u.id = e.user_id WHERE e.request_id = ?"
    );
    let row = txn
        .query_one_raw(statement(sql, vec![request_id.into()]))
        .await?
        .ok_or_else(|| StorageError::NotFound {
            kind: "usage record",
            name: request_id.to_owned(),
        })?;
    Ok((
        Counted::of(&row)?,
        row.try_get_by_index(7)?,
        row.try_get_by_index(8)?,
    ))
}

async fn find_balance(
    txn: &DatabaseTransaction,
    name: &str,
) -> Result<(UserId, Money), StorageError> {
    let found: Option<(i64, i64)> = user::Entity::find()
        .select_only()
        .columns([user::Column::Id, user::Column::BalanceNanos])
        .filter(user::Column::Name.eq(name))
        .into_tuple()
        .one(txn)
        .await?;
    found
        .map(|(id, nanos)| (UserId(id), Money(nanos)))
        .ok_or_else(|| StorageError::NotFound {
            kind: "user",
            name: name.to_owned(),
        })
}
