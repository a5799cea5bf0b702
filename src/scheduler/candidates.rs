//! Who may be chosen now: tiers of priority, one after the other.
//!
//! An account of a worse tier comes only after everyone of the better ones has been offered. Accounts
//! that merely failed lately ([`ConditionKind::Failing`](crate::domain::ConditionKind::Failing), an
//! open circuit) are offered only when no other account of *any* tier fits at all: a 5xx or a broken
//! connection says little about an account, and if it took accounts out for good, one request that no
//! provider can answer would take the whole group out for everybody.
//!
//! In a large tier a sample is offered first. It is chosen by the request's seed, so that a conversation
//! meets the same sample again; the best of some dozens is as good a choice as the best of thousands.

use std::sync::Arc;

use chrono::{DateTime, Utc};

use super::NoAccount;
use super::conditions::{Held, Standing};
use super::gates::{Gates, Shut};
use super::health::{Circuit, Moment};
use super::rank::{Contender, Ranked, Seed, Xorshift, load_rate, rank};
use super::roster::{Member, Pool};
use crate::config::SchedulingWeights;
use crate::domain::{AccountId, Conditions};
use crate::state::{Load, Want};

/// At least this many of a large tier are looked at …
const SAMPLE: usize = 24;
/// … and at least so many times what the weighted choice takes.
const SAMPLE_PER_TOP_K: usize = 3;
/// Up to so many times the sample, all of a tier are looked at instead.
const SMALL_TIER: usize = 2;

/// What a request asks of the accounts of a pool.
#[derive(Clone, Copy, Debug)]
pub struct Request<'r> {
    /// The model, after channel mapping.
    pub model: &'r str,
    /// Accounts that already failed this request.
    pub excluded: &'r [AccountId],
    /// Of the conversation, else of chance.
    pub seed: Seed,
    /// The choice will be bound to a conversation: accounts that lose theirs for being slow or failing
    /// come behind the others of their tier.
    pub binds: bool,
    /// Candidates kept for the weighted choice (`scheduling.top_k`).
    pub top_k: usize,
    /// The time of the choice.
    pub now: DateTime<Utc>,
    /// Who says what keeps the request from accounts with soft limits.
    pub gates: Gates<'r>,
}

/// Whether one account may be chosen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fit {
    /// It may.
    Yes,
    /// When no other account may.
    LastResort,
    /// It may not.
    No(Unfit),
}

/// Why an account may not be chosen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unfit {
    /// Not an account of the group and platform that the operator lets be chosen.
    Unknown,
    /// Its `expires_at` has passed.
    Expired,
    /// It failed this request.
    Excluded,
    /// It does not know the model, or cannot serve what the request needs.
    Mismatch,
    /// A condition holds.
    Out {
        /// Until then; `None` = until an operator says so.
        until: Option<DateTime<Utc>>,
        /// Because its provider said 429.
        limited: bool,
    },
    /// One of its soft limits keeps the request out.
    Gated(Shut),
}

impl Pool {
    /// The accounts that may be chosen now, or why there is none.
    pub fn candidates<'p>(
        &'p self,
        conditions: &Arc<Conditions>,
        request: Request<'p>,
    ) -> Result<Candidates<'p>, NoAccount> {
        let mut candidates = Candidates::new(self, conditions, request);
        let mut failing = Vec::new();
        let mut none = Nobody::default();
        while candidates.tier < self.takers.tiers.len() {
            if let Some(stage) = candidates.tier_stage(&mut failing, &mut none) {
                candidates.ready = Some(stage);
                return Ok(candidates);
            }
        }
        if failing.is_empty() {
            return Err(none.error());
        }
        candidates.failing = failing;
        candidates.ready = candidates.failing_stage();
        Ok(candidates)
    }

    /// Whether one account may be chosen: the one that a conversation or a response belongs to, or
    /// one that was chosen before a wait.
    pub fn fit(&self, id: AccountId, conditions: &Arc<Conditions>, request: Request<'_>) -> Fit {
        let Some(index) = self.index(id) else {
            return Fit::No(Unfit::Unknown);
        };
        fit_one(self, index, &self.held(conditions), request)
    }
}

fn fit_one(pool: &Pool, index: usize, held: &Held, request: Request<'_>) -> Fit {
    // What is against the account itself comes before what is against it for this request.
    match fit(pool, index, held, request) {
        Fit::No(unfit) => Fit::No(unfit),
        _ if request.excluded.contains(&pool.at(index).id()) => Fit::No(Unfit::Excluded),
        _ if !pool.takes(index) => Fit::No(Unfit::Mismatch),
        fit => at_gate(pool, index, request, fit),
    }
}

/// Asks at the gate of a member that would be fit; last of all, since it costs most.
fn at_gate(pool: &Pool, index: usize, request: Request<'_>, fit: Fit) -> Fit {
    let member = pool.at(index);
    if !member.gated {
        return fit;
    }
    match request.gates.shut(&member.account) {
        None => fit,
        Some(shut) => Fit::No(Unfit::Gated(shut)),
    }
}

