//! The accounts' conditions and strikes.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use chrono::{DateTime, TimeDelta, Utc};
use parking_lot::Mutex;

use crate::domain::{AccountId, Condition, ConditionKind, Conditions};

/// Conditions of one account at most, those about single models: clients choose model names, and a
/// provider may refuse each of them.
const MAX_PER_ACCOUNT: usize = 100;
/// Strikes kept for an account: every rule acts at a handful.
const MAX_STRIKES: usize = 100;

/// The conditions. Who reads gets an immutable picture, which is made anew when somebody reads after
/// a change: a storm of changes costs one copy for each reading, not for each change, and nothing
/// while all stays as it is.
#[derive(Default)]
pub(super) struct AllConditions {
    truth: Mutex<Conditions>,
    picture: ArcSwap<Conditions>,
    changed: AtomicBool,
}

impl AllConditions {
    /// The picture of now. The same `Arc` as before if nothing has changed.
    pub(super) fn picture(&self) -> Arc<Conditions> {
        if self.changed.load(Ordering::Acquire) {
            let truth = self.truth.lock();
            if self.changed.load(Ordering::Acquire) {
                self.picture.store(Arc::new(truth.clone()));
                self.changed.store(false, Ordering::Release);
            }
        }
        self.picture.load_full()
    }

    /// Of two in the same place the one that ends later stays.
    pub(super) fn set(&self, account: AccountId, condition: Condition) {
        let mut truth = self.truth.lock();
        let list = truth.0.entry(account).or_default();
        match list.iter_mut().find(|c| c.same_place(&condition)) {
            Some(there) if condition.outlasts(there) => *there = condition,
            Some(there) => {
                // The same again: `accounts resume` lifts what was before it, not this.
                if there.kind.is_soft() || condition.since <= there.since {
                    return;
                }
                there.since = condition.since;
            }
            None => {
                if list.len() >= MAX_PER_ACCOUNT {
                    forget_soonest(list);
                }
                list.push(condition);
            }
        }
        self.changed.store(true, Ordering::Release);
    }

    /// Removes those of this kind (`None` = of any) that began before `before`.
    pub(super) fn lift(
        &self,
        account: AccountId,
        kind: Option<ConditionKind>,
        before: DateTime<Utc>,
    ) {
        let mut truth = self.truth.lock();
        if let Some(list) = truth.0.get_mut(&account) {
            let len = list.len();
            list.retain(|c| kind.is_some_and(|k| k != c.kind) || c.since >= before);
            if list.len() != len {
                self.changed.store(true, Ordering::Release);
            }
            if list.is_empty() {
                truth.0.remove(&account);
            }
        }
    }

    /// Removes those that have ended.
    pub(super) fn sweep(&self, now: DateTime<Utc>) {
        let mut truth = self.truth.lock();
        let mut changed = false;
        truth.0.retain(|_, list| {
            let len = list.len();
            list.retain(|c| c.holds(now));
            changed |= list.len() != len;
            !list.is_empty()
        });
        if changed {
            self.changed.store(true, Ordering::Release);
        }
    }
}

/// Makes room by forgetting the condition of a single model that ends soonest.
fn forget_soonest(list: &mut Vec<Condition>) {
    let of_models = list.iter().enumerate().filter(|(_, c)| c.model.is_some());
    let soonest =
        of_models.min_by_key(|(_, c)| c.until.map_or(DateTime::<Utc>::MAX_UTC, |until| until));
    if let Some((index, _)) = soonest {
        list.swap_remove(index);
    }
}

/// What the accounts were caught at lately.
#[derive(Default)]
pub(super) struct Strikes(Mutex<HashMap<AccountId, StrikesOf>>);

#[derive(Default)]
struct StrikesOf {
    at: VecDeque<DateTime<Utc>>,
    /// The longest window anybody has asked for.
    window: TimeDelta,
}

