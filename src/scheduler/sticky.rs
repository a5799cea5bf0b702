//! A conversation that is bound to an account: stay, step aside once, or part (SPEC 5.4, 6.6 layer 2, with
//! Change 9).
//!
//! | the bound account | |
//! |---|---|
//! | may be chosen | used; when full, waited for briefly, then this request goes elsewhere and the binding stays |
//! | failed this request, does not know the model, cannot serve what the request needs | elsewhere, the binding stays |
//! | failed lately (soft condition, circuit) while others are there | elsewhere, the binding stays: it is for seconds |
//! | failed lately, and so did all others | used |
//! | has a gate ([`super::gates`]) of cost or of requests a minute that is closed for up to five minutes | elsewhere, the binding stays |
//! | has one that is closed for longer | parted |
//! | has no place any more among its sessions | parted |
//! | is gone, expired, taken out by its operator, or out for this model | parted |
//! | is slow or failing ([`super::health`]) | parted |
//!
//! A gate that is closed until the minute ends is no reason to give up what the account has in its prompt cache. One
//! that is closed for hours (the cost of a session window) is: a conversation that keeps its binding has no home
//! meanwhile, and would be with another account at every turn. So is a place among the sessions that was lost by being
//! silent, and that others may now hold as long as they like.

use chrono::{DateTime, TimeDelta, Utc};

use super::candidates::{Candidates, Fit, Unfit};
use super::gates::{GateKind, Shut};
use super::health::Moment;
use super::roster::Member;
use crate::domain::AccountId;
use crate::state::Load;

/// Requests in line for a bound account beyond which no more join it, while other accounts have room:
/// `sticky_session_max_waiting` of SPEC 6.4.
const MAX_WAITING: u32 = 3;

/// A conversation's binding outlives a closed gate for so long: what providers keep in their prompt caches by default
/// lives as long, so that after it there is nothing left to come back to.
const GATE_OUTLIVED: TimeDelta = TimeDelta::minutes(5);

/// What becomes of a request of a bound conversation.
#[derive(Clone, Copy, Debug)]
pub enum Sticky<'p> {
    /// Take a slot there; when it is full see [`waits`].
    Use(&'p Member),
    /// Choose by load, do not bind.
    SpillKeeping,
    /// End the binding, choose by load, bind to what is chosen.
    Unbind,
}

/// What becomes of a request whose conversation is bound to `bound`.
pub fn sticky<'p>(candidates: &Candidates<'p>, bound: AccountId) -> Sticky<'p> {
    let Some(member) = candidates.pool().member(bound) else {
        return Sticky::Unbind;
    };
    let moment = Moment::of(candidates.request().now);
    let keeps = || member.vitals.read(moment).keeps_sessions;
    match candidates.fit_of(bound) {
        Fit::No(Unfit::Unknown | Unfit::Expired | Unfit::Out { .. }) => Sticky::Unbind,
        Fit::No(Unfit::Excluded | Unfit::Mismatch) => Sticky::SpillKeeping,
        Fit::No(Unfit::Gated(shut)) if outlives(shut, candidates.request().now) => {
            Sticky::SpillKeeping
        }
        Fit::No(Unfit::Gated(_)) => Sticky::Unbind,
        Fit::Yes | Fit::LastResort if !keeps() => Sticky::Unbind,
        Fit::LastResort if !candidates.last_resort() => Sticky::SpillKeeping,
        Fit::Yes | Fit::LastResort => Sticky::Use(member),
    }
}

/// Whether a conversation stays bound to an account whose gate keeps it out.
fn outlives(shut: Shut, now: DateTime<Utc>) -> bool {
    match shut.kind {
        GateKind::WindowCost | GateKind::Rpm => shut.until - now <= GATE_OUTLIVED,
        GateKind::Sessions => false,
    }
}

/// Whether a request waits for the bound account, which is full, before it goes elsewhere. A long line
/// is not joined: the conversation's cache is not worth standing behind many others.
pub fn waits(load: Load, has_others: bool) -> bool {
    !has_others || load.waiting < MAX_WAITING
}
