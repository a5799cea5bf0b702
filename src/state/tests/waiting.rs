//! Who waits, and who is next.

use super::*;
use crate::state::Load;
use crate::state::memory::SharedState;

#[test]
fn never_more_than_the_limit_and_zero_is_unlimited() {
    let state = MemoryState::new();
    let one = take(&state, A, 1).unwrap();
    assert_eq!(one.slot(), A);
    assert!(take(&state, A, 1).is_none());
    drop(one);
    assert!(take(&state, A, 1).is_some());
    let many: Vec<_> = (0..100).map(|_| take(&state, B, 0).unwrap()).collect();
    let user = take(&state, Slot::User(UserId(1)), 1).unwrap();
    assert_eq!(state.held(), (1, 100));
    drop((many, user));
    assert_eq!(state.held(), (0, 0));
}

#[tokio::test]
async fn the_first_with_room_is_taken() {
    let state = MemoryState::new();
    let wants = [want(A, 1), want(B, 1)];
    let mut leases = Vec::new();
    for (expected, slot) in [(Some(0), Some(A)), (Some(1), Some(B)), (None, None)] {
        let got = state.lease_first(&wants).await.unwrap();
        assert_eq!(got.as_ref().map(|(index, _)| *index), expected);
        assert_eq!(got.as_ref().map(|(_, lease)| lease.slot()), slot);
        leases.extend(got);
    }
    assert!(state.lease_first(&[]).await.unwrap().is_none());
    drop(leases);
    // A wait with room does not wait.
    let lease = state.lease_any(&wants, state.ticket(UserId(1)), 0).await;
    assert_eq!(lease.unwrap().slot(), A);
}

#[test]
fn a_unit_goes_to_the_first_in_line_whichever_slot_it_is_of() {
    let state = MemoryState::new();
    let (a, b) = (take(&state, A, 1).unwrap(), take(&state, B, 1).unwrap());
    let both = [want(A, 1), want(B, 1)];
    let only_a = [want(A, 1)];
    let mut first = user_line_up(&state, &both, 1);
    let mut second = user_line_up(&state, &only_a, 2);
    assert_eq!(state.waiting(), (0, 2));
    drop(b);
    assert!(poll(&mut second).is_none(), "not what it waits for");
    assert_eq!(poll(&mut first).unwrap().slot(), B);
    drop(a);
    assert_eq!(poll(&mut second).unwrap().slot(), A);
    assert_eq!(state.waiting(), (0, 0));
}

