//! The waiting lines of a table of slots: who is next. All of it under the lock of the table.
//!
//! A request may stand in several lines and is granted the first unit of any of them. In every line
//! users take turns: next is the user who was served least lately, so that between two grants to one
//! user every other user who has been waiting for the same slot all along gets one. Being served
//! counts against a user only as long as somebody else waits who waited then already; besides, what
//! counts is who came first. Tickets and grants are numbered by one clock, which makes "before" a
//! comparison of two numbers.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::oneshot;

use super::slots::{Counts, Share, Try};
use super::{Lease, Slot, Ticket};
use crate::domain::UserId;

/// The lines a request stands in at most, the first of its wants: joining and leaving cost about the
/// same for each of them, under the lock.
pub const MAX_LINES: usize = 256;
/// A user may join a shared line while it has less than this many times the places that are free:
/// alone it gets three quarters of them, two users three sevenths each, and there is always a place
/// for one more who has none. (Nobody has to be turned out of the line for a newcomer.)
const TIMES_FREE: u64 = 3;
/// Turns are looked through when there are more than this many, and twice those left last time.
const FEW_TURNS: usize = 64;

/// A place in line: the ticket's number, and which of its waits.
pub(super) type Place = (u64, u64);

/// When a user was last served; 0 = never, or so long ago that nobody waits who waited then.
type Turn = Arc<AtomicU64>;

/// Leases on their way to their requests: sent when the lock is free again.
#[derive(Default)]
pub(super) struct Grants(Vec<(oneshot::Sender<Lease>, Lease)>);

impl Grants {
    /// Wakes the requests, in the order of the grants. A lease whose request has just gone is
    /// dropped here, and by that given to the next in line.
    pub(super) fn hand_over(self) {
        for (grant, lease) in self.0 {
            let _ = grant.send(lease);
        }
    }
}

/// How joining the lines ended.
pub(super) enum Joined {
    /// There was room.
    Taken(Lease),
    /// In line here.
    InLine(Place),
    /// There was no place in any line.
    Full,
}

/// See the module.
pub(super) struct Lines {
    clock: Arc<AtomicU64>,
    shared: bool,
    /// Kept only while somebody is in line.
    lines: HashMap<Slot, Line>,
    waiters: BTreeMap<Place, Waiter>,
    turns: HashMap<UserId, Turn>,
    prune_above: usize,
    waits: u64,
}

#[derive(Default)]
struct Line {
    users: BTreeMap<UserId, Queue>,
}

/// The requests of one user in one line, oldest first.
struct Queue {
    turn: Turn,
    places: BTreeSet<Place>,
}

/// A request in line.
pub(super) struct Waiter {
    user: UserId,
    shares: Vec<Arc<Share>>,
    grant: oneshot::Sender<Lease>,
}

impl Line {
    /// Whose turn it is.
    fn next(&self) -> Option<Place> {
        // The oldest request, and the oldest of anybody else: whether others have been waiting
        // since a user was served.
        let (mut oldest, mut of_others) = ((u64::MAX, None), u64::MAX);
        for (user, queue) in &self.users {
            let Some(&(number, _)) = queue.places.first() else {
                continue;
            };
            if number < oldest.0 {
                of_others = oldest.0;
                oldest = (number, Some(*user));
            } else {
                of_others = of_others.min(number);
            }
        }
        let turns = self.users.iter().filter_map(|(user, queue)| {
            let place = *queue.places.first()?;
            let others = match oldest.1 == Some(*user) {
                true => of_others,
                false => oldest.0,
            };
            let served = queue.turn.load(Ordering::Relaxed);
            Some((if served > others { served } else { 0 }, place))
        });
        turns.min().map(|(_, place)| place)
    }
}

impl Lines {
    pub(super) fn new(clock: Arc<AtomicU64>, shared: bool) -> Lines {
        Lines {
            clock,
            shared,
            lines: HashMap::new(),
            waiters: BTreeMap::new(),
            turns: HashMap::new(),
            prune_above: FEW_TURNS,
            waits: 0,
        }
    }

    pub(super) fn waiting(&self) -> u64 {
        self.waiters.len() as u64
    }

    /// Gives what room a slot has to those in line for it.
    pub(super) fn serve(&mut self, counts: &Counts, grants: &mut Grants) {
        while counts.has_room()
            && let Some(place) = self.lines.get(&counts.slot()).and_then(Line::next)
            && let Some(waiter) = self.waiters.get(&place)
            && let Some(share) = waiter
                .shares
                .iter()
                .find(|s| s.counts().slot() == counts.slot())
        {
            counts.take_for_line();
            let lease = share.lease();
            // Before it leaves: a turn that does not matter is forgotten with that.
            if let Some(turn) = self.turns.get(&waiter.user) {
                turn.store(tick(&self.clock), Ordering::Relaxed);
            }
            if let Some(waiter) = self.leave(place) {
                grants.0.push((waiter.grant, lease));
            }
        }
    }

