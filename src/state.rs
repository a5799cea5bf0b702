//! Live state: slots, waiting lines, sticky bindings and the accounts' conditions.
//!
//! One trait, so that several nodes can share this state later; [`memory::MemoryState`] keeps it in
//! this process. Nothing here decides anything: the limits and scheduler rooms do.

mod bindings;
mod conditions;
pub(crate) mod dense;
mod lines;
pub mod memory;
mod messages;
mod owners;
mod responses;
mod rpm;
mod sessions;
mod slots;
#[cfg(test)]
mod tests;
mod windows;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};

pub use crate::domain::ResponseBinding;
use crate::domain::account::seen_window::SeenWindow;
use crate::domain::{AccountId, Condition, ConditionKind, Conditions, GroupId, UserId};
pub use lines::MAX_LINES;

/// How long an owner's leases outlive its last [`LiveState::renew`]. Six renewals must fail before a
/// living process could be taken for dead; a dead one's slots are back in less than a minute.
pub const OWNER_LIFE: TimeDelta = TimeDelta::seconds(30);
/// How often an owner says that it still runs.
pub const OWNER_RENEWAL: std::time::Duration = std::time::Duration::from_secs(5);

/// What a unit of concurrency belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Slot {
    /// A user's own limit.
    User(UserId),
    /// An account's limit.
    Account(AccountId),
    /// The turn of one message of a user's at an account, where they go one after another (SPEC 9.7).
    Turn(AccountId),
}

impl Slot {
    /// The id of its row, in the table of its kind.
    fn row(self) -> i64 {
        match self {
            Slot::User(id) => id.0,
            Slot::Account(id) | Slot::Turn(id) => id.0,
        }
    }
}

/// A slot somebody would take, and how many there are of it (0 = unlimited).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Want {
    /// Which.
    pub slot: Slot,
    /// How many may be held at once; 0 = unlimited.
    pub limit: u32,
}

/// Gives a slot back. Must not block: it is called from `Drop`.
pub trait Release: Send + Sync {
    /// One unit of `slot` is free again, unless its owner was found dead and it was taken back.
    fn release(&self, slot: Slot);
}

/// One unit of concurrency, held. Dropping it gives it back, on every path.
#[must_use = "a lease that is dropped is given back"]
pub struct Lease {
    slot: Slot,
    home: Option<Arc<dyn Release>>,
}

impl Lease {
    /// A lease of `slot` that returns to `home`.
    pub fn new(slot: Slot, home: Arc<dyn Release>) -> Lease {
        Lease {
            slot,
            home: Some(home),
        }
    }

    /// What is held.
    pub fn slot(&self) -> Slot {
        self.slot
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(home) = self.home.take() {
            home.release(self.slot);
        }
    }
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Lease").field(&self.slot).finish()
    }
}

/// How busy an account is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Load {
    /// Slots held.
    pub held: u32,
    /// Requests in line for it.
    pub waiting: u32,
}

/// How many conversations an account may carry at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SessionLimit {
    /// So many, above zero.
    pub max: u32,
    /// After so long without a request one counts no more.
    pub idle: TimeDelta,
}

/// Whether a conversation may be carried by an account.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SessionRoom {
    /// It is already.
    Known,
    /// It may.
    Free,
    /// There are as many as there may be.
    Full {
        /// When the first of them ends, unless it goes on.
        until: DateTime<Utc>,
    },
}

/// A place in the waiting lines, kept by a request over all its waits. Users take turns: who was
/// served least lately is next, and the requests of one user (as well as users whose turn it is
/// equally) are served in the order of their numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ticket {
    /// Whose turn it uses.
    pub user: UserId,
    /// Order of arrival among all requests of all users.
    pub number: u64,
}

/// The live state could not be reached.
#[derive(Debug, thiserror::Error)]
#[error("live state is unavailable: {0}")]
pub struct StateError(pub String);

/// Why waiting for a slot ended without one.
#[derive(Debug, thiserror::Error)]
pub enum WaitError {
    /// Every line this request could join is full.
    #[error("too many requests are waiting")]
    LineFull,
    /// The live state could not be reached.
    #[error(transparent)]
    State(#[from] StateError),
}

/// The state shared by all requests (and, with another implementation, by all nodes).
#[async_trait]
pub trait LiveState: Send + Sync + 'static {
    /// Takes one of `want.slot` at once, if there is room and nobody in line could use it. The limit
    /// it shows counts for the slot from now on: room that a raised one makes goes to those in line
    /// first, and no unit is given on beyond a lowered one.
    async fn try_lease(&self, want: Want) -> Result<Option<Lease>, StateError>;

    /// Takes one of the first of `wants` that has room, at once and in this order; says which. As
    /// `try_lease` otherwise.
    async fn lease_first(&self, wants: &[Want]) -> Result<Option<(usize, Lease)>, StateError>;

    /// A place in line for a request of `user`, taken when it first has to wait. Nothing is kept
    /// for it: it need not be given back.
    fn ticket(&self, user: UserId) -> Ticket;

    /// Waits for the first of `wants` to have room, in turn of the users and in the order of the
    /// tickets. All wants must be of one kind: users', accounts' or turns. Of very many it stands in
    /// line for the first 256 that have a place, so the best come first. Dropping the future leaves
    /// the lines; waiting again with the same ticket is no loss. `max_waiting` bounds the line of
    /// each slot (and of an account's line one user cannot have more than about three quarters, so
    /// that there is a place for others); the call fails at once when there is a place in none of
    /// them. The caller bounds the time.
    async fn lease_any(
        &self,
        wants: &[Want],
        ticket: Ticket,
        max_waiting: u32,
    ) -> Result<Lease, WaitError>;

