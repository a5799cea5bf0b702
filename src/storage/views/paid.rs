//! Subscriptions and channels as the command line shows them: the fields of the resources, and what
//! has been used of a subscription.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, QueryOrder};

use super::queries::{group_names, user_names};
use crate::domain::money::Decimal;
use crate::domain::price::Price;
use crate::domain::{
    BillingModelSource, ChannelPrice, ClassPrices, GroupId, ModelMapping, Money, Platform,
    PriceInterval, PricingMode, SUBSCRIPTION_WINDOWS, SubscriptionStatus, UserId, Window,
    WindowKind,
};
use crate::storage::convert::{channel as channel_from_row, subscription_status, time};
use crate::storage::entities::{channel, channel_group, group, subscription};
use crate::storage::{StorageError, Store};

/// A subscription as shown.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct SubscriptionView {
    /// `user/group`.
    pub name: String,
    /// Whose.
    pub user: String,
    /// To which group.
    pub group: String,
    /// `false` = refused, whatever its status.
    pub enabled: bool,
    /// The operator's word.
    pub status: SubscriptionStatus,
    /// Whether it may be used now, as far as it goes itself.
    pub usable: bool,
    /// Usable from then on.
    pub starts_at: DateTime<Utc>,
    /// Not usable from then on.
    pub expires_at: DateTime<Utc>,
    /// What has been used of the group's limits.
    pub windows: Vec<WindowView>,
    /// When it was first applied.
    pub created_at: DateTime<Utc>,
}

/// What has been used in a running window.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct WindowView {
    /// Its length.
    pub window: &'static str,
    /// USD.
    pub used: Money,
    /// USD; `None` = no limit.
    pub limit: Option<Money>,
    /// When it begins anew; `None` = none is running.
    pub resets_at: Option<DateTime<Utc>>,
}

/// A channel as shown.
#[derive(Clone, PartialEq, Debug, serde::Serialize)]
pub struct ChannelView {
    /// Unique name.
    pub name: String,
    /// `false` = its groups are as without it.
    pub enabled: bool,
    /// Names of its groups.
    pub groups: Vec<String>,
    /// By platform.
    pub model_mapping: BTreeMap<Platform, ModelMapping>,
    /// Only models with a price of the channel's own may be used.
    pub restrict_models: bool,
    /// Which name is billed.
    pub billing_model_source: BillingModelSource,
    /// In the order in which they are asked.
    pub prices: Vec<ChannelPriceView>,
    /// When it was first applied.
    pub created_at: DateTime<Utc>,
}

/// Prices of some models as shown.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct ChannelPriceView {
    /// For groups of this platform.
    pub platform: Platform,
    /// Exact or trailing `*`.
    pub models: Vec<String>,
    /// What is counted.
    pub billing_mode: PricingMode,
    /// Outside the intervals.
    #[serde(flatten)]
    pub prices: ClassPricesView,
    /// By length or size.
    pub intervals: Vec<PriceIntervalView>,
}

/// Prices by class as shown: USD as decimals, those that are not set left out.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(transparent)]
pub struct ClassPricesView(BTreeMap<&'static str, String>);

/// Prices of an interval as shown.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct PriceIntervalView {
    /// Exclusive.
    pub min_tokens: u64,
    /// Inclusive; `None` = no end.
    pub max_tokens: Option<u64>,
    /// The size of an image.
    pub tier_label: Option<String>,
    /// What it costs there.
    #[serde(flatten)]
    pub prices: ClassPricesView,
}

impl ClassPricesView {
    fn of(prices: &ClassPrices) -> ClassPricesView {
        // Femto-dollars: 15 digits for one, so 9 for a million.
        let shown = |price: Price, digits| Decimal::new(price.0.into(), digits).to_string();
        let classes = [
            ("input_per_million", prices.input, 9),
            ("output_per_million", prices.output, 9),
            ("cache_write_per_million", prices.cache_write, 9),
            ("cache_read_per_million", prices.cache_read, 9),
            ("image_output_per_million", prices.image_output, 9),
            ("per_request", prices.per_request, 15),
        ];
        let given = classes.into_iter();
        let given = given.filter_map(|(name, price, digits)| Some((name, shown(price?, digits))));
        ClassPricesView(given.collect())
    }
}

fn price_shown(price: ChannelPrice) -> ChannelPriceView {
    ChannelPriceView {
        platform: price.platform,
        models: price.models,
        billing_mode: price.billing_mode,
        prices: ClassPricesView::of(&price.prices),
        intervals: price.intervals.into_iter().map(interval_shown).collect(),
    }
}

