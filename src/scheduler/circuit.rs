//! A circuit on an account's connections: an account that cannot be reached costs every request a
//! connect time-out, so after a few failures it is left alone for a while, then tried by one request at
//! a time.
//!
//! | | |
//! |---|---|
//! | closed | every transport error puts the account behind the others for 5 s |
//! | → open | with the third in a row within 30 s: behind the others for 5 s, next time 10 s, 20 s, 40 s, at most 60 s |
//! | → half-open | when that time is over: one request at a time is let through |
//! | → closed | when one is answered; everything is forgotten |
//! | → open | when one fails |
//!
//! "Behind the others" is the condition `Failing`: with nobody else left it is used nevertheless.
//! Exact counts, not the estimates of `pingora_limits::rate::Rate`: that shares its cells between keys, so
//! that one account would open another's circuit, cannot be reset by a success, and has its own clock.

use std::sync::atomic::{AtomicI64, Ordering};

use chrono::{DateTime, TimeDelta, Utc};
use parking_lot::Mutex;

use crate::domain::{Condition, ConditionKind};

/// Transport errors in a row that open the circuit …
const ERRORS_TO_OPEN: u32 = 3;
/// … when they come within this time.
const ERROR_WINDOW: TimeDelta = TimeDelta::seconds(30);
/// The first time out; doubles.
const SHORTEST: TimeDelta = TimeDelta::seconds(5);
/// No time out is longer: a provider that is back should not wait for us.
const LONGEST: TimeDelta = TimeDelta::seconds(60);
/// A trying request that has not ended by then no longer keeps others from trying.
const PROBE: TimeDelta = TimeDelta::seconds(60);

/// Whether an account's connections work, as far as known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Circuit {
    /// They do.
    Closed,
    /// They did not; the account rests.
    Open,
    /// One request may try.
    HalfOpen,
    /// One request tries.
    Probing,
}

/// The circuit of one account.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    /// Until when it is open, in milliseconds; 0 = it is closed.
    open_until_ms: AtomicI64,
    /// Until when somebody tries, in milliseconds.
    probe_until_ms: AtomicI64,
    /// When the last error was, in milliseconds; 0 = none since the last success.
    last_error_ms: AtomicI64,
    count: Mutex<Count>,
}

/// What only errors look at.
#[derive(Debug, Default)]
struct Count {
    /// When the first error of the window was.
    window_ms: i64,
    errors: u32,
    /// Times it has opened without a success between.
    opened: u32,
}

impl Breaker {
    pub(super) fn circuit(&self, now: DateTime<Utc>) -> Circuit {
        let open_until_ms = self.open_until_ms.load(Ordering::Relaxed);
        if open_until_ms == 0 {
            return Circuit::Closed;
        }
        let now_ms = now.timestamp_millis();
        if now_ms < open_until_ms {
            Circuit::Open
        } else if now_ms < self.probe_until_ms.load(Ordering::Relaxed) {
            Circuit::Probing
        } else {
            Circuit::HalfOpen
        }
    }

    /// Claims the try of a half-open circuit.
    pub(super) fn chosen(&self, now: DateTime<Utc>) -> bool {
        match self.circuit(now) {
            Circuit::Closed | Circuit::Open => true,
            Circuit::Probing => false,
            Circuit::HalfOpen => {
                let now_ms = now.timestamp_millis();
                let until_ms = now_ms + PROBE.num_milliseconds();
                let claim = |there: i64| (there <= now_ms).then_some(until_ms);
                self.probe_until_ms
                    .fetch_update(Ordering::Relaxed, Ordering::Relaxed, claim)
                    .is_ok()
            }
        }
    }

    pub(super) fn said_nothing(&self) {
        self.probe_until_ms.store(0, Ordering::Relaxed);
    }

