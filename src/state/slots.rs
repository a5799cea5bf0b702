//! Counting slots in this process, with lines of waiting requests that are woken, not polling.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::{Lease, Load, Release, Slot, WaitError, Want};

/// A table of slots. Leases hold it to give themselves back.
pub(super) struct SlotTable {
    me: Weak<SlotTable>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    slots: HashMap<Slot, Entry>,
    waiters: HashMap<u64, Waiter>,
    next_ticket: u64,
    held: u64,
}

/// Kept only while somebody holds or waits.
#[derive(Default)]
struct Entry {
    held: u32,
    /// Tickets in line, oldest first.
    line: BTreeSet<u64>,
}

struct Waiter {
    wants: Vec<Want>,
    grant: oneshot::Sender<Lease>,
}

fn has_room(held: u32, limit: u32) -> bool {
    limit == 0 || held < limit
}

impl Inner {
    /// Takes a unit if there is room.
    fn take(&mut self, want: Want) -> bool {
        let entry = self.slots.entry(want.slot).or_default();
        if !has_room(entry.held, want.limit) {
            return false;
        }
        entry.held += 1;
        self.held += 1;
        true
    }

    /// Takes a ticket out of every line it stands in.
    fn leave(&mut self, ticket: u64) -> Option<Waiter> {
        let waiter = self.waiters.remove(&ticket)?;
        for want in &waiter.wants {
            if let Some(entry) = self.slots.get_mut(&want.slot) {
                entry.line.remove(&ticket);
                if entry.held == 0 && entry.line.is_empty() {
                    self.slots.remove(&want.slot);
                }
            }
        }
        Some(waiter)
    }

    /// The oldest request in line for `slot` that may have one more unit beside `held` others.
    fn next_in_line(&self, slot: Slot, held: u32) -> Option<u64> {
        let entry = self.slots.get(&slot)?;
        entry.line.iter().copied().find(|ticket| {
            self.waiters
                .get(ticket)
                .and_then(|w| w.wants.iter().find(|want| want.slot == slot))
                .is_some_and(|want| has_room(held, want.limit))
        })
    }
}

impl SlotTable {
    pub(super) fn new() -> Arc<SlotTable> {
        Arc::new_cyclic(|me| SlotTable {
            me: me.clone(),
            inner: Mutex::default(),
        })
    }

    /// A guard for a unit that has been counted.
    fn lease(&self, slot: Slot) -> Option<Lease> {
        Some(Lease::new(slot, self.me.upgrade()?))
    }

    pub(super) fn try_lease(&self, want: Want) -> Option<Lease> {
        if !self.inner.lock().take(want) {
            return None;
        }
        self.lease(want.slot)
    }

    pub(super) async fn lease_any(
        &self,
        wants: &[Want],
        max_waiting: u32,
    ) -> Result<Lease, WaitError> {
        let (grant, granted) = oneshot::channel();
        let ticket = {
            let mut inner = self.inner.lock();
            for want in wants {
                if inner.take(*want) {
                    drop(inner);
                    return self.lease(want.slot).ok_or(WaitError::LineFull);
                }
            }
            let ticket = inner.next_ticket;
            let mut wants = wants.to_vec();
            wants.retain(|want| {
                let entry = inner.slots.entry(want.slot).or_default();
                (entry.line.len() as u64) < u64::from(max_waiting) && entry.line.insert(ticket)
            });
            if wants.is_empty() {
                return Err(WaitError::LineFull);
            }
            inner.next_ticket += 1;
            inner.waiters.insert(ticket, Waiter { wants, grant });
            ticket
        };
        // Leaves the line when this future is dropped; a lease granted in that very moment is in
        // `granted`, whose drop gives it back.
        let _place = Place {
            table: self,
            ticket,
        };
        granted.await.map_err(|_| WaitError::LineFull)
    }

    pub(super) fn loads(&self, slots: impl Iterator<Item = Slot>) -> Vec<Load> {
        let inner = self.inner.lock();
        slots
            .map(|slot| {
                inner.slots.get(&slot).map_or(Load::default(), |e| Load {
                    held: e.held,
                    waiting: u32::try_from(e.line.len()).unwrap_or(u32::MAX),
                })
            })
            .collect()
    }

    pub(super) fn held(&self) -> u64 {
        self.inner.lock().held
    }
}

/// A place in line.
struct Place<'t> {
    table: &'t SlotTable,
    ticket: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let left = self.table.inner.lock().leave(self.ticket);
        drop(left);
    }
}

