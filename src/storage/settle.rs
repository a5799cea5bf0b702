//! Settled requests become records, ledger entries, balances and used quotas: one transaction a
//! batch, exactly once by request id, however often a batch is repeated.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use sea_orm::{ConnectionTrait, DatabaseTransaction, Value};

use super::convert::{millionths, millis};
use super::ledger::{self, Entry, EntryKind};
use super::rows::{chunks, statement, tuples};
use super::{StorageError, Store};
use crate::domain::{ApiKeyId, BillingType, Money, UsageRecord, UserId};

/// No request costs more than a million dollars; a record that says so comes from a provider that
/// reports nonsense. It is held to this, so that one record can never overflow a balance and with
/// it stop every settlement behind it.
const MAX_AMOUNT: Money = Money::from_usd(1_000_000);
/// For the same reason: no request has more than a trillion tokens of a class.
const MAX_COUNT: u64 = 1_000_000_000_000;

/// What [`Store::settle`] did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Settled {
    /// The balance after it of every user named in the batch, in id order.
    pub balances: Vec<(UserId, Money)>,
    /// The used quota after it of every key named in the batch, in id order.
    pub spend: Vec<(ApiKeyId, Money)>,
    /// Records that were new.
    pub inserted: usize,
}

impl Store {
    /// Writes a batch of records and charges for those that are new. A record whose request id is
    /// known already (or came earlier in the batch) is passed over.
    ///
    /// # Errors
    /// [`StorageError`]; then nothing of the batch was written, and it may be given again.
    pub async fn settle(&self, batch: &[UsageRecord]) -> Result<Settled, StorageError> {
        if batch.is_empty() {
            return Ok(Settled::default());
        }
        let txn = self.begin_write().await?;
        let new = insert_records(&txn, batch).await?;
        charge(&txn, &new).await?;
        let users: BTreeSet<i64> = batch.iter().map(|r| r.user_id.0).collect();
        let keys: BTreeSet<i64> = batch.iter().map(|r| r.api_key_id.0).collect();
        let balances = amounts(&txn, "users", "balance_nanos", users).await?;
        let spend = amounts(&txn, "api_keys", "quota_used_nanos", keys).await?;
        txn.commit().await?;
        Ok(Settled {
            balances: balances
                .into_iter()
                .map(|(id, sum)| (UserId(id), sum))
                .collect(),
            spend: spend
                .into_iter()
                .map(|(id, sum)| (ApiKeyId(id), sum))
                .collect(),
            inserted: new.len(),
        })
    }
}

/// Inserts the records not seen before and returns them.
async fn insert_records<'a>(
    txn: &DatabaseTransaction,
    batch: &'a [UsageRecord],
) -> Result<Vec<&'a UsageRecord>, StorageError> {
    let mut seen = HashSet::with_capacity(batch.len());
    let unique: Vec<&UsageRecord> = batch
        .iter()
        .filter(|record| seen.insert(record.request_id.as_str()))
        .collect();
    let mut new = Vec::with_capacity(unique.len());
    for chunk in chunks(&unique) {
        let sql = format!(
            "INSERT INTO usage_records ({}) VALUES {} \
             ON CONFLICT (request_id) DO NOTHING RETURNING request_id",
            COLUMNS.join(","),
            tuples(chunk.len(), COLUMNS.len())
        );
        let values = chunk.iter().flat_map(|record| row(record)).collect();
        let returned = txn.query_all_raw(statement(sql, values)).await?;
        if returned.len() == chunk.len() {
            new.extend_from_slice(chunk);
            continue;
        }
        let inserted: HashSet<String> = returned
            .iter()
            .map(|row| row.try_get_by_index(0))
            .collect::<Result<_, _>>()?;
        new.extend(chunk.iter().filter(|r| inserted.contains(&r.request_id)));
    }
    Ok(new)
}

/// Ledger entries and balances for what the balance pays, used quota for what anybody pays.
async fn charge(txn: &DatabaseTransaction, new: &[&UsageRecord]) -> Result<(), StorageError> {
    let mut entries = Vec::new();
    let mut spend: BTreeMap<i64, i64> = BTreeMap::new();
    for record in new {
        let amount = charged(record);
        if amount == Money::ZERO || record.billing_type == BillingType::None {
            continue;
        }
        // At most a batch times a million dollars: far inside i64.
        *spend.entry(record.api_key_id.0).or_default() += amount.0;
        if record.billing_type == BillingType::Balance {
            entries.push(Entry {
                user: record.user_id,
                kind: EntryKind::Charge,
                amount: -amount,
                request_id: Some(&record.request_id),
                note: None,
            });
        }
    }
    ledger::post(txn, &entries).await?;
    ledger::add(txn, "api_keys", "quota_used_nanos", &spend).await
}