/// Lets the waits be served one by one and says whose they were.
fn order_of(state: &MemoryState, held: Lease, mut waits: Vec<(i64, Wait<'_>)>) -> Vec<i64> {
    let mut order = Vec::new();
    let mut held = Some(held);
    while !waits.is_empty() {
        drop(held.take());
        let mut served = waits
            .iter_mut()
            .enumerate()
            .filter_map(|(index, (_, wait))| Some((index, poll(wait)?)));
        let (index, lease) = served.next().expect("somebody is next");
        assert!(served.next().is_none(), "one unit, one grant");
        drop(served);
        held = Some(lease);
        order.push(waits.remove(index).0);
    }
    assert_eq!(state.waiting(), (0, 0));
    order
}

#[test]
fn users_take_turns_and_the_requests_of_one_user_keep_their_order() {
    for (arrivals, expected) in [
        (vec![1, 1, 1, 1, 2], vec![1, 2, 1, 1, 1]),
        (vec![1, 1, 1, 2, 2, 3], vec![1, 2, 3, 1, 2, 1]),
        (vec![3, 2, 1], vec![3, 2, 1]),
        (vec![1, 2, 1, 2, 2], vec![1, 2, 1, 2, 2]),
    ] {
        let state = MemoryState::new();
        let held = take(&state, A, 1).unwrap();
        let wants = [want(A, 1)];
        let mut waits = Vec::new();
        for user in &arrivals {
            waits.push((*user, user_line_up(&state, &wants, *user)));
        }
        assert_eq!(order_of(&state, held, waits), expected, "{arrivals:?}");
    }
}

#[test]
fn one_request_after_another_is_no_way_past_a_long_line() {
    // User 1 has fifty in line; user 2 always one, the next as soon as the last is served.
    let state = MemoryState::new();
    let mut held = take(&state, A, 1);
    let wants = [want(A, 1)];
    let mut many: Vec<_> = (0..50).map(|_| user_line_up(&state, &wants, 1)).collect();
    let mut single = user_line_up(&state, &wants, 2);
    let mut order = Vec::new();
    for _ in 0..20 {
        drop(held.take());
        if let Some(lease) = poll(&mut single) {
            order.push(2);
            held = Some(lease);
            single = user_line_up(&state, &wants, 2);
        } else {
            let mut grants = many.iter_mut().enumerate();
            let (index, lease) = grants.find_map(|(i, w)| Some((i, poll(w)?))).unwrap();
            assert_eq!(index, 0, "its oldest");
            drop(many.remove(0));
            order.push(1);
            held = Some(lease);
        }
    }
    assert_eq!(order, [1, 2].repeat(10));
}

#[test]
fn a_stream_of_new_users_does_not_starve_a_long_line() {
    let state = MemoryState::new();
    let mut held = take(&state, A, 1);
    let wants = [want(A, 1)];
    let mut old: Vec<_> = (0..10).map(|_| user_line_up(&state, &wants, 1)).collect();
    let mut served = 0;
    for user in 2..12 {
        let mut new = user_line_up(&state, &wants, user);
        for _ in 0..2 {
            drop(held.take());
            held = poll(&mut new);
            if held.is_none() {
                served += 1;
                held = poll(&mut old[0]);
                drop(old.remove(0));
            }
            assert!(held.is_some());
        }
    }
    assert_eq!(served, 10, "every second one");
}

#[test]
fn waiting_again_keeps_the_place() {
    let state = MemoryState::new();
    let (a, b) = (take(&state, A, 1).unwrap(), take(&state, B, 1).unwrap());
    let (for_a, for_b) = ([want(A, 1)], [want(B, 1)]);
    let early = state.ticket(UserId(1));
    let brief = line_up(&state, &for_a, early);
    let mut late = user_line_up(&state, &for_b, 2);
    drop(brief);
    let mut again = line_up(&state, &for_b, early);
    drop(b);
    assert!(poll(&mut late).is_none());
    assert_eq!(poll(&mut again).unwrap().slot(), B);
    drop(a);
}

#[test]
fn who_leaves_the_line_loses_nothing() {
    let state = MemoryState::new();
    let held = take(&state, A, 1).unwrap();
    let wants = [want(A, 1)];
    let gone = user_line_up(&state, &wants, 1);
    let granted_then_gone = user_line_up(&state, &wants, 2);
    let mut last = user_line_up(&state, &wants, 3);
    drop(gone);
    drop(held); // granted to the second, which never looks
    assert_eq!(state.held(), (0, 1));
    assert!(poll(&mut last).is_none());
    drop(granted_then_gone);
    assert!(poll(&mut last).is_some());
    drop(last);
    assert_eq!((state.held(), state.waiting()), ((0, 0), (0, 0)));
}

#[tokio::test]
async fn the_line_is_bounded() {
    let state = MemoryState::new();
    let user = Slot::User(UserId(1));
    for (slot, max, users) in [
        // A user's own line is filled to the end, a shared one by more than one user.
        (user, 4, [1, 1, 1, 1]),
        (A, 4, [1, 1, 1, 2]),
    ] {
        let held = take(&state, slot, 1);
        let wants = [want(slot, 1)];
        let mut waits: Vec<Wait<'_>> = Vec::new();
        for user in users {
            let mut wait = state.lease_any(&wants, state.ticket(UserId(user)), max);
            assert!(wait.as_mut().now_or_never().is_none(), "{slot:?}");
            waits.push(wait);
            if slot == A && waits.len() == 3 {
                let fourth = state.lease_any(&wants, state.ticket(UserId(1)), max).await;
                assert!(matches!(fourth, Err(WaitError::LineFull)));
            }
        }
        for user in [1, 9] {
            let more = state.lease_any(&wants, state.ticket(UserId(user)), max);
            assert!(matches!(more.await, Err(WaitError::LineFull)), "{slot:?}");
        }
        drop((held, waits));
    }
    // The other line has a place: it waits only there.
    let (a, b) = (take(&state, A, 1).unwrap(), take(&state, B, 1).unwrap());
    let (both, only_a) = ([want(A, 1), want(B, 1)], [want(A, 1)]);
    let _in_a = user_line_up(&state, &only_a, 1);
    let mut wait = state.lease_any(&both, state.ticket(UserId(2)), 1);
    assert!(wait.as_mut().now_or_never().is_none());
    let ids = [AccountId(1), AccountId(2), AccountId(3)];
    let loads = state.loads(&ids).await.unwrap();
    let load = |held, waiting| Load { held, waiting };
    assert_eq!(loads, [load(1, 1), load(1, 1), load(0, 0)]);
    drop(b);
    assert_eq!(poll(&mut wait).unwrap().slot(), B);
    drop(a);
    let none = state.lease_any(&[], state.ticket(UserId(1)), 9).await;
    assert!(matches!(none, Err(WaitError::LineFull)));
}

#[test]
fn a_raised_limit_serves_the_line_first() {
    let state = MemoryState::new();
    let _held = take(&state, A, 1).unwrap();
    let one = [want(A, 1)];
    let mut waits: Vec<_> = (0..3).map(|_| user_line_up(&state, &one, 1)).collect();
    assert!(take(&state, A, 1).is_none());
    // Three may run: two of those in line, and not who brings the news.
    assert!(take(&state, A, 3).is_none());
    let served = |waits: &mut Vec<Wait<'_>>| -> Vec<bool> {
        waits
            .iter_mut()
            .map(|w| poll(w).map(drop).is_some())
            .collect()
    };
    let held: Vec<_> = waits[..2].iter_mut().filter_map(poll).collect();
    assert_eq!(held.len(), 2);
    assert_eq!(served(&mut waits.split_off(2)), [false]);
    drop(waits);
    // Nobody is left in line; five may run.
    assert!(take(&state, A, 5).is_some());
    // News by somebody who then waits for another slot as well.
    let mut last = user_line_up(&state, &one, 2);
    let six = [want(A, 6)];
    let mut bearer = state.lease_any(&six, state.ticket(UserId(3)), 9);
    let got = poll(&mut bearer);
    assert!(poll(&mut last).is_some() && got.is_some());
}

