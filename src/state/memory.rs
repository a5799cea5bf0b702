//! Live state in the memory of this process.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use arc_swap::{ArcSwap, Guard};
use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};
use parking_lot::Mutex;

use super::bindings::Bindings;
use super::conditions::{AllConditions, Strikes};
use super::lines::tick;
use super::messages::Messages;
use super::owners::{Owner, Owners};
use super::responses::Responses;
use super::rpm::Rpm;
use super::sessions::Sessions;
use super::slots::Table;
use super::windows::Windows;
use super::{
    Lease, LiveState, Load, OWNER_LIFE, ResponseBinding, SessionLimit, SessionRoom, Slot,
    StateError, Ticket, WaitError, Want,
};
use crate::domain::account::seen_window::SeenWindow;
use crate::domain::{AccountId, Condition, ConditionKind, Conditions, GroupId, UserId};

/// What all owners share: the tables themselves.
pub struct SharedState {
    /// Numbers tickets and grants.
    clock: Arc<AtomicU64>,
    users: Arc<Table>,
    accounts: Arc<Table>,
    turns: Arc<Table>,
    messages: Messages,
    owners: Owners,
    bindings: Bindings,
    responses: Mutex<Responses>,
    conditions: AllConditions,
    strikes: Strikes,
    rpm: Rpm,
    sessions: Sessions,
    windows: Windows,
}

impl SharedState {
    /// Empty tables.
    pub fn new() -> Arc<SharedState> {
        let clock = Arc::new(AtomicU64::new(0));
        Arc::new(SharedState {
            users: Table::new(clock.clone(), false),
            accounts: Table::new(clock.clone(), true),
            turns: Table::new(clock.clone(), false),
            messages: Messages::new(),
            clock,
            owners: Owners::default(),
            bindings: Bindings::new(),
            responses: Mutex::default(),
            conditions: AllConditions::default(),
            strikes: Strikes::default(),
            rpm: Rpm::new(),
            sessions: Sessions::new(),
            windows: Windows::new(),
        })
    }

    fn table(&self, slot: Slot) -> &Arc<Table> {
        match slot {
            Slot::User(_) => &self.users,
            Slot::Account(_) => &self.accounts,
            Slot::Turn(_) => &self.turns,
        }
    }

    /// Whether no slot is held, nobody waits and nothing is kept for either.
    #[cfg(test)]
    pub(super) fn is_at_rest(&self) -> bool {
        [&self.users, &self.accounts, &self.turns]
            .iter()
            .all(|table| table.is_at_rest())
    }

    /// Users whose turn is remembered.
    #[cfg(test)]
    pub(super) fn turns(&self) -> usize {
        self.accounts.turns()
    }
}

/// The live state as one owner has it. Share it by `Arc`.
pub struct MemoryState {
    shared: Arc<SharedState>,
    owner: ArcSwap<Owner>,
    /// Held while it becomes a new owner, so that it becomes one and not two.
    renewing: Mutex<()>,
}

impl MemoryState {
    /// An empty state for the only process there is. Its leases end by themselves only once it has
    /// begun to renew them.
    pub fn new() -> MemoryState {
        MemoryState::until(&SharedState::new(), DateTime::<Utc>::MAX_UTC)
    }

    /// The handle of one more owner of `shared`, which has to renew its leases from `now` on.
    pub fn for_owner(shared: &Arc<SharedState>, now: DateTime<Utc>) -> MemoryState {
        MemoryState::until(shared, now + OWNER_LIFE)
    }

    fn until(shared: &Arc<SharedState>, until: DateTime<Utc>) -> MemoryState {
        MemoryState {
            shared: shared.clone(),
            owner: ArcSwap::new(shared.owners.register(Some(until))),
            renewing: Mutex::default(),
        }
    }

    /// Who this process is now: another than before when it was taken for dead.
    fn owner(&self) -> Guard<Arc<Owner>> {
        let owner = self.owner.load();
        if !owner.is_dead() {
            return owner;
        }
        let _one = self.renewing.lock();
        if self.owner.load().is_dead() {
            self.owner.store(self.shared.owners.register(None));
        }
        self.owner.load()
    }

    fn try_lease_now(&self, want: Want) -> Option<Lease> {
        let table = self.shared.table(want.slot);
        self.owner()
            .share(table, want.slot, |share| table.try_lease(share, want.limit))
    }
}

impl Default for MemoryState {
    fn default() -> MemoryState {
        MemoryState::new()
    }
}

#[async_trait]
impl LiveState for MemoryState {
    async fn try_lease(&self, want: Want) -> Result<Option<Lease>, StateError> {
        Ok(self.try_lease_now(want))
    }

    async fn lease_first(&self, wants: &[Want]) -> Result<Option<(usize, Lease)>, StateError> {
        let mut tries = wants.iter().enumerate();
        Ok(tries.find_map(|(index, want)| Some((index, self.try_lease_now(*want)?))))
    }

    fn ticket(&self, user: UserId) -> Ticket {
        Ticket {
            user,
            number: tick(&self.shared.clock),
        }
    }

    async fn lease_any(
        &self,
        wants: &[Want],
        ticket: Ticket,
        max_waiting: u32,
    ) -> Result<Lease, WaitError> {
        let Some(first) = wants.first() else {
            return Err(WaitError::LineFull);
        };
        let table = self.shared.table(first.slot);
        let shares = {
            let owner = self.owner();
            let of_table = wants
                .iter()
                .filter(|want| Arc::ptr_eq(self.shared.table(want.slot), table));
            of_table
                .map(|want| (owner.share(table, want.slot, Arc::clone), want.limit))
                .collect()
        };
        table.lease_any(shares, ticket, max_waiting).await
    }