/// `column` of the rows with these ids, in id order.
async fn amounts(
    txn: &DatabaseTransaction,
    table: &'static str,
    column: &'static str,
    ids: BTreeSet<i64>,
) -> Result<Vec<(i64, Money)>, StorageError> {
    let ids: Vec<i64> = ids.into_iter().collect();
    let mut found = Vec::with_capacity(ids.len());
    for chunk in chunks(&ids) {
        let sql = format!(
            "SELECT id, {column} FROM {table} WHERE id IN (VALUES {}) ORDER BY id",
            tuples(chunk.len(), 1)
        );
        let values = chunk.iter().map(|id| (*id).into()).collect();
        for row in txn.query_all_raw(statement(sql, values)).await? {
            found.push((row.try_get_by_index(0)?, Money(row.try_get_by_index(1)?)));
        }
    }
    Ok(found)
}

/// What the record charges, held to [`MAX_AMOUNT`].
fn charged(record: &UsageRecord) -> Money {
    record.charge.clamp(Money::ZERO, MAX_AMOUNT)
}

fn count(tokens: u64) -> i64 {
    i64::try_from(tokens.min(MAX_COUNT)).unwrap_or(i64::MAX)
}

/// The columns of `usage_records` but its id, in the order of [`row`].
const COLUMNS: [&str; 45] = [
    "request_id",
    "client_request_id",
    "upstream_request_id",
    "created_at",
    "user_id",
    "user_name",
    "api_key_id",
    "api_key_name",
    "group_id",
    "group_name",
    "fallback_from_group",
    "account_id",
    "account_name",
    "platform",
    "endpoint",
    "upstream_endpoint",
    "requested_model",
    "model",
    "upstream_model",
    "model_mapping_chain",
    "stream",
    "status",
    "outcome",
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
    "rate_multiplier_millionths",
    "billing_type",
    "service_tier",
    "reasoning_effort",
    "attempts",
    "account_switches",
    "duration_ms",
    "first_token_ms",
    "usage_source",
    "client_disconnected",
    "ip",
    "user_agent",
];

fn row(r: &UsageRecord) -> [Value; COLUMNS.len()] {
    let tokens = &r.tokens;
    [
        r.request_id.clone().into(),
        r.client_request_id.clone().into(),
        r.upstream_request_id.clone().into(),
        millis(r.created_at).into(),
        r.user_id.0.into(),
        r.user.clone().into(),
        r.api_key_id.0.into(),
        r.api_key.clone().into(),
        r.group_id.0.into(),
        r.group.clone().into(),
        r.fallback_from_group.clone().into(),
        r.account_id.0.into(),
        r.account.clone().into(),
        r.platform.as_str().into(),
        r.endpoint.clone().into(),
        r.upstream_endpoint.clone().into(),
        r.requested_model.clone().into(),
        r.model.clone().into(),
        r.upstream_model.clone().into(),
        r.model_mapping_chain.clone().into(),
        r.stream.into(),
        i64::from(r.status).into(),
        r.outcome.as_str().into(),
        count(tokens.input).into(),
        count(tokens.output).into(),
        count(tokens.cache_creation).into(),
        count(tokens.cache_creation_5m).into(),
        count(tokens.cache_creation_1h).into(),
        count(tokens.cache_read).into(),
        count(tokens.image_output).into(),
        i64::from(r.image_count).into(),
        r.cost.clamp(Money::ZERO, MAX_AMOUNT).0.into(),
        charged(r).0.into(),
        millionths(r.rate_multiplier).into(),
        r.billing_type.as_str().into(),
        r.service_tier.clone().into(),
        r.reasoning_effort.clone().into(),
        i64::from(r.attempts).into(),
        i64::from(r.account_switches).into(),
        count(r.duration_ms).into(),
        r.first_token_ms.map(count).into(),
        r.usage_source.as_str().into(),
        r.client_disconnected.into(),
        r.ip.clone().into(),
        r.user_agent.clone().into(),
    ]
}
