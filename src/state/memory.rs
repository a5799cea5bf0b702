//! Live state in this process.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};
use parking_lot::Mutex;

use super::slots::SlotTable;
use super::{Lease, LiveState, Load, ResponseBinding, Slot, StateError, Ticket, WaitError, Want};
use crate::domain::{AccountId, Condition, ConditionKind, Conditions, GroupId, UserId};

/// Locks are spread over this many shards; a power of two, well above the worker threads of any
/// machine we expect.
const SHARDS: usize = 32;
/// Sticky bindings kept at most, over all shards. At about 80 bytes each: some 40 MB when full.
const MAX_BINDINGS: usize = 500_000;

/// Slots, bindings and cool-downs of one process. Share it by `Arc`.
pub struct MemoryState {
    /// One table a shard: a user's requests only ever meet that user's.
    users: Vec<Arc<SlotTable>>,
    /// One table: a request may wait for any of several accounts.
    accounts: Arc<SlotTable>,
    bindings: Vec<Mutex<HashMap<(GroupId, u128), Binding>>>,
    responses: Mutex<Responses>,
    conditions: ArcSwap<Conditions>,
    strikes: Mutex<HashMap<AccountId, Vec<DateTime<Utc>>>>,
}

/// Bindings of responses.
#[derive(Default)]
struct Responses {
    known: HashMap<(GroupId, u128), (AccountId, DateTime<Utc>)>,
    unsaved: Vec<ResponseBinding>,
}

#[derive(Clone, Copy)]
struct Binding {
    account: AccountId,
    until: DateTime<Utc>,
}

impl MemoryState {
    /// An empty state.
    pub fn new() -> MemoryState {
        MemoryState {
            users: (0..SHARDS).map(|_| SlotTable::new()).collect(),
            accounts: SlotTable::new(),
            bindings: (0..SHARDS).map(|_| Mutex::default()).collect(),
            responses: Mutex::default(),
            conditions: ArcSwap::default(),
            strikes: Mutex::default(),
        }
    }

    fn table(&self, slot: Slot) -> &Arc<SlotTable> {
        match slot {
            Slot::User(id) => &self.users[id.0.unsigned_abs() as usize % SHARDS],
            Slot::Account(_) => &self.accounts,
        }
    }

    fn shard(&self, key: u128) -> &Mutex<HashMap<(GroupId, u128), Binding>> {
        &self.bindings[key as usize % SHARDS]
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
        Ok(self.table(want.slot).try_lease(want))
    }

    async fn lease_first(&self, wants: &[Want]) -> Result<Option<(usize, Lease)>, StateError> {
        for (index, want) in wants.iter().enumerate() {
            if let Some(lease) = self.table(want.slot).try_lease(*want) {
                return Ok(Some((index, lease)));
            }
        }
        Ok(None)
    }

    fn ticket(&self, user: UserId) -> Ticket {
        Ticket {
            user,
            round: 0,
            number: 0,
        }
    }

    async fn lease_any(
        &self,
        wants: &[Want],
        _ticket: Ticket,
        max_waiting: u32,
    ) -> Result<Lease, WaitError> {
        let Some(first) = wants.first() else {
            return Err(WaitError::LineFull);
        };
        self.table(first.slot).lease_any(wants, max_waiting).await
    }

    async fn loads(&self, accounts: &[AccountId]) -> Result<Vec<Load>, StateError> {
        Ok(self
            .accounts
            .loads(accounts.iter().map(|id| Slot::Account(*id))))
    }

    async fn sticky(
        &self,
        group: GroupId,
        key: u128,
        ttl: TimeDelta,
        now: DateTime<Utc>,
    ) -> Result<Option<AccountId>, StateError> {
        let mut shard = self.shard(key).lock();
        let Some(binding) = shard.get_mut(&(group, key)) else {
            return Ok(None);
        };
        if binding.until <= now {
            shard.remove(&(group, key));
            return Ok(None);
        }
        binding.until = now + ttl;
        Ok(Some(binding.account))
    }

    async fn bind(
        &self,
        group: GroupId,
        key: u128,
        account: AccountId,
        ttl: TimeDelta,
        now: DateTime<Utc>,
    ) -> Result<(), StateError> {
        let mut shard = self.shard(key).lock();
        if shard.len() >= MAX_BINDINGS / SHARDS && !shard.contains_key(&(group, key)) {
            // Rare, and only this shard: first what has ended, else the one that ends soonest.
            shard.retain(|_, binding| binding.until > now);
            if shard.len() >= MAX_BINDINGS / SHARDS
                && let Some(soonest) = shard
                    .iter()
                    .min_by_key(|(_, binding)| binding.until)
                    .map(|(key, _)| *key)
            {
                shard.remove(&soonest);
            }
        }
        let until = now + ttl;
        shard.insert((group, key), Binding { account, until });
        Ok(())
    }

