//! Usage in totals: of everything, or by user, key, account, model, group or day.

use std::collections::BTreeMap;

use chrono::NaiveDate;
use chrono_tz::Tz;
use sea_orm::{ConnectionTrait, QueryResult};

use super::convert::{millis, time, whole};
use super::reports::QUARTER_MS;
use super::rows::statement;
use super::usage::{Conditions, UsageFilter};
use super::{StorageError, Store};
use crate::domain::Money;

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
    /// The day of arrival in this time zone, as `2026-11-25`.
    Day(Tz),
}

/// Sums over the requests of one user, key, account, model, group or day, or of all.
#[derive(Clone, PartialEq, Eq, Debug, Default, serde::Serialize)]
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
    /// Records that used tokens of a model without a price: they cost nothing.
    pub unpriced: u64,
    /// USD at list price.
    pub cost: Money,
    /// USD that users paid.
    pub charge: Money,
}

impl UsageTotal {
    /// Takes the sums of `other` in.
    fn add(&mut self, other: &UsageTotal) {
        for (sum, more) in [
            (&mut self.requests, other.requests),
            (&mut self.input_tokens, other.input_tokens),
            (&mut self.output_tokens, other.output_tokens),
            (&mut self.cache_creation_tokens, other.cache_creation_tokens),
            (
                &mut self.cache_creation_5m_tokens,
                other.cache_creation_5m_tokens,
            ),
            (
                &mut self.cache_creation_1h_tokens,
                other.cache_creation_1h_tokens,
            ),
            (&mut self.cache_read_tokens, other.cache_read_tokens),
            (&mut self.image_output_tokens, other.image_output_tokens),
            (&mut self.image_count, other.image_count),
            (&mut self.unpriced, other.unpriced),
        ] {
            *sum = sum.saturating_add(more);
        }
        self.cost += other.cost;
        self.charge += other.charge;
    }
}

/// The sums in the order in which [`total`] reads them. Contexts without a price are looked for once,
/// not for every record; a context says so only when it has none.
const SUMS: &str = "COUNT(*), COALESCE(SUM(input_tokens), 0), COALESCE(SUM(output_tokens), 0), \
     COALESCE(SUM(cache_creation_tokens), 0), COALESCE(SUM(cache_creation_5m_tokens), 0), \
     COALESCE(SUM(cache_creation_1h_tokens), 0), COALESCE(SUM(cache_read_tokens), 0), \
     COALESCE(SUM(image_output_tokens), 0), COALESCE(SUM(image_count), 0), \
     COALESCE(SUM(context_id IN (SELECT id FROM usage_contexts WHERE details ->> 'priced' = 0) \
         AND input_tokens + output_tokens + cache_creation_tokens + cache_read_tokens \
             + image_output_tokens > 0), 0), \
     COALESCE(SUM(cost_nanos), 0), COALESCE(SUM(charge_nanos), 0)";

impl Store {
    /// Sums over the requests that a filter asks for; grouped ones in order of charge, the largest
    /// first, days in their own order. Without grouping there is exactly one, also when there were no
    /// requests.
    ///
    /// # Errors
    /// [`StorageError::NotFound`] when the filter names a user, key, account or group that does not exist.
    pub async fn usage_totals(
        &self,
        filter: &UsageFilter,
        by: Option<UsageBy>,
    ) -> Result<Vec<UsageTotal>, StorageError> {
        let Conditions {
            mut sql,
            mut values,
        } = self.conditions(filter).await?;
        sql.push("created_at >= ?".to_owned());
        values.push(millis(filter.since).into());
        let conditions = sql.join(" AND ");
        let column = match by {
            None => None,
            Some(UsageBy::Day(_)) => None,
            Some(UsageBy::User) => Some("user_name"),
            Some(UsageBy::Key) => Some("api_key_name"),
            Some(UsageBy::Account) => Some("account_name"),
            Some(UsageBy::Model) => Some("model"),
            Some(UsageBy::Group) => Some("group_name"),
        };
        let sql = match (column, by) {
            // CROSS JOIN: by time, then to the context, never the other way round.
            (Some(column), _) => format!(
                "SELECT c.{column}, {SUMS} \
                 FROM usage_entries e CROSS JOIN usage_contexts c ON c.id = e.context_id \
                 WHERE {conditions} \
                 GROUP BY 1 ORDER BY SUM(charge_nanos) DESC, SUM(cost_nanos) DESC, 1"
            ),
            // SQLite knows no time zones; a quarter of an hour is in one day everywhere.
            (None, Some(_)) => format!(
                "SELECT created_at / {QUARTER_MS}, {SUMS} FROM usage_entries \
                 WHERE {conditions} GROUP BY 1"
            ),
            (None, None) => format!("SELECT NULL, {SUMS} FROM usage_entries WHERE {conditions}"),
        };
        let rows = self
            .inner
            .pools
            .reader
            .query_all_raw(statement(sql, values))
            .await?;
        match by {
            Some(UsageBy::Day(tz)) => days(&rows, tz),
            _ => rows
                .iter()
                .map(|row| {
                    Ok(UsageTotal {
                        name: row.try_get_by_index(0)?,
                        ..total(row)?
                    })
                })
                .collect(),
        }
    }
}

/// Rows by quarter of an hour as days.
fn days(rows: &[QueryResult], tz: Tz) -> Result<Vec<UsageTotal>, StorageError> {
    let mut days: BTreeMap<NaiveDate, UsageTotal> = BTreeMap::new();
    for row in rows {
        let quarter: i64 = row.try_get_by_index(0)?;
        let day = time(quarter.saturating_mul(QUARTER_MS))?
            .with_timezone(&tz)
            .date_naive();
        days.entry(day).or_default().add(&total(row)?);
    }
    Ok(days
        .into_iter()
        .map(|(day, total)| UsageTotal {
            name: Some(day.to_string()),
            ..total
        })
        .collect())
}

/// A row of [`SUMS`] behind one other column.
fn total(row: &QueryResult) -> Result<UsageTotal, StorageError> {
    let count = |index| whole::<u64>(row.try_get_by_index(index)?);
    Ok(UsageTotal {
        name: None,
        requests: count(1)?,
        input_tokens: count(2)?,
        output_tokens: count(3)?,
        cache_creation_tokens: count(4)?,
        cache_creation_5m_tokens: count(5)?,
        cache_creation_1h_tokens: count(6)?,
        cache_read_tokens: count(7)?,
        image_output_tokens: count(8)?,
        image_count: count(9)?,
        unpriced: count(10)?,
        cost: Money(row.try_get_by_index(11)?),
        charge: Money(row.try_get_by_index(12)?),
    })
}
