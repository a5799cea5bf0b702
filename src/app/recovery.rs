//! What a server that ended without warning left in its journal: settled requests are counted and go on
//! their way to the database; those that were sent and whose end is unknown are settled by estimate, of
//! what is known to have come back; those that were never sent cost nothing.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use tollgate_filters::usage::TokenUsage;

use crate::billing::book::Book;
use crate::billing::estimate::estimated;
use crate::billing::image::ImageSize;
use crate::billing::journal::{Journal, Recovered, Unfinished};
use crate::billing::pricing::ServiceTier;
use crate::billing::quote::{Quote, Used};
use crate::billing::window_cost::WindowCosts;
use crate::config::Reservation;
use crate::domain::{AttemptTrace, BillingType, Money, Platform, UsageRecord, UsageSource};
use crate::proxy::failover::TOO_LONG;
use crate::proxy::snapshot::Snapshot;

/// Takes up what was left. Nothing serves yet; `now` is when the unfinished requests are taken to have
/// ended at the latest.
pub fn take_up(
    recovered: Recovered,
    journal: &Journal,
    book: &Book,
    costs: &WindowCosts,
    snapshot: &Snapshot,
    reservation: Reservation,
    now: DateTime<Utc>,
) {
    for problem in &recovered.damage {
        log::error!("in the journal: {problem}");
    }
    if let Some(at) = recovered.torn_at {
        log::info!(
            "an entry of {} bytes at {at} in the journal was being written when the server ended; \
             nothing had been told that it was",
            recovered.torn_bytes
        );
    }
    let (settled, unfinished) = (recovered.settled.len(), recovered.unfinished.len());
    if settled + unfinished + recovered.voided > 0 {
        log::info!(
            "taken up from the journal: {settled} settled requests that were not in the database yet, \
             {unfinished} unfinished ones, which are settled by estimate, {} that were never sent",
            recovered.voided
        );
    }
    if recovered.known > 0 {
        log::info!(
            "{} more requests in the journal were in the database already",
            recovered.known
        );
    }
    // In the order in which the database will get them.
    for record in &recovered.settled {
        book.restore(record);
        costs.count(record, now);
    }
    for unfinished in recovered.unfinished {
        let record = Arc::new(settle(unfinished, snapshot, reservation, now));
        book.restore(&record);
        costs.count(&record, now);
        journal.settled(record);
    }
}

/// The record of a request whose end nobody saw: what its body and the answer noted so far come to, never
/// what was reserved for it.
fn settle(
    unfinished: Unfinished,
    snapshot: &Snapshot,
    reservation: Reservation,
    now: DateTime<Utc>,
) -> UsageRecord {
    let Unfinished { draft, progress } = unfinished;
    let mut record = draft.record;
    let progress = progress.unwrap_or_default();
    (record.tokens, record.usage_source) = match progress.usage {
        // Its last attempt had failed, and the next was not sent.
        Some(nothing) if nothing == TokenUsage::default() => (nothing, UsageSource::None),
        // Its output is counted at the end only: until then it is what was seen of it.
        Some(usage) if matches!(record.platform, Platform::Anthropic | Platform::Antigravity) => {
            (usage, UsageSource::Estimated)
        }
        Some(usage) => (usage, UsageSource::Reported),
        None => (
            estimated(progress.output_bytes, draft.body_len),
            UsageSource::Estimated,
        ),
    };
    record.image_count = progress.image_count;
    let millis = (now - record.created_at).num_milliseconds().max(0);
    record.duration_ms = millis.unsigned_abs();
    let directory = &snapshot.directory;
    let Some(group) = directory.group(record.group_id) else {
        // Groups are never deleted; without one nobody can say what it costs.
        record.priced = false;
        return record;
    };
    // Whether its conversation was bound to the account it left is not in the journal: in doubt for the user.
    if left_its_account(&record) && directory.rules(record.group_id).forced_cache_billing {
        record.tokens = record.tokens.with_input_from_cache();
    }
    let quote = Quote::new(
        snapshot.prices.clone(),
        group.clone(),
        directory.channel_of(record.group_id).cloned(),
        &record.requested_model,
    );
    let used = Used {
        tokens: record.tokens,
        image_count: record.image_count,
        // What was asked for is not in the journal; this is what is taken where nothing was.
        image_size: ImageSize::TwoK,
    };
    let tier = record.service_tier.as_deref().and_then(ServiceTier::parse);
    let priced = quote.price(&record.upstream_model, &used, tier, record.rate_multiplier);
    record.cost = priced.cost;
    record.charge = match record.billing_type {
        BillingType::None => Money::ZERO,
        // No balance goes below zero, whatever the estimate says.
        _ if reservation == Reservation::Strict => priced.charge.min(draft.reserved),
        BillingType::Balance | BillingType::Subscription => priced.charge,
    };
    record.priced = priced.priced;
    record.billing_mode = priced.mode;
    record.billing_tier = priced.billing_tier;
    record
}

/// Whether a request went to more than one account of the group that serves it.
fn left_its_account(record: &UsageRecord) -> bool {
    let into_group = |attempt: &AttemptTrace| attempt.result == TOO_LONG;
    match record.trail.iter().rposition(into_group) {
        None => record.account_switches > 0,
        Some(entered) => {
            let mut since = record.trail[entered + 1..].iter();
            since.any(|attempt| attempt.account != record.account)
        }
    }
}

#[cfg(test)]
mod tests;
