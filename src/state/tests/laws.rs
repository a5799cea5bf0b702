//! Laws over random histories: several users, slots and owners, and everything that may happen.

use std::sync::Arc;

use futures::task::{ArcWake, Context, Poll, waker};
use parking_lot::Mutex;
use proptest::prelude::*;

use super::*;
use crate::state::memory::SharedState;

const USERS: usize = 4;
const SLOTS: usize = 3;
const OWNERS: usize = 2;

/// Something that happens. Numbers choose among what there is.
#[derive(Clone, Debug)]
enum Event {
    Take {
        owner: usize,
        slot: usize,
    },
    Wait {
        owner: usize,
        user: usize,
        slots: usize,
    },
    WaitAgain {
        nth: usize,
        slots: usize,
    },
    Cancel {
        nth: usize,
    },
    GiveBack {
        nth: usize,
    },
    Limit {
        slot: usize,
        limit: u32,
    },
    Die {
        owner: usize,
    },
}

fn event() -> impl Strategy<Value = Event> {
    // At least one slot of three, as bits.
    let slots = 1..1_usize << SLOTS;
    prop_oneof![
        2 => (0..OWNERS, 0..SLOTS).prop_map(|(owner, slot)| Event::Take { owner, slot }),
        6 => (0..OWNERS, 0..USERS, slots.clone())
            .prop_map(|(owner, user, slots)| Event::Wait { owner, user, slots }),
        1 => (any::<usize>(), slots).prop_map(|(nth, slots)| Event::WaitAgain { nth, slots }),
        1 => any::<usize>().prop_map(|nth| Event::Cancel { nth }),
        6 => any::<usize>().prop_map(|nth| Event::GiveBack { nth }),
        1 => (0..SLOTS, 1..4_u32).prop_map(|(slot, limit)| Event::Limit { slot, limit }),
        1 => (0..OWNERS).prop_map(|owner| Event::Die { owner }),
    ]
}

/// Notes the order in which requests are woken.
struct Note {
    id: usize,
    woken: Arc<Mutex<Vec<usize>>>,
}

impl ArcWake for Note {
    fn wake_by_ref(note: &Arc<Note>) {
        note.woken.lock().push(note.id);
    }
}

struct Waiting<'s> {
    id: usize,
    ticket: Ticket,
    owner: usize,
    slots: usize,
    /// When it joined the lines, in grants.
    since: usize,
    wait: Wait<'s>,
}

/// A lease, and whether it is still its owner's.
struct Held {
    owner: usize,
    slot: usize,
    lease: Lease,
}

struct World<'s> {
    states: &'s [MemoryState],
    now: i64,
    limits: [u32; SLOTS],
    waits: Vec<Waiting<'s>>,
    held: Vec<Held>,
    /// Leases of dead owners.
    late: Vec<Lease>,
    /// Users served from the line.
    grants: Vec<UserId>,
    woken: Arc<Mutex<Vec<usize>>>,
    next_id: usize,
}

fn slot(index: usize) -> Slot {
    Slot::Account(AccountId(index as i64))
}

fn index(slot: Slot) -> usize {
    (0..SLOTS).find(|i| self::slot(*i) == slot).unwrap()
}

impl<'s> World<'s> {
    fn take(&mut self, owner: usize, slot: usize) {
        let in_line = self.waits.iter().any(|w| w.slots >> slot & 1 == 1);
        if let Some(lease) = take(&self.states[owner], self::slot(slot), self.limits[slot]) {
            // Before the grants are looked at: those in line now are those who were left out.
            let now = self.states[owner].loads_now(slot);
            assert!(!in_line || now.1 == 0, "overtook those in line");
            self.hold(owner, slot, lease);
        }
    }

    fn hold(&mut self, owner: usize, slot: usize, lease: Lease) {
        self.held.push(Held { owner, slot, lease });
    }

    fn wait(&mut self, owner: usize, ticket: Ticket, slots: usize) {
        let wants: Vec<Want> = (0..SLOTS)
            .filter(|i| slots >> i & 1 == 1)
            .map(|i| want(slot(i), self.limits[i]))
            .collect();
        let state = &self.states[owner];
        let wait: Wait<'s> = Box::pin(async move { state.lease_any(&wants, ticket, 1000).await });
        let id = self.next_id;
        self.next_id += 1;
        self.waits.push(Waiting {
            id,
            ticket,
            owner,
            slots,
            since: self.grants.len(),
            wait,
        });
        let last = self.waits.len() - 1;
        if let Some(granted) = self.poll(last) {
            // At once, and not from the line.
            let waiting = self.waits.remove(last);
            let lease = granted.expect("a living owner");
            let index = index(lease.slot());
            self.hold(waiting.owner, index, lease);
        }
    }

