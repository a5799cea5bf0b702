//! Many threads at the same money. Time is injected; who waits waits for the book, not for a clock.

use std::sync::atomic::{AtomicI64, Ordering};

use parking_lot::Mutex;
use tokio::runtime::{Builder, Runtime};

use super::*;

fn runtime() -> Runtime {
    Builder::new_current_thread().build().unwrap()
}

/// What became of a crowd of requests.
#[derive(Default)]
struct Ends {
    charges: Vec<Money>,
    /// Σ max(0, cost − reserved).
    excess: Money,
    refusals: Vec<Refusal>,
}

/// Sends one request for each cost from a thread of its own, all at once. Each reserves `bound`, waiting
/// as long as money is only held, and settles its cost.
fn crowd(
    book: &Book,
    ask: Ask,
    costs: &[Money],
    clock: &(dyn Fn() -> DateTime<Utc> + Sync),
) -> Ends {
    let runtime = runtime();
    let ends = Mutex::new(Ends::default());
    let barrier = std::sync::Barrier::new(costs.len());
    std::thread::scope(|scope| {
        for cost in costs {
            let (ends, barrier, runtime) = (&ends, &barrier, runtime.handle());
            scope.spawn(move || {
                barrier.wait();
                let reserved = loop {
                    let changed = book.changed(ask.payer.user);
                    match book.reserve(&ask, clock()) {
                        Err(Denied::Held(_)) => runtime.block_on(changed),
                        other => break other,
                    }
                };
                let mut ended = ends.lock();
                match reserved {
                    Err(Denied::Refused(refusal)) => ended.refusals.push(refusal),
                    Err(Denied::Held(_)) => unreachable!(),
                    Ok(hold) => {
                        // Others go on while the money is held.
                        drop(ended);
                        std::thread::yield_now();
                        let over = (*cost - hold.amount()).max(Money(0));
                        let charged = hold.settle(*cost, clock());
                        ended = ends.lock();
                        ended.excess += over;
                        ended.charges.push(charged);
                    }
                }
            });
        }
    });
    ends.into_inner()
}

/// Between one and thirty cents; the bound that is reserved is ten.
fn costs(count: u64) -> Vec<Money> {
    let cents = |n: u64| n.wrapping_mul(0x9E37_79B9_7F4A_7C15) % 30 + 1;
    (0..count)
        .map(|n| Money(cents(n) as i64 * 10_000_000))
        .collect()
}

const DOLLAR: Money = Money::from_usd(1);
const BOUND: i64 = 100_000_000;

#[test]
fn two_hundred_share_a_dollar() {
    for mode in [Reservation::Available, Reservation::Strict] {
        let book = with_balance(DOLLAR.0);
        let ends = crowd(&book, ask(mode, BOUND), &costs(200), &|| at(0));
        let spent: Money = ends.charges.iter().copied().sum();
        assert_eq!(book.balance(USER), DOLLAR - spent, "{mode:?}");
        assert_eq!(book.open_holds(), OpenHolds::default());
        assert_eq!(ends.charges.len() + ends.refusals.len(), 200);
        assert!(!ends.refusals.is_empty());
        for refusal in &ends.refusals {
            assert_eq!(refusal.limit, Limit::Balance);
            assert!(!refusal.left.is_positive(), "it was only held: {refusal:?}");
        }
        match mode {
            Reservation::Strict => assert_eq!(spent, DOLLAR),
            _ => assert!(DOLLAR <= spent && spent <= DOLLAR + ends.excess),
        }
    }
}

#[test]
fn fifty_share_a_quota() {
    for mode in [Reservation::Available, Reservation::Strict] {
        let book = with_balance(i64::MAX / 2);
        let ask = Ask {
            limits: Limits {
                quota: Some(DOLLAR),
                ..Limits::default()
            },
            ..ask(mode, BOUND)
        };
        let ends = crowd(&book, ask, &costs(50), &|| at(0));
        let spent: Money = ends.charges.iter().copied().sum();
        assert_eq!(book.key_spent(KEY), spent);
        assert!(ends.refusals.iter().all(|r| r.limit == Limit::Quota));
        assert!(!ends.refusals.is_empty());
        match mode {
            Reservation::Strict => assert_eq!(spent, DOLLAR),
            _ => assert!(DOLLAR <= spent && spent <= DOLLAR + ends.excess),
        }
    }
}

