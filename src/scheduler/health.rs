//! How each account has done lately, in this process: averages of failures and of the time to the first
//! token, answers that were too slow, and the circuit for broken connections. Reading takes no lock.
//!
//! **Averages** (SPEC 6.6): each attempt moves them by a fifth. An average that nothing is added to
//! fades, or an account that did badly once and has been passed over since would be passed over for
//! ever: the failures halve every two minutes, the first-token time is forgotten after ten.
//!
//! **Sessions** are kept by an account ([`Reading::keeps_sessions`]) unless it is slow or failing: three
//! answers in a row whose first token took more than 3 s *and* more than three times what other
//! accounts of the pool take on average; or failures averaging above one half, which is four in a row
//! after a good time. It keeps them again after one answer in time, or when it has not been bad for
//! two minutes. Nothing is slow where there is no other to compare with.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use chrono::{DateTime, Utc};

use super::circuit::Breaker;
pub use super::circuit::Circuit;
use crate::domain::{Account, AccountId, Condition, Directory};

/// How far one sample moves an average.
const ALPHA: f32 = 0.2;
/// Time in which the average of failures halves, seconds.
const ERRORS_HALVE_S: f32 = 120.0;
/// A first-token average without a sample for this long says nothing any more, seconds.
const FIRST_TOKEN_KEPT_S: u32 = 600;
/// No answer is slow whose first token came within this time.
const SLOW_FLOOR: Duration = Duration::from_secs(3);
/// An answer is slow that took this many times what others take.
const SLOW_TIMES_USUAL: f64 = 3.0;
/// Slow answers in a row after which sessions leave.
const SLOW_IN_A_ROW: u32 = 3;
/// Average of failures above which sessions leave.
const FAILING_ABOVE: f64 = 0.5;
/// After the last slow answer an account gets another chance, seconds.
const SLOW_FORGOTTEN_S: u32 = 120;

/// How an attempt went, as far as it says something about its account.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It was answered.
    Served {
        /// From the attempt's start to the first real output, where there was any.
        first_token: Option<Duration>,
    },
    /// It failed, in whatever way that is not the client's.
    Failed,
}

/// A number and the second it is of, read and written as one.
#[derive(Debug, Default)]
struct Stamped(AtomicU64);

impl Stamped {
    fn get(&self) -> (u32, u32) {
        let both = self.0.load(Ordering::Relaxed);
        ((both >> 32) as u32, both as u32)
    }

    /// `change` gets the number and its second, and gives the number that takes their place.
    fn update(&self, second: u32, change: impl Fn(u32, u32) -> u32) {
        let step = |both: u64| {
            let next = change((both >> 32) as u32, both as u32);
            Some(u64::from(next) << 32 | u64::from(second))
        };
        // Never refuses, since `step` always gives something.
        let _ = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, step);
    }

    fn clear(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

/// A second, as averages are stamped with; worked out once for many accounts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Moment(u32);

impl Moment {
    /// The second of a time.
    pub fn of(now: DateTime<Utc>) -> Moment {
        // 0 is kept for "never".
        Moment(u32::try_from(now.timestamp()).unwrap_or(u32::MAX).max(1))
    }
}

/// How an account does.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Reading {
    /// Average of failures, 0 to 1.
    pub errors: f64,
    /// Average time to the first token; `None` = not known.
    pub first_token_ms: Option<f64>,
    /// Whether conversations stay with it.
    pub keeps_sessions: bool,
}

/// The health of one account.
#[derive(Debug, Default)]
pub struct Vitals {
    /// Average of failures, as the bits of an `f32`.
    errors: Stamped,
    /// Average first-token time in milliseconds, as the bits of an `f32`.
    first_token_ms: Stamped,
    /// Slow answers in a row.
    slow: Stamped,
    pub(super) breaker: Breaker,
}

