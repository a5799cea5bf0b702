//! Counting the units of slots in this process.
//!
//! While nobody waits for a slot, a unit is taken and given back by one atomic operation on the
//! slot's word. As soon as somebody is in line, everything about that slot goes through the lock of
//! the [`Lines`]: the word says so in its lower half.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::dense::Dense;
use super::lines::{Grants, Joined, Lines, Place};
use super::{Lease, Load, Release, Slot, StateError, Ticket, WaitError};

/// One unit held, in the word of a slot; the lower half counts those in line.
const UNIT: u64 = 1 << 32;
/// Why a wait ends without its request having asked for it.
const OWNER_ENDED: &str = "this process did not renew its leases in time";

fn held(word: u64) -> u32 {
    (word >> 32) as u32
}

fn waiting(word: u64) -> u32 {
    word as u32
}

fn has_room(held: u32, limit: u32) -> bool {
    limit == 0 || held < limit
}

/// One slot: how many hold and how many wait.
pub(super) struct Counts {
    slot: Slot,
    word: AtomicU64,
    /// The limit that was shown last; 0 = unlimited.
    limit: AtomicU32,
}

/// What trying to take a unit came to.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Try {
    Taken,
    Full,
    /// There is room and somebody is in line: they come first.
    Line,
}

impl Counts {
    fn new(slot: Slot) -> Counts {
        Counts {
            slot,
            word: AtomicU64::new(0),
            limit: AtomicU32::new(0),
        }
    }

    pub(super) fn slot(&self) -> Slot {
        self.slot
    }

    pub(super) fn load(&self) -> Load {
        let word = self.word.load(Ordering::Relaxed);
        Load {
            held: held(word),
            waiting: waiting(word),
        }
    }

    /// Notes the limit somebody has shown.
    pub(super) fn show(&self, limit: u32) {
        if self.limit.load(Ordering::Relaxed) != limit {
            self.limit.store(limit, Ordering::Relaxed);
        }
    }

    /// Whether one more may be held, by the limit shown last.
    pub(super) fn has_room(&self) -> bool {
        let word = self.word.load(Ordering::Acquire);
        has_room(held(word), self.limit.load(Ordering::Relaxed))
    }

    pub(super) fn try_take(&self, limit: u32) -> Try {
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            if !has_room(held(word), limit) {
                return Try::Full;
            }
            if waiting(word) != 0 {
                return Try::Line;
            }
            match self.swap(word, word + UNIT) {
                Ok(()) => return Try::Taken,
                Err(now) => word = now,
            }
        }
    }

    /// Takes a unit if there is room and no line, else stands in line: in one step, so that no unit
    /// can come back unseen in between. Only with the lock of the lines.
    pub(super) fn take_or_wait(&self, limit: u32) -> Try {
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            let take = waiting(word) == 0 && has_room(held(word), limit);
            let after = if take { word + UNIT } else { word + 1 };
            match self.swap(word, after) {
                Ok(()) if take => return Try::Taken,
                Ok(()) => return Try::Line,
                Err(now) => word = now,
            }
        }
    }

    /// Counts a unit that goes to somebody in line. Only with the lock, and before they leave the
    /// line, so that nobody takes it without the lock meanwhile.
    pub(super) fn take_for_line(&self) {
        self.word.fetch_add(UNIT, Ordering::AcqRel);
    }

    /// One less in line. Only with the lock.
    pub(super) fn stop_waiting(&self) {
        self.word.fetch_sub(1, Ordering::AcqRel);
    }

    /// Gives units back if nobody is in line.
    fn try_give_back(&self, units: u32) -> bool {
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            if waiting(word) != 0 {
                return false;
            }
            match self.swap(word, word - UNIT * u64::from(units)) {
                Ok(()) => return true,
                Err(now) => word = now,
            }
        }
    }

    /// Gives units back whoever is in line. Only with the lock.
    fn give_back(&self, units: u32) {
        self.word
            .fetch_sub(UNIT * u64::from(units), Ordering::AcqRel);
    }

    fn swap(&self, from: u64, to: u64) -> Result<(), u64> {
        self.word
            .compare_exchange_weak(from, to, Ordering::AcqRel, Ordering::Relaxed)
            .map(|_| ())
    }
}

/// What one owner holds of one slot, and where its leases return to.
pub(super) struct Share {
    owner: u64,
    counts: Arc<Counts>,
    table: Arc<Table>,
    /// The leases of the owner that have not been taken back from it.
    held: AtomicU32,
}

impl Share {
    pub(super) fn owner(&self) -> u64 {
        self.owner
    }

    pub(super) fn counts(&self) -> &Counts {
        &self.counts
    }

    /// A lease of a unit that has been counted in the slot.
    pub(super) fn lease(self: &Arc<Share>) -> Lease {
        self.held.fetch_add(1, Ordering::AcqRel);
        Lease::new(self.counts.slot, self.clone())
    }

    /// Takes everything back from a dead owner.
    pub(super) fn take_back(&self) {
        let units = self.held.swap(0, Ordering::AcqRel);
        if units != 0 {
            self.table.give_back(&self.counts, units);
        }
    }
}

impl Release for Share {
    fn release(&self, _slot: Slot) {
        // A lease that comes back after its owner was found dead gives nothing back twice.
        let still_ours = self
            .held
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |n| n.checked_sub(1));
        if still_ours.is_ok() {
            self.table.give_back(&self.counts, 1);
        }
    }
}

/// All slots of one kind, with the lines for them.
pub(super) struct Table {
    counts: Dense<Counts>,
    lines: Mutex<Lines>,
}

