//! What do slots cost? A lease taken and given back: alone, by several threads on the same and on
//! different accounts, with a hundred requests in line; joining and leaving lines; the loads of many
//! accounts; and what a change of one account's conditions costs the next reader.

use std::hint::black_box;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use chrono::Utc;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use futures::FutureExt;
use tollgate::domain::{AccountId, Condition, ConditionKind, UserId};
use tollgate::state::memory::MemoryState;
use tollgate::state::{LiveState, Slot, Want};

fn account(id: i64, limit: u32) -> Want {
    Want {
        slot: Slot::Account(AccountId(id)),
        limit,
    }
}

fn lease_and_release(state: &MemoryState, want: Want) {
    let lease = state.try_lease(want).now_or_never();
    black_box(lease).expect("memory never waits").ok();
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

fn leases(c: &mut Criterion) {
    let state = MemoryState::new();
    c.bench_function("lease/account", |b| {
        b.iter(|| lease_and_release(&state, account(1, 10)));
    });
    c.bench_function("lease/full", |b| {
        let _held = state.try_lease(account(2, 1)).now_or_never();
        b.iter(|| lease_and_release(&state, account(2, 1)));
    });
    c.bench_function("lease/first_of_100_the_last", |b| {
        let mut wants: Vec<Want> = (1000..1099).map(|id| account(id, 1)).collect();
        let held: Vec<_> = wants
            .iter()
            .map(|want| state.try_lease(*want).now_or_never())
            .collect();
        wants.push(account(1099, 1));
        b.iter(|| black_box(state.lease_first(&wants).now_or_never()));
        drop(held);
    });
    for threads in [2, 4, 8] {
        c.bench_function(&format!("lease/{threads}_threads/same_account"), |b| {
            b.iter_custom(|iterations| {
                on_threads(threads, iterations, |_| {
                    lease_and_release(&state, account(1, 100));
                })
            });
        });
        c.bench_function(&format!("lease/{threads}_threads/own_accounts"), |b| {
            b.iter_custom(|iterations| {
                on_threads(threads, iterations, |thread| {
                    lease_and_release(&state, account(10 + thread as i64, 100));
                })
            });
        });
    }
}

/// A hundred requests of ten users in line for one account. Each round gives the unit back, lets the
/// next one have it, and puts another in line.
fn lines(c: &mut Criterion) {
    let state = MemoryState::new();
    for accounts in [1, 20, 100] {
        let wants: Vec<Want> = (0..accounts).map(|id| account(id, 1)).collect();
        c.bench_function(&format!("line/100_waiting/{accounts}_accounts"), |b| {
            let mut held: Vec<_> = wants
                .iter()
                .filter_map(|want| state.try_lease(*want).now_or_never()?.ok()?)
                .collect();
            let join = |user: i64| {
                let ticket = state.ticket(UserId(user % 10));
                let mut wait = state.lease_any(&wants, ticket, 1000);
                assert!(wait.as_mut().now_or_never().is_none());
                wait
            };
            let mut waits: std::collections::VecDeque<_> = (0..100).map(join).collect();
            let mut user = 0;
            b.iter(|| {
                drop(held.pop());
                let mut wait = waits.pop_front().expect("a hundred");
                let lease = wait.as_mut().now_or_never().expect("its turn");
                held.push(lease.expect("memory is always there"));
                waits.push_back(join(user));
                user += 1;
            });
        });
    }
}

fn loads(c: &mut Criterion) {
    let state = MemoryState::new();
    let ids: Vec<AccountId> = (1..=10_000).map(AccountId).collect();
    let _held: Vec<_> = ids
        .iter()
        .filter_map(|id| state.try_lease(account(id.0, 5)).now_or_never()?.ok()?)
        .collect();
    let mut group = c.benchmark_group("loads");
    for count in [100, 1_000, 10_000] {
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(count.to_string(), |b| {
            b.iter(|| state.loads(black_box(&ids[..count])).now_or_never());
        });
    }
}

fn conditions(c: &mut Criterion) {
    for accounts in [0, 100, 10_000] {
        let state = MemoryState::new();
        let limited = |id: i64, seconds: i64| {
            let now = Utc::now();
            let condition = Condition {
                kind: ConditionKind::RateLimited,
                model: None,
                since: now,
                until: Some(now + chrono::TimeDelta::seconds(seconds)),
                status: Some(429),
                reason: "the provider said that it is limited".into(),
            };
            state
                .set_condition(AccountId(id), condition)
                .now_or_never()
                .expect("memory never waits")
                .ok();
        };
        for id in 0..accounts {
            limited(id, 60);
        }
        let mut seconds = 60;
        c.bench_function(&format!("conditions/{accounts}/read"), |b| {
            b.iter(|| state.conditions());
        });
        c.bench_function(&format!("conditions/{accounts}/change_and_read"), |b| {
            b.iter(|| {
                seconds += 1;
                limited(1, seconds);
                Arc::strong_count(&state.conditions())
            });
        });
    }
}

criterion_group!(benches, leases, lines, loads, conditions);
criterion_main!(benches);