impl Strikes {
    /// Counts one; how many there are within `window`.
    pub(super) fn add(&self, account: AccountId, window: TimeDelta, now: DateTime<Utc>) -> u32 {
        let mut strikes = self.0.lock();
        let of = strikes.entry(account).or_default();
        of.window = of.window.max(window);
        of.forget(now);
        if of.at.len() == MAX_STRIKES {
            of.at.pop_front();
        }
        of.at.push_back(now);
        let within = of.at.iter().filter(|at| now - **at < window);
        u32::try_from(within.count()).unwrap_or(u32::MAX)
    }

    /// All of them, oldest first.
    pub(super) fn all(&self) -> Vec<(AccountId, DateTime<Utc>)> {
        let strikes = self.0.lock();
        let each = |(account, of): (&AccountId, &StrikesOf)| {
            let account = *account;
            of.at.clone().into_iter().map(move |at| (account, at))
        };
        let mut all: Vec<_> = strikes.iter().flat_map(each).collect();
        all.sort_by_key(|(account, at)| (*at, *account));
        all
    }

    /// Forgets those of an account from before `before` (`None` = all).
    pub(super) fn forgive(&self, account: AccountId, before: Option<DateTime<Utc>>) {
        let mut strikes = self.0.lock();
        if let Some(of) = strikes.get_mut(&account) {
            of.at
                .retain(|at| before.is_some_and(|before| *at >= before));
            if of.at.is_empty() {
                strikes.remove(&account);
            }
        }
    }

    /// Forgets those that no window reaches any more.
    pub(super) fn sweep(&self, now: DateTime<Utc>) {
        self.0.lock().retain(|_, of| {
            of.forget(now);
            !of.at.is_empty()
        });
    }
}

