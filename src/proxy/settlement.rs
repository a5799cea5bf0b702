//! The money of one request: what is held for it, what of it is in the journal, and its settlement,
//! written before the last bytes of its answer are released (DESIGN.md, Money).
//!
//! It lies in the exchange, because the door to the client is where the last bytes are released; and it
//! ends with the request, whatever becomes of that: a request whose task is dropped is settled by what
//! was seen of its answer, one that was never sent gives everything back.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use tollgate_filters::usage::TokenUsage;

use super::Rooms;
use super::context::{Asked, Context, SentAttempt, Tries};
use super::failover::ANSWERED;
use super::finish::millis;
use super::money;
use super::relay::Answer;
use super::snapshot::Snapshot;
use crate::auth::Principal;
use crate::billing::book::Hold;
use crate::billing::estimate::{billed, estimated};
use crate::billing::image::ImageSize;
use crate::billing::journal::{Draft, JournalError, Progress, Reserved, Room};
use crate::billing::pricing::ServiceTier;
use crate::billing::quote::{Quote, Used};
use crate::config::{BillingMode, Config};
use crate::domain::text::address;
use crate::domain::{
    AccountId, AttemptTrace, BillingType, Group, Money, Multiplier, Outcome, PricingMode,
    SubscriptionType, UsageRecord, UsageSource,
};

/// Between notes of how far a long answer has come. What is lost of it at a crash is at most what came
/// since, and the journal's own time to the disk.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// What is known of a request's end when it is settled.
#[derive(Clone, Copy, Debug)]
pub struct End {
    /// The status the client got; 0 = none.
    pub status: u16,
    /// The client has left.
    pub client_gone: bool,
    /// The answer was cut short after its first byte was released.
    pub cut: bool,
    /// The last attempt failed.
    pub failed: bool,
}

/// What was noted in the journal of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Noted {
    Nothing,
    Reserved,
    Sent,
}

/// As what a request is recorded and charged.
#[derive(Clone)]
struct Terms {
    principal: Principal,
    fallback_from: Option<Arc<Group>>,
    asked: Arc<Asked>,
    quote: Arc<Quote>,
    /// Accounts of the group that the channel keeps from it.
    kept_out: Vec<AccountId>,
}

/// The money of one request.
pub struct Settlement {
    rooms: Arc<Rooms>,
    config: Arc<Config>,
    snapshot: Arc<Snapshot>,
    terms: Terms,
    /// What it is to be charged as from its next attempt on. Until that is sent, the last one counts.
    next: Option<Terms>,
    standard: bool,
    id: String,
    client_request_id: Option<String>,
    ip: Option<IpAddr>,
    user_agent: Option<String>,
    arrived: DateTime<Utc>,
    started: Instant,
    hold: Option<Hold>,
    room: Option<Room>,
    noted: Noted,
    draft: Option<Box<Draft>>,
    /// The attempt that runs, which is not on the trail yet.
    running: Option<(String, Instant)>,
    /// Its conversation had an account in the group that serves it, and it went to another one.
    left_its_account: bool,
    cut: bool,
    failed: bool,
    last_progress: Instant,
    record: Option<Arc<UsageRecord>>,
}

impl Settlement {
    /// Of a request that has been admitted. `hold` is `None` where nothing is billed.
    pub fn new(
        ctx: &Context,
        principal: &Principal,
        asked: &Arc<Asked>,
        quote: Arc<Quote>,
        hold: Option<Hold>,
        room: Room,
    ) -> Settlement {
        let mut settlement = Settlement {
            rooms: ctx.rooms.clone(),
            config: ctx.config.clone(),
            snapshot: ctx.snapshot.clone(),
            terms: Terms {
                principal: principal.clone(),
                fallback_from: ctx.fallback_from.clone(),
                asked: asked.clone(),
                quote,
                kept_out: ctx.tries.excluded.clone(),
            },
            next: None,
            standard: ctx.config.billing.mode == BillingMode::Standard,
            id: ctx.id.clone(),
            client_request_id: ctx.client_request_id.clone(),
            ip: ctx.ip,
            user_agent: ctx.user_agent.clone(),
            arrived: ctx.arrived,
            started: ctx.moments.started,
            hold,
            room: Some(room),
            noted: Noted::Nothing,
            draft: None,
            running: None,
            left_its_account: false,
            cut: false,
            failed: false,
            last_progress: Instant::now(),
            record: None,
        };
        settlement.reserved();
        settlement
    }

    fn reserved(&mut self) {
        let Some(hold) = &self.hold else { return };
        self.rooms.journal.reserved(&Reserved {
            request_id: self.id.clone(),
            user_id: self.terms.principal.user.id,
            api_key_id: self.terms.principal.key.id,
            amount: hold.amount(),
            at: self.arrived,
        });
        self.noted = Noted::Reserved;
    }

