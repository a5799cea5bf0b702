//! Which conversations an account carries (SPEC 6.4): those that were asked through it lately.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use parking_lot::Mutex;

use super::dense::Dense;
use super::{SessionLimit, SessionRoom};
use crate::domain::AccountId;

/// The conversations of all accounts. An account has no more of them than its operator allows: nothing that clients
/// send adds to that.
pub(super) struct Sessions {
    accounts: Dense<Mutex<Carried>>,
}

/// The conversations of one account.
#[derive(Default)]
struct Carried {
    last: HashMap<u128, DateTime<Utc>>,
    /// The same, those that have been silent for longest first.
    order: BTreeSet<(DateTime<Utc>, u128)>,
    /// How long one may be silent, as said last.
    idle: TimeDelta,
}

impl Sessions {
    pub(super) fn new() -> Sessions {
        Sessions {
            accounts: Dense::new(),
        }
    }

    /// Whether a conversation is one of the account's, or could become one.
    pub(super) fn room(
        &self,
        account: AccountId,
        key: u128,
        limit: SessionLimit,
        now: DateTime<Utc>,
    ) -> SessionRoom {
        let look = |carried: &Arc<Mutex<Carried>>| carried.lock().room(key, limit, now);
        let room = self.accounts.read(account.0, look);
        room.unwrap_or(SessionRoom::Free)
    }

    /// Makes a conversation one of the account's, or notes that it still is; `false` = there is no room for it. In one
    /// step, so that of several new ones no more come in than there is room for.
    pub(super) fn join(
        &self,
        account: AccountId,
        key: u128,
        limit: SessionLimit,
        now: DateTime<Utc>,
    ) -> bool {
        let join = |carried: &Arc<Mutex<Carried>>| {
            let mut carried = carried.lock();
            match carried.room(key, limit, now) {
                SessionRoom::Full { .. } => false,
                SessionRoom::Free | SessionRoom::Known => {
                    carried.note(key, now);
                    true
                }
            }
        };
        self.accounts.with(account.0, Arc::default, join)
    }

    /// Forgets conversations that have been silent for too long.
    pub(super) fn sweep(&self, now: DateTime<Utc>) {
        self.accounts.for_each(|carried| {
            let mut carried = carried.lock();
            let idle = carried.idle;
            carried.forget(idle, now);
            if carried.last.is_empty() {
                // What a crowd has left behind is given back.
                *carried = Carried::default();
            }
        });
    }
}

impl Carried {
    fn room(&mut self, key: u128, limit: SessionLimit, now: DateTime<Utc>) -> SessionRoom {
        self.idle = limit.idle;
        self.forget(limit.idle, now);
        if self.last.contains_key(&key) {
            return SessionRoom::Known;
        }
        let max = usize::try_from(limit.max).unwrap_or(usize::MAX);
        match self.order.first() {
            Some((oldest, _)) if self.last.len() >= max => SessionRoom::Full {
                until: *oldest + limit.idle,
            },
            _ => SessionRoom::Free,
        }
    }

    fn note(&mut self, key: u128, now: DateTime<Utc>) {
        // A clock that is a little behind makes nobody older.
        let at = self.last.get(&key).map_or(now, |last| now.max(*last));
        if let Some(before) = self.last.insert(key, at) {
            self.order.remove(&(before, key));
        }
        self.order.insert((at, key));
    }

    fn forget(&mut self, idle: TimeDelta, now: DateTime<Utc>) {
        while let Some((last, key)) = self.order.first().copied()
            && last + idle <= now
        {
            self.order.pop_first();
            self.last.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: AccountId = AccountId(1);
    const LIMIT: SessionLimit = SessionLimit {
        max: 2,
        idle: TimeDelta::seconds(10),
    };

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + second, 0).unwrap()
    }

    #[test]
    fn a_conversation_counts_until_it_has_been_silent_for_too_long() {
        let sessions = Sessions::new();
        let join = |key, second| sessions.join(ONE, key, LIMIT, at(second));
        let room = |key, second| sessions.room(ONE, key, LIMIT, at(second));
        let full = |second| SessionRoom::Full { until: at(second) };
        assert_eq!(room(1, 0), SessionRoom::Free);
        assert!(join(1, 0) && join(2, 1));
        assert_eq!(
            (room(1, 1), room(2, 1)),
            (SessionRoom::Known, SessionRoom::Known)
        );
        assert_eq!(room(3, 1), full(10));
        assert!(!join(3, 1), "two are the most");
        assert!(join(1, 9), "it is known");
        assert_eq!(room(3, 10), full(11));
        assert_eq!(room(3, 11), SessionRoom::Free);
        assert!(join(3, 11));
        assert!(!join(2, 18), "its place is taken");
        assert!(join(2, 19));
        // Another account has places of its own.
        assert!(sessions.join(AccountId(2), 9, LIMIT, at(19)));
    }

    #[test]
    fn a_changed_limit_counts_at_once_and_throws_nobody_out() {
        let sessions = Sessions::new();
        let limit = |max, seconds| SessionLimit {
            max,
            idle: TimeDelta::seconds(seconds),
        };
        for key in 0..5 {
            assert!(sessions.join(ONE, key, limit(5, 10), at(0)));
        }
        for key in 0..5 {
            assert!(sessions.join(ONE, key, limit(2, 10), at(1)));
        }
        assert!(!sessions.join(ONE, 9, limit(5, 10), at(1)));
        assert!(sessions.join(ONE, 9, limit(6, 10), at(1)));
        assert_eq!(sessions.room(ONE, 1, limit(6, 3), at(4)), SessionRoom::Free);
    }

    #[test]
    fn a_clock_that_goes_back_ends_nothing() {
        let sessions = Sessions::new();
        assert!(sessions.join(ONE, 1, LIMIT, at(100)));
        assert!(sessions.join(ONE, 1, LIMIT, at(50)));
        assert_eq!(sessions.room(ONE, 1, LIMIT, at(109)), SessionRoom::Known);
        assert_eq!(sessions.room(ONE, 1, LIMIT, at(110)), SessionRoom::Free);
    }

    #[test]
    fn the_sweep_leaves_nothing_of_what_has_ended() {
        let sessions = Sessions::new();
        let wide = SessionLimit {
            max: 10_000,
            ..LIMIT
        };
        for key in 0..10_000 {
            assert!(sessions.join(ONE, key, wide, at(0)));
        }
        let held = || {
            let sizes = |c: &Arc<Mutex<Carried>>| {
                let carried = c.lock();
                (
                    carried.last.len(),
                    carried.order.len(),
                    carried.last.capacity() > 0,
                )
            };
            sessions.accounts.read(ONE.0, sizes).unwrap()
        };
        sessions.sweep(at(9));
        assert_eq!(held(), (10_000, 10_000, true));
        sessions.sweep(at(10));
        assert_eq!(held(), (0, 0, false));
    }

    #[test]
    fn parallel_new_conversations_never_exceed_the_limit() {
        for max in [1, 3, 17] {
            let sessions = Sessions::new();
            let limit = SessionLimit { max, ..LIMIT };
            let joined: usize = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..8_u128)
                    .map(|thread| {
                        let sessions = &sessions;
                        scope.spawn(move || {
                            let keys = (0..200).map(|n| thread * 1_000 + n);
                            keys.filter(|key| sessions.join(ONE, *key, limit, at(0)))
                                .count()
                        })
                    })
                    .collect();
                threads
                    .into_iter()
                    .map(|thread| thread.join().unwrap())
                    .sum()
            });
            assert_eq!(joined, max as usize, "all places are taken, and no more");
        }
    }
}