/// For a member that takes the model; exclusion aside.
fn fit(pool: &Pool, index: usize, held: &Held, request: Request<'_>) -> Fit {
    let member = pool.at(index);
    if member.expires_at.is_some_and(|end| end <= request.now) {
        return Fit::No(Unfit::Expired);
    }
    match held.standing(index, request.model, request.now) {
        Standing::Out { until, limited } => Fit::No(Unfit::Out { until, limited }),
        Standing::Failing => Fit::LastResort,
        Standing::Clear => match member.vitals.circuit(request.now) {
            Circuit::Closed | Circuit::HalfOpen => Fit::Yes,
            Circuit::Open | Circuit::Probing => Fit::LastResort,
        },
    }
}

/// Why nobody fits, as far as seen.
struct Nobody {
    soonest: Option<DateTime<Utc>>,
    limited: bool,
}

impl Default for Nobody {
    fn default() -> Nobody {
        Nobody {
            soonest: None,
            limited: true,
        }
    }
}

impl Nobody {
    fn add(&mut self, until: Option<DateTime<Utc>>, limited: bool) {
        self.soonest = match (self.soonest, until) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        self.limited &= limited;
    }

    fn error(&self) -> NoAccount {
        match self.soonest {
            Some(until) => NoAccount::AllCoolingDown {
                until,
                limited: self.limited,
            },
            None => NoAccount::NoneEligible,
        }
    }
}

/// Accounts to rank together, and to try before any of a later stage.
#[derive(Clone, Debug)]
pub struct Stage<'p> {
    /// The accounts, in id order.
    pub members: Vec<&'p Member>,
    /// Not all of its tier: the others come as the next stage.
    pub sampled: bool,
    /// They failed lately; there is no other.
    pub last_resort: bool,
}

impl Stage<'_> {
    /// Their ids, for `LiveState::loads`.
    pub fn ids(&self) -> Vec<AccountId> {
        self.members.iter().map(|member| member.id()).collect()
    }

    /// Orders the accounts from best to worst. `loads` is theirs in the same order; one that is
    /// missing counts as idle.
    pub fn rank(
        &self,
        loads: &[Load],
        weights: &SchedulingWeights,
        request: &Request<'_>,
    ) -> Ranked {
        let moment = Moment::of(request.now);
        let mut loads = loads.iter();
        let contender = |member: &&Member| {
            let load = loads.next().copied().unwrap_or_default();
            let reading = member.vitals.read(moment);
            Contender {
                id: member.id(),
                load: load_rate(load, member.capacity()),
                waiting: load.waiting,
                errors: reading.errors,
                first_token_ms: reading.first_token_ms,
                behind: request.binds && !reading.keeps_sessions,
            }
        };
        let contenders = self.members.iter().map(contender).collect();
        rank(contenders, weights, request.top_k, request.seed)
    }
}

/// The accounts that may be chosen now, stage by stage.
#[derive(Debug)]
pub struct Candidates<'p> {
    pool: &'p Pool,
    request: Request<'p>,
    held: Arc<Held>,
    /// Made already, not yet given out.
    ready: Option<Stage<'p>>,
    /// The tier that comes next.
    tier: usize,
    /// Places in `tier` that were given out as a sample, ascending.
    given: Vec<usize>,
    /// Indices of members that failed lately; only filled where nobody else fits.
    failing: Vec<u32>,
}

