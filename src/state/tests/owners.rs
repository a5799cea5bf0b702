//! Processes that share the state, and die.

use super::*;
use crate::state::memory::SharedState;

fn renew(state: &MemoryState, second: i64) {
    let renewed = state.renew(at(second)).now_or_never();
    renewed.expect("memory never waits").unwrap();
}

#[test]
fn a_dead_owners_slots_come_back_to_those_in_line_and_only_once() {
    let shared = SharedState::new();
    let [dead, alive] = [(); 2].map(|()| MemoryState::for_owner(&shared, at(0)));
    let late = take(&dead, A, 2).unwrap();
    let own = take(&alive, A, 2).unwrap();
    let user = take(&dead, Slot::User(UserId(1)), 1).unwrap();
    let wants = [want(A, 2)];
    let mut dead_wait = user_line_up(&dead, &wants, 1);
    let mut wait = user_line_up(&alive, &wants, 2);
    renew(&alive, 29);
    alive.sweep(at(29));
    assert!(poll(&mut wait).is_none(), "it has a second left");
    assert_eq!(alive.held(), (1, 2));
    alive.sweep(at(30));
    let granted = poll(&mut wait).expect("the dead owner's unit");
    assert_eq!(alive.held(), (0, 2));
    // The dead owner's request does not wait any more.
    let ended = dead_wait.as_mut().now_or_never();
    assert!(matches!(ended, Some(Err(WaitError::State(_)))));
    // What comes back late was taken back already.
    drop((late, user));
    assert_eq!(alive.held(), (0, 2));
    assert!(take(&alive, A, 2).is_none());
    drop((own, granted, dead_wait));
    assert!(shared.is_at_rest());
}

#[test]
fn a_living_owner_keeps_its_leases_for_hours() {
    let shared = SharedState::new();
    let [one, two] = [(); 2].map(|()| MemoryState::for_owner(&shared, at(0)));
    let lease = take(&one, A, 1).unwrap();
    for second in (5..6 * 3600).step_by(5) {
        renew(&one, second);
        renew(&two, second);
        two.sweep(at(second));
    }
    assert_eq!(two.held(), (0, 1));
    assert!(take(&two, A, 1).is_none());
    drop(lease);
    assert_eq!(two.held(), (0, 0));
}

#[test]
fn an_owner_never_takes_back_its_own() {
    let shared = SharedState::new();
    let alone = MemoryState::for_owner(&shared, at(0));
    let lease = take(&alone, A, 1).unwrap();
    alone.sweep(at(1_000_000));
    assert_eq!(alone.held(), (0, 1));
    drop(lease);
    assert_eq!(alone.held(), (0, 0));
}

#[test]
fn one_that_only_slept_goes_on_as_another_owner() {
    let shared = SharedState::new();
    let [sleeper, other] = [(); 2].map(|()| MemoryState::for_owner(&shared, at(0)));
    let old = take(&sleeper, A, 2).unwrap();
    renew(&other, 60);
    other.sweep(at(60));
    // A lease of now is not given back by an old one.
    let new = take(&sleeper, A, 2).unwrap();
    assert_eq!(other.held(), (0, 1));
    drop(old);
    assert_eq!(other.held(), (0, 1));
    // It counts as alive from the time that was known, and dies again if it sleeps on.
    other.sweep(at(89));
    assert_eq!(other.held(), (0, 1));
    renew(&sleeper, 89);
    other.sweep(at(118));
    assert_eq!(other.held(), (0, 1));
    other.sweep(at(119));
    assert_eq!(other.held(), (0, 0));
    drop(new);
    // It cannot renew what it has lost, but goes on.
    renew(&sleeper, 120);
    let lease = take(&sleeper, A, 2);
    other.sweep(at(149));
    assert_eq!(other.held(), (0, 1));
    drop(lease);
    assert!(shared.is_at_rest());
}
