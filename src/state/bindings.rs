//! Which account a conversation is bound to: as long as it goes on, and for a while after.

use std::collections::HashMap;

use chrono::{DateTime, TimeDelta, Utc};
use parking_lot::Mutex;

use crate::domain::{AccountId, GroupId};

/// Locks are spread over this many shards: well above the worker threads of any machine we expect.
const SHARDS: usize = 32;
/// Bindings kept at most, over all shards. At about 80 bytes each: some 40 MB when full.
const MAX_BINDINGS: usize = 500_000;
const MAX_PER_SHARD: usize = MAX_BINDINGS / SHARDS;
/// A shard full of living bindings forgets this many at once, those that end soonest: looking for
/// them one by one would make every new conversation cost a look at all.
const FORGOTTEN_AT_ONCE: usize = MAX_PER_SHARD / 16;

type Key = (GroupId, u128);

/// See the module.
pub(super) struct Bindings {
    shards: Vec<Mutex<HashMap<Key, Binding>>>,
}

#[derive(Clone, Copy)]
struct Binding {
    account: AccountId,
    until: DateTime<Utc>,
}

impl Bindings {
    pub(super) fn new() -> Bindings {
        Bindings {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
        }
    }

    fn shard(&self, (_, key): Key) -> &Mutex<HashMap<Key, Binding>> {
        &self.shards[key as usize % SHARDS]
    }

    /// The bound account; asking is a use.
    pub(super) fn get(&self, key: Key, ttl: TimeDelta, now: DateTime<Utc>) -> Option<AccountId> {
        let mut shard = self.shard(key).lock();
        let binding = shard.get_mut(&key)?;
        if binding.until <= now {
            shard.remove(&key);
            return None;
        }
        binding.until = end(now, ttl);
        Some(binding.account)
    }

    pub(super) fn bind(&self, key: Key, account: AccountId, ttl: TimeDelta, now: DateTime<Utc>) {
        let mut shard = self.shard(key).lock();
        if shard.len() >= MAX_PER_SHARD && !shard.contains_key(&key) {
            shard.retain(|_, binding| binding.until > now);
            if shard.len() > MAX_PER_SHARD - FORGOTTEN_AT_ONCE {
                let mut ends: Vec<(DateTime<Utc>, Key)> =
                    shard.iter().map(|(key, b)| (b.until, *key)).collect();
                ends.select_nth_unstable(FORGOTTEN_AT_ONCE);
                for (_, key) in &ends[..FORGOTTEN_AT_ONCE] {
                    shard.remove(key);
                }
            }
        }
        let until = end(now, ttl);
        shard.insert(key, Binding { account, until });
    }

    /// Ends a binding, if it is to that account.
    pub(super) fn unbind(&self, key: Key, account: AccountId) {
        let mut shard = self.shard(key).lock();
        if shard.get(&key).is_some_and(|b| b.account == account) {
            shard.remove(&key);
        }
    }

    pub(super) fn sweep(&self, now: DateTime<Utc>) {
        for shard in &self.shards {
            shard.lock().retain(|_, binding| binding.until > now);
        }
    }
}

/// A time to live may be so long that there is no such date.
fn end(now: DateTime<Utc>, ttl: TimeDelta) -> DateTime<Utc> {
    now.checked_add_signed(ttl)
        .unwrap_or(DateTime::<Utc>::MAX_UTC)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + second, 0).unwrap()
    }

    const KEY: Key = (GroupId(1), 7);
    const ONE: AccountId = AccountId(1);
    const TTL: TimeDelta = TimeDelta::seconds(10);

    #[test]
    fn a_binding_lives_from_its_last_use() {
        let bindings = Bindings::new();
        bindings.bind(KEY, ONE, TTL, at(0));
        for (second, expected) in [(9, Some(ONE)), (18, Some(ONE)), (28, None), (28, None)] {
            assert_eq!(bindings.get(KEY, TTL, at(second)), expected, "{second} s");
        }
        bindings.bind(KEY, ONE, TimeDelta::MAX, at(0));
        assert_eq!(bindings.get((GroupId(2), 7), TTL, at(0)), None);
        assert_eq!(bindings.get(KEY, TTL, at(1_000_000)), Some(ONE));
    }

    #[test]
    fn only_the_bound_account_is_unbound() {
        let bindings = Bindings::new();
        bindings.bind(KEY, ONE, TTL, at(0));
        bindings.unbind(KEY, AccountId(2));
        assert_eq!(bindings.get(KEY, TTL, at(1)), Some(ONE));
        bindings.unbind(KEY, ONE);
        assert_eq!(bindings.get(KEY, TTL, at(1)), None);
    }

    #[test]
    fn a_full_shard_forgets_those_that_end_soonest() {
        let bindings = Bindings::new();
        // All in one shard; the first is used again late.
        let key = |n: usize| (GroupId(1), (n * SHARDS) as u128);
        for n in 0..MAX_PER_SHARD {
            bindings.bind(key(n), ONE, TimeDelta::days(1), at(n as i64));
        }
        let late = at(MAX_PER_SHARD as i64);
        assert!(bindings.get(key(0), TimeDelta::days(2), late).is_some());
        bindings.bind(key(MAX_PER_SHARD), ONE, TTL, late);
        let kept = |n| bindings.get(key(n), TTL, late).is_some();
        assert!(kept(0), "used lately");
        assert!(!kept(1));
        assert!(!kept(FORGOTTEN_AT_ONCE));
        assert!(kept(FORGOTTEN_AT_ONCE + 1));
        assert!(kept(MAX_PER_SHARD));
    }

    #[test]
    fn a_full_shard_forgets_what_has_ended_first() {
        let bindings = Bindings::new();
        let key = |n: usize| (GroupId(1), (n * SHARDS) as u128);
        for n in 0..MAX_PER_SHARD {
            let ttl = if n % 2 == 0 { TTL } else { TimeDelta::days(1) };
            bindings.bind(key(n), ONE, ttl, at(0));
        }
        bindings.bind(key(MAX_PER_SHARD), ONE, TTL, at(10));
        let left = bindings.shards[0].lock().len();
        assert_eq!(left, MAX_PER_SHARD / 2 + 1);
        bindings.sweep(at(100_000));
        assert_eq!(bindings.shards[0].lock().len(), 0);
    }
}