impl<'p> Candidates<'p> {
    fn new(pool: &'p Pool, conditions: &Arc<Conditions>, request: Request<'p>) -> Candidates<'p> {
        Candidates {
            pool,
            request,
            held: pool.held(conditions),
            ready: None,
            tier: 0,
            given: Vec::new(),
            failing: Vec::new(),
        }
    }

    /// The next accounts to rank and try; `None` when everyone has been offered.
    pub fn next_stage(&mut self) -> Option<Stage<'p>> {
        if let Some(stage) = self.ready.take() {
            return Some(stage);
        }
        if !self.failing.is_empty() {
            return self.failing_stage();
        }
        while self.tier < self.pool.takers.tiers.len() {
            let stage = self.tier_stage(&mut Vec::new(), &mut Nobody::default());
            if stage.is_some() {
                return stage;
            }
        }
        None
    }

    /// Everyone who may be chosen now, in tiers, offered already or not: for waiting, when nobody has
    /// room. At most `max`, the best tiers first.
    pub fn everyone(&self, max: usize) -> Vec<&'p Member> {
        let mut fit_ones = Vec::new();
        let mut failing = Vec::new();
        for index in &self.pool.takers.members {
            if fit_ones.len() == max {
                break;
            }
            match self.fit(*index as usize) {
                Fit::Yes => fit_ones.push(self.pool.at(*index as usize)),
                Fit::LastResort => failing.push(*index),
                Fit::No(_) => {}
            }
        }
        if fit_ones.is_empty() {
            failing.truncate(max);
            fit_ones = failing.iter().map(|i| self.pool.at(*i as usize)).collect();
        }
        fit_ones
    }

    /// The slots of [`Candidates::everyone`].
    pub fn wants(&self, max: usize) -> Vec<Want> {
        self.everyone(max).iter().map(|m| m.want()).collect()
    }

    /// Whether a request that fails at one of them can go on to another.
    pub fn more_than_one(&self) -> bool {
        if let Some(stage) = &self.ready
            && stage.members.len() > 1
        {
            return true;
        }
        let usable = |index: &&u32| !matches!(self.fit(**index as usize), Fit::No(_));
        self.pool
            .takers
            .members
            .iter()
            .filter(usable)
            .nth(1)
            .is_some()
    }

    /// Whether all of them failed lately.
    pub fn last_resort(&self) -> bool {
        let ready = self.ready.as_ref();
        !self.failing.is_empty() || ready.is_some_and(|stage| stage.last_resort)
    }

    /// What the request asks.
    pub fn request(&self) -> &Request<'p> {
        &self.request
    }

    pub(super) fn pool(&self) -> &'p Pool {
        self.pool
    }

    /// [`Pool::fit`] of one account, for the request.
    pub(super) fn fit_of(&self, id: AccountId) -> Fit {
        match self.pool.index(id) {
            Some(index) => fit_one(self.pool, index, &self.held, self.request),
            None => Fit::No(Unfit::Unknown),
        }
    }

    fn fit(&self, index: usize) -> Fit {
        match fit(self.pool, index, &self.held, self.request) {
            Fit::No(unfit) => Fit::No(unfit),
            _ if self.request.excluded.contains(&self.pool.at(index).id()) => {
                Fit::No(Unfit::Excluded)
            }
            fit => at_gate(self.pool, index, self.request, fit),
        }
    }

    /// The next stage of the current tier, with which or after which comes the next tier; `None` when
    /// it has nobody.
    fn tier_stage(&mut self, failing: &mut Vec<u32>, none: &mut Nobody) -> Option<Stage<'p>> {
        let tier = self.pool.takers.tiers[self.tier].clone();
        let members = &self.pool.takers.members[tier];
        let sample = SAMPLE.max(self.request.top_k.saturating_mul(SAMPLE_PER_TOP_K));
        if self.given.is_empty()
            && members.len() > sample.saturating_mul(SMALL_TIER)
            && let Some(stage) = self.sample(members, sample)
        {
            return Some(stage);
        }
        self.tier += 1;
        let mut given = std::mem::take(&mut self.given).into_iter().peekable();
        let mut fit_ones = Vec::with_capacity(members.len());
        for (place, index) in members.iter().enumerate() {
            if given.next_if_eq(&place).is_some() {
                continue;
            }
            let index = *index as usize;
            match self.fit(index) {
                Fit::Yes => fit_ones.push(self.pool.at(index)),
                Fit::LastResort => failing.push(u32::try_from(index).unwrap_or(u32::MAX)),
                Fit::No(Unfit::Out { until, limited })
                    if !self.request.excluded.contains(&self.pool.at(index).id()) =>
                {
                    none.add(until, limited);
                }
                Fit::No(Unfit::Gated(shut)) => none.add(Some(shut.until), false),
                Fit::No(_) => {}
            }
        }
        (!fit_ones.is_empty()).then_some(Stage {
            members: fit_ones,
            sampled: false,
            last_resort: false,
        })
    }

    /// Some of a tier, evenly spread: one out of each of `count` equal parts. `None` when most of
    /// them do not fit, so that it is no good sample.
    fn sample(&mut self, members: &[u32], count: usize) -> Option<Stage<'p>> {
        let mut rng = Xorshift::new(self.request.seed);
        let mut fit_ones = Vec::with_capacity(count);
        let mut given = Vec::with_capacity(count);
        for part in 0..count {
            let start = part * members.len() / count;
            let end = (part + 1) * members.len() / count;
            let place = start + rng.below(end - start);
            let index = members[place] as usize;
            if self.fit(index) == Fit::Yes {
                fit_ones.push(self.pool.at(index));
                given.push(place);
            }
        }
        if fit_ones.len() < count / 2 {
            return None;
        }
        self.given = given;
        Some(Stage {
            members: fit_ones,
            sampled: true,
            last_resort: false,
        })
    }

    /// The best tier of those that failed lately.
    fn failing_stage(&mut self) -> Option<Stage<'p>> {
        let priority = |index: &u32| self.pool.at(*index as usize).account.priority;
        let first = priority(self.failing.first()?);
        let end = self.failing.partition_point(|i| priority(i) == first);
        let members = self.failing.drain(..end);
        Some(Stage {
            members: members.map(|i| self.pool.at(i as usize)).collect(),
            sampled: false,
            last_resort: true,
        })
    }
}
