//! Many requests at once on real threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use super::*;
use crate::state::memory::SharedState;

const ACCOUNTS: usize = 6;
const CLIENTS: u64 = 300;
const REQUESTS: u64 = 40;

/// A small generator of numbers: the same storm every time, as far as the threads allow.
fn next(seed: &mut u64) -> usize {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
    (*seed >> 33) as usize
}

/// What is in use, as the upstream would see it.
struct Used<'u>(&'u AtomicI64);

impl<'u> Used<'u> {
    fn new(count: &'u AtomicI64, limit: usize) -> Used<'u> {
        let used = count.fetch_add(1, Ordering::SeqCst) + 1;
        assert!(used <= limit as i64, "{used} of {limit}");
        Used(count)
    }
}

impl Drop for Used<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_account_is_given_more_than_it_has_and_all_comes_back() {
    let shared = SharedState::new();
    let states: [_; 2] = [(); 2].map(|()| Arc::new(MemoryState::for_owner(&shared, at(0))));
    let used: Arc<Vec<AtomicI64>> = Arc::new((0..ACCOUNTS).map(|_| AtomicI64::new(0)).collect());
    let served = Arc::new(AtomicU64::new(0));
    let mut tasks = Vec::new();
    for client in 0..CLIENTS {
        let (state, used) = (states[client as usize % 2].clone(), used.clone());
        let served = served.clone();
        tasks.push(tokio::spawn(async move {
            let mut seed = client + 1;
            for _ in 0..REQUESTS {
                let user = UserId(next(&mut seed) as i64 % 20);
                let ticket = state.ticket(user);
                let own = [want(Slot::User(user), 8)];
                let Ok(_own) = state.lease_any(&own, ticket, 1000).await else {
                    panic!("the line is long enough");
                };
                let first = next(&mut seed);
                let wants: Vec<Want> = (0..1 + next(&mut seed) % ACCOUNTS)
                    .map(|n| (first + n) % ACCOUNTS)
                    .map(|n| want(Slot::Account(AccountId(n as i64)), n as u32 + 1))
                    .collect();
                // Some leave after a moment, granted or not.
                let patience = match next(&mut seed) % 3 {
                    0 => Some(next(&mut seed) % 4),
                    _ => None,
                };
                let leave = async {
                    match patience {
                        Some(turns) => {
                            for _ in 0..turns {
                                tokio::task::yield_now().await;
                            }
                        }
                        None => std::future::pending().await,
                    }
                };
                let lease = match state.lease_first(&wants).await.unwrap() {
                    Some((_, lease)) => lease,
                    None => tokio::select! {
                        lease = state.lease_any(&wants, ticket, 1000) => lease.unwrap(),
                        () = leave => continue,
                    },
                };
                let Slot::Account(AccountId(account)) = lease.slot() else {
                    panic!("an account's slot was asked for");
                };
                let account = account as usize;
                {
                    let _used = Used::new(&used[account], account + 1);
                    for _ in 0..next(&mut seed) % 3 {
                        tokio::task::yield_now().await;
                    }
                    served.fetch_add(1, Ordering::Relaxed);
                }
                if next(&mut seed).is_multiple_of(50) {
                    // Not a panic, which would only be noise in the output: the rest of the
                    // client's requests are given up with the lease held.
                    return;
                }
            }
        }));
    }
    for (number, task) in tasks.into_iter().enumerate() {
        if number % 10 == 9 {
            task.abort();
        }
        if let Err(error) = task.await {
            assert!(error.is_cancelled(), "{error}");
        }
    }
    assert!(served.load(Ordering::Relaxed) > CLIENTS);
    assert_eq!(states[0].held(), (0, 0));
    assert!(shared.is_at_rest());
}