    /// Takes a unit if one may be had at once, else a place in every line that has one.
    pub(super) fn join(
        &mut self,
        wants: Vec<(Arc<Share>, u32)>,
        ticket: Ticket,
        max_waiting: u32,
        grant: oneshot::Sender<Lease>,
        grants: &mut Grants,
    ) -> Joined {
        for (share, limit) in &wants {
            let counts = share.counts();
            counts.show(*limit);
            let mut tried = counts.try_take(*limit);
            if tried == Try::Line {
                self.serve(counts, grants);
                tried = counts.try_take(*limit);
            }
            if tried == Try::Taken {
                return Joined::Taken(share.lease());
            }
        }
        self.waits += 1;
        let place = (ticket.number, self.waits);
        let turn = self.turns.entry(ticket.user).or_default().clone();
        let mut shares = Vec::with_capacity(wants.len().min(MAX_LINES));
        let mut taken = None;
        for (share, limit) in wants {
            if shares.len() == MAX_LINES {
                break;
            }
            let counts = share.counts();
            let line = self.lines.entry(counts.slot()).or_default();
            let queue = line.users.entry(ticket.user).or_insert_with(|| Queue {
                turn: turn.clone(),
                places: BTreeSet::new(),
            });
            let own = queue.places.len();
            let in_line = counts.load().waiting;
            let stands = has_place(in_line, own, max_waiting, self.shared)
                && queue.places.insert(place)
                && match counts.take_or_wait(limit) {
                    Try::Line => true,
                    // It came back in this moment, without the lock.
                    _ => {
                        queue.places.remove(&place);
                        taken = Some(share.clone());
                        false
                    }
                };
            if stands {
                shares.push(share);
            } else {
                self.clear(counts.slot(), ticket.user);
            }
            if taken.is_some() {
                break;
            }
        }
        let waiter = Waiter {
            user: ticket.user,
            shares,
            grant,
        };
        let in_line = taken.is_none() && !waiter.shares.is_empty();
        self.waiters.insert(place, waiter);
        if in_line {
            return Joined::InLine(place);
        }
        self.leave(place);
        taken.map_or(Joined::Full, |share| Joined::Taken(share.lease()))
    }

    /// Takes a request out of every line it stands in.
    pub(super) fn leave(&mut self, place: Place) -> Option<Waiter> {
        let waiter = self.waiters.remove(&place)?;
        for share in &waiter.shares {
            let slot = share.counts().slot();
            let line = self.lines.get_mut(&slot);
            let queue = line.and_then(|line| line.users.get_mut(&waiter.user));
            if queue.is_some_and(|queue| queue.places.remove(&place)) {
                share.counts().stop_waiting();
            }
            self.clear(slot, waiter.user);
        }
        self.forget_turns();
        Some(waiter)
    }

    /// Takes all requests of an owner out of the lines.
    pub(super) fn remove_owner(&mut self, owner: u64) -> Vec<Waiter> {
        let is_its = |waiter: &Waiter| waiter.shares.iter().any(|s| s.owner() == owner);
        let places: Vec<Place> = self
            .waiters
            .iter()
            .filter(|(_, waiter)| is_its(waiter))
            .map(|(place, _)| *place)
            .collect();
        places.iter().filter_map(|p| self.leave(*p)).collect()
    }

    /// Forgets an empty queue and an empty line.
    fn clear(&mut self, slot: Slot, user: UserId) {
        let Some(line) = self.lines.get_mut(&slot) else {
            return;
        };
        if line.users.get(&user).is_some_and(|q| q.places.is_empty()) {
            line.users.remove(&user);
        }
        if line.users.is_empty() {
            self.lines.remove(&slot);
        }
    }

    /// Forgets the turns that make no difference any more: those of users who are in no line and
    /// were served before all that wait now had come.
    fn forget_turns(&mut self) {
        let Some(((oldest, _), _)) = self.waiters.first_key_value() else {
            self.turns.clear();
            self.prune_above = FEW_TURNS;
            return;
        };
        if self.turns.len() > self.prune_above {
            self.turns.retain(|_, turn| {
                Arc::strong_count(turn) > 1 || turn.load(Ordering::Relaxed) > *oldest
            });
            self.prune_above = FEW_TURNS.max(2 * self.turns.len());
        }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.lines.is_empty() && self.waiters.is_empty() && self.turns.is_empty()
    }

    #[cfg(test)]
    pub(super) fn turns(&self) -> usize {
        self.turns.len()
    }
}

/// The next number for a ticket or a grant.
pub(super) fn tick(clock: &AtomicU64) -> u64 {
    clock.fetch_add(1, Ordering::AcqRel) + 1
}

/// Whether a user who has `own` requests in a line may have one more there.
fn has_place(in_line: u32, own: usize, max_waiting: u32, shared: bool) -> bool {
    let Some(free @ 1..) = max_waiting.checked_sub(in_line) else {
        return false;
    };
    !shared || (own as u64) < TIMES_FREE * u64::from(free)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_fills_a_shared_line_alone() {
        // One user alone gets three quarters; then the others find places until it is full.
        for (max, alone) in [(0, 0), (1, 1), (2, 2), (4, 3), (100, 75)] {
            let mut own = 0;
            while has_place(own, own as usize, max, true) {
                own += 1;
            }
            assert_eq!(own, alone, "of {max}");
            let mut all = own;
            while has_place(all, 0, max, true) {
                all += 1;
            }
            assert_eq!(all, max, "newcomers fill it up");
        }
        assert!(has_place(24, 24, 25, false), "a line of its own");
        assert!(!has_place(25, 25, 25, false));
        assert!(!has_place(7, 0, 5, true), "the bound was lowered");
    }
}