impl Vitals {
    pub(super) fn report(&self, outcome: Outcome, usual_ms: Option<f64>, now: DateTime<Utc>) {
        let Moment(second) = Moment::of(now);
        let failed = outcome == Outcome::Failed;
        self.errors.update(second, |bits, at| {
            let sample = if failed { 1.0 } else { 0.0 };
            let average = faded(f32::from_bits(bits), at, second);
            (average * (1.0 - ALPHA) + sample * ALPHA).to_bits()
        });
        let Outcome::Served {
            first_token: Some(took),
        } = outcome
        else {
            return;
        };
        let took_ms = took.as_secs_f64() * 1000.0;
        let slow = took > SLOW_FLOOR
            && usual_ms.is_some_and(|usual_ms| took_ms > SLOW_TIMES_USUAL * usual_ms);
        if slow {
            self.slow.update(second, |count, _| count.saturating_add(1));
        } else if self.slow.get().0 > 0 {
            self.slow.clear();
        }
        if took_ms > 0.0 {
            self.first_token_ms.update(second, |bits, at| {
                let sample = took_ms as f32;
                if at == 0 || second.saturating_sub(at) > FIRST_TOKEN_KEPT_S {
                    return sample.to_bits();
                }
                (f32::from_bits(bits) * (1.0 - ALPHA) + sample * ALPHA).to_bits()
            });
        }
    }

    /// What the averages say at a moment.
    pub fn read(&self, at: Moment) -> Reading {
        let (bits, errors_at) = self.errors.get();
        let errors = match bits {
            0 => 0.0,
            _ => f64::from(faded(f32::from_bits(bits), errors_at, at.0)),
        };
        let (slow, slow_at) = self.slow.get();
        let is_slow = slow >= SLOW_IN_A_ROW && at.0.saturating_sub(slow_at) <= SLOW_FORGOTTEN_S;
        Reading {
            errors,
            first_token_ms: self.first_token_ms(at),
            keeps_sessions: !is_slow && errors <= FAILING_ABOVE,
        }
    }

    /// Average time to the first token; `None` = not known.
    fn first_token_ms(&self, at: Moment) -> Option<f64> {
        let (bits, sampled_at) = self.first_token_ms.get();
        let known = sampled_at != 0 && at.0.saturating_sub(sampled_at) <= FIRST_TOKEN_KEPT_S;
        known.then(|| f64::from(f32::from_bits(bits)))
    }

    /// How its connections are.
    pub fn circuit(&self, now: DateTime<Utc>) -> Circuit {
        self.breaker.circuit(now)
    }
}

fn faded(average: f32, at: u32, now: u32) -> f32 {
    let age = now.saturating_sub(at);
    if average == 0.0 || age == 0 {
        return average;
    }
    average * (-(age as f32) / ERRORS_HALVE_S).exp2()
}

/// The health of all accounts.
#[derive(Debug, Default)]
pub struct Health {
    of: ArcSwap<HashMap<AccountId, Arc<Vitals>>>,
}

impl Health {
    /// Of one account; `None` for one that was never in a roster.
    pub fn of(&self, id: AccountId) -> Option<Arc<Vitals>> {
        self.of.load().get(&id).cloned()
    }

    /// How many accounts are known.
    pub fn tracked(&self) -> usize {
        self.of.load().len()
    }

    /// Of these accounts, in this order. An account that was resumed since starts anew.
    pub(super) fn of_all(&self, accounts: &[&Arc<Account>]) -> Vec<Arc<Vitals>> {
        let known = self.of.load_full();
        if accounts.iter().any(|a| !known.contains_key(&a.id)) {
            self.of.rcu(|known| {
                let mut more = HashMap::clone(known);
                for account in accounts {
                    more.entry(account.id).or_default();
                }
                more
            });
        }
        let known = self.of.load();
        let vitals = accounts.iter().map(|account| {
            // Only missing when it was forgotten in this moment, with the directory it is of.
            let vitals = known.get(&account.id).cloned().unwrap_or_default();
            if let Some(at) = account.resumed_at {
                vitals.breaker.resumed(at);
            }
            vitals
        });
        vitals.collect()
    }

    /// Forgets accounts that are no more.
    pub(super) fn forget_all_but(&self, directory: &Directory) {
        let gone = |id: &AccountId| directory.account(*id).is_none();
        if self.of.load().keys().any(gone) {
            self.of.rcu(|known| {
                let mut left = HashMap::clone(known);
                left.retain(|id, _| !gone(id));
                left
            });
        }
    }

    /// A connection to the account could not be made or broke before an answer. The condition puts
    /// it behind the others, longer each time once its circuit has opened (see [`super::circuit`]).
    pub fn transport_failed(&self, id: AccountId, now: DateTime<Utc>) -> Option<Condition> {
        self.of(id).map(|vitals| vitals.breaker.failed(now))
    }