    async fn loads(&self, accounts: &[AccountId]) -> Result<Vec<Load>, StateError> {
        let table = &self.shared.accounts;
        Ok(accounts.iter().map(|id| table.load(id.0)).collect())
    }

    async fn sticky(
        &self,
        group: GroupId,
        key: u128,
        ttl: TimeDelta,
        now: DateTime<Utc>,
    ) -> Result<Option<AccountId>, StateError> {
        Ok(self.shared.bindings.get((group, key), ttl, now))
    }

    async fn bind(
        &self,
        group: GroupId,
        key: u128,
        account: AccountId,
        ttl: TimeDelta,
        now: DateTime<Utc>,
    ) -> Result<(), StateError> {
        self.shared.bindings.bind((group, key), account, ttl, now);
        Ok(())
    }

    async fn unbind(
        &self,
        group: GroupId,
        key: u128,
        account: AccountId,
    ) -> Result<(), StateError> {
        self.shared.bindings.unbind((group, key), account);
        Ok(())
    }

    async fn remember_response(&self, binding: ResponseBinding) -> Result<(), StateError> {
        self.shared.responses.lock().remember(binding);
        Ok(())
    }

    async fn response_account(
        &self,
        group: GroupId,
        key: u128,
        now: DateTime<Utc>,
    ) -> Result<Option<AccountId>, StateError> {
        Ok(self.shared.responses.lock().account((group, key), now))
    }

    fn unsaved_responses(&self, max: usize) -> Vec<ResponseBinding> {
        self.shared.responses.lock().take_unsaved(max)
    }

    fn restore_responses(&self, bindings: Vec<ResponseBinding>) {
        self.shared.responses.lock().restore(bindings);
    }

    async fn set_condition(
        &self,
        account: AccountId,
        condition: Condition,
    ) -> Result<(), StateError> {
        self.shared.conditions.set(account, condition);
        Ok(())
    }

    async fn lift_conditions(
        &self,
        account: AccountId,
        kind: Option<ConditionKind>,
        before: DateTime<Utc>,
    ) -> Result<(), StateError> {
        self.shared.conditions.lift(account, kind, before);
        if kind.is_none() {
            self.shared.strikes.forgive(account, Some(before));
        }
        Ok(())
    }

    fn conditions(&self) -> Arc<Conditions> {
        self.shared.conditions.picture()
    }

    async fn strike(
        &self,
        account: AccountId,
        window: TimeDelta,
        now: DateTime<Utc>,
    ) -> Result<u32, StateError> {
        Ok(self.shared.strikes.add(account, window, now))
    }

    fn strikes(&self) -> Vec<(AccountId, DateTime<Utc>)> {
        self.shared.strikes.all()
    }

    async fn forgive(&self, account: AccountId) -> Result<(), StateError> {
        self.shared.strikes.forgive(account, None);
        Ok(())
    }

    async fn count_request(
        &self,
        account: AccountId,
        now: DateTime<Utc>,
    ) -> Result<(), StateError> {
        self.shared.rpm.count(account, now);
        Ok(())
    }

    fn requests_in_minute(&self, account: AccountId, now: DateTime<Utc>) -> u32 {
        self.shared.rpm.of(account, now)
    }

    async fn let_message_go(
        &self,
        account: AccountId,
        gap: TimeDelta,
        now: DateTime<Utc>,
    ) -> Result<Option<TimeDelta>, StateError> {
        Ok(self.shared.messages.go(account, gap, now))
    }

    fn message_ended(&self, account: AccountId, now: DateTime<Utc>) {
        self.shared.messages.ended(account, now);
    }

    fn session_room(
        &self,
        account: AccountId,
        key: u128,
        limit: SessionLimit,
        now: DateTime<Utc>,
    ) -> SessionRoom {
        self.shared.sessions.room(account, key, limit, now)
    }

    async fn join_session(
        &self,
        account: AccountId,
        key: u128,
        limit: SessionLimit,
        now: DateTime<Utc>,
    ) -> Result<bool, StateError> {
        Ok(self.shared.sessions.join(account, key, limit, now))
    }

    async fn note_session_window(
        &self,
        account: AccountId,
        window: SeenWindow,
    ) -> Result<(), StateError> {
        self.shared.windows.note(account, window);
        Ok(())
    }

    fn session_window(&self, account: AccountId) -> Option<SeenWindow> {
        self.shared.windows.of(account)
    }

    fn unsaved_session_windows(&self) -> BTreeMap<AccountId, SeenWindow> {
        self.shared.windows.take_unsaved()
    }

    fn restore_session_windows(&self, windows: Vec<(AccountId, SeenWindow)>) {
        self.shared.windows.restore(windows);
    }

    async fn renew(&self, now: DateTime<Utc>) -> Result<(), StateError> {
        if !self.shared.owners.renew(&self.owner(), now) {
            // Found dead in this very moment; its successor is known for as long.
            self.shared.owners.renew(&self.owner(), now);
        }
        Ok(())
    }

    fn held(&self) -> (u64, u64) {
        (self.shared.users.held(), self.shared.accounts.held())
    }

    fn turns_held(&self) -> u64 {
        self.shared.turns.held()
    }

    fn waiting(&self) -> (u64, u64) {
        (self.shared.users.waiting(), self.shared.accounts.waiting())
    }

    fn sweep(&self, now: DateTime<Utc>) {
        let shared = &self.shared;
        let tables = [&shared.users, &shared.accounts, &shared.turns].map(Arc::as_ref);
        shared.owners.take_back(&self.owner.load(), now, tables);
        shared.bindings.sweep(now);
        shared.responses.lock().sweep(now);
        shared.conditions.sweep(now);
        shared.strikes.sweep(now);
        shared.sessions.sweep(now);
    }
}
