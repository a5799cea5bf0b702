//! Settled requests become records, ledger entries, balances, used quotas and windows: one
//! transaction a batch, exactly once by request id, however often a batch is repeated.
//!
//! Every request ends here, so this speaks to sqlx itself: few values a record, few statements a
//! batch, each prepared once.

use std::borrow::Borrow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, LazyLock};

use chrono_tz::Tz;
use sea_orm::sqlx::sqlite::{Sqlite, SqliteArguments};
use sea_orm::sqlx::{self, Arguments, AssertSqlSafe, Executor, Row, SqliteConnection};

use super::context::{self, Context};
use super::convert::{millis, now_millis, to_json};
use super::rows::tuples;
use super::windows::Touched;
use super::{StorageError, Store, reports, watermark};
use crate::domain::account::quota::AccountUsage;
use crate::domain::{
    AccountId, ApiKeyId, BillingType, JournalPosition, Money, UsageRecord, UserId,
};

/// No request costs more than a million dollars; a record that says so comes from a provider that
/// reports nonsense. It is held to this, so that one record can never overflow a balance and with
/// it stop every settlement behind it.
const MAX_AMOUNT: Money = Money::from_usd(1_000_000);
/// For the same reason: no request has more than a trillion tokens of a class.
const MAX_COUNT: u64 = 1_000_000_000_000;

/// What [`Store::settle`] did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Settled {
    /// The balance after it of every user named in the batch, in id order; zero where there is no such
    /// user.
    pub balances: Vec<(UserId, Money)>,
    /// The used quota after it of every key named in the batch, in id order; zero likewise.
    pub spend: Vec<(ApiKeyId, Money)>,
    /// What the accounts of new records have come to, in id order.
    pub accounts: Vec<(AccountId, AccountUsage)>,
    /// Records that were new.
    pub inserted: usize,
    /// Records whose user or key is not in the database, or is another there. Nobody is charged for
    /// them; they are in `unbilled.jsonl` in the data directory.
    pub put_aside: usize,
}

impl Store {
    /// Writes a batch of records, charges for those that are new and counts them in the windows of
    /// their key, their subscription and their account, in their order. A record whose request id is
    /// known already (or came earlier in the batch) is passed over, and one that is nobody's here is put
    /// aside. With it goes the journal's
    /// watermark: everything before `upto` is in this batch or in those before it. Days of windows
    /// are those of `tz`; those of an account are where its options say.
    ///
    /// # Errors
    /// [`StorageError`]; then nothing of the batch was written, and it may be given again.
    pub async fn settle<R>(
        &self,
        batch: &[R],
        upto: Option<JournalPosition>,
        tz: Tz,
    ) -> Result<Settled, StorageError>
    where
        R: Borrow<UsageRecord> + Sync,
    {
        if batch.is_empty() && upto.is_none() {
            return Ok(Settled::default());
        }
        let given: Vec<&UsageRecord> = batch.iter().map(Borrow::borrow).collect();
        let pool = self.inner.pools.writer.get_sqlite_connection_pool();
        let mut txn = pool.begin_with("BEGIN IMMEDIATE").await?;
        let (batch, aside) = self.sort_out(&mut txn, &given).await?;
        let (contexts, added) = self.contexts(&mut txn, &batch).await?;
        let (new, before) = insert(&mut txn, &batch, &contexts).await?;
        if !new.is_empty() {
            enter(&mut txn, before).await?;
            reports::count(&mut txn, &new).await?;
        }
        // Nobody is left out, so that the caller learns every balance.
        let mut by_user: BTreeMap<i64, i64> = given.iter().map(|r| (r.user_id.0, 0)).collect();
        let mut by_key: BTreeMap<i64, i64> = given.iter().map(|r| (r.api_key_id.0, 0)).collect();
        for record in &new {
            // At most a batch times a million dollars: far inside i64.
            let charge = charged(record).0;
            match record.billing_type {
                BillingType::None => continue,
                BillingType::Subscription => {}
                BillingType::Balance => *by_user.entry(record.user_id.0).or_default() -= charge,
            }
            *by_key.entry(record.api_key_id.0).or_default() += charge;
        }
        let balances = add(&mut txn, ADD_TO_BALANCES, by_user).await?;
        let spend = add(&mut txn, ADD_TO_QUOTAS, by_key).await?;
        let mut windows = Touched::read(&mut txn, &new).await?;
        windows.add(&new, tz);
        windows.write(&mut txn).await?;
        if let Some(upto) = upto {
            watermark::move_to(&mut txn, upto).await?;
        }
        let inserted = new.len();
        self.put_aside(&aside)?;
        txn.commit().await?;
        self.forget_aside(&aside);
        self.inner.contexts.lock().extend(added);
        Ok(Settled {
            balances: balances
                .into_iter()
                .map(|(id, sum)| (UserId(id), Money(sum)))
                .collect(),
            spend: spend
                .into_iter()
                .map(|(id, sum)| (ApiKeyId(id), Money(sum)))
                .collect(),
            accounts: windows.into_accounts(),
            inserted,
            put_aside: aside.len(),
        })
    }

