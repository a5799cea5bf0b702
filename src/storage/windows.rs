//! What windows of keys and subscriptions and the usage of accounts have come to. They are folded
//! from the settled records in their order, by the code that counts them in memory
//! ([`Window::add`], [`AccountUsage::add`]), in the transaction that makes the records: what was
//! touched is read once and written once a batch.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use sea_orm::sqlx::sqlite::SqliteRow;
use sea_orm::sqlx::{self, Executor, Row, SqliteConnection};
use sea_orm::{ConnectionTrait, DatabaseTransaction};

use super::convert::{from_json, millis, optional_time, to_json};
use super::rows::statement;
use super::settle::{account_cost, charged};
use super::{StorageError, Store};
use crate::domain::account::options;
use crate::domain::account::quota::{AccountQuota, AccountUsage};
use crate::domain::{
    AccountId, ApiKeyId, BillingType, GroupId, KEY_WINDOWS, Money, SUBSCRIPTION_WINDOWS,
    UsageRecord, UserId, Window, WindowKind,
};

/// Three windows, in the order of [`KEY_WINDOWS`] or [`SUBSCRIPTION_WINDOWS`].
type Three = [Window; 3];

/// The windows that a batch touches.
#[derive(Default)]
pub(super) struct Touched {
    keys: BTreeMap<i64, Three>,
    subscriptions: BTreeMap<(i64, i64), Three>,
    accounts: BTreeMap<i64, (AccountQuota, AccountUsage)>,
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
        if !touched.keys.is_empty() {
            let list = to_json(&touched.keys.keys().collect::<Vec<_>>())?;
            for row in txn.fetch_all(sqlx::query(FIND_KEYS).bind(list)).await? {
                touched.keys.insert(row.try_get(0)?, three(&row, 1)?);
            }
        }
        if !touched.subscriptions.is_empty() {
            let list = to_json(&touched.subscriptions.keys().collect::<Vec<_>>())?;
            let query = sqlx::query(FIND_SUBSCRIPTIONS).bind(list);
            for row in txn.fetch_all(query).await? {
                let id = (row.try_get(0)?, row.try_get(1)?);
                touched.subscriptions.insert(id, three(&row, 2)?);
            }
        }
        if !touched.accounts.is_empty() {
            let list = to_json(&touched.accounts.keys().collect::<Vec<_>>())?;
            for row in txn.fetch_all(sqlx::query(FIND_ACCOUNTS).bind(list)).await? {
                let account = (quota(row.try_get(6)?), usage(&row, 1)?);
                touched.accounts.insert(row.try_get(0)?, account);
            }
        }
        Ok(touched)
    }

    /// Counts `records`, in their order.
    pub(super) fn add(&mut self, records: &[&UsageRecord], tz: Tz) {
        for record in records {
            let at = record.settled_at();
            if let Some((quota, usage)) = self.accounts.get_mut(&record.account_id.0) {
                usage.add(quota, account_cost(record), at);
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
        let rows = self.keys.iter().map(|(id, windows)| (id, stored(windows)));
        save(txn, SAVE_KEYS, rows).await?;
        let rows = self.subscriptions.iter();
        let rows = rows.map(|(id, windows)| (id, stored(windows)));
        save(txn, SAVE_SUBSCRIPTIONS, rows).await?;
        let rows = self.accounts.iter();
        let rows = rows.map(|(id, (_, usage))| (id, usage_stored(usage)));
        save(txn, SAVE_ACCOUNTS, rows).await
    }

    /// What the accounts have come to, in id order.
    pub(super) fn into_accounts(self) -> Vec<(AccountId, AccountUsage)> {
        let accounts = self.accounts.into_iter();
        let usage = accounts.map(|(id, (_, usage))| (AccountId(id), usage));
        usage.collect()
    }
}

const FIND_KEYS: &str = "SELECT api_key_id, start_5h, used_5h, start_1d, used_1d, start_7d, used_7d \
     FROM key_windows WHERE api_key_id IN (SELECT value FROM json_each(?))";
const FIND_SUBSCRIPTIONS: &str = "SELECT w.user_id, w.group_id, \
     w.start_1d, w.used_1d, w.start_7d, w.used_7d, w.start_30d, w.used_30d \
     FROM json_each(?) AS d CROSS JOIN subscription_windows w \
     ON w.user_id = (d.value ->> 0) AND w.group_id = (d.value ->> 1)";
/// Also where nothing was counted yet: the options say how it is to be counted.
const FIND_ACCOUNTS: &str = "SELECT d.value, \
     u.total, u.start_day, u.used_day, u.start_week, u.used_week, a.extra \
     FROM json_each(?) AS d LEFT JOIN account_usage u ON u.account_id = d.value \
     LEFT JOIN accounts a ON a.id = d.value";
const SAVE_KEYS: &str = "INSERT INTO key_windows \
     (api_key_id, start_5h, used_5h, start_1d, used_1d, start_7d, used_7d) \
     SELECT value ->> 0, value ->> '$[1][0]', value ->> '$[1][1]', value ->> '$[1][2]', \
     value ->> '$[1][3]', value ->> '$[1][4]', value ->> '$[1][5]' FROM json_each(?) WHERE TRUE \
     ON CONFLICT (api_key_id) DO UPDATE SET \
     start_5h = excluded.start_5h, used_5h = excluded.used_5h, start_1d = excluded.start_1d, \
     used_1d = excluded.used_1d, start_7d = excluded.start_7d, used_7d = excluded.used_7d";
const SAVE_SUBSCRIPTIONS: &str = "INSERT INTO subscription_windows \
     (user_id, group_id, start_1d, used_1d, start_7d, used_7d, start_30d, used_30d) \
     SELECT value ->> '$[0][0]', value ->> '$[0][1]', value ->> '$[1][0]', value ->> '$[1][1]', \
     value ->> '$[1][2]', value ->> '$[1][3]', value ->> '$[1][4]', value ->> '$[1][5]' \
     FROM json_each(?) WHERE TRUE ON CONFLICT (user_id, group_id) DO UPDATE SET \
     start_1d = excluded.start_1d, used_1d = excluded.used_1d, start_7d = excluded.start_7d, \
     used_7d = excluded.used_7d, start_30d = excluded.start_30d, used_30d = excluded.used_30d";
const SAVE_ACCOUNTS: &str = "INSERT INTO account_usage \
     (account_id, total, start_day, used_day, start_week, used_week) \
     SELECT value ->> 0, value ->> '$[1][0]', value ->> '$[1][1]', value ->> '$[1][2]', \
     value ->> '$[1][3]', value ->> '$[1][4]' FROM json_each(?) WHERE TRUE \
     ON CONFLICT (account_id) DO UPDATE SET total = excluded.total, \
     start_day = excluded.start_day, used_day = excluded.used_day, \
     start_week = excluded.start_week, used_week = excluded.used_week";

async fn save<T: serde::Serialize>(
    txn: &mut SqliteConnection,
    sql: &'static str,
    rows: impl Iterator<Item = T>,
) -> Result<(), StorageError> {
    let rows: Vec<T> = rows.collect();
    if rows.is_empty() {
        return Ok(());
    }
    let list = to_json(&rows)?;
    txn.execute(sqlx::query(sql).bind(list)).await?;
    Ok(())
}

/// A window from its columns; both are missing where there is no row.
pub(super) fn window(start: Option<i64>, used: Option<i64>) -> Result<Window, StorageError> {
    Ok(Window {
        start: optional_time(start)?,
        used: Money(used.unwrap_or(0)),
    })
}

fn window_at(row: &SqliteRow, column: usize) -> Result<Window, StorageError> {
    window(row.try_get(column)?, row.try_get(column + 1)?)
}

fn three(row: &SqliteRow, column: usize) -> Result<Three, StorageError> {
    Ok([
        window_at(row, column)?,
        window_at(row, column + 2)?,
        window_at(row, column + 4)?,
    ])
}

fn usage(row: &SqliteRow, column: usize) -> Result<AccountUsage, StorageError> {
    let total: Option<i64> = row.try_get(column)?;
    Ok(AccountUsage {
        total: Money(total.unwrap_or(0)),
        day: window_at(row, column + 1)?,
        week: window_at(row, column + 3)?,
    })
}

fn stored(windows: &Three) -> [Option<i64>; 6] {
    let [a, b, c] = windows.map(|window| [window.start.map(millis), Some(window.used.0)]);
    [a[0], a[1], b[0], b[1], c[0], c[1]]
}

fn usage_stored(usage: &AccountUsage) -> [Option<i64>; 5] {
    let [day, week] =
        [usage.day, usage.week].map(|window| (window.start.map(millis), Some(window.used.0)));
    [Some(usage.total.0), day.0, day.1, week.0, week.1]
}

/// What an account's options say of its quota. What cannot be read counts as not given, as it does
/// where the server reads them: no record may ever stop those behind it.
fn quota(extra: Option<&str>) -> AccountQuota {
    match extra.filter(|extra| *extra != "{}").map(from_json) {
        Some(Ok(extra)) => options::account_quota(&extra).0,
        Some(Err(_)) | None => AccountQuota::default(),
    }
}

/// `accounts resume`: what is used up of an account's quota begins anew.
pub(super) async fn begin_anew(
    txn: &DatabaseTransaction,
    account: i64,
    now: DateTime<Utc>,
) -> Result<(), StorageError> {
    let values = vec![format!("[{account}]").into()];
    let found = txn.query_one_raw(statement(FIND_ACCOUNTS, values)).await?;
    let Some(row) = found.as_ref().and_then(|row| row.try_as_sqlite_row()) else {
        return Ok(());
    };
    let before = usage(row, 1)?;
    let mut after = before;
    after.begin_anew(&quota(row.try_get(6)?), now);
    if after != before {
        let list = to_json(&[(account, usage_stored(&after))])?;
        let save = statement(SAVE_ACCOUNTS, vec![list.into()]);
        txn.execute_raw(save).await?;
    }
    Ok(())
}

impl Store {
    /// The windows of every key that was ever charged, in the order of [`KEY_WINDOWS`]. A window may be
    /// over.
    ///
    /// # Errors
    /// [`StorageError`] when the database cannot be read.
    pub async fn key_windows(&self) -> Result<Vec<(ApiKeyId, [Window; 3])>, StorageError> {
        let sql = "SELECT api_key_id, start_5h, used_5h, start_1d, used_1d, start_7d, used_7d \
                   FROM key_windows ORDER BY api_key_id";
        let rows = self.read_all(sql).await?;
        let windows = rows
            .iter()
            .map(|row| Ok((ApiKeyId(row.try_get(0)?), three(row, 1)?)));
        windows.collect()
    }

    /// The same for subscriptions, in the order of [`SUBSCRIPTION_WINDOWS`]. A subscription that is no
    /// more may be among them.
    ///
    /// # Errors
    /// [`StorageError`] when the database cannot be read.
    pub async fn subscription_windows(
        &self,
    ) -> Result<Vec<((UserId, GroupId), [Window; 3])>, StorageError> {
        let sql = "SELECT user_id, group_id, \
                   start_1d, used_1d, start_7d, used_7d, start_30d, used_30d \
                   FROM subscription_windows ORDER BY user_id, group_id";
        let rows = self.read_all(sql).await?;
        let windows = rows.iter().map(|row| {
            let whose = (UserId(row.try_get(0)?), GroupId(row.try_get(1)?));
            Ok((whose, three(row, 2)?))
        });
        windows.collect()
    }

    /// What has been used through every account, in id order; an account without a record is not
    /// among them.
    ///
    /// # Errors
    /// [`StorageError`] when the database cannot be read.
    pub async fn account_usage(&self) -> Result<Vec<(AccountId, AccountUsage)>, StorageError> {
        let sql = "SELECT account_id, total, start_day, used_day, start_week, used_week \
                   FROM account_usage ORDER BY account_id";
        let rows = self.read_all(sql).await?;
        let usage = rows
            .iter()
            .map(|row| Ok((AccountId(row.try_get(0)?), usage(row, 1)?)));
        usage.collect()
    }

    async fn read_all(&self, sql: &'static str) -> Result<Vec<SqliteRow>, StorageError> {
        let pool = self.inner.pools.reader.get_sqlite_connection_pool();
        Ok(pool.fetch_all(sqlx::query(sql)).await?)
    }
}