    /// The request is about to be sent to an account: from here on it has a record, whatever happens.
    ///
    /// # Errors
    /// When that cannot be written; then it must not be sent.
    pub fn sent(&mut self, sent: SentAttempt, tries: &Tries) -> Result<(), JournalError> {
        let now = Instant::now();
        let account = sent.account.name.clone();
        self.last_progress = now;
        let reserved = self.hold.as_ref().map_or(Money::ZERO, Hold::amount);
        let terms = self.next.as_ref().unwrap_or(&self.terms);
        let mut draft = match (&self.draft, &self.next) {
            (Some(draft), None) => {
                let mut draft = draft.clone();
                terms.to_account(&mut draft.record, sent);
                draft
            }
            (None, _) | (_, Some(_)) => Box::new(Draft {
                record: self.blank(terms, sent),
                body_len: terms.asked.body_len as u64,
                reserved,
            }),
        };
        self.left_its_account = tries.was_bound == Some(true) && tries.switches > 0;
        draft.record.attempts = tries.attempts;
        draft.record.account_switches = tries.all_switches();
        draft.record.trail.clone_from(&tries.trail);
        // If it cannot be written, the request has not gone there.
        self.rooms.journal.sent(&draft)?;
        if let Some(next) = self.next.take() {
            self.terms = next;
        }
        self.draft = Some(draft);
        self.running = Some((account, now));
        self.noted = Noted::Sent;
        Ok(())
    }

    /// What is held, which is to give way to something else.
    pub fn give_up_hold(&mut self) -> Option<Hold> {
        self.hold.take()
    }

    /// The request goes on in the group of `principal`, with this hold.
    pub fn go_on_in(
        &mut self,
        principal: &Principal,
        from: Arc<Group>,
        asked: &Arc<Asked>,
        quote: Arc<Quote>,
        hold: Option<Hold>,
        kept_out: Vec<AccountId>,
    ) {
        self.hold = hold;
        self.next = Some(Terms {
            principal: principal.clone(),
            fallback_from: Some(from),
            asked: asked.clone(),
            quote,
            kept_out,
        });
    }

    /// The request goes on with another body, which costs no more.
    pub fn mended(&mut self, asked: &Arc<Asked>) {
        let terms = self.next.as_ref().unwrap_or(&self.terms);
        self.next = Some(Terms {
            asked: asked.clone(),
            ..terms.clone()
        });
    }

    /// The request goes on with another body, which may cost more: what is held is raised to that. Gives the output
    /// limit that it then has to be sent with; `before` is the one that it was sent with.
    ///
    /// # Errors
    /// An answer of `least_output` tokens cannot be paid for; nothing has changed.
    pub fn raise(
        &mut self,
        asked: &Arc<Asked>,
        least_output: u64,
        before: Option<u64>,
    ) -> Result<Option<u64>, Unpaid> {
        let mut output_limit = None;
        if let Some(hold) = self.hold.take() {
            let terms = self.next.as_ref().unwrap_or(&self.terms);
            let billing = &self.config.billing;
            let bound = money::bound(
                &self.snapshot.directory,
                billing,
                &terms.kept_out,
                &terms.principal,
                &terms.quote,
                asked,
                self.arrived,
            );
            match money::raise(billing, &terms.principal, &bound, least_output, hold) {
                Ok((hold, limit)) => {
                    self.hold = Some(hold);
                    output_limit = limit;
                    if limit.is_some() && before.is_none() {
                        self.rooms.metrics.outputs_lowered.inc();
                    }
                }
                Err(hold) => {
                    self.hold = Some(*hold);
                    return Err(Unpaid);
                }
            }
        }
        self.mended(asked);
        Ok(output_limit)
    }

    /// The attempt that ran has failed, or was cut; another follows (`again`) or not.
    pub fn attempt_ended(&mut self, tries: &Tries, cut: bool, again: bool) {
        if again && self.noted == Noted::Sent {
            // Should the server end before the next is sent, this one is known to be owed nothing.
            let nothing = Progress {
                usage: Some(TokenUsage::default()),
                ..Progress::default()
            };
            self.rooms.journal.progress(&self.id, nothing);
        }
        self.running = None;
        self.cut |= cut;
        self.failed |= tries.last.is_some();
        if let Some(draft) = &mut self.draft {
            draft.record.attempts = tries.attempts;
            draft.record.account_switches = tries.all_switches();
            draft.record.trail.clone_from(&tries.trail);
        }
    }