impl StrikesOf {
    fn forget(&mut self, now: DateTime<Utc>) {
        let window = self.window;
        self.at.retain(|at| now - *at < window);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: AccountId = AccountId(1);
    const TWO: AccountId = AccountId(2);

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + second, 0).unwrap()
    }

    fn condition(
        kind: ConditionKind,
        model: Option<&str>,
        since: i64,
        until: Option<i64>,
    ) -> Condition {
        Condition {
            kind,
            model: model.map(str::to_owned),
            since: at(since),
            until: until.map(at),
            status: Some(429),
            reason: "r".into(),
        }
    }

    use ConditionKind::{Error, Failing, RateLimited};

    #[test]
    fn the_later_end_wins_in_the_same_place() {
        for (first, second, stays) in [
            (Some(10), Some(11), Some(11)),
            (Some(11), Some(10), Some(11)),
            (Some(10), None, None),
            (None, Some(10), None),
        ] {
            let all = AllConditions::default();
            all.set(ONE, condition(RateLimited, None, 0, first));
            all.set(ONE, condition(RateLimited, None, 1, second));
            let picture = all.picture();
            let [only] = picture.of(ONE) else {
                panic!("one in one place")
            };
            assert_eq!(only.until, stays.map(at), "{first:?} then {second:?}");
        }
        let all = AllConditions::default();
        for (kind, model) in [
            (RateLimited, None),
            (RateLimited, Some("m")),
            (RateLimited, Some("n")),
            (Failing, None),
        ] {
            all.set(ONE, condition(kind, model, 0, Some(5)));
        }
        assert_eq!(all.picture().of(ONE).len(), 4, "four places");
    }

    #[test]
    fn lifting_concerns_what_began_before() {
        for (kind, before, left) in [
            (None, 10, vec![RateLimited]),
            (None, 11, vec![]),
            (Some(Error), 11, vec![RateLimited]),
            (Some(RateLimited), 10, vec![Error, RateLimited]),
            (Some(Failing), 11, vec![Error, RateLimited]),
        ] {
            let all = AllConditions::default();
            all.set(ONE, condition(Error, None, 9, None));
            all.set(ONE, condition(RateLimited, None, 10, Some(50)));
            all.set(TWO, condition(Error, None, 0, None));
            all.lift(ONE, kind, at(before));
            let picture = all.picture();
            let kinds: Vec<_> = picture.of(ONE).iter().map(|c| c.kind).collect();
            assert_eq!(kinds, left, "{kind:?} before {before}");
            assert_eq!(picture.0.contains_key(&ONE), !left.is_empty());
            assert_eq!(picture.of(TWO).len(), 1);
        }
    }

    #[test]
    fn what_has_ended_is_swept_and_the_picture_changes_only_with_it() {
        let all = AllConditions::default();
        all.set(ONE, condition(RateLimited, None, 0, Some(10)));
        all.set(TWO, condition(Error, None, 0, None));
        let before = all.picture();
        all.sweep(at(9));
        // As long, shorter, and nothing to lift: no change.
        all.set(ONE, condition(RateLimited, None, 0, Some(10)));
        all.set(ONE, condition(RateLimited, None, 0, Some(9)));
        all.lift(ONE, Some(Failing), at(100));
        all.lift(AccountId(3), None, at(100));
        assert!(Arc::ptr_eq(&before, &all.picture()));
        all.sweep(at(10));
        let after = all.picture();
        assert!(after.of(ONE).is_empty() && !after.0.contains_key(&ONE));
        assert_eq!(after.of(TWO).len(), 1);
        assert_eq!(before.of(ONE).len(), 1, "an old picture stays as it was");
    }

    #[test]
    fn what_comes_after_a_resume_is_not_lifted_by_it() {
        let all = AllConditions::default();
        all.set(ONE, condition(Error, None, 0, None));
        // An attempt that was under way is refused just after `accounts resume` at 5.
        all.set(ONE, condition(Error, None, 6, None));
        all.lift(ONE, None, at(5));
        assert_eq!(all.picture().of(ONE).len(), 1);
        all.lift(ONE, None, at(7));
        assert!(all.picture().of(ONE).is_empty());
    }

    #[test]
    fn models_cannot_fill_the_memory() {
        let all = AllConditions::default();
        all.set(ONE, condition(Error, None, 0, None));
        for n in 0..200 {
            let model = format!("m{n}");
            all.set(ONE, condition(RateLimited, Some(&model), 0, Some(n)));
        }
        let picture = all.picture();
        assert_eq!(picture.of(ONE).len(), MAX_PER_ACCOUNT);
        assert!(picture.of(ONE).iter().any(|c| c.kind == Error));
        assert!(picture.of(ONE).iter().all(|c| c.until != Some(at(0))));
    }

    #[test]
    fn strikes_count_within_their_window() {
        let strikes = Strikes::default();
        let window = TimeDelta::seconds(10);
        for (second, count) in [(0, 1), (5, 2), (9, 3), (10, 3), (19, 2), (40, 1)] {
            assert_eq!(strikes.add(ONE, window, at(second)), count, "at {second} s");
        }
        // A shorter window in between forgets nothing of a longer one.
        assert_eq!(strikes.add(ONE, TimeDelta::seconds(1), at(45)), 1);
        assert_eq!(strikes.add(ONE, window, at(45)), 3);
        strikes.add(TWO, window, at(40));
        let all = [(ONE, at(40)), (TWO, at(40)), (ONE, at(45)), (ONE, at(45))];
        assert_eq!(strikes.all(), all);
        strikes.forgive(ONE, Some(at(45)));
        assert_eq!(strikes.add(ONE, window, at(46)), 3, "two of 45, one of 46");
        strikes.forgive(ONE, None);
        assert_eq!(strikes.add(ONE, window, at(46)), 1);
    }

    #[test]
    fn strikes_are_bounded_and_swept() {
        let strikes = Strikes::default();
        let window = TimeDelta::seconds(10);
        for _ in 0..1000 {
            strikes.add(ONE, window, at(0));
        }
        assert_eq!(strikes.add(ONE, window, at(0)), MAX_STRIKES as u32);
        strikes.sweep(at(9));
        assert_eq!(strikes.0.lock().len(), 1);
        strikes.sweep(at(10));
        assert_eq!(strikes.0.lock().len(), 0);
    }
}