    pub(super) fn failed(&self, now: DateTime<Utc>) -> Condition {
        let now_ms = now.timestamp_millis();
        let mut count = self.count.lock();
        if now_ms - count.window_ms >= ERROR_WINDOW.num_milliseconds() {
            count.window_ms = now_ms;
            count.errors = 0;
        }
        count.errors = count.errors.saturating_add(1);
        let opens = match self.circuit(now) {
            Circuit::Closed => count.errors >= ERRORS_TO_OPEN,
            // One of several that were under way, or nobody else was left: known already.
            Circuit::Open => false,
            Circuit::HalfOpen | Circuit::Probing => true,
        };
        if opens {
            let length = SHORTEST * 2_i32.pow(count.opened.min(10));
            count.opened = count.opened.saturating_add(1);
            let until_ms = (now + length.min(LONGEST)).timestamp_millis();
            self.open_until_ms.store(until_ms, Ordering::Relaxed);
            self.probe_until_ms.store(0, Ordering::Relaxed);
        }
        self.last_error_ms.store(now_ms, Ordering::Relaxed);
        let open_until =
            DateTime::from_timestamp_millis(self.open_until_ms.load(Ordering::Relaxed))
                .filter(|until| *until > now);
        Condition {
            kind: ConditionKind::Failing,
            model: None,
            since: now,
            until: Some(open_until.unwrap_or(now + SHORTEST)),
            status: None,
            reason: match open_until {
                Some(_) => format!("circuit open, time {}", count.opened),
                None => "transport error".to_owned(),
            },
        }
    }

    /// Whether there was something to forget.
    pub(super) fn succeeded(&self, began: DateTime<Utc>) -> bool {
        let last_error_ms = self.last_error_ms.load(Ordering::Relaxed);
        // An answer to a request that was under way when connections began to fail proves nothing.
        if last_error_ms == 0 || began.timestamp_millis() < last_error_ms {
            return false;
        }
        self.close();
        true
    }

    /// An operator says that the account works again.
    pub(super) fn resumed(&self, at: DateTime<Utc>) {
        let last_error_ms = self.last_error_ms.load(Ordering::Relaxed);
        if last_error_ms != 0 && last_error_ms < at.timestamp_millis() {
            self.close();
        }
    }

