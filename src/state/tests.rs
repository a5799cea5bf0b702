//! The laws of the live state in memory: of slots, lines and owners together.

mod laws;
mod owners;
mod storm;
mod turns;
mod waiting;

use std::future::Future;
use std::pin::Pin;

use chrono::{DateTime, Utc};
use futures::FutureExt;

use super::memory::MemoryState;
use super::{Lease, LiveState, Slot, Ticket, WaitError, Want};
use crate::domain::{AccountId, UserId};

const A: Slot = Slot::Account(AccountId(1));
const B: Slot = Slot::Account(AccountId(2));

fn at(second: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000 + second, 0).unwrap()
}

fn want(slot: Slot, limit: u32) -> Want {
    Want { slot, limit }
}

/// A request that waits.
type Wait<'s> = Pin<Box<dyn Future<Output = Result<Lease, WaitError>> + Send + 's>>;

/// Puts a request in line. The wait must not end at once.
fn line_up<'s>(state: &'s MemoryState, wants: &'s [Want], ticket: Ticket) -> Wait<'s> {
    let mut wait = state.lease_any(wants, ticket, 1000);
    assert!(wait.as_mut().now_or_never().is_none(), "there was room");
    wait
}

fn user_line_up<'s>(state: &'s MemoryState, wants: &'s [Want], user: i64) -> Wait<'s> {
    line_up(state, wants, state.ticket(UserId(user)))
}

fn take(state: &MemoryState, slot: Slot, limit: u32) -> Option<Lease> {
    state
        .try_lease(want(slot, limit))
        .now_or_never()
        .expect("memory never waits")
        .expect("memory is always there")
}

/// The lease, if the wait is over.
fn poll(wait: &mut Wait<'_>) -> Option<Lease> {
    let over = wait.as_mut().now_or_never()?;
    Some(over.expect("waits of a living owner end with a lease"))
}