fn interval_shown(interval: PriceInterval) -> PriceIntervalView {
    PriceIntervalView {
        min_tokens: interval.min_tokens,
        max_tokens: interval.max_tokens,
        tier_label: interval.tier_label,
        prices: ClassPricesView::of(&interval.prices),
    }
}

/// Windows of these kinds as of `now`, with their limits in nano-dollars.
pub(super) fn windows_shown(
    kinds: [WindowKind; 3],
    windows: [Window; 3],
    limits: [Option<i64>; 3],
    now: DateTime<Utc>,
    tz: Tz,
) -> Vec<WindowView> {
    let windows = kinds.into_iter().zip(windows).zip(limits);
    windows
        .map(|((kind, window), limit)| WindowView {
            window: kind.as_str(),
            used: window.used_at(kind, now, tz),
            limit: limit.map(Money),
            resets_at: window.resets_at(kind, tz).filter(|end| now < *end),
        })
        .collect()
}

impl Store {
    /// Subscriptions in name order, as of `now`: all, or the one of this name (an empty list if there
    /// is none). Days of windows are those of `tz`.
    ///
    /// # Errors
    /// [`StorageError`] when the database or a row cannot be read.
    pub async fn list_subscriptions(
        &self,
        name: Option<&str>,
        now: DateTime<Utc>,
        tz: Tz,
    ) -> Result<Vec<SubscriptionView>, StorageError> {
        let windows: HashMap<(UserId, GroupId), [Window; 3]> =
            self.subscription_windows().await?.into_iter().collect();
        let txn = self.begin_read().await?;
        let rows = subscription::Entity::find().all(&txn).await?;
        let users = user_names(&txn).await?;
        let groups: HashMap<i64, group::Model> = group::Entity::find()
            .all(&txn)
            .await?
            .into_iter()
            .map(|row| (row.id, row))
            .collect();
        txn.rollback().await?;
        let mut views = Vec::new();
        for row in rows {
            let (Some(user), Some(group)) = (users.get(&row.user_id), groups.get(&row.group_id))
            else {
                continue;
            };
            let its_name = format!("{user}/{}", group.name);
            if name.is_some_and(|name| name != its_name) {
                continue;
            }
            let status = subscription_status(&row.status)?;
            let (starts_at, expires_at) = (time(row.starts_at)?, time(row.expires_at)?);
            let used = windows.get(&(UserId(row.user_id), GroupId(row.group_id)));
            let limits = [
                group.daily_limit_nanos,
                group.weekly_limit_nanos,
                group.monthly_limit_nanos,
            ];
            let used = used.copied().unwrap_or_default();
            let windows = windows_shown(SUBSCRIPTION_WINDOWS, used, limits, now, tz);
            views.push(SubscriptionView {
                name: its_name,
                user: user.clone(),
                group: group.name.clone(),
                enabled: row.enabled,
                status,
                usable: row.enabled
                    && status == SubscriptionStatus::Active
                    && starts_at <= now
                    && now < expires_at,
                starts_at,
                expires_at,
                windows,
                created_at: time(row.created_at)?,
            });
        }
        views.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(views)
    }

    /// Channels in name order: all, or the one of this name (an empty list if there is none).
    ///
    /// # Errors
    /// [`StorageError`] when the database or a row cannot be read.
    pub async fn list_channels(
        &self,
        name: Option<&str>,
    ) -> Result<Vec<ChannelView>, StorageError> {
        let txn = self.begin_read().await?;
        let mut query = channel::Entity::find().order_by_asc(channel::Column::Name);
        if let Some(name) = name {
            query = query.filter(channel::Column::Name.eq(name));
        }
        let rows = query.all(&txn).await?;
        let names = group_names(&txn).await?;
        let mut groups: HashMap<i64, Vec<String>> = HashMap::new();
        for link in channel_group::Entity::find().all(&txn).await? {
            let name = names.get(&link.group_id).cloned().unwrap_or_default();
            groups.entry(link.channel_id).or_default().push(name);
        }
        txn.rollback().await?;
        rows.into_iter()
            .map(|row| {
                let mut groups = groups.remove(&row.id).unwrap_or_default();
                groups.sort();
                let created_at = time(row.created_at)?;
                let channel = channel_from_row(row, Vec::new())?;
                Ok(ChannelView {
                    name: channel.name,
                    enabled: channel.enabled,
                    groups,
                    model_mapping: channel.model_mapping,
                    restrict_models: channel.restrict_models,
                    billing_model_source: channel.billing_model_source,
                    prices: channel.prices.into_iter().map(price_shown).collect(),
                    created_at,
                })
            })
            .collect()
    }
}