#[test]
fn a_lowered_limit_is_respected_when_a_unit_comes_back() {
    let state = MemoryState::new();
    let mut held: Vec<_> = (0..3).map(|_| take(&state, A, 3).unwrap()).collect();
    let wants = [want(A, 3)];
    let mut wait = user_line_up(&state, &wants, 1);
    assert!(take(&state, A, 2).is_none(), "the news");
    drop(held.pop());
    assert!(poll(&mut wait).is_none(), "two are still held");
    drop(held.pop());
    assert!(poll(&mut wait).is_some());
}

#[test]
fn turns_are_forgotten_when_they_make_no_difference() {
    let shared = SharedState::new();
    let state = MemoryState::for_owner(&shared, at(0));
    let mut held = take(&state, A, 1);
    let wants = [want(A, 1)];
    let mut next = user_line_up(&state, &wants, 0);
    let mut most = 0;
    for user in 1..5_000 {
        // There is always one in line.
        let after = user_line_up(&state, &wants, user);
        drop(held.take());
        held = poll(&mut next);
        assert!(held.is_some());
        next = after;
        most = most.max(shared.turns());
    }
    drop(next);
    assert!(most <= 70, "{most} turns kept for two in line");
    drop(held);
    assert!(shared.is_at_rest());
}

#[test]
fn a_panic_gives_back_what_was_held() {
    let shared = SharedState::new();
    let state = MemoryState::for_owner(&shared, at(0));
    let wants = [want(A, 1)];
    let mut next = None;
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _lease = take(&state, A, 1).unwrap();
        next = Some(user_line_up(&state, &wants, 1));
        let _in_line = user_line_up(&state, &wants, 2);
        panic!("in the middle of a request");
    }));
    assert!(caught.is_err());
    assert!(poll(next.as_mut().unwrap()).is_some());
    drop(next);
    assert!(shared.is_at_rest());
}