    /// The account has answered an attempt that began at `began`: its connections work. `true` when
    /// they had failed before, so that a condition `Failing` it may have is to be lifted.
    pub fn succeeded(&self, id: AccountId, began: DateTime<Utc>) -> bool {
        let known = self.of.load();
        known
            .get(&id)
            .is_some_and(|vitals| vitals.breaker.succeeded(began))
    }

    /// An account is about to be used; to be asked once for each attempt. `false` when another request
    /// has just begun to try whether it works again: choose another, without unbinding the
    /// conversation. In a stage of last resort the answer does not matter.
    pub fn chosen(&self, id: AccountId, now: DateTime<Utc>) -> bool {
        let known = self.of.load();
        known
            .get(&id)
            .is_none_or(|vitals| vitals.breaker.chosen(now))
    }

    /// An attempt ended without saying anything about the account's connections (the client left
    /// first): if it was to try them, the next request may.
    pub fn said_nothing(&self, id: AccountId) {
        if let Some(vitals) = self.of.load().get(&id) {
            vitals.breaker.said_nothing();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + second, 0).unwrap()
    }

    fn served(ms: u64) -> Outcome {
        Outcome::Served {
            first_token: Some(Duration::from_millis(ms)),
        }
    }

    fn near(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-4
    }

    #[test]
    fn failures_move_the_average_by_a_fifth_and_fade() {
        let vitals = Vitals::default();
        assert_eq!(vitals.read(Moment::of(at(0))).errors, 0.0);
        let nothing = Outcome::Served { first_token: None };
        for (outcome, expected) in [
            (Outcome::Failed, 0.2),
            (nothing, 0.16),
            (served(0), 0.128),
            (Outcome::Failed, 0.3024),
        ] {
            vitals.report(outcome, None, at(0));
            let got = vitals.read(Moment::of(at(0))).errors;
            assert!(near(got, expected), "{got} {expected}");
        }
        for (second, expected) in [(-5, 0.3024), (120, 0.1512), (240, 0.0756), (1_000_000, 0.0)] {
            let got = vitals.read(Moment::of(at(second))).errors;
            assert!(near(got, expected), "{got} {expected} at {second} s");
        }
        vitals.report(Outcome::Failed, None, at(120));
        assert!(near(
            vitals.read(Moment::of(at(120))).errors,
            0.1512 * 0.8 + 0.2
        ));
        assert_eq!(vitals.read(Moment::of(at(0))).first_token_ms, None);
    }

    #[test]
    fn four_failures_in_a_row_lose_the_sessions() {
        let vitals = Vitals::default();
        let keeps: Vec<bool> = (0..5)
            .map(|_| {
                vitals.report(Outcome::Failed, None, at(0));
                vitals.read(Moment::of(at(0))).keeps_sessions
            })
            .collect();
        assert_eq!(keeps, [true, true, true, false, false]);
        vitals.report(served(1), None, at(0));
        assert!(!vitals.read(Moment::of(at(0))).keeps_sessions);
        vitals.report(served(1), None, at(0));
        assert!(vitals.read(Moment::of(at(0))).keeps_sessions);
    }

    #[test]
    fn first_tokens_have_an_average_that_is_forgotten() {
        let vitals = Vitals::default();
        for (ms, second, expected) in [
            (500, 0, 500.0),
            (1_500, 1, 700.0),
            (0, 2, 700.0),
            (700, 600, 700.0),
            (100, 1_201, 100.0),
        ] {
            vitals.report(served(ms), None, at(second));
            let got = vitals.read(Moment::of(at(second))).first_token_ms.unwrap();
            assert!(near(got, expected), "{got} {expected}");
        }
        assert!(vitals.read(Moment::of(at(1_801))).first_token_ms.is_some());
        assert!(vitals.read(Moment::of(at(1_802))).first_token_ms.is_none());
    }

    #[test]
    fn reports_of_many_threads_are_all_counted() {
        let vitals = Vitals::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope
                    .spawn(|| (0..1_000).for_each(|_| vitals.report(Outcome::Failed, None, at(0))));
            }
        });
        assert!(near(vitals.read(Moment::of(at(0))).errors, 1.0));
    }
}
