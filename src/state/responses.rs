//! Which account made a response: only that one can go on from it.

use std::collections::{HashMap, VecDeque};

use chrono::{DateTime, TimeDelta, Utc};

use super::ResponseBinding;
use crate::domain::{AccountId, GroupId};

/// Bindings kept at most: some 40 MB when full. A client goes on from the last response of its
/// conversation, so this is the number of conversations that can be taken up again; at ten responses
/// a second the last five and a half hours even if none is ever used.
pub(super) const MAX_RESPONSES: usize = 200_000;
/// Providers keep stored responses for 30 days.
pub(super) const MAX_AGE: TimeDelta = TimeDelta::days(30);

type Key = (GroupId, u128);

/// See the module. An entry's places in the two queues are marked with numbers; a place whose number
/// is no longer the entry's is passed over, so that nothing has to be searched in a queue.
#[derive(Default)]
pub(super) struct Responses {
    known: HashMap<Key, Known>,
    /// From the longest unused on.
    uses: VecDeque<(Key, u64)>,
    unsaved: VecDeque<(Key, u64)>,
    number: u64,
}

struct Known {
    account: AccountId,
    at: DateTime<Utc>,
    use_number: u64,
    /// Its place in `unsaved`.
    unsaved: Option<u64>,
}

impl Responses {
    /// A response that was made.
    pub(super) fn remember(&mut self, binding: ResponseBinding) {
        let key = (binding.group, binding.key);
        let known = Known {
            account: binding.account,
            at: binding.at,
            use_number: 0,
            unsaved: self.known.get(&key).and_then(|known| known.unsaved),
        };
        self.known.insert(key, known);
        self.used(key, binding.at);
        self.bound();
    }

    /// Who made it; asking is a use.
    pub(super) fn account(&mut self, key: Key, now: DateTime<Utc>) -> Option<AccountId> {
        let known = self.known.get(&key)?;
        let (account, at) = (known.account, known.at);
        if now - at >= MAX_AGE {
            self.known.remove(&key);
            return None;
        }
        self.used(key, at.max(now));
        Some(account)
    }

    /// Those made or used since the last call, the first of them first.
    pub(super) fn take_unsaved(&mut self, max: usize) -> Vec<ResponseBinding> {
        let mut taken = Vec::new();
        while taken.len() < max
            && let Some((key, number)) = self.unsaved.pop_front()
        {
            if let Some(known) = self.known.get_mut(&key)
                && known.unsaved == Some(number)
            {
                known.unsaved = None;
                taken.push(ResponseBinding {
                    group: key.0,
                    key: key.1,
                    account: known.account,
                    at: known.at,
                });
            }
        }
        taken
    }

    /// Puts saved ones back; they count as older than all that is known, which stays as it is.
    pub(super) fn restore(&mut self, mut bindings: Vec<ResponseBinding>) {
        // The newest first: each goes before the last one.
        bindings.sort_unstable_by_key(|b| std::cmp::Reverse(b.at));
        for binding in bindings {
            if self.known.len() >= MAX_RESPONSES {
                return;
            }
            let key = (binding.group, binding.key);
            if self.known.contains_key(&key) {
                continue;
            }
            self.number += 1;
            let known = Known {
                account: binding.account,
                at: binding.at,
                use_number: self.number,
                unsaved: None,
            };
            self.known.insert(key, known);
            self.uses.push_front((key, self.number));
        }
    }

    /// Forgets those that are too old.
    pub(super) fn sweep(&mut self, now: DateTime<Utc>) {
        while let Some((key, number)) = self.uses.front() {
            match self.known.get(key) {
                Some(known) if known.use_number == *number => {
                    if now - known.at < MAX_AGE {
                        return;
                    }
                    self.known.remove(key);
                }
                _ => {}
            }
            self.uses.pop_front();
        }
    }

    fn used(&mut self, key: Key, at: DateTime<Utc>) {
        let Some(known) = self.known.get_mut(&key) else {
            return;
        };
        self.number += 1;
        known.at = at;
        known.use_number = self.number;
        self.uses.push_back((key, self.number));
        if known.unsaved.is_none() {
            known.unsaved = Some(self.number);
            self.unsaved.push_back((key, self.number));
        }
        // Places that are no longer anybody's: cleared away when they are more than the others.
        let most = 2 * self.known.len() + 1024;
        if self.uses.len() > most {
            let known = &self.known;
            self.uses
                .retain(|(key, n)| known.get(key).is_some_and(|k| k.use_number == *n));
        }
        if self.unsaved.len() > most {
            let known = &self.known;
            self.unsaved
                .retain(|(key, n)| known.get(key).is_some_and(|k| k.unsaved == Some(*n)));
        }
    }

