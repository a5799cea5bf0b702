//! What a key has used: sums kept beside the records, so that nobody who asks has to wait for millions
//! of records to be read.

use std::collections::HashMap;

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::sqlx::{self, Executor, SqliteConnection};
use sea_orm::{ConnectionTrait, DatabaseTransaction, QueryResult, Value};

use super::convert::{millis, to_json, whole};
use super::rows::statement;
use super::settle::{charged, cost, count as tokens};
use super::{StorageError, Store};
use crate::domain::{ApiKeyId, Money, UsageRecord, UserId};

/// The grain of the sums, milliseconds. Days begin at a quarter of an hour in every time zone.
pub(super) const QUARTER_MS: i64 = 900_000;
/// Models that are told apart in one answer, the dearest first: clients choose their names, so there
/// must be an end.
const MODELS: i64 = 500;
/// The span of "per minute".
const MINUTE: TimeDelta = TimeDelta::minutes(1);

/// Sums over requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct UsageSums {
    /// Records.
    pub requests: u64,
    /// Input tokens, without cached ones.
    pub input_tokens: u64,
    /// Output tokens.
    pub output_tokens: u64,
    /// Tokens written to a cache.
    pub cache_creation_tokens: u64,
    /// Input tokens read from a cache.
    pub cache_read_tokens: u64,
    /// USD at list price.
    pub cost: Money,
    /// USD that the user paid.
    pub charge: Money,
}

impl UsageSums {
    /// Tokens of all classes.
    pub fn total_tokens(&self) -> u64 {
        [
            self.input_tokens,
            self.output_tokens,
            self.cache_creation_tokens,
            self.cache_read_tokens,
        ]
        .into_iter()
        .fold(0, u64::saturating_add)
    }
}

/// What is asked about a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KeySpan {
    /// The key.
    pub key: ApiKeyId,
    /// Its owner; only what is the owner's counts for the last minute.
    pub user: UserId,
    /// The present.
    pub now: DateTime<Utc>,
    /// Where "today" begins.
    pub today: DateTime<Utc>,
    /// Models: requests from then on …
    pub from: DateTime<Utc>,
    /// … and before this, both to the quarter of an hour.
    pub to: DateTime<Utc>,
}

/// What a key has used.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct KeyStatistics {
    /// Since today began.
    pub today: UsageSums,
    /// Ever.
    pub total: UsageSums,
    /// Mean duration of a request, of all there ever were, milliseconds.
    pub average_duration_ms: u64,
    /// In the last minute.
    pub minute: UsageSums,
    /// By billed model in the span that was asked for, the dearest first.
    pub models: Vec<(String, UsageSums)>,
}

const SUMS: &str = "COALESCE(SUM(requests), 0), COALESCE(SUM(input_tokens), 0), \
     COALESCE(SUM(output_tokens), 0), COALESCE(SUM(cache_creation_tokens), 0), \
     COALESCE(SUM(cache_read_tokens), 0), COALESCE(SUM(cost_nanos), 0), \
     COALESCE(SUM(charge_nanos), 0)";

const MINUTE_SQL: &str = "SELECT COUNT(*), COALESCE(SUM(e.input_tokens), 0), \
     COALESCE(SUM(e.output_tokens), 0), COALESCE(SUM(e.cache_creation_tokens), 0), \
     COALESCE(SUM(e.cache_read_tokens), 0), COALESCE(SUM(e.cost_nanos), 0), \
     COALESCE(SUM(e.charge_nanos), 0) \
     FROM usage_entries e CROSS JOIN usage_contexts c ON c.id = e.context_id \
     WHERE e.user_id = ? AND e.created_at > ? AND e.created_at <= ? AND c.api_key_id = ?";