impl Table {
    /// A table; `clock` numbers tickets and grants alike. Where users `share` a line, none may fill
    /// it alone.
    pub(super) fn new(clock: Arc<AtomicU64>, share: bool) -> Arc<Table> {
        Arc::new(Table {
            counts: Dense::new(),
            lines: Mutex::new(Lines::new(clock, share)),
        })
    }

    /// The share of a new owner in a slot.
    pub(super) fn share(self: &Arc<Table>, owner: u64, slot: Slot) -> Arc<Share> {
        let make = || Arc::new(Counts::new(slot));
        Arc::new(Share {
            owner,
            counts: self.counts.with(slot.row(), make, Arc::clone),
            table: self.clone(),
            held: AtomicU32::new(0),
        })
    }

    /// Takes a unit at once.
    pub(super) fn try_lease(&self, share: &Arc<Share>, limit: u32) -> Option<Lease> {
        share.counts.show(limit);
        match share.counts.try_take(limit) {
            Try::Taken => Some(share.lease()),
            Try::Full => None,
            Try::Line => self.try_lease_after_line(share, limit),
        }
    }

    #[cold]
    fn try_lease_after_line(&self, share: &Arc<Share>, limit: u32) -> Option<Lease> {
        let mut grants = Grants::default();
        let lease = {
            let mut lines = self.lines.lock();
            lines.serve(&share.counts, &mut grants);
            (share.counts.try_take(limit) == Try::Taken).then(|| share.lease())
        };
        grants.hand_over();
        lease
    }

    /// Waits for a unit of any of these slots (with their limits).
    pub(super) async fn lease_any(
        &self,
        wants: Vec<(Arc<Share>, u32)>,
        ticket: Ticket,
        max_waiting: u32,
    ) -> Result<Lease, WaitError> {
        let (grant, mut granted) = oneshot::channel();
        let mut grants = Grants::default();
        let joined = self
            .lines
            .lock()
            .join(wants, ticket, max_waiting, grant, &mut grants);
        // Leaves the line when this future is dropped; a lease granted in that very moment is in
        // `granted`, which is dropped after it and gives it back.
        let _place = match joined {
            Joined::Taken(lease) => {
                grants.hand_over();
                return Ok(lease);
            }
            Joined::Full => {
                grants.hand_over();
                return Err(WaitError::LineFull);
            }
            Joined::InLine(place) => Standing { table: self, place },
        };
        grants.hand_over();
        (&mut granted)
            .await
            .map_err(|_| StateError(OWNER_ENDED.to_owned()).into())
    }

    fn give_back(&self, counts: &Counts, units: u32) {
        if !counts.try_give_back(units) {
            self.give_back_to_line(counts, units);
        }
    }

    #[cold]
    fn give_back_to_line(&self, counts: &Counts, units: u32) {
        let mut grants = Grants::default();
        {
            let mut lines = self.lines.lock();
            counts.give_back(units);
            lines.serve(counts, &mut grants);
        }
        grants.hand_over();
    }

    /// Ends the waits of a dead owner's requests.
    pub(super) fn end_waits(&self, owner: u64) {
        let ended = self.lines.lock().remove_owner(owner);
        drop(ended);
    }

    pub(super) fn load(&self, id: i64) -> Load {
        self.counts.read(id, |c| c.load()).unwrap_or_default()
    }

    pub(super) fn held(&self) -> u64 {
        let mut sum = 0;
        self.counts.for_each(|c| sum += u64::from(c.load().held));
        sum
    }

    pub(super) fn waiting(&self) -> u64 {
        self.lines.lock().waiting()
    }

    #[cfg(test)]
    pub(super) fn turns(&self) -> usize {
        self.lines.lock().turns()
    }

    /// Whether nothing at all is kept for anybody.
    #[cfg(test)]
    pub(super) fn is_at_rest(&self) -> bool {
        let mut loads = Load::default();
        self.counts.for_each(|c| {
            loads.held += c.load().held;
            loads.waiting += c.load().waiting;
        });
        loads == Load::default() && self.lines.lock().is_empty()
    }
}

/// A request that stands in line.
struct Standing<'t> {
    table: &'t Table,
    place: Place,
}

impl Drop for Standing<'_> {
    fn drop(&mut self) {
        let left = self.table.lines.lock().leave(self.place);
        drop(left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::AccountId;

    #[test]
    fn a_unit_is_taken_or_waited_for_in_one_step() {
        for (held, waiting, limit, tried, joined) in [
            (0, 0, 1, Try::Taken, Try::Taken),
            (1, 0, 1, Try::Full, Try::Line),
            (1, 0, 0, Try::Taken, Try::Taken),
            (1, 0, 2, Try::Taken, Try::Taken),
            (1, 1, 2, Try::Line, Try::Line),
            (0, 1, 0, Try::Line, Try::Line),
            (3, 1, 2, Try::Full, Try::Line),
        ] {
            let word: u64 = held * UNIT + waiting;
            let counts = || {
                let counts = Counts::new(Slot::Account(AccountId(1)));
                counts.word.store(word, Ordering::Relaxed);
                counts
            };
            let after = |tried: &Try, counts: Counts| {
                let expected = match tried {
                    Try::Taken => word + UNIT,
                    Try::Full => word,
                    Try::Line => word + 1,
                };
                assert_eq!(counts.word.into_inner(), expected);
            };
            let case = (held, waiting, limit);
            let of_try = counts();
            assert_eq!(of_try.try_take(limit), tried, "{case:?}");
            if tried != Try::Line {
                after(&tried, of_try);
            }
            let of_join = counts();
            assert_eq!(of_join.take_or_wait(limit), joined, "{case:?}");
            after(&joined, of_join);
        }
    }
}
