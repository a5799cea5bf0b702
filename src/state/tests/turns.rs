//! Messages of users that go to an account one after another.

use chrono::TimeDelta;

use super::*;
use crate::state::memory::SharedState;

const ACCOUNT: AccountId = AccountId(1);

/// The turn at [`ACCOUNT`]; of its slots there are others.
fn turn() -> [Want; 1] {
    [want(Slot::Turn(ACCOUNT), 1)]
}

#[test]
fn messages_have_their_turn_in_the_order_of_their_arrival() {
    let shared = SharedState::new();
    let state = MemoryState::for_owner(&shared, at(0));
    // One that has all slots of the account, and its turn.
    let slot = take(&state, A, 1).unwrap();
    let wants = turn();
    let mut held = take(&state, wants[0].slot, 1);
    assert_eq!((state.held(), state.turns_held()), ((0, 1), 1));
    let mut waits: Vec<Wait<'_>> = (0..5).map(|_| user_line_up(&state, &wants, 7)).collect();
    // Whoever leaves in the middle holds nobody up.
    drop(waits.remove(2));
    for (served, wait) in waits.iter_mut().enumerate() {
        assert!(poll(wait).is_none(), "{served} is before its turn");
        drop(held.take());
        held = poll(wait);
        assert!(held.is_some(), "{served} is next");
    }
    // Another account's turn is another.
    let other = take(&state, Slot::Turn(AccountId(2)), 1);
    assert_eq!((other.is_some(), state.turns_held()), (true, 2));
    drop((slot, waits, held, other));
    assert!(shared.is_at_rest());
    assert_eq!(state.turns_held(), 0);
}

#[test]
fn one_user_with_many_messages_does_not_hold_up_another() {
    let state = MemoryState::new();
    let wants = turn();
    let mut held = take(&state, wants[0].slot, 1);
    let mut many: Vec<Wait<'_>> = (0..3).map(|_| user_line_up(&state, &wants, 1)).collect();
    let mut one = user_line_up(&state, &wants, 2);
    drop(held.take());
    held = poll(&mut many[0]);
    assert!(held.is_some());
    drop(held.take());
    assert!(poll(&mut one).is_some());
    assert!(poll(&mut many[1]).is_some());
}

#[test]
fn the_turn_of_a_dead_process_comes_back() {
    let shared = SharedState::new();
    let [dead, alive] = [(); 2].map(|()| MemoryState::for_owner(&shared, at(0)));
    let wants = turn();
    let late = take(&dead, wants[0].slot, 1).unwrap();
    let mut wait = user_line_up(&alive, &wants, 1);
    alive
        .renew(at(29))
        .now_or_never()
        .expect("memory never waits")
        .unwrap();
    alive.sweep(at(29));
    assert!(poll(&mut wait).is_none(), "it has a second left");
    alive.sweep(at(30));
    let granted = poll(&mut wait).expect("the dead one's turn");
    drop(late);
    assert_eq!(alive.turns_held(), 1, "given back once");
    drop((granted, wait));
    assert!(shared.is_at_rest());
}

#[test]
fn processes_share_when_the_last_message_went() {
    let shared = SharedState::new();
    let [one, two] = [(); 2].map(|()| MemoryState::for_owner(&shared, at(0)));
    let go = |state: &MemoryState, second| {
        let gap = TimeDelta::seconds(2);
        let left = state.let_message_go(ACCOUNT, gap, at(second));
        left.now_or_never().expect("memory never waits").unwrap()
    };
    assert_eq!(go(&one, 0), None);
    assert_eq!(go(&two, 1), Some(TimeDelta::seconds(1)));
    one.message_ended(ACCOUNT, at(5));
    assert_eq!(go(&two, 6), Some(TimeDelta::seconds(1)));
    assert_eq!(go(&two, 7), None);
}