#[test]
fn fifty_cross_the_end_of_a_window() {
    let book = with_balance(i64::MAX / 2);
    let ask = Ask {
        limits: Limits {
            key_windows: [Some(DOLLAR), None, None],
            ..Limits::default()
        },
        ..ask(Reservation::Strict, BOUND)
    };
    let first = book.reserve(&ask, at(0)).unwrap();
    first.settle(Money(1), at(0));
    // Every look at the clock is ten minutes later, so that the crowd begins in the window and ends in the
    // next one or the one after that.
    let clock = AtomicI64::new(3600);
    let ends = crowd(&book, ask, &costs(50), &|| {
        at(clock.fetch_add(600, Ordering::Relaxed))
    });
    assert_eq!(ends.charges.len() + ends.refusals.len(), 50);
    let spent: Money = ends.charges.iter().copied().sum();
    assert_eq!(book.key_spent(KEY), spent + Money(1));
    assert!(spent > DOLLAR, "more than one window had: {spent}");
    let now = at(clock.load(Ordering::Relaxed));
    let standing = standing(&book, now);
    assert!(standing.key_windows[0].used <= DOLLAR);
    for refusal in &ends.refusals {
        assert_eq!(refusal.limit, Limit::KeyWindow(WindowKind::FiveHours));
        assert!(refusal.resets_at.is_some());
        assert!(!refusal.left.is_positive());
    }
    // What was held over the end counts in the window in which it ended.
    let book = with_balance(i64::MAX / 2);
    let holds: Vec<Hold> = (0..10)
        .map(|_| book.reserve(&ask, hours(4)).unwrap())
        .collect();
    book.restore(&record(PAYER, BOUND, hours(1)));
    let held = book.check(&ask, hours(6));
    assert!(matches!(held, Err(Denied::Held(_))), "{held:?}");
    for hold in holds {
        assert_eq!(hold.settle(Money(BOUND), hours(6)), Money(BOUND));
    }
    let refused = book.check(&ask, hours(6));
    assert!(matches!(refused, Err(Denied::Refused(_))), "{refused:?}");
    let window = Window {
        start: Some(hours(6)),
        used: DOLLAR,
    };
    assert_eq!(
        book.standing(USER, KEY, GROUP, hours(7)).key_windows[0],
        window
    );
}

#[test]
fn a_credit_amid_load_counts_once() {
    let book = with_balance(DOLLAR.0);
    let credited = AtomicI64::new(0);
    let runtime = runtime();
    let costs = costs(100);
    std::thread::scope(|scope| {
        for cost in &costs {
            let (book, runtime) = (&book, runtime.handle());
            scope.spawn(move || {
                let ask = ask(Reservation::Strict, BOUND);
                loop {
                    let changed = book.changed(USER);
                    match book.reserve(&ask, at(0)) {
                        Err(Denied::Held(_)) => runtime.block_on(changed),
                        Err(Denied::Refused(_)) => break,
                        Ok(hold) => {
                            hold.settle(*cost, at(0));
                            break;
                        }
                    }
                }
            });
        }
        // As the follower tells it, again and again, nothing having been written meanwhile.
        scope.spawn(|| {
            for _ in 0..50 {
                book.refresh(vec![(USER, Money(DOLLAR.0 * 3))], vec![]);
                credited.store(2, Ordering::Relaxed);
            }
        });
    });
    let spent = book.key_spent(KEY);
    assert_eq!(credited.load(Ordering::Relaxed), 2);
    assert_eq!(book.balance(USER), Money(DOLLAR.0 * 3) - spent);
    assert!(book.balance(USER) >= Money(0));
}
