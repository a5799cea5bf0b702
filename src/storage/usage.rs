//! Questions about past requests: totals, and the records themselves page by page.

use chrono::{DateTime, Utc};
use sea_orm::sea_query::{Expr, ExprTrait};
use sea_orm::{
    ColumnTrait, Condition, ConnectionTrait, EntityTrait, QueryFilter, QueryOrder, QuerySelect,
};

use super::convert::{millis, multiplier, time, whole};
use super::entities::{usage_record, user};
use super::rows::statement;
use super::{StorageError, Store};
use crate::domain::{Money, Multiplier};

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
    pub billing_type: String,
    pub service_tier: Option<String>,
    pub reasoning_effort: Option<String>,
    pub attempts: u32,
    pub account_switches: u32,
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
        let (name, group) = match by {
            None => ("NULL", String::new()),
            Some(by) => {
                let order = "ORDER BY SUM(charge_nanos) DESC, SUM(cost_nanos) DESC, 1";
                (by.column(), format!("GROUP BY 1 {order}"))
            }
        };
        let sql = format!(
            "SELECT {name}, COUNT(*), {sums} FROM usage_records WHERE created_at >= ? {group}"
        );
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
        use usage_record::Column;
        let reader = &self.inner.pools.reader;
        let mut wanted = Condition::all();
        if let Some(name) = &filter.user {
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
            wanted = wanted.add(Column::UserId.eq(id));
        }
        // One lower bound, never both: with two, SQLite may seek to the earlier one and read every
        // page before this one again.
        wanted = match after {
            None => wanted.add(Column::CreatedAt.gte(millis(filter.since))),
            Some(after) => {
                let place = Expr::tuple([Expr::col(Column::CreatedAt), Expr::col(Column::Id)]);
                let end = Expr::tuple([Expr::val(after.created_at), Expr::val(after.id)]);
                wanted.add(place.gt(end))
            }
        };
        usage_record::Entity::find()
            .filter(wanted)
            .order_by_asc(Column::CreatedAt)
            .order_by_asc(Column::Id)
            .limit(limit)
            .all(reader)
            .await?
            .into_iter()
            .map(view)
            .collect()
    }
}

fn view(row: usage_record::Model) -> Result<UsageRecordView, StorageError> {
    Ok(UsageRecordView {
        id: row.id,
        request_id: row.request_id,
        client_request_id: row.client_request_id,
        upstream_request_id: row.upstream_request_id,
        created_at: time(row.created_at)?,
        user: row.user_name,
        api_key: row.api_key_name,
        group: row.group_name,
        fallback_from_group: row.fallback_from_group,
        account: row.account_name,
        platform: row.platform,
        endpoint: row.endpoint,
        upstream_endpoint: row.upstream_endpoint,
        requested_model: row.requested_model,
        model: row.model,
        upstream_model: row.upstream_model,
        model_mapping_chain: row.model_mapping_chain,
        stream: row.stream,
        status: whole(row.status)?,
        outcome: row.outcome,
        input_tokens: whole(row.input_tokens)?,
        output_tokens: whole(row.output_tokens)?,
        cache_creation_tokens: whole(row.cache_creation_tokens)?,
        cache_creation_5m_tokens: whole(row.cache_creation_5m_tokens)?,
        cache_creation_1h_tokens: whole(row.cache_creation_1h_tokens)?,
        cache_read_tokens: whole(row.cache_read_tokens)?,
        image_output_tokens: whole(row.image_output_tokens)?,
        image_count: whole(row.image_count)?,
        cost: Money(row.cost_nanos),
        charge: Money(row.charge_nanos),
        rate_multiplier: multiplier(row.rate_multiplier_millionths)?,
        billing_type: row.billing_type,
        service_tier: row.service_tier,
        reasoning_effort: row.reasoning_effort,
        attempts: whole(row.attempts)?,
        account_switches: whole(row.account_switches)?,
        duration_ms: whole(row.duration_ms)?,
        first_token_ms: row.first_token_ms.map(whole).transpose()?,
        usage_source: row.usage_source,
        client_disconnected: row.client_disconnected,
        ip: row.ip,
        user_agent: row.user_agent,
    })
}