    async fn unbind(
        &self,
        group: GroupId,
        key: u128,
        account: AccountId,
    ) -> Result<(), StateError> {
        let mut shard = self.shard(key).lock();
        if shard
            .get(&(group, key))
            .is_some_and(|binding| binding.account == account)
        {
            shard.remove(&(group, key));
        }
        Ok(())
    }

    async fn remember_response(&self, binding: ResponseBinding) -> Result<(), StateError> {
        let mut responses = self.responses.lock();
        responses
            .known
            .insert((binding.group, binding.key), (binding.account, binding.at));
        responses.unsaved.push(binding);
        Ok(())
    }

    async fn response_account(
        &self,
        group: GroupId,
        key: u128,
        _now: DateTime<Utc>,
    ) -> Result<Option<AccountId>, StateError> {
        let responses = self.responses.lock();
        Ok(responses.known.get(&(group, key)).map(|(id, _)| *id))
    }

    fn unsaved_responses(&self, max: usize) -> Vec<ResponseBinding> {
        let mut responses = self.responses.lock();
        let count = responses.unsaved.len().min(max);
        responses.unsaved.drain(..count).collect()
    }

    async fn set_condition(
        &self,
        account: AccountId,
        condition: Condition,
    ) -> Result<(), StateError> {
        self.conditions.rcu(|conditions| {
            let mut conditions = Conditions::clone(conditions);
            let list = conditions.0.entry(account).or_default();
            match list.iter_mut().find(|c| c.same_place(&condition)) {
                Some(there) if condition.outlasts(there) => *there = condition.clone(),
                Some(_) => {}
                None => list.push(condition.clone()),
            }
            conditions
        });
        Ok(())
    }

    async fn lift_conditions(
        &self,
        account: AccountId,
        kind: Option<ConditionKind>,
        before: DateTime<Utc>,
    ) -> Result<(), StateError> {
        if self.conditions.load().of(account).is_empty() {
            return Ok(());
        }
        self.conditions.rcu(|conditions| {
            let mut conditions = Conditions::clone(conditions);
            if let Some(list) = conditions.0.get_mut(&account) {
                list.retain(|c| kind.is_some_and(|k| k != c.kind) || c.since >= before);
                if list.is_empty() {
                    conditions.0.remove(&account);
                }
            }
            conditions
        });
        Ok(())
    }

    fn conditions(&self) -> Arc<Conditions> {
        self.conditions.load_full()
    }

    async fn strike(
        &self,
        account: AccountId,
        window: TimeDelta,
        now: DateTime<Utc>,
    ) -> Result<u32, StateError> {
        let mut strikes = self.strikes.lock();
        let list = strikes.entry(account).or_default();
        list.retain(|at| *at + window > now);
        list.push(now);
        Ok(u32::try_from(list.len()).unwrap_or(u32::MAX))
    }

    async fn forgive(&self, account: AccountId) -> Result<(), StateError> {
        self.strikes.lock().remove(&account);
        Ok(())
    }

    async fn renew(&self, _now: DateTime<Utc>) -> Result<(), StateError> {
        Ok(())
    }

    fn held(&self) -> (u64, u64) {
        (
            self.users.iter().map(|table| table.held()).sum(),
            self.accounts.held(),
        )
    }

    fn sweep(&self, now: DateTime<Utc>) {
        for shard in &self.bindings {
            shard.lock().retain(|_, binding| binding.until > now);
        }
        let ended = |c: &Condition| !c.holds(now);
        if self.conditions.load().0.values().flatten().any(ended) {
            self.conditions.rcu(|conditions| {
                let mut conditions = Conditions::clone(conditions);
                conditions.0.retain(|_, list| {
                    list.retain(|c| c.holds(now));
                    !list.is_empty()
                });
                conditions
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + second, 0).unwrap()
    }

    const GROUP: GroupId = GroupId(1);
    const ONE: AccountId = AccountId(1);
    const TWO: AccountId = AccountId(2);

    #[tokio::test]
    async fn a_binding_lives_from_its_last_use() {
        let state = MemoryState::new();
        let ttl = TimeDelta::seconds(10);
        state.bind(GROUP, 7, ONE, ttl, at(0)).await.unwrap();
        for (second, expected) in [(9, Some(ONE)), (18, Some(ONE)), (28, None), (28, None)] {
            let got = state.sticky(GROUP, 7, ttl, at(second)).await.unwrap();
            assert_eq!(got, expected, "at {second} s");
        }
        assert_eq!(state.sticky(GroupId(2), 7, ttl, at(0)).await.unwrap(), None);
    }

    #[tokio::test]
    async fn only_the_bound_account_is_unbound() {
        let state = MemoryState::new();
        let ttl = TimeDelta::seconds(10);
        state.bind(GROUP, 7, ONE, ttl, at(0)).await.unwrap();
        state.unbind(GROUP, 7, TWO).await.unwrap();
        assert_eq!(state.sticky(GROUP, 7, ttl, at(1)).await.unwrap(), Some(ONE));
        state.unbind(GROUP, 7, ONE).await.unwrap();
        assert_eq!(state.sticky(GROUP, 7, ttl, at(1)).await.unwrap(), None);
    }
}