    fn close(&self) {
        let mut count = self.count.lock();
        *count = Count::default();
        self.last_error_ms.store(0, Ordering::Relaxed);
        self.open_until_ms.store(0, Ordering::Relaxed);
        self.probe_until_ms.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + second, 0).unwrap()
    }

    enum Step {
        /// A transport error, and for how many seconds the account is behind the others.
        Fails(i64),
        /// An answer to an attempt that began at that second.
        Succeeds(i64),
        /// Somebody would use it; whether that is right.
        Chosen(bool),
        SaysNothing,
        Resumed(i64),
    }

    /// At a second, what happens, and how the circuit is then.
    type Story = Vec<(i64, Step, Circuit)>;

    #[test]
    fn stories() {
        use Circuit::*;
        use Step::*;
        #[rustfmt::skip]
        let stories: Vec<(&str, Story)> = vec![
            ("three in a row open it, for twice as long each time", vec![
                (0, Fails(5), Closed), (5, Fails(5), Closed), (10, Fails(5), Open),
                (14, Chosen(true), Open),
                (15, Chosen(true), Probing), (15, Chosen(false), Probing), (16, Fails(10), Open),
                (26, Chosen(true), Probing), (26, Fails(20), Open),
                (46, Fails(40), Open), (86, Fails(60), Open), (146, Fails(60), Open), (206, Fails(60), Open),
            ]),
            ("an answer closes it and all is forgotten", vec![
                (0, Fails(5), Closed), (0, Fails(5), Closed), (0, Fails(5), Open),
                (5, Chosen(true), Probing), (6, Succeeds(5), Closed), (6, Chosen(true), Closed), (6, Chosen(true), Closed),
                (7, Fails(5), Closed), (7, Fails(5), Closed), (7, Fails(5), Open),
            ]),
            ("an answer between errors begins the count again", vec![
                (0, Fails(5), Closed), (0, Fails(5), Closed), (1, Succeeds(1), Closed), (1, Fails(5), Closed), (1, Fails(5), Closed), (1, Fails(5), Open),
            ]),
            ("an answer to an older attempt proves nothing", vec![
                (0, Fails(5), Closed), (0, Fails(5), Closed), (1, Succeeds(-1), Closed), (1, Fails(5), Open), (2, Succeeds(0), Open), (2, Succeeds(1), Closed),
            ]),
            ("errors far apart do not count together", vec![
                (0, Fails(5), Closed), (29, Fails(5), Closed), (30, Fails(5), Closed), (31, Fails(5), Closed), (59, Fails(5), Open),
            ]),
            ("errors of requests that were under way count once", vec![
                (0, Fails(5), Closed), (0, Fails(5), Closed), (0, Fails(5), Open), (1, Fails(4), Open), (4, Fails(1), Open),
                (5, Fails(10), Open),
            ]),
            ("a try that says nothing lets the next one try", vec![
                (0, Fails(5), Closed), (0, Fails(5), Closed), (0, Fails(5), Open),
                (5, Chosen(true), Probing), (6, SaysNothing, HalfOpen), (6, Chosen(true), Probing),
                (65, Chosen(false), Probing), (66, Chosen(true), Probing),
            ]),
            ("an operator closes it", vec![
                (0, Fails(5), Closed), (0, Fails(5), Closed), (0, Fails(5), Open),
                (1, Resumed(0), Open), (1, Resumed(1), Closed), (1, Fails(5), Closed),
            ]),
        ];
        for (what, steps) in stories {
            let breaker = Breaker::default();
            for (number, (second, step, after)) in steps.into_iter().enumerate() {
                let what = format!("{what}: step {number}");
                match step {
                    Fails(seconds) => {
                        let condition = breaker.failed(at(second));
                        let expected = (
                            ConditionKind::Failing,
                            at(second),
                            Some(at(second + seconds)),
                        );
                        let got = (condition.kind, condition.since, condition.until);
                        assert_eq!(got, expected, "{what}");
                        assert!(condition.model.is_none(), "{what}");
                    }
                    Succeeds(began) => drop(breaker.succeeded(at(began))),
                    Chosen(expected) => assert_eq!(breaker.chosen(at(second)), expected, "{what}"),
                    SaysNothing => breaker.said_nothing(),
                    Resumed(when) => breaker.resumed(at(when)),
                }
                assert_eq!(breaker.circuit(at(second)), after, "{what}");
            }
        }
    }

    #[test]
    fn one_of_many_tries() {
        use std::sync::atomic::AtomicUsize;

        const ROUNDS: usize = 20_000;
        let breakers: Vec<Breaker> = (0..ROUNDS).map(|_| Breaker::default()).collect();
        for breaker in &breakers {
            (0..3).for_each(|_| drop(breaker.failed(at(0))));
        }
        // Both begin each round in the same moment, as near as can be.
        let arrived = AtomicUsize::new(0);
        let tries = || {
            let mut won = 0;
            for (round, breaker) in breakers.iter().enumerate() {
                arrived.fetch_add(1, Ordering::SeqCst);
                let mut spins = 0;
                while arrived.load(Ordering::SeqCst) < 2 * (round + 1) {
                    spins += 1;
                    if spins % 1_000 == 0 {
                        std::thread::yield_now();
                    }
                }
                won += usize::from(breaker.chosen(at(5)));
            }
            won
        };
        let granted: usize = std::thread::scope(|scope| {
            let threads = [(); 2].map(|()| scope.spawn(tries));
            threads.into_iter().map(|t| t.join().unwrap()).sum()
        });
        assert_eq!(granted, ROUNDS);
    }
}