    fn poll(&mut self, index: usize) -> Option<Result<Lease, WaitError>> {
        let waiting = &mut self.waits[index];
        let note = Arc::new(Note {
            id: waiting.id,
            woken: self.woken.clone(),
        });
        let waker = waker(note);
        match waiting.wait.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(over) => Some(over),
            Poll::Pending => None,
        }
    }

    /// Lets those who were woken go on, in the order in which they were, and checks that each was
    /// next.
    fn settle(&mut self, may_end: Option<usize>) {
        loop {
            let woken = std::mem::take(&mut *self.woken.lock());
            if woken.is_empty() {
                break;
            }
            for id in woken {
                let Some(place) = self.waits.iter().position(|w| w.id == id) else {
                    continue;
                };
                let over = self.poll(place).expect("woken for a reason");
                let waiting = self.waits.remove(place);
                match over {
                    Ok(lease) => {
                        let index = index(lease.slot());
                        self.check_turn(&waiting, index);
                        self.grants.push(waiting.ticket.user);
                        self.hold(waiting.owner, index, lease);
                    }
                    Err(error) => {
                        assert!(matches!(error, WaitError::State(_)), "{error}");
                        assert_eq!(may_end, Some(waiting.owner), "its owner lives");
                    }
                }
            }
        }
        for waiting in 0..self.waits.len() {
            assert!(self.poll(waiting).is_none(), "a grant wakes its request");
        }
    }

    /// Between two grants to one user, everybody else who waited for the same slot all along gets
    /// one; and the requests of one user keep their order.
    fn check_turn(&self, served: &Waiting<'_>, slot: usize) {
        let user = served.ticket.user;
        let in_line = || self.waits.iter().filter(|w| w.slots >> slot & 1 == 1);
        for other in in_line().filter(|w| w.ticket.user == user) {
            assert!(served.ticket.number <= other.ticket.number, "own order");
        }
        let Some(last) = self.grants.iter().rposition(|u| *u == user) else {
            return;
        };
        for other in in_line().filter(|w| w.ticket.user != user && w.since <= last) {
            let got = self.grants[last..].contains(&other.ticket.user);
            assert!(got, "{:?} twice before {:?}", user, other.ticket.user);
        }
    }

    fn happen(&mut self, event: Event) {
        let mut dead = None;
        match event {
            Event::Take { owner, slot } => self.take(owner, slot),
            Event::Wait { owner, user, slots } => {
                let ticket = self.states[owner].ticket(UserId(user as i64));
                self.wait(owner, ticket, slots);
            }
            Event::WaitAgain { nth, slots } if !self.waits.is_empty() => {
                let waiting = self.waits.remove(nth % self.waits.len());
                let (owner, ticket) = (waiting.owner, waiting.ticket);
                drop(waiting);
                self.wait(owner, ticket, slots);
            }
            Event::Cancel { nth } if !self.waits.is_empty() => {
                drop(self.waits.remove(nth % self.waits.len()));
            }
            Event::GiveBack { nth } => match (self.held.len(), self.late.len()) {
                (0, 0) => {}
                (held, late) => match nth % (held + late) {
                    n if n < held => drop(self.held.remove(n).lease),
                    n => drop(self.late.remove(n - held)),
                },
            },
            Event::Limit { slot, limit } => {
                self.limits[slot] = limit;
                // Somebody has to bring the news.
                self.take(0, slot);
            }
            Event::Die { owner } => {
                let other = &self.states[(owner + 1) % OWNERS];
                self.now += 31;
                other.renew(at(self.now)).now_or_never().unwrap().unwrap();
                let held = std::mem::take(&mut self.held);
                let (lost, kept) = held.into_iter().partition(|h| h.owner == owner);
                self.held = kept;
                self.late
                    .extend(Vec::into_iter(lost).map(|h: Held| h.lease));
                other.sweep(at(self.now));
                dead = Some(owner);
            }
            _ => {}
        }
        let before = self.held.len();
        self.settle(dead);
        // The limits hold, and every unit that is counted is somebody's.
        for slot in 0..SLOTS {
            let held = self.held.iter().filter(|h| h.slot == slot).count();
            let (counted, waiting) = self.states[0].loads_now(slot);
            assert_eq!(counted as usize, held, "slot {slot}");
            let in_line = self.waits.iter().filter(|w| w.slots >> slot & 1 == 1);
            let in_line = in_line.count();
            assert_eq!(waiting as usize, in_line);
            let limit = self.limits[slot] as usize;
            let is_new =
                self.held.len() > before && self.held[before..].iter().any(|h| h.slot == slot);
            assert!(held <= limit || !is_new, "{held} of {limit} at slot {slot}");
            assert!(
                in_line == 0 || held >= limit,
                "room at {slot} that nobody got"
            );
        }
    }
}

impl MemoryState {
    fn loads_now(&self, slot: usize) -> (u32, u32) {
        let loads = self.loads(&[AccountId(slot as i64)]).now_or_never();
        let load = loads.unwrap().unwrap()[0];
        (load.held, load.waiting)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn limits_turns_and_returns_hold_whatever_happens(
        events in proptest::collection::vec(event(), 1..120),
    ) {
        let shared = SharedState::new();
        let states = [(); OWNERS].map(|()| MemoryState::for_owner(&shared, at(0)));
        let mut world = World {
            states: &states,
            now: 0,
            limits: [1, 2, 3],
            waits: Vec::new(),
            held: Vec::new(),
            late: Vec::new(),
            grants: Vec::new(),
            woken: Arc::default(),
            next_id: 0,
        };
        for event in events {
            world.happen(event);
        }
        let World { waits, held, late, .. } = world;
        drop(held);
        drop(late);
        drop(waits);
        prop_assert!(shared.is_at_rest());
        prop_assert_eq!(states[0].held(), (0, 0));
    }
}
