//! Live state in this process.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};
use parking_lot::Mutex;

use super::slots::SlotTable;
use super::{CoolDown, Lease, LiveState, Load, Slot, StateError, WaitError, Want};
use crate::domain::{AccountId, GroupId};

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
    cool_downs: ArcSwap<HashMap<AccountId, CoolDown>>,
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
            cool_downs: ArcSwap::default(),
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

    async fn lease_any(&self, wants: &[Want], max_waiting: u32) -> Result<Lease, WaitError> {
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

    async fn cool_down(&self, account: AccountId, cool_down: CoolDown) -> Result<(), StateError> {
        self.cool_downs.rcu(|map| {
            let mut map = HashMap::clone(map);
            let entry = map.entry(account).or_insert_with(|| cool_down.clone());
            if entry.until < cool_down.until {
                *entry = cool_down.clone();
            }
            map
        });
        Ok(())
    }

    async fn warm_up(&self, account: AccountId, before: DateTime<Utc>) -> Result<(), StateError> {
        self.cool_downs.rcu(|map| {
            let mut map = HashMap::clone(map);
            if map.get(&account).is_some_and(|c| c.since < before) {
                map.remove(&account);
            }
            map
        });
        Ok(())
    }

    fn cool_downs(&self) -> Arc<HashMap<AccountId, CoolDown>> {
        self.cool_downs.load_full()
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
        if self.cool_downs.load().values().any(|c| c.until <= now) {
            self.cool_downs.rcu(|map| {
                let mut map = HashMap::clone(map);
                map.retain(|_, c| c.until > now);
                map
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

    #[tokio::test]
    async fn the_longer_cool_down_stays_and_resume_lifts_only_older_ones() {
        let state = MemoryState::new();
        let cool = |since, until| CoolDown {
            since: at(since),
            until: at(until),
            reason: "limited",
        };
        state.cool_down(ONE, cool(0, 60)).await.unwrap();
        state.cool_down(ONE, cool(1, 30)).await.unwrap();
        assert_eq!(state.cool_downs()[&ONE].until, at(60));
        state.warm_up(ONE, at(0)).await.unwrap();
        assert!(
            state.cool_downs().contains_key(&ONE),
            "begun at that moment"
        );
        state.warm_up(ONE, at(1)).await.unwrap();
        assert!(!state.cool_downs().contains_key(&ONE));
        state.cool_down(TWO, cool(0, 5)).await.unwrap();
        state.sweep(at(5));
        assert!(state.cool_downs().is_empty());
    }
}
