//! Questions about past requests: which are meant, and the records themselves page by page. Their totals
//! are in `totals.rs`.

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, QueryResult, Value};

use super::context::{self, Context};
use super::convert::{from_json, millis, multiplier, time, whole};
use super::rows::statement;
use super::{StorageError, Store};
use crate::domain::{AttemptTrace, Money, Multiplier, UsageRecord};

/// Which records are wanted. Names are those of the time of the record.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct UsageFilter {
    /// Requests that arrived at or after this moment …
    pub since: DateTime<Utc>,
    /// … and before this one.
    pub until: Option<DateTime<Utc>>,
    /// Only those of this user.
    pub user: Option<String>,
    /// Only those with this API key.
    pub key: Option<String>,
    /// Only those of which this account made the last attempt.
    pub account: Option<String>,
    /// Only those billed as this model.
    pub model: Option<String>,
    /// Only those in this group.
    pub group: Option<String>,
}

impl UsageFilter {
    /// Everything since a moment.
    pub fn since(moment: DateTime<Utc>) -> UsageFilter {
        UsageFilter {
            since: moment,
            ..UsageFilter::default()
        }
    }
}

/// Conditions on `usage_entries` in SQL, with their values in the same order.
pub(super) struct Conditions {
    pub(super) sql: Vec<String>,
    pub(super) values: Vec<Value>,
}

/// Where a page of records ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UsageCursor {
    created_at: i64,
    id: i64,
}

/// A usage record as it is shown: the fields of INTERFACE.md, in that order.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
#[allow(missing_docs)] // each is described at the domain's `UsageRecord`
pub struct UsageRecordView {
    #[serde(skip)]
    id: i64,
    pub request_id: String,
    pub client_request_id: Option<String>,
    pub upstream_request_id: Option<String>,
    pub created_at: DateTime<Utc>,
    pub user: String,
    pub api_key: String,
    pub group: String,
    pub fallback_from_group: Option<String>,
    pub account: String,
    pub platform: String,
    pub endpoint: String,
    pub upstream_endpoint: String,
    pub requested_model: String,
    pub model: String,
    pub upstream_model: String,
    pub model_mapping_chain: Option<String>,
    pub stream: bool,
    pub status: u16,
    pub outcome: String,
    pub input_tokens: u64,
    pub output_tokens: u64,
    pub cache_creation_tokens: u64,
    pub cache_creation_5m_tokens: u64,
    pub cache_creation_1h_tokens: u64,
    pub cache_read_tokens: u64,
    pub image_output_tokens: u64,
    pub image_count: u32,
    pub cost: Money,
    pub charge: Money,
    pub rate_multiplier: Multiplier,
    pub account_rate_multiplier: Multiplier,
    pub billing_type: String,
    pub billing_mode: String,
    pub billing_tier: Option<String>,
    pub channel: Option<String>,
    pub priced: bool,
    pub service_tier: Option<String>,
    pub reasoning_effort: Option<String>,
    pub attempts: u32,
    pub account_switches: u32,
    pub attempt_trail: Vec<AttemptTrace>,
    pub duration_ms: u64,
    pub first_token_ms: Option<u64>,
    pub usage_source: String,
    pub client_disconnected: bool,
    pub ip: Option<String>,
    pub user_agent: Option<String>,
}

impl UsageRecordView {
    /// The names of the fields as they are written, in their order.
    pub const FIELDS: [&str; 47] = [
        "request_id",
        "client_request_id",
        "upstream_request_id",
        "created_at",
        "user",
        "api_key",
        "group",
        "fallback_from_group",
        "account",
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
        "cost",
        "charge",
        "rate_multiplier",
        "account_rate_multiplier",
        "billing_type",
        "billing_mode",
        "billing_tier",
        "channel",
        "priced",
        "service_tier",
        "reasoning_effort",
        "attempts",
        "account_switches",
        "attempt_trail",
        "duration_ms",
        "first_token_ms",
        "usage_source",
        "client_disconnected",
        "ip",
        "user_agent",
    ];