    /// How busy these accounts are, in the order asked.
    async fn loads(&self, accounts: &[AccountId]) -> Result<Vec<Load>, StateError>;

    /// The account a conversation is bound to, refreshing the binding's life.
    async fn sticky(
        &self,
        group: GroupId,
        key: u128,
        ttl: TimeDelta,
        now: DateTime<Utc>,
    ) -> Result<Option<AccountId>, StateError>;

    /// Binds a conversation to an account for `ttl` since its last use.
    async fn bind(
        &self,
        group: GroupId,
        key: u128,
        account: AccountId,
        ttl: TimeDelta,
        now: DateTime<Utc>,
    ) -> Result<(), StateError>;

    /// Ends a binding, if it is to that account.
    async fn unbind(&self, group: GroupId, key: u128, account: AccountId)
    -> Result<(), StateError>;

    /// Notes which account made a response. Bounded in number and age: the longest unused is
    /// forgotten first.
    async fn remember_response(&self, binding: ResponseBinding) -> Result<(), StateError>;

    /// The account that made a response; asking is a use of it.
    async fn response_account(
        &self,
        group: GroupId,
        key: u128,
        now: DateTime<Utc>,
    ) -> Result<Option<AccountId>, StateError>;

    /// Bindings of responses made or used since the last call, at most `max`, for whoever keeps
    /// them beyond this process.
    fn unsaved_responses(&self, max: usize) -> Vec<ResponseBinding>;

    /// Puts back what `unsaved_responses` once handed out, at the start: these count as saved, and
    /// what is known already stays as it is.
    fn restore_responses(&self, bindings: Vec<ResponseBinding>);

    /// Puts a condition on an account. Of two in the same place the one that ends later stays.
    async fn set_condition(
        &self,
        account: AccountId,
        condition: Condition,
    ) -> Result<(), StateError>;

    /// Lifts an account's conditions of this kind (`None` = of every kind) that began before
    /// `before`, and forgets its strikes of that time where that is all kinds.
    async fn lift_conditions(
        &self,
        account: AccountId,
        kind: Option<ConditionKind>,
        before: DateTime<Utc>,
    ) -> Result<(), StateError>;

    /// The conditions of all accounts, ended ones perhaps included. Cheap: an immutable picture.
    fn conditions(&self) -> Arc<Conditions>;

    /// Counts a strike against an account; how many there are within `window`, this one included
    /// (counted up to a hundred).
    async fn strike(
        &self,
        account: AccountId,
        window: TimeDelta,
        now: DateTime<Utc>,
    ) -> Result<u32, StateError>;

    /// The strikes of all accounts, oldest first, for whoever keeps them beyond this process.
    fn strikes(&self) -> Vec<(AccountId, DateTime<Utc>)>;

    /// A success: forgets the strikes.
    async fn forgive(&self, account: AccountId) -> Result<(), StateError>;

    /// Counts a request that `account` has served in the minute of `now`.
    async fn count_request(&self, account: AccountId, now: DateTime<Utc>)
    -> Result<(), StateError>;

    /// Requests that `account` has served in the minute of `now`. Cheap: what is known here.
    fn requests_in_minute(&self, account: AccountId, now: DateTime<Utc>) -> u32;

    /// Lets a message of a user's go to `account` now, and notes it, if `gap` has passed since the last one
    /// went or ended; else says how long that still takes.
    async fn let_message_go(
        &self,
        account: AccountId,
        gap: TimeDelta,
        now: DateTime<Utc>,
    ) -> Result<Option<TimeDelta>, StateError>;

    /// A message has been accepted by the account's provider, or will not be any more. Must not block:
    /// it is called from `Drop`.
    fn message_ended(&self, account: AccountId, now: DateTime<Utc>);

    /// Whether `account` may carry the conversation `key`. Cheap: what is known here; [`LiveState::join_session`]
    /// decides.
    fn session_room(
        &self,
        account: AccountId,
        key: u128,
        limit: SessionLimit,
        now: DateTime<Utc>,
    ) -> SessionRoom;

    /// Makes a conversation one of those that `account` carries, or notes that it goes on; `false` = there are as
    /// many as there may be. Atomic: of several new ones no more come in than there is room for. It leaves by being
    /// silent.
    async fn join_session(
        &self,
        account: AccountId,
        key: u128,
        limit: SessionLimit,
        now: DateTime<Utc>,
    ) -> Result<bool, StateError>;

    /// Notes what an account's provider says about its session window. Where that was known nothing happens.
    async fn note_session_window(
        &self,
        account: AccountId,
        window: SeenWindow,
    ) -> Result<(), StateError>;

    /// What an account's provider last said about its session window. Cheap: what is known here.
    fn session_window(&self, account: AccountId) -> Option<SeenWindow>;

    /// The session windows that have changed since the last call, for whoever keeps them beyond this process.
    fn unsaved_session_windows(&self) -> BTreeMap<AccountId, SeenWindow>;

    /// Puts session windows back at the start: these count as saved, and what is known already stays as it is.
    fn restore_session_windows(&self, windows: Vec<(AccountId, SeenWindow)>);

    /// Says that this process still runs: its leases stay its own. To be called every
    /// [`OWNER_RENEWAL`]; after [`OWNER_LIFE`] without, any other process takes them back.
    async fn renew(&self, now: DateTime<Utc>) -> Result<(), StateError>;

    /// Units of concurrency held at this moment: users', accounts'. For metrics and leak checks.
    fn held(&self) -> (u64, u64);

    /// The same of messages' turns.
    fn turns_held(&self) -> u64;

    /// Requests in line at this moment: for users' slots, for accounts'.
    fn waiting(&self) -> (u64, u64);

    /// Forgets what has ended by itself, and takes back the leases of owners that are dead.
    fn sweep(&self, now: DateTime<Utc>);
}