    /// Whether a note of how far the answer has come is due.
    pub fn is_progress_due(&self, now: Instant) -> bool {
        self.noted == Noted::Sent
            && self.record.is_none()
            && now.saturating_duration_since(self.last_progress) >= PROGRESS_INTERVAL
    }

    /// Notes how far the answer has come.
    pub fn progress(&mut self, answer: &Answer, now: Instant) {
        self.last_progress = now;
        let progress = Progress {
            output_bytes: answer.output_bytes,
            usage: answer.usage,
            image_count: answer.image_count,
        };
        self.rooms.journal.progress(&self.id, progress);
    }

    /// The record, once it is settled.
    pub fn record(&self) -> Option<&Arc<UsageRecord>> {
        self.record.as_ref()
    }

    /// Settles a request that was sent, by what was seen of its answer. `attempt` is how the attempt that
    /// still runs ended, as the trail says it. Only the first call counts.
    pub fn settle(&mut self, answer: &Answer, end: End, attempt: Option<(&str, Option<u16>)>) {
        if self.record.is_some() || self.noted != Noted::Sent {
            return;
        }
        let Some(draft) = self.draft.take() else {
            return;
        };
        let mut record = draft.record;
        if let Some((account, began)) = self.running.take() {
            let (result, status) = attempt.unwrap_or((ANSWERED, Some(answer.status)));
            record.trail.push(AttemptTrace {
                account,
                result: result.to_owned(),
                status,
                duration_ms: millis(began.elapsed()),
            });
        }
        if record.trail.len() < 2 {
            // What a single attempt would say stands in the record already.
            record.trail = Vec::new();
        }
        let end = End {
            cut: end.cut || self.cut,
            failed: end.failed || self.failed,
            ..end
        };
        record.status = end.status;
        record.outcome = outcome(answer, end);
        record.client_disconnected = end.client_gone;
        record
            .upstream_request_id
            .clone_from(&answer.upstream_request_id);
        record.image_count = answer.image_count;
        record.duration_ms = millis(self.started.elapsed());
        record.first_token_ms = answer
            .first_token_at
            .map(|at| millis(at.saturating_duration_since(self.started)));
        let body_len = self.terms.asked.body_len as u64;
        let cut_off = answer.first_token_at.is_some() && !answer.complete;
        let (tokens, source) = match answer.usage {
            // It was being answered: that it was read and thought about is not free because nothing of it
            // could be counted.
            None if cut_off => (
                estimated(answer.output_bytes, body_len),
                UsageSource::Estimated,
            ),
            usage => billed(usage, answer.output_bytes, body_len),
        };
        record.tokens = match self.left_its_account && self.pays_as_from_cache() {
            true => tokens.with_input_from_cache(),
            false => tokens,
        };
        record.usage_source = match answer.usage_estimated {
            true => UsageSource::Estimated,
            false => source,
        };
        self.price(&mut record);
        if let Some(hold) = self.hold.take() {
            record.charge = hold.settle(record.charge, record.settled_at());
        }
        count(&self.rooms, &record);
        self.rooms.window_costs.count(&record, Utc::now());
        let record = Arc::new(record);
        self.rooms.journal.settled(record.clone());
        self.room = None;
        self.record = Some(record);
    }

    /// Whether the users of the group that serves pay for a prompt that had to leave its account as if it had been read
    /// from the cache (SPEC 4.9).
    fn pays_as_from_cache(&self) -> bool {
        let group = self.terms.principal.group.id;
        self.snapshot.directory.rules(group).forced_cache_billing
    }

    fn price(&self, record: &mut UsageRecord) {
        let terms = &self.terms;
        let used = Used {
            tokens: record.tokens,
            image_count: record.image_count,
            image_size: terms.asked.image_size(),
        };
        let priced = terms.quote.price(
            &record.upstream_model,
            &used,
            terms.asked.tier(),
            terms.principal.multiplier,
        );
        record.cost = priced.cost;
        record.charge = match self.standard {
            true => priced.charge,
            false => Money::ZERO,
        };
        record.priced = priced.priced;
        record.billing_mode = priced.mode;
        record.billing_tier = priced.billing_tier;
    }

