//! A conversation that is bound to an account: stay, step aside once, or part (SPEC 5.4, 6.6 layer 2, with
//! Change 9).
//!
//! | the bound account | |
//! |---|---|
//! | may be chosen | used; when full, waited for briefly, then this request goes elsewhere and the binding stays |
//! | failed this request, does not know the model, cannot serve what the request needs | elsewhere, the binding stays |
//! | failed lately (soft condition, circuit) while others are there | elsewhere, the binding stays: it is for seconds |
//! | failed lately, and so did all others | used |
//! | is gone, expired, taken out by its operator, or out for this model | parted |
//! | is slow or failing ([`super::health`]) | parted |

use super::candidates::{Candidates, Fit, Unfit};
use super::health::Moment;
use super::roster::Member;
use crate::domain::AccountId;
use crate::state::Load;

/// Requests in line for a bound account beyond which no more join it, while other accounts have room:
/// `sticky_session_max_waiting` of SPEC 6.4.
const MAX_WAITING: u32 = 3;

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
        Fit::Yes | Fit::LastResort if !keeps() => Sticky::Unbind,
        Fit::LastResort if !candidates.last_resort() => Sticky::SpillKeeping,
        Fit::Yes | Fit::LastResort => Sticky::Use(member),
    }
}

/// Whether a request waits for the bound account, which is full, before it goes elsewhere. A long line
/// is not joined: the conversation's cache is not worth standing behind many others.
pub fn waits(load: Load, has_others: bool) -> bool {
    !has_others || load.waiting < MAX_WAITING
}
