//! Questions about past requests: totals, and the records themselves page by page.

use chrono::{DateTime, Utc};
use sea_orm::{ColumnTrait, ConnectionTrait, EntityTrait, QueryFilter, QueryResult, QuerySelect};

use super::context::{self, Context};
use super::convert::{from_json, millis, multiplier, time, whole};
use super::entities::user;
use super::rows::statement;
use super::{StorageError, Store};
use crate::domain::{AttemptTrace, Money, Multiplier};

/// What usage totals are grouped by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UsageBy {
    /// User name.
    User,
    /// API key name.
    Key,
    /// Account name.
    Account,
    /// Billed model.
    Model,
    /// Group name.
    Group,
}

impl UsageBy {
    fn column(self) -> &'static str {
        match self {
            UsageBy::User => "user_name",
            UsageBy::Key => "api_key_name",
            UsageBy::Account => "account_name",
            UsageBy::Model => "model",
            UsageBy::Group => "group_name",
        }
    }
}

/// Sums over the requests of one user, key, account, model or group, or of all.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct UsageTotal {
    /// Of whom or what; `None` = everything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Records.
    pub requests: u64,
    /// Input tokens, without cached ones.
    pub input_tokens: u64,
    /// Output tokens.
    pub output_tokens: u64,
    /// Tokens written to a cache.
    pub cache_creation_tokens: u64,
    /// Of those, to the 5-minute cache.
    pub cache_creation_5m_tokens: u64,
    /// Of those, to the 1-hour cache.
    pub cache_creation_1h_tokens: u64,
    /// Input tokens read from a cache.
    pub cache_read_tokens: u64,
    /// Output tokens of images.
    pub image_output_tokens: u64,
    /// Images.
    pub image_count: u64,
    /// USD at list price.
    pub cost: Money,
    /// USD that users paid.
    pub charge: Money,
}

/// Which records are wanted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UsageFilter {
    /// Requests that arrived at or after this moment.
    pub since: DateTime<Utc>,
    /// Only those of this user.
    pub user: Option<String>,
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
    /// The cursor with which the page after this record begins.
    pub fn cursor(&self) -> UsageCursor {
        UsageCursor {
            created_at: millis(self.created_at),
            id: self.id,
        }
    }
}

impl Store {
    /// Sums over the requests since a moment; grouped ones in order of charge, the largest first.
    /// Without grouping there is exactly one, also when there were no requests.
    ///
    /// # Errors
    /// [`StorageError`] when the database cannot be read.
    pub async fn usage_totals(
        &self,
        since: DateTime<Utc>,
        by: Option<UsageBy>,
    ) -> Result<Vec<UsageTotal>, StorageError> {
        let sums = [
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
        ]
        .map(|column| format!("COALESCE(SUM({column}), 0)"))
        .join(", ");
        // CROSS JOIN: by time, then to the context, never the other way round.
        let sql = match by {
            None => {
                format!("SELECT NULL, COUNT(*), {sums} FROM usage_entries WHERE created_at >= ?")
            }
            Some(by) => format!(
                "SELECT c.{}, COUNT(*), {sums} \
                 FROM usage_entries e CROSS JOIN usage_contexts c ON c.id = e.context_id \
                 WHERE created_at >= ? \
                 GROUP BY 1 ORDER BY SUM(charge_nanos) DESC, SUM(cost_nanos) DESC, 1",
                by.column()
            ),
        };
        self.inner
            .pools
            .reader
            .query_all_raw(statement(sql, vec![millis(since).into()]))
            .await?
            .iter()
            .map(|row| {
                let count = |index| whole::<u64>(row.try_get_by_index(index)?);
                Ok(UsageTotal {
                    name: row.try_get_by_index(0)?,
                    requests: count(1)?,
                    input_tokens: count(2)?,
                    output_tokens: count(3)?,
                    cache_creation_tokens: count(4)?,
                    cache_creation_5m_tokens: count(5)?,
                    cache_creation_1h_tokens: count(6)?,
                    cache_read_tokens: count(7)?,
                    image_output_tokens: count(8)?,
                    image_count: count(9)?,
                    cost: Money(row.try_get_by_index(10)?),
                    charge: Money(row.try_get_by_index(11)?),
                })
            })
            .collect()
    }

    /// A page of records, oldest first; the next page begins after the last one's
    /// [`cursor`](UsageRecordView::cursor). An empty page is the end.
    ///
    /// # Errors
    /// [`StorageError::NotFound`] when the filter names a user that does not exist.
    pub async fn usage_records(
        &self,
        filter: &UsageFilter,
        after: Option<UsageCursor>,
        limit: u64,
    ) -> Result<Vec<UsageRecordView>, StorageError> {
        let reader = &self.inner.pools.reader;
        let (of_user, mut values) = match &filter.user {
            None => ("", Vec::new()),
            Some(name) => {
                let id: Option<i64> = user::Entity::find()
                    .select_only()
                    .column(user::Column::Id)
                    .filter(user::Column::Name.eq(name.as_str()))
                    .into_tuple()
                    .one(reader)
                    .await?;
                let id = id.ok_or_else(|| StorageError::NotFound {
                    kind: "user",
                    name: name.clone(),
                })?;
                ("e.user_id = ? AND", vec![id.into()])
            }
        };
        // One lower bound, never both: with two, SQLite may seek to the earlier one and read every
        // page before this one again.
        let from = match after {
            None => {
                values.push(millis(filter.since).into());
                "e.created_at >= ?"
            }
            Some(after) => {
                values.extend([after.created_at.into(), after.id.into()]);
                "(e.created_at, e.id) > (?, ?)"
            }
        };
        values.push(limit.into());
        let sql = format!(
            "SELECT e.*, c.details \
             FROM usage_entries e CROSS JOIN usage_contexts c ON c.id = e.context_id \
             WHERE {of_user} {from} ORDER BY e.created_at, e.id LIMIT ?"
        );
        reader
            .query_all_raw(statement(sql, values))
            .await?
            .iter()
            .map(view)
            .collect()
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