    /// As a record that is not in the database would be shown.
    pub(super) fn of(r: &UsageRecord) -> UsageRecordView {
        UsageRecordView {
            id: 0,
            request_id: r.request_id.clone(),
            client_request_id: r.client_request_id.clone(),
            upstream_request_id: r.upstream_request_id.clone(),
            created_at: r.created_at,
            user: r.user.clone(),
            api_key: r.api_key.clone(),
            group: r.group.clone(),
            fallback_from_group: r.fallback_from_group.clone(),
            account: r.account.clone(),
            platform: r.platform.as_str().to_owned(),
            endpoint: r.endpoint.clone(),
            upstream_endpoint: r.upstream_endpoint.clone(),
            requested_model: r.requested_model.clone(),
            model: r.model.clone(),
            upstream_model: r.upstream_model.clone(),
            model_mapping_chain: r.model_mapping_chain.clone(),
            stream: r.stream,
            status: r.status,
            outcome: r.outcome.as_str().to_owned(),
            input_tokens: r.tokens.input,
            output_tokens: r.tokens.output,
            cache_creation_tokens: r.tokens.cache_creation,
            cache_creation_5m_tokens: r.tokens.cache_creation_5m,
            cache_creation_1h_tokens: r.tokens.cache_creation_1h,
            cache_read_tokens: r.tokens.cache_read,
            image_output_tokens: r.tokens.image_output,
            image_count: r.image_count,
            cost: r.cost,
            charge: r.charge,
            rate_multiplier: r.rate_multiplier,
            account_rate_multiplier: r.account_rate_multiplier,
            billing_type: r.billing_type.as_str().to_owned(),
            billing_mode: r.billing_mode.as_str().to_owned(),
            billing_tier: r.billing_tier.clone(),
            channel: r.channel.clone(),
            priced: r.priced,
            service_tier: r.service_tier.clone(),
            reasoning_effort: r.reasoning_effort.clone(),
            attempts: r.attempts,
            account_switches: r.account_switches,
            attempt_trail: r.trail.clone(),
            duration_ms: r.duration_ms,
            first_token_ms: r.first_token_ms,
            usage_source: r.usage_source.as_str().to_owned(),
            client_disconnected: r.client_disconnected,
            ip: r.ip.clone(),
            user_agent: r.user_agent.clone(),
        }
    }

    /// The cursor with which the page after this record begins.
    pub fn cursor(&self) -> UsageCursor {
        UsageCursor {
            created_at: millis(self.created_at),
            id: self.id,
        }
    }
}

impl Store {
    /// A page of records, oldest first; the next page begins after the last one's
    /// [`cursor`](UsageRecordView::cursor). An empty page is the end.
    ///
    /// # Errors
    /// [`StorageError::NotFound`] when the filter names a user, key, account or group that does not exist.
    pub async fn usage_records(
        &self,
        filter: &UsageFilter,
        after: Option<UsageCursor>,
        limit: u64,
    ) -> Result<Vec<UsageRecordView>, StorageError> {
        let Conditions {
            mut sql,
            mut values,
        } = self.conditions(filter).await?;
        // One lower bound, never both: with two, SQLite may seek to the earlier one and read every
        // page before this one again.
        match after {
            None => {
                values.push(millis(filter.since).into());
                sql.push("created_at >= ?".to_owned());
            }
            Some(after) => {
                values.extend([after.created_at.into(), after.id.into()]);
                sql.push("(created_at, e.id) > (?, ?)".to_owned());
            }
        };
        values.push(limit.into());
        let sql = format!(
            "SELECT e.*, c.details \
             FROM usage_entries e CROSS JOIN usage_contexts c ON c.id = e.context_id \
             WHERE {} ORDER BY e.created_at, e.id LIMIT ?",
            sql.join(" AND ")
        );
        self.inner
            .pools
            .reader
            .query_all_raw(statement(sql, values))
            .await?
            .iter()
            .map(view)
            .collect()
    }

    /// What a filter asks of the rows of `usage_entries`, but for the moment they begin with.
    pub(super) async fn conditions(
        &self,
        filter: &UsageFilter,
    ) -> Result<Conditions, StorageError> {
        let mut sql = Vec::new();
        let mut values: Vec<Value> = Vec::new();
        if let Some(name) = &filter.user {
            // By id: there is an index for it.
            values.push(self.id_of("user", "users", name).await?.into());
            sql.push("user_id = ?".to_owned());
        }
        if let Some(until) = filter.until {
            values.push(millis(until).into());
            sql.push("created_at < ?".to_owned());
        }
        for (kind, table, name) in [
            ("key", "api_keys", &filter.key),
            ("account", "accounts", &filter.account),
            ("group", "groups", &filter.group),
        ] {
            if let Some(name) = name {
                // Nothing found should not be what a slip of the pen leads to.
                self.id_of(kind, table, name).await?;
            }
        }
        let of_context: Vec<(&str, &String)> = [
            ("api_key_name", &filter.key),
            ("account_name", &filter.account),
            ("group_name", &filter.group),
            ("model", &filter.model),
        ]
        .into_iter()
        .filter_map(|(column, name)| Some((column, name.as_ref()?)))
        .collect();
        if !of_context.is_empty() {
            // SQLite makes the list once, and every row asks it.
            let columns: Vec<String> = of_context
                .iter()
                .map(|(column, _)| format!("{column} = ?"))
                .collect();
            sql.push(format!(
                "context_id IN (SELECT id FROM usage_contexts WHERE {})",
                columns.join(" AND ")
            ));
            values.extend(of_context.into_iter().map(|(_, name)| name.as_str().into()));
        }
        Ok(Conditions { sql, values })
    }