    /// The context id of every record, in their order; with it the keys and ids that were not
    /// remembered, for when the transaction is committed.
    async fn contexts(
        &self,
        txn: &mut SqliteConnection,
        batch: &[&UsageRecord],
    ) -> Result<(Vec<i64>, HashMap<Box<[u8]>, i64>), StorageError> {
        let mut ids = vec![0; batch.len()];
        let mut missing: Vec<(usize, Box<[u8]>)> = Vec::new();
        {
            let known = self.inner.contexts.lock();
            let mut key = Vec::with_capacity(512);
            for (index, record) in batch.iter().enumerate() {
                context::key(record, &mut key);
                match known.get(&key) {
                    Some(id) => ids[index] = id,
                    None => missing.push((index, key.as_slice().into())),
                }
            }
        }
        let mut added: HashMap<Box<[u8]>, i64> = HashMap::new();
        if missing.is_empty() {
            return Ok((ids, added));
        }
        let mut texts: HashMap<&[u8], String> = HashMap::new();
        for (index, key) in &missing {
            if !texts.contains_key(&key[..]) {
                texts.insert(key, Context::of(batch[*index]).to_json()?);
            }
        }
        let list = to_json(&texts.values().collect::<Vec<_>>())?;
        txn.execute(sqlx::query(INSERT_CONTEXTS).bind(list.as_str()))
            .await?;
        let mut stored: HashMap<String, i64> = HashMap::new();
        for row in txn
            .fetch_all(sqlx::query(FIND_CONTEXTS).bind(list.as_str()))
            .await?
        {
            stored.insert(row.try_get(0)?, row.try_get(1)?);
        }
        for (key, text) in &texts {
            let id = stored
                .get(text)
                .ok_or_else(|| StorageError::Corrupt(format!("usage_contexts lacks {text}")))?;
            added.insert((*key).into(), *id);
        }
        for (index, key) in &missing {
            ids[*index] = added[&key[..]];
        }
        Ok((ids, added))
    }
}

const INSERT_CONTEXTS: &str = "INSERT INTO usage_contexts (details) \
     SELECT value FROM json_each(?) WHERE TRUE ON CONFLICT (details) DO NOTHING";
const FIND_CONTEXTS: &str = "SELECT details, id FROM usage_contexts \
     WHERE details IN (SELECT value FROM json_each(?))";

/// Inserts the records not seen before and returns them, and the id after which theirs begin.
async fn insert<'a>(
    txn: &mut SqliteConnection,
    batch: &[&'a UsageRecord],
    contexts: &[i64],
) -> Result<(Vec<&'a UsageRecord>, i64), StorageError> {
    let (mut inserted, mut last) = (0, 0);
    let mut rest = batch;
    let mut contexts = contexts;
    while !rest.is_empty() {
        let (size, sql) = INSERTS
            .iter()
            .find(|(size, _)| *size <= rest.len())
            .unwrap_or(&INSERTS[INSERTS.len() - 1]);
        let (chunk, tail) = rest.split_at(*size);
        let (ids, others) = contexts.split_at(*size);
        (rest, contexts) = (tail, others);
        let mut values = SqliteArguments::default();
        values.reserve(size * COLUMNS.len(), 0);
        for (record, context) in chunk.iter().zip(ids) {
            bind(&mut values, record, *context)?;
        }
        let sql = AssertSqlSafe(Arc::clone(sql));
        let done = txn.execute(sqlx::query_with(sql, values)).await?;
        if done.rows_affected() > 0 {
            inserted += done.rows_affected();
            last = done.last_insert_rowid();
        }
    }
    // Ids without AUTOINCREMENT are one above the highest, and nobody else writes meanwhile.
    let before = last - inserted.cast_signed();
    if inserted == batch.len() as u64 {
        return Ok((batch.to_vec(), before));
    }
    let mut new: HashSet<String> = HashSet::new();
    if inserted > 0 {
        let sql = "SELECT request_id FROM usage_entries WHERE id > ?";
        for row in txn.fetch_all(sqlx::query(sql).bind(before)).await? {
            new.insert(row.try_get(0)?);
        }
    }
    // Of two with one id the first counts, as it did for the database.
    let new = batch.iter().filter(|r| new.remove(&r.request_id)).copied();
    Ok((new.collect(), before))
}

/// Ledger entries for the records after this id that the balance pays.
async fn enter(txn: &mut SqliteConnection, before: i64) -> Result<(), StorageError> {
    // CROSS JOIN: the few new records decide, not the contexts.
    let sql = "INSERT INTO ledger_entries (user_id, kind, amount_nanos, request_id, created_at) \
         SELECT e.user_id, 'charge', -e.charge_nanos, e.request_id, ? \
         FROM usage_entries e CROSS JOIN usage_contexts c ON c.id = e.context_id \
         WHERE e.id > ? AND e.charge_nanos > 0 AND c.billing_type = 'balance' ORDER BY e.id";
    txn.execute(sqlx::query(sql).bind(now_millis()).bind(before))
        .await?;
    Ok(())
}