impl Store {
    /// What a key has used. Reads a row for every model and quarter of an hour in which the key was
    /// used, and the records of the last minute.
    ///
    /// # Errors
    /// [`StorageError`] when the database cannot be read.
    pub async fn key_statistics(&self, span: &KeySpan) -> Result<KeyStatistics, StorageError> {
        let txn = self.begin_read().await?;
        let key = Value::from(span.key.0);
        let total = one(
            &txn,
            format!(
                "SELECT {SUMS}, COALESCE(SUM(duration_ms) / SUM(requests), 0) \
                 FROM usage_by_key WHERE api_key_id = ?"
            ),
            vec![key.clone()],
        )
        .await?;
        let today = one(
            &txn,
            format!("SELECT {SUMS} FROM usage_by_key WHERE api_key_id = ? AND quarter >= ?"),
            vec![key.clone(), quarter(span.today).into()],
        )
        .await?;
        let minute = one(
            &txn,
            MINUTE_SQL.to_owned(),
            vec![
                span.user.0.into(),
                millis(span.now - MINUTE).into(),
                millis(span.now).into(),
                key.clone(),
            ],
        )
        .await?;
        let models = format!(
            "SELECT {SUMS}, model FROM usage_by_key \
             WHERE api_key_id = ? AND quarter >= ? AND quarter < ? \
             GROUP BY model ORDER BY SUM(charge_nanos) DESC, SUM(cost_nanos) DESC, model LIMIT ?"
        );
        // The quarter in which the span ends counts whole: the present is in the middle of one.
        let end = quarter(span.to - TimeDelta::milliseconds(1)) + 1;
        let values = vec![key, quarter(span.from).into(), end.into(), MODELS.into()];
        let models = txn
            .query_all_raw(statement(models, values))
            .await?
            .iter()
            .map(|row| Ok((row.try_get_by_index(7)?, sums(row)?)))
            .collect::<Result<_, StorageError>>()?;
        Ok(KeyStatistics {
            today: sums(&today)?,
            total: sums(&total)?,
            average_duration_ms: whole(total.try_get_by_index(7)?)?,
            minute: sums(&minute)?,
            models,
        })
    }
}

fn quarter(time: DateTime<Utc>) -> i64 {
    millis(time).div_euclid(QUARTER_MS)
}

async fn one(
    txn: &DatabaseTransaction,
    sql: String,
    values: Vec<Value>,
) -> Result<QueryResult, StorageError> {
    txn.query_one_raw(statement(sql, values))
        .await?
        .ok_or_else(|| StorageError::Corrupt("a sum without a row".to_owned()))
}

fn sums(row: &QueryResult) -> Result<UsageSums, StorageError> {
    let count = |index| whole::<u64>(row.try_get_by_index(index)?);
    Ok(UsageSums {
        requests: count(0)?,
        input_tokens: count(1)?,
        output_tokens: count(2)?,
        cache_creation_tokens: count(3)?,
        cache_read_tokens: count(4)?,
        cost: Money(row.try_get_by_index(5)?),
        charge: Money(row.try_get_by_index(6)?),
    })
}

const COUNT: &str = "INSERT INTO usage_by_key \
     SELECT d.value ->> 0, d.value ->> 1, d.value ->> 2, d.value ->> 3, d.value ->> 4, \
            d.value ->> 5, d.value ->> 6, d.value ->> 7, d.value ->> 8, d.value ->> 9, d.value ->> 10 \
     FROM json_each(?) AS d WHERE TRUE \
     ON CONFLICT (api_key_id, quarter, model) DO UPDATE SET \
         requests = requests + excluded.requests, \
         input_tokens = input_tokens + excluded.input_tokens, \
         output_tokens = output_tokens + excluded.output_tokens, \
         cache_creation_tokens = cache_creation_tokens + excluded.cache_creation_tokens, \
         cache_read_tokens = cache_read_tokens + excluded.cache_read_tokens, \
         cost_nanos = cost_nanos + excluded.cost_nanos, \
         charge_nanos = charge_nanos + excluded.charge_nanos, \
         duration_ms = duration_ms + excluded.duration_ms";

/// Key, quarter and model, and the sums in the order of the columns.
type Row<'a> = (i64, i64, &'a str, i64, i64, i64, i64, i64, i64, i64, i64);

/// Adds records that are new to the sums of their keys, in the transaction that inserts them.
pub(super) async fn count(
    txn: &mut SqliteConnection,
    new: &[&UsageRecord],
) -> Result<(), StorageError> {
    let mut sums: HashMap<(i64, i64, &str), [i64; 8]> = HashMap::new();
    for record in new {
        let key = (
            record.api_key_id.0,
            quarter(record.created_at),
            record.model.as_str(),
        );
        let sum = sums.entry(key).or_default();
        // As the columns of the record hold them: far from overflow in any batch.
        let own = [
            1,
            tokens(record.tokens.input),
            tokens(record.tokens.output),
            tokens(record.tokens.cache_creation),
            tokens(record.tokens.cache_read),
            cost(record).0,
            charged(record).0,
            tokens(record.duration_ms),
        ];
        for (sum, own) in sum.iter_mut().zip(own) {
            *sum = sum.saturating_add(own);
        }
    }
    let rows: Vec<Row<'_>> = sums
        .into_iter()
        .map(
            |((key, quarter, model), [n, i, o, w, r, cost, charge, ms])| {
                (key, quarter, model, n, i, o, w, r, cost, charge, ms)
            },
        )
        .collect();
    txn.execute(sqlx::query(COUNT).bind(to_json(&rows)?))
        .await?;
    Ok(())
}
