//! What windows of keys and subscriptions and the usage of accounts have come to. They are folded
//! from the settled records in their order, with the same [`Window::add`] that counts them in
//! memory, in the transaction that makes the records: a window that was touched is read once and
//! written once a batch.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use sea_orm::ConnectionTrait;
use sea_orm::sqlx::{self, Executor, Row, SqliteConnection};

use super::convert::{millis, optional_time, to_json};
use super::rows::statement;
use super::settle::{account_cost, charged};
use super::{StorageError, Store};
use crate::domain::{
    AccountId, ApiKeyId, BillingType, GroupId, KEY_WINDOWS, Money, SUBSCRIPTION_WINDOWS,
    UsageRecord, UserId, Window, WindowKind,
};

/// Three windows, in the order of [`KEY_WINDOWS`] or [`SUBSCRIPTION_WINDOWS`].
type Three = [Window; 3];
/// What `account_usage` calls the sum over an account's whole life.
const TOTAL: &str = "total";
/// The windows of an account's quotas.
const ACCOUNT_WINDOWS: [WindowKind; 2] = [WindowKind::Day, WindowKind::Week];

/// What has been used through an account, at its own multiplier, whoever paid.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct AccountUsage {
    /// Ever since the account exists.
    pub total: Money,
    /// In its running day.
    pub day: Window,
    /// In its running week.
    pub week: Window,
}

impl AccountUsage {
    fn add(&mut self, cost: Money, at: DateTime<Utc>, tz: Tz) {
        self.total += cost;
        self.day.add(WindowKind::Day, cost, at, tz);
        self.week.add(WindowKind::Week, cost, at, tz);
    }

    /// The place of a stored row; `None` for a kind that nobody knows.
    fn place(&mut self, kind: &str) -> Option<Place<'_>> {
        match WindowKind::parse(kind) {
            None => (kind == TOTAL).then_some(Place::Sum(&mut self.total)),
            Some(WindowKind::Day) => Some(Place::Window(&mut self.day)),
            Some(WindowKind::Week) => Some(Place::Window(&mut self.week)),
            Some(_) => None,
        }
    }
}

