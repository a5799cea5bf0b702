//! What does it cost to ask the book? A reservation and its settlement: alone and by eight threads, each
//! with a user of its own or all with the same; with no limit but the balance and with every limit set;
//! and a check, which takes nothing.

use std::hint::black_box;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tollgate::billing::book::{Ask, Book, Count, Limits, Payer, Pays};
use tollgate::config::Reservation;
use tollgate::domain::{ApiKeyId, GroupId, Money, UserId};

fn now() -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000, 0).unwrap_or_default()
}

fn ask(id: i64, limits: Limits) -> Ask {
    Ask {
        payer: Payer {
            user: UserId(id),
            key: ApiKeyId(id),
            group: GroupId(1),
            pays: Pays::Balance,
        },
        limits,
        want: Money(100_000),
        least: Money(0),
        mode: Reservation::Available,
        take_what_is_free: false,
        count_request: Count::Yes,
    }
}

/// Every limit set, none ever reached.
fn all_limits() -> Limits {
    let plenty = Some(Money::from_usd(1_000_000_000));
    Limits {
        quota: plenty,
        key_windows: [plenty; 3],
        subscription: [plenty; 3],
        user_rpm: u32::MAX,
        group_rpm: u32::MAX,
    }
}

fn book() -> Book {
    let book = Book::new(Tz::Europe__Berlin);
    let users = (0..100).map(|id| (UserId(id), Money::from_usd(1_000_000_000)));
    book.refresh(users.collect(), vec![]);
    book
}

fn reserve_and_settle(book: &Book, ask: &Ask, now: DateTime<Utc>) {
    let hold = book.reserve(black_box(ask), now).expect("plenty");
    black_box(hold.settle(Money(10), now));
}

/// The time of `iterations` rounds, shared out over `threads` threads.
fn on_threads(threads: u64, iterations: u64, round: impl Fn(u64) + Sync) -> Duration {
    let barrier = Barrier::new(threads as usize + 1);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (barrier, round) = (&barrier, &round);
            scope.spawn(move || {
                barrier.wait();
                for _ in 0..iterations / threads + 1 {
                    round(thread);
                }
                barrier.wait();
            });
        }
        barrier.wait();
        let began = Instant::now();
        barrier.wait();
        began.elapsed()
    })
}

fn asking(c: &mut Criterion) {
    let (book, now) = (book(), now());
    let mut group = c.benchmark_group("book");
    group.throughput(Throughput::Elements(1));
    for (name, limits) in [("balance", Limits::default()), ("all_limits", all_limits())] {
        let one = ask(1, limits);
        group.bench_function(format!("reserve_and_settle/{name}"), |b| {
            b.iter(|| reserve_and_settle(&book, &one, now));
        });
        group.bench_function(format!("check/{name}"), |b| {
            b.iter(|| black_box(book.check(black_box(&one), now)));
        });
        group.bench_function(
            format!("reserve_and_settle/{name}/8_threads/own_users"),
            |b| {
                b.iter_custom(|iterations| {
                    on_threads(8, iterations, |thread| {
                        reserve_and_settle(&book, &ask(10 + thread as i64, limits), now);
                    })
                });
            },
        );
        group.bench_function(
            format!("reserve_and_settle/{name}/8_threads/same_user"),
            |b| b.iter_custom(|n| on_threads(8, n, |_| reserve_and_settle(&book, &one, now))),
        );
    }
    group.finish();
}

criterion_group!(benches, asking);
criterion_main!(benches);