impl Release for SlotTable {
    fn release(&self, slot: Slot) {
        let mut inner = self.inner.lock();
        let Some(entry) = inner.slots.get_mut(&slot) else {
            return;
        };
        entry.held = entry.held.saturating_sub(1);
        let held = entry.held;
        inner.held = inner.held.saturating_sub(1);
        // The unit goes straight to the oldest request in line that may have it, so that nobody who
        // comes later can take it in between.
        while let Some(ticket) = inner.next_in_line(slot, held) {
            let Some(waiter) = inner.leave(ticket) else {
                break;
            };
            let Some(lease) = self.lease(slot) else {
                break;
            };
            match waiter.grant.send(lease) {
                Ok(()) => {
                    inner.slots.entry(slot).or_default().held += 1;
                    inner.held += 1;
                    return;
                }
                // Its request has gone; dropping the lease here would lock the table twice.
                Err(lease) => lease.defuse(),
            }
        }
        if let Some(entry) = inner.slots.get(&slot)
            && entry.held == 0
            && entry.line.is_empty()
        {
            inner.slots.remove(&slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::AccountId;
    use futures::FutureExt;

    const A: Slot = Slot::Account(AccountId(1));
    const B: Slot = Slot::Account(AccountId(2));

    fn want(slot: Slot, limit: u32) -> Want {
        Want { slot, limit }
    }

    #[test]
    fn never_more_than_the_limit_and_zero_is_unlimited() {
        let table = SlotTable::new();
        let one = table.try_lease(want(A, 1)).unwrap();
        assert!(table.try_lease(want(A, 1)).is_none());
        drop(one);
        assert!(table.try_lease(want(A, 1)).is_some());
        let many: Vec<_> = (0..100)
            .map(|_| table.try_lease(want(B, 0)).unwrap())
            .collect();
        assert_eq!(table.held(), 100);
        drop(many);
        assert_eq!(table.held(), 0);
        assert!(table.inner.lock().slots.is_empty(), "no entry is left over");
    }

    #[tokio::test]
    async fn waiters_are_served_in_order_of_arrival_and_for_any_slot() {
        let table = SlotTable::new();
        let a = table.try_lease(want(A, 1)).unwrap();
        let b = table.try_lease(want(B, 1)).unwrap();
        let wants = [want(A, 1), want(B, 1)];
        let mut first = Box::pin(table.lease_any(&wants, 10));
        let mut second = Box::pin(table.lease_any(&wants, 10));
        assert!(first.as_mut().now_or_never().is_none());
        assert!(second.as_mut().now_or_never().is_none());
        drop(b);
        assert!(second.as_mut().now_or_never().is_none(), "not its turn");
        let lease = first.await.unwrap();
        assert_eq!(lease.slot(), B);
        drop(a);
        assert_eq!(second.await.unwrap().slot(), A);
    }

    #[tokio::test]
    async fn a_request_that_leaves_the_line_loses_nothing() {
        let table = SlotTable::new();
        let a = table.try_lease(want(A, 1)).unwrap();
        let wants = [want(A, 1)];
        let mut gone = Box::pin(table.lease_any(&wants, 10));
        assert!(gone.as_mut().now_or_never().is_none());
        let mut granted_then_gone = Box::pin(table.lease_any(&wants, 10));
        assert!(granted_then_gone.as_mut().now_or_never().is_none());
        drop(gone);
        drop(a); // granted to the second, which never looks
        assert_eq!(table.held(), 1);
        drop(granted_then_gone);
        assert_eq!(table.held(), 0);
        assert!(table.inner.lock().slots.is_empty());
        assert!(table.inner.lock().waiters.is_empty());
    }

    #[tokio::test]
    async fn the_line_is_bounded() {
        let table = SlotTable::new();
        let _a = table.try_lease(want(A, 1)).unwrap();
        let wants = [want(A, 1)];
        let mut first = Box::pin(table.lease_any(&wants, 1));
        assert!(first.as_mut().now_or_never().is_none());
        assert!(matches!(
            table.lease_any(&wants, 1).await,
            Err(WaitError::LineFull)
        ));
        assert_eq!(
            table.loads([A].into_iter())[0],
            Load {
                held: 1,
                waiting: 1
            }
        );
    }

    #[tokio::test]
    async fn a_lowered_limit_is_respected_when_a_unit_comes_back() {
        let table = SlotTable::new();
        let one = table.try_lease(want(A, 2)).unwrap();
        let two = table.try_lease(want(A, 2)).unwrap();
        let wants = [want(A, 1)];
        let mut waiter = Box::pin(table.lease_any(&wants, 10));
        assert!(waiter.as_mut().now_or_never().is_none());
        drop(one);
        assert!(
            waiter.as_mut().now_or_never().is_none(),
            "one is still held"
        );
        drop(two);
        assert!(waiter.await.is_ok());
    }
}