    /// The record as far as it is known before anything has come back.
    fn blank(&self, terms: &Terms, sent: SentAttempt) -> UsageRecord {
        let (principal, asked) = (&terms.principal, &terms.asked);
        // What was asked for is billed (SPEC 9.3), under the tier's own name.
        let service_tier = match asked.tier() {
            Some(tier) => Some(tier.as_str().to_owned()),
            None => asked.service_tier.clone(),
        };
        let billing_type = match (self.standard, principal.group.subscription_type) {
            (false, _) => BillingType::None,
            (true, SubscriptionType::Standard) => BillingType::Balance,
            (true, SubscriptionType::Subscription) => BillingType::Subscription,
        };
        let mut record = UsageRecord {
            request_id: self.id.clone(),
            client_request_id: self.client_request_id.clone(),
            upstream_request_id: None,
            created_at: self.arrived,
            user_id: principal.user.id,
            user: principal.user.name.clone(),
            api_key_id: principal.key.id,
            api_key: principal.key.name.clone(),
            group_id: principal.group.id,
            group: principal.group.name.clone(),
            fallback_from_group: terms.fallback_from.as_ref().map(|group| group.name.clone()),
            account_id: sent.account.id,
            account: String::new(),
            platform: sent.account.platform,
            endpoint: format!("{}{}", asked.endpoint, asked.subpath),
            upstream_endpoint: String::new(),
            requested_model: asked.requested_model.clone(),
            model: asked.model.clone(),
            upstream_model: String::new(),
            model_mapping_chain: None,
            stream: asked.stream,
            status: 0,
            outcome: Outcome::Interrupted,
            tokens: TokenUsage::default(),
            image_count: 0,
            cost: Money::ZERO,
            charge: Money::ZERO,
            rate_multiplier: principal.multiplier,
            account_rate_multiplier: Multiplier::ONE,
            billing_type,
            billing_mode: PricingMode::Token,
            channel: terms.quote.channel().map(|channel| channel.name.clone()),
            billing_tier: None,
            priced: true,
            service_tier,
            reasoning_effort: asked.reasoning_effort.clone(),
            attempts: 0,
            account_switches: 0,
            trail: Vec::new(),
            duration_ms: 0,
            first_token_ms: None,
            usage_source: UsageSource::None,
            client_disconnected: false,
            ip: self.ip.map(address),
            user_agent: self.user_agent.clone(),
        };
        terms.to_account(&mut record, sent);
        record
    }
}

/// It cannot be paid for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unpaid;

impl Terms {
    /// Puts into a record which account it went to.
    fn to_account(&self, record: &mut UsageRecord, sent: SentAttempt) {
        record.model_mapping_chain = self.quote.chain(&sent.upstream_model);
        record.model = self.quote.billed(&sent.upstream_model).to_owned();
        record.account_id = sent.account.id;
        record.account.clone_from(&sent.account.name);
        record.platform = sent.account.platform;
        record.account_rate_multiplier = sent.account.rate_multiplier;
        record.upstream_endpoint = sent.path;
        record.upstream_model = sent.upstream_model;
    }
}

impl Drop for Settlement {
    /// What was reserved and never sent is void. What was sent has been settled by `finish`.
    fn drop(&mut self) {
        if self.noted == Noted::Reserved {
            self.rooms.journal.voided(&self.id);
        }
    }
}

/// How a request that was sent ended, in one word.
pub fn outcome(answer: &Answer, end: End) -> Outcome {
    if end.client_gone {
        return Outcome::ClientGone;
    }
    if end.cut {
        return Outcome::Interrupted;
    }
    if end.failed && !answer.complete || answer.failed {
        return Outcome::UpstreamError;
    }
    match end.status {
        0 => Outcome::Interrupted,
        200..300 if !answer.complete => Outcome::Interrupted,
        200..300 => Outcome::Ok,
        _ => Outcome::UpstreamError,
    }
}

/// Counts what a record says, for the metrics.
pub fn count(rooms: &Rooms, record: &UsageRecord) {
    let metrics = &rooms.metrics;
    let tokens = &record.tokens;
    if !record.priced && *tokens != TokenUsage::default() {
        metrics.unpriced.inc();
        rooms.unpriced.warn(&record.requested_model);
    }
    let platform = record.platform.as_str();
    for (class, count) in [
        ("input", tokens.input),
        ("output", tokens.output),
        ("cache_creation", tokens.cache_creation),
        ("cache_read", tokens.cache_read),
        ("image_output", tokens.image_output),
    ] {
        if count > 0 {
            let labels = [platform, class];
            metrics.tokens.with_label_values(&labels).inc_by(count);
        }
    }
    let (cost, charge) = (record.cost.as_usd_f64(), record.charge.as_usd_f64());
    metrics.cost.with_label_values(&[platform]).inc_by(cost);
    metrics.charge.with_label_values(&[platform]).inc_by(charge);
}

impl Asked {
    /// The size of the images asked for.
    pub fn image_size(&self) -> ImageSize {
        let images = self.demand.images;
        images
            .and_then(|images| images.size)
            .unwrap_or(ImageSize::TwoK)
    }

    /// The tier asked for, where it changes the price.
    pub fn tier(&self) -> Option<ServiceTier> {
        self.service_tier.as_deref().and_then(ServiceTier::parse)
    }
}