    fn bound(&mut self) {
        while self.known.len() > MAX_RESPONSES
            && let Some((key, number)) = self.uses.pop_front()
        {
            if self.known.get(&key).is_some_and(|k| k.use_number == number) {
                self.known.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: GroupId = GroupId(1);

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + second, 0).unwrap()
    }

    fn made(key: u128, second: i64) -> ResponseBinding {
        ResponseBinding {
            group: GROUP,
            key,
            account: AccountId(key as i64),
            at: at(second),
        }
    }

    fn keys(taken: Vec<ResponseBinding>) -> Vec<u128> {
        taken.into_iter().map(|b| b.key).collect()
    }

    #[test]
    fn a_response_is_known_for_thirty_days_since_its_last_use() {
        let mut responses = Responses::default();
        responses.remember(made(1, 0));
        let month = MAX_AGE.num_seconds();
        let account = Some(AccountId(1));
        for (second, expected) in [
            (month - 1, account),
            (2 * month - 2, account),
            (3 * month - 2, None),
        ] {
            assert_eq!(responses.account((GROUP, 1), at(second)), expected);
        }
        assert_eq!(responses.account((GroupId(2), 1), at(0)), None);
    }

    #[test]
    fn the_sweep_forgets_what_is_too_old_and_only_that() {
        let mut responses = Responses::default();
        for key in 1..=4 {
            responses.remember(made(key, key as i64));
        }
        responses.account((GROUP, 1), at(4));
        responses.sweep(at(3) + MAX_AGE);
        let mut left: Vec<_> = responses.known.keys().map(|(_, key)| *key).collect();
        left.sort_unstable();
        assert_eq!(left, [1, 4]);
        responses.sweep(at(4) + MAX_AGE);
        assert!(responses.known.is_empty() && responses.uses.is_empty());
    }

    #[test]
    fn the_longest_unused_is_forgotten_first() {
        let mut responses = Responses::default();
        let max = MAX_RESPONSES as u128;
        for key in 0..max {
            responses.remember(made(key, 0));
        }
        assert!(responses.account((GROUP, 0), at(1)).is_some());
        responses.remember(made(max, 1));
        responses.remember(made(max + 1, 1));
        assert_eq!(responses.known.len(), MAX_RESPONSES);
        for (key, known) in [(0, true), (1, false), (2, false), (3, true), (max, true)] {
            let got = responses.account((GROUP, key), at(1));
            assert_eq!(got.is_some(), known, "{key}");
        }
    }

    #[test]
    fn what_was_made_or_used_is_handed_out_once() {
        let mut responses = Responses::default();
        responses.remember(made(1, 0));
        responses.remember(made(2, 0));
        responses.account((GROUP, 1), at(5));
        responses.remember(made(3, 6));
        let first = responses.take_unsaved(2);
        assert_eq!(first[0].at, at(5), "as it is by then");
        assert_eq!(keys(first), [1, 2]);
        responses.account((GROUP, 1), at(7));
        responses.account((GROUP, 1), at(8));
        responses.account((GROUP, 9), at(8));
        assert_eq!(keys(responses.take_unsaved(10)), [3, 1]);
        assert_eq!(keys(responses.take_unsaved(10)), []);
    }

    #[test]
    fn restored_ones_are_saved_and_older_than_all_that_is_known() {
        let mut responses = Responses::default();
        responses.remember(made(1, 100));
        assert_eq!(responses.take_unsaved(9).len(), 1);
        let stale = ResponseBinding {
            account: AccountId(99),
            ..made(1, 5)
        };
        responses.restore(vec![made(2, 10), made(3, 30), made(4, 20), stale]);
        assert_eq!(keys(responses.take_unsaved(9)), []);
        let order: Vec<_> = responses.uses.iter().map(|((_, key), _)| *key).collect();
        assert_eq!(order, [2, 4, 3, 1]);
        assert_eq!(
            responses.account((GROUP, 1), at(101)),
            Some(AccountId(1)),
            "what is known stays"
        );
        assert_eq!(responses.account((GROUP, 4), at(101)), Some(AccountId(4)));
        assert_eq!(keys(responses.take_unsaved(9)), [1, 4]);
        // The newest find room when there is not enough for all.
        let mut small = Responses::default();
        small.restore(
            (0..MAX_RESPONSES as u128 + 5)
                .map(|k| made(k, k as i64))
                .collect(),
        );
        assert_eq!(small.known.len(), MAX_RESPONSES);
        assert!(!small.known.contains_key(&(GROUP, 4)));
        assert!(small.known.contains_key(&(GROUP, 5)));
    }

    #[test]
    fn the_queues_do_not_grow_with_use() {
        let mut responses = Responses::default();
        responses.remember(made(1, 0));
        for n in 0..10_000 {
            responses.account((GROUP, 1), at(n));
            if n % 2 == 0 {
                responses.remember(made(2, n));
            }
        }
        assert!(responses.uses.len() <= 2 * 2 + 1024);
        assert!(responses.unsaved.len() <= 2);
    }
}