enum Place<'a> {
    Sum(&'a mut Money),
    Window(&'a mut Window),
}

/// The windows that a batch touches.
#[derive(Default)]
pub(super) struct Touched {
    keys: BTreeMap<i64, Three>,
    subscriptions: BTreeMap<(i64, i64), Three>,
    accounts: BTreeMap<i64, AccountUsage>,
}

impl Touched {
    /// Reads what `records` touch.
    pub(super) async fn read(
        txn: &mut SqliteConnection,
        records: &[&UsageRecord],
    ) -> Result<Touched, StorageError> {
        let mut touched = Touched::default();
        for record in records {
            if account_cost(record).is_positive() {
                touched.accounts.entry(record.account_id.0).or_default();
            }
            if record.billing_type == BillingType::None || !charged(record).is_positive() {
                continue;
            }
            touched.keys.entry(record.api_key_id.0).or_default();
            if record.billing_type == BillingType::Subscription {
                let id = (record.user_id.0, record.group_id.0);
                touched.subscriptions.entry(id).or_default();
            }
        }
        let list = to_json(&touched.keys.keys().collect::<Vec<_>>())?;
        if !touched.keys.is_empty() {
            for row in txn.fetch_all(sqlx::query(FIND_KEYS).bind(list)).await? {
                let windows = touched.keys.entry(row.try_get(0)?).or_default();
                let (kind, window) = (row.try_get(1)?, window(row.try_get(2)?, row.try_get(3)?)?);
                put(windows, KEY_WINDOWS, kind, window);
            }
        }
        if !touched.subscriptions.is_empty() {
            let list = to_json(&touched.subscriptions.keys().collect::<Vec<_>>())?;
            let query = sqlx::query(FIND_SUBSCRIPTIONS).bind(list);
            for row in txn.fetch_all(query).await? {
                let id = (row.try_get(0)?, row.try_get(1)?);
                let windows = touched.subscriptions.entry(id).or_default();
                let (kind, window) = (row.try_get(2)?, window(row.try_get(3)?, row.try_get(4)?)?);
                put(windows, SUBSCRIPTION_WINDOWS, kind, window);
            }
        }
        if !touched.accounts.is_empty() {
            let list = to_json(&touched.accounts.keys().collect::<Vec<_>>())?;
            for row in txn.fetch_all(sqlx::query(FIND_ACCOUNTS).bind(list)).await? {
                let usage = touched.accounts.entry(row.try_get(0)?).or_default();
                set(usage, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?)?;
            }
        }
        Ok(touched)
    }

    /// Counts `records`, in their order.
    pub(super) fn add(&mut self, records: &[&UsageRecord], tz: Tz) {
        for record in records {
            let at = record.settled_at();
            if let Some(usage) = self.accounts.get_mut(&record.account_id.0) {
                usage.add(account_cost(record), at, tz);
            }
            let charge = charged(record);
            if record.billing_type == BillingType::None || !charge.is_positive() {
                continue;
            }
            let count = |windows: Option<&mut Three>, kinds: [WindowKind; 3]| {
                for (window, kind) in windows.into_iter().flatten().zip(kinds) {
                    window.add(kind, charge, at, tz);
                }
            };
            count(self.keys.get_mut(&record.api_key_id.0), KEY_WINDOWS);
            if record.billing_type == BillingType::Subscription {
                let id = (record.user_id.0, record.group_id.0);
                count(self.subscriptions.get_mut(&id), SUBSCRIPTION_WINDOWS);
            }
        }
    }

    /// Writes everything back.
    pub(super) async fn write(&self, txn: &mut SqliteConnection) -> Result<(), StorageError> {
        let rows: Vec<(i64, &str, Option<i64>, i64)> = self
            .keys
            .iter()
            .flat_map(|(id, windows)| {
                let windows = KEY_WINDOWS.into_iter().zip(windows);
                windows.map(|(kind, w)| (*id, kind.as_str(), w.start.map(millis), w.used.0))
            })
            .collect();
        save(txn, SAVE_KEYS, &rows).await?;
        let rows: Vec<(i64, i64, &str, Option<i64>, i64)> = self
            .subscriptions
            .iter()
            .flat_map(|((user, group), windows)| {
                let windows = SUBSCRIPTION_WINDOWS.into_iter().zip(windows);
                windows.map(|(kind, w)| {
                    let start = w.start.map(millis);
                    (*user, *group, kind.as_str(), start, w.used.0)
                })
            })
            .collect();
        save(txn, SAVE_SUBSCRIPTIONS, &rows).await?;
        let rows: Vec<(i64, &str, Option<i64>, i64)> = self
            .accounts
            .iter()
            .flat_map(|(id, usage)| {
                let windows = ACCOUNT_WINDOWS.into_iter().zip([usage.day, usage.week]);
                let windows =
                    windows.map(|(kind, w)| (*id, kind.as_str(), w.start.map(millis), w.used.0));
                windows.chain([(*id, TOTAL, None, usage.total.0)])
            })
            .collect();
        save(txn, SAVE_ACCOUNTS, &rows).await
    }

    /// What the accounts have come to, in id order.
    pub(super) fn into_accounts(self) -> Vec<(AccountId, AccountUsage)> {
        let accounts = self.accounts.into_iter();
        accounts.map(|(id, usage)| (AccountId(id), usage)).collect()
    }
}

const FIND_KEYS: &str = "SELECT api_key_id, kind, start, used FROM key_windows \
     WHERE api_key_id IN (SELECT value FROM json_each(?))";
const FIND_SUBSCRIPTIONS: &str = "SELECT w.user_id, w.group_id, w.kind, w.start, w.used \
     FROM json_each(?) AS d CROSS JOIN subscription_windows w \
     ON w.user_id = (d.value ->> 0) AND w.group_id = (d.value ->> 1)";
const FIND_ACCOUNTS: &str = "SELECT account_id, kind, start, used FROM account_usage \
     WHERE account_id IN (SELECT value FROM json_each(?))";
const SAVE_KEYS: &str = "INSERT INTO key_windows (api_key_id, kind, start, used) \
     SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3 FROM json_each(?) WHERE TRUE \
     ON CONFLICT (api_key_id, kind) DO UPDATE SET start = excluded.start, used = excluded.used";
const SAVE_SUBSCRIPTIONS: &str = "INSERT INTO subscription_windows \
     (user_id, group_id, kind, start, used) \
     SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4 \
     FROM json_each(?) WHERE TRUE \
     ON CONFLICT (user_id, group_id, kind) \
     DO UPDATE SET start = excluded.start, used = excluded.used";
const SAVE_ACCOUNTS: &str = "INSERT INTO account_usage (account_id, kind, start, used) \
     SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3 FROM json_each(?) WHERE TRUE \
     ON CONFLICT (account_id, kind) DO UPDATE SET start = excluded.start, used = excluded.used";

async fn save<T: serde::Serialize + Sync>(
    txn: &mut SqliteConnection,
    sql: &'static str,
    rows: &[T],
) -> Result<(), StorageError> {
    if !rows.is_empty() {
        let list = to_json(&rows)?;
        txn.execute(sqlx::query(sql).bind(list)).await?;
    }
    Ok(())
}

/// A window from its row.
pub(super) fn window(start: Option<i64>, used: i64) -> Result<Window, StorageError> {
    Ok(Window {
        start: optional_time(start)?,
        used: Money(used),
    })
}

/// Puts a window to its place; one that nobody knows is passed over.
fn put(windows: &mut Three, kinds: [WindowKind; 3], kind: &str, window: Window) {
    for (place, its_kind) in windows.iter_mut().zip(kinds) {
        if its_kind.as_str() == kind {
            *place = window;
        }
    }
}

/// The same for the usage of an account.
fn set(
    usage: &mut AccountUsage,
    kind: &str,
    start: Option<i64>,
    used: i64,
) -> Result<(), StorageError> {
    match usage.place(kind) {
        Some(Place::Sum(sum)) => *sum = Money(used),
        Some(Place::Window(place)) => *place = window(start, used)?,
        None => {}
    }
    Ok(())
}

impl Store {
    /// The windows of every key that was ever charged, in id order, as last settled: a window may be
    /// over. They are in the order of [`KEY_WINDOWS`].
    ///
    /// # Errors
    /// [`StorageError`] when the database cannot be read.
    pub async fn key_windows(&self) -> Result<Vec<(ApiKeyId, [Window; 3])>, StorageError> {
        let sql = "SELECT api_key_id, kind, start, used FROM key_windows";
        let mut all: BTreeMap<ApiKeyId, Three> = BTreeMap::new();
        for row in self.read_all(sql).await? {
            let windows = all.entry(ApiKeyId(row.try_get_by_index(0)?)).or_default();
            let kind: String = row.try_get_by_index(1)?;
            let window = window(row.try_get_by_index(2)?, row.try_get_by_index(3)?)?;
            put(windows, KEY_WINDOWS, &kind, window);
        }
        Ok(all.into_iter().collect())
    }

    /// The same for subscriptions, in the order of [`SUBSCRIPTION_WINDOWS`]. A subscription that is no
    /// more may be among them.
    ///
    /// # Errors
    /// [`StorageError`] when the database cannot be read.
    pub async fn subscription_windows(
        &self,
    ) -> Result<Vec<((UserId, GroupId), [Window; 3])>, StorageError> {
        let sql = "SELECT user_id, group_id, kind, start, used FROM subscription_windows";
        let mut all: BTreeMap<(UserId, GroupId), Three> = BTreeMap::new();
        for row in self.read_all(sql).await? {
            let user = UserId(row.try_get_by_index(0)?);
            let group = GroupId(row.try_get_by_index(1)?);
            let kind: String = row.try_get_by_index(2)?;
            let window = window(row.try_get_by_index(3)?, row.try_get_by_index(4)?)?;
            let windows = all.entry((user, group)).or_default();
            put(windows, SUBSCRIPTION_WINDOWS, &kind, window);
        }
        Ok(all.into_iter().collect())
    }

    /// What has been used through every account, in id order; an account without a record is not
    /// among them.
    ///
    /// # Errors
    /// [`StorageError`] when the database cannot be read.
    pub async fn account_usage(&self) -> Result<Vec<(AccountId, AccountUsage)>, StorageError> {
        let sql = "SELECT account_id, kind, start, used FROM account_usage";
        let mut all: BTreeMap<AccountId, AccountUsage> = BTreeMap::new();
        for row in self.read_all(sql).await? {
            let usage = all.entry(AccountId(row.try_get_by_index(0)?)).or_default();
            let kind: String = row.try_get_by_index(1)?;
            set(
                usage,
                &kind,
                row.try_get_by_index(2)?,
                row.try_get_by_index(3)?,
            )?;
        }
        Ok(all.into_iter().collect())
    }

    async fn read_all(&self, sql: &str) -> Result<Vec<sea_orm::QueryResult>, StorageError> {
        let reader = &self.inner.pools.reader;
        Ok(reader.query_all_raw(statement(sql, Vec::new())).await?)
    }
}