const ADD_TO_BALANCES: &str = "UPDATE users SET balance_nanos = balance_nanos + (d.value ->> 1) \
     FROM json_each(?) AS d WHERE users.id = (d.value ->> 0) RETURNING id, balance_nanos";
const ADD_TO_QUOTAS: &str = "UPDATE api_keys SET quota_used_nanos = quota_used_nanos + (d.value ->> 1) \
     FROM json_each(?) AS d WHERE api_keys.id = (d.value ->> 0) RETURNING id, quota_used_nanos";

/// Adds these amounts in SQL (a sum is never read, changed in memory and written back) and returns
/// the sums after it, in id order; zero for what is not there.
async fn add(
    txn: &mut SqliteConnection,
    sql: &'static str,
    amounts: BTreeMap<i64, i64>,
) -> Result<Vec<(i64, i64)>, StorageError> {
    let mut sums: BTreeMap<i64, i64> = amounts.keys().map(|id| (*id, 0)).collect();
    let amounts: Vec<(i64, i64)> = amounts.into_iter().collect();
    for row in txn
        .fetch_all(sqlx::query(sql).bind(to_json(&amounts)?))
        .await?
    {
        sums.insert(row.try_get(0)?, row.try_get(1)?);
    }
    Ok(sums.into_iter().collect())
}

/// What the record charges, held to [`MAX_AMOUNT`].
pub(super) fn charged(record: &UsageRecord) -> Money {
    record.charge.clamp(Money::ZERO, MAX_AMOUNT)
}

/// What the record's account counts, held to [`MAX_AMOUNT`].
pub(super) fn account_cost(record: &UsageRecord) -> Money {
    record.account_cost().clamp(Money::ZERO, MAX_AMOUNT)
}

/// What the record costs, held to [`MAX_AMOUNT`].
pub(super) fn cost(record: &UsageRecord) -> Money {
    record.cost.clamp(Money::ZERO, MAX_AMOUNT)
}

/// A count as it is stored, held to [`MAX_COUNT`].
pub(super) fn count(tokens: u64) -> i64 {
    i64::try_from(tokens.min(MAX_COUNT)).unwrap_or(i64::MAX)
}

/// The columns of `usage_entries` but its id, in the order of [`bind`].
const COLUMNS: [&str; 21] = [
    "request_id",
    "created_at",
    "user_id",
    "context_id",
    "client_request_id",
    "upstream_request_id",
    "ip",
    "input_tokens",
    "output_tokens",
    "cache_creation_tokens",
    "cache_creation_5m_tokens",
    "cache_creation_1h_tokens",
    "cache_read_tokens",
    "image_output_tokens",
    "image_count",
    "cost_nanos",
    "charge_nanos",
    "duration_ms",
    "first_token_ms",
    "trail",
    "subpath",
];

/// Statements that insert so many records, largest first. Few, so that they stay prepared.
static INSERTS: LazyLock<[(usize, Arc<str>); 4]> = LazyLock::new(|| {
    [256, 32, 4, 1].map(|rows| {
        let sql = format!(
            "INSERT INTO usage_entries ({}) VALUES {} ON CONFLICT (request_id) DO NOTHING",
            COLUMNS.join(","),
            tuples(rows, COLUMNS.len())
        );
        (rows, sql.into())
    })
});

fn bind(to: &mut SqliteArguments, r: &UsageRecord, context: i64) -> Result<(), StorageError> {
    fn add<'v>(
        to: &mut SqliteArguments,
        value: impl sqlx::Encode<'v, Sqlite> + sqlx::Type<Sqlite>,
    ) -> Result<(), StorageError> {
        to.add(value)
            .map_err(|error| sqlx::Error::Encode(error).into())
    }
    // An `Arc<str>` is handed on as it is; a `&str` would be copied twice.
    let shared = |text: &Option<String>| text.as_deref().map(Arc::<str>::from);
    let tokens = &r.tokens;
    add(to, Arc::<str>::from(r.request_id.as_str()))?;
    add(to, millis(r.created_at))?;
    add(to, r.user_id.0)?;
    add(to, context)?;
    add(to, shared(&r.client_request_id))?;
    add(to, shared(&r.upstream_request_id))?;
    add(to, shared(&r.ip))?;
    add(to, count(tokens.input))?;
    add(to, count(tokens.output))?;
    add(to, count(tokens.cache_creation))?;
    add(to, count(tokens.cache_creation_5m))?;
    add(to, count(tokens.cache_creation_1h))?;
    add(to, count(tokens.cache_read))?;
    add(to, count(tokens.image_output))?;
    add(to, i64::from(r.image_count))?;
    add(to, cost(r).0)?;
    add(to, charged(r).0)?;
    add(to, count(r.duration_ms))?;
    add(to, r.first_token_ms.map(count))?;
    let trail = (!r.trail.is_empty()).then(|| to_json(&r.trail));
    add(to, trail.transpose()?)?;
    add(to, context::subpath(r).map(Arc::<str>::from))
}