    /// The id of a name in `table`.
    pub(super) async fn id_of(
        &self,
        kind: &'static str,
        table: &str,
        name: &str,
    ) -> Result<i64, StorageError> {
        let sql = format!("SELECT id FROM {table} WHERE name = ?");
        let row = self
            .inner
            .pools
            .reader
            .query_one_raw(statement(sql, vec![name.into()]))
            .await?;
        match row {
            Some(row) => Ok(row.try_get_by_index(0)?),
            None => Err(StorageError::NotFound {
                kind,
                name: name.to_owned(),
            }),
        }
    }
}

fn view(row: &QueryResult) -> Result<UsageRecordView, StorageError> {
    let number = |column: &str| -> Result<i64, StorageError> { Ok(row.try_get("", column)?) };
    let count = |column: &str| whole::<u64>(number(column)?);
    let details: String = row.try_get("", "details")?;
    let context = Context::from_json(&details)?;
    let subpath: Option<String> = row.try_get("", "subpath")?;
    let trail: Option<String> = row.try_get("", "trail")?;
    let first_token_ms: Option<i64> = row.try_get("", "first_token_ms")?;
    Ok(UsageRecordView {
        id: number("id")?,
        request_id: row.try_get("", "request_id")?,
        client_request_id: row.try_get("", "client_request_id")?,
        upstream_request_id: row.try_get("", "upstream_request_id")?,
        created_at: time(number("created_at")?)?,
        user: context.user.into_owned(),
        api_key: context.api_key.into_owned(),
        group: context.group.into_owned(),
        fallback_from_group: context.fallback_from_group.map(Into::into),
        account: context.account.into_owned(),
        platform: context.platform.into_owned(),
        endpoint: context::whole_path(context.endpoint, subpath.as_deref()),
        upstream_endpoint: context::whole_path(context.upstream_endpoint, subpath.as_deref()),
        requested_model: context.requested_model.into_owned(),
        model: context.model.into_owned(),
        upstream_model: context.upstream_model.into_owned(),
        model_mapping_chain: context.model_mapping_chain.map(Into::into),
        stream: context.stream,
        status: context.status,
        outcome: context.outcome.into_owned(),
        input_tokens: count("input_tokens")?,
        output_tokens: count("output_tokens")?,
        cache_creation_tokens: count("cache_creation_tokens")?,
        cache_creation_5m_tokens: count("cache_creation_5m_tokens")?,
        cache_creation_1h_tokens: count("cache_creation_1h_tokens")?,
        cache_read_tokens: count("cache_read_tokens")?,
        image_output_tokens: count("image_output_tokens")?,
        image_count: whole(number("image_count")?)?,
        cost: Money(number("cost_nanos")?),
        charge: Money(number("charge_nanos")?),
        rate_multiplier: multiplier(context.rate_multiplier_millionths)?,
        account_rate_multiplier: multiplier(context.account_rate_multiplier_millionths)?,
        billing_type: context.billing_type.into_owned(),
        billing_mode: context.billing_mode.into_owned(),
        billing_tier: context.billing_tier.map(Into::into),
        channel: context.channel.map(Into::into),
        priced: context.priced,
        service_tier: context.service_tier.map(Into::into),
        reasoning_effort: context.reasoning_effort.map(Into::into),
        attempts: context.attempts,
        account_switches: context.account_switches,
        attempt_trail: match trail {
            Some(trail) => from_json(&trail)?,
            None => Vec::new(),
        },
        duration_ms: count("duration_ms")?,
        first_token_ms: first_token_ms.map(whole).transpose()?,
        usage_source: context.usage_source.into_owned(),
        client_disconnected: context.client_disconnected,
        ip: row.try_get("", "ip")?,
        user_agent: context.user_agent.map(Into::into),
    })
}
