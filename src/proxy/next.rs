//! What follows a failed attempt, as far as its answer and what has been tried decide.

use std::sync::Arc;

use super::exchange::{Failure, Judged};
use super::relay::credential_kind;
use super::second::Mended;
use crate::config::InnerRetries;
use crate::domain::Group;
use crate::scheduler::retry::{Failed, may_pass};

/// What follows.
#[derive(Clone, Debug)]
pub enum Next {
    /// Nothing: the client gets the answer.
    End,
    /// The same account, after a pause, for this reason.
    Here(Failed),
    /// The same account, with the body that was mended.
    Mended(Mended),
    /// Another account.
    Elsewhere,
    /// Another group's accounts.
    OtherGroup(Arc<Group>),
}

/// What follows a failure that puts the blame on the account or on nobody.
pub fn after(judged: &Judged, failure: &Failure) -> Next {
    let reading = &failure.reading;
    if reading.retry_same && judged.may_retry {
        return Next::Here(Failed::RetryableHere);
    }
    if is_passing(judged, failure) {
        return Next::Here(Failed::Passing);
    }
    match goes_elsewhere(judged, failure) {
        true => Next::Elsewhere,
        false => Next::End,
    }
}

/// Whether the same account is to be asked again because its refusal may pass.
pub fn is_passing(judged: &Judged, failure: &Failure) -> bool {
    let stays = match judged.inner_retries {
        InnerRetries::Off => false,
        InnerRetries::Alone => !goes_elsewhere(judged, failure),
        InnerRetries::Always => true,
    };
    let kind = credential_kind(&judged.account);
    stays && may_pass(kind, failure.status, &failure.reading)
}

fn goes_elsewhere(judged: &Judged, failure: &Failure) -> bool {
    judged.may_fail_over && failure.reading.verdict.fails_over()
}
