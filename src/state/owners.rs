//! Who holds what: the processes that share the live state.
//!
//! Every process is an owner, with an id of its own, and its leases are counted as its share of a
//! slot. It says in time that it still runs; if it does not, another one takes its shares back. What
//! it gives back after that changes nothing. If it was only asleep it goes on as a new owner, so that
//! a late lease can never be mistaken for one of now.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use chrono::{DateTime, Utc};
use parking_lot::Mutex;

use super::dense::Dense;
use super::slots::{Share, Table};
use super::{OWNER_LIFE, Slot};

/// One process, from its registration until it is found dead.
pub(super) struct Owner {
    id: u64,
    dead: AtomicBool,
    users: Dense<Share>,
    accounts: Dense<Share>,
    turns: Dense<Share>,
}

impl Owner {
    fn new(id: u64) -> Arc<Owner> {
        Arc::new(Owner {
            id,
            dead: AtomicBool::new(false),
            users: Dense::new(),
            accounts: Dense::new(),
            turns: Dense::new(),
        })
    }

    /// Looks at its share in a slot of `table`.
    pub(super) fn share<R>(
        &self,
        table: &Arc<Table>,
        slot: Slot,
        look: impl FnOnce(&Arc<Share>) -> R,
    ) -> R {
        let shares = match slot {
            Slot::User(_) => &self.users,
            Slot::Account(_) => &self.accounts,
            Slot::Turn(_) => &self.turns,
        };
        shares.with(slot.row(), || table.share(self.id, slot), look)
    }

    /// Whether its leases were taken back.
    pub(super) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Acquire)
    }
}

/// The owners that are alive, as far as anybody knows.
#[derive(Default)]
pub(super) struct Owners {
    known: Mutex<Known>,
    ids: RandomState,
}

#[derive(Default)]
struct Known {
    /// Each with the end of its leases.
    alive: HashMap<u64, (DateTime<Utc>, Arc<Owner>)>,
    /// The latest time that anybody has told.
    now: DateTime<Utc>,
    registered: u64,
}

impl Owners {
    /// A new owner, whose leases are its own until `until`; without that for the usual time, counted
    /// from the latest time that is known.
    pub(super) fn register(&self, until: Option<DateTime<Utc>>) -> Arc<Owner> {
        let mut known = self.known.lock();
        known.registered += 1;
        let mut id = self.ids.hash_one(known.registered);
        while known.alive.contains_key(&id) {
            id = self.ids.hash_one(id);
        }
        let owner = Owner::new(id);
        let until = until.unwrap_or(known.now + OWNER_LIFE);
        known.alive.insert(id, (until, owner.clone()));
        owner
    }

    /// Prolongs an owner's leases; says whether it is still in time.
    pub(super) fn renew(&self, owner: &Owner, now: DateTime<Utc>) -> bool {
        let mut known = self.known.lock();
        known.now = known.now.max(now);
        match known.alive.get_mut(&owner.id) {
            Some((until, _)) => {
                *until = now + OWNER_LIFE;
                true
            }
            None => false,
        }
    }

    /// Takes back what dead owners hold; `own` is the one that looks, and never among them.
    pub(super) fn take_back(&self, own: &Owner, now: DateTime<Utc>, tables: [&Table; 3]) {
        let mut dead = Vec::new();
        {
            let mut known = self.known.lock();
            known.now = known.now.max(now);
            known.alive.retain(|id, (until, owner)| {
                let lives = *id == own.id || *until > now;
                if !lives {
                    owner.dead.store(true, Ordering::Release);
                    dead.push(owner.clone());
                }
                lives
            });
        }
        for owner in dead {
            // First its requests leave the lines, or they would be given what it held.
            for table in tables {
                table.end_waits(owner.id);
            }
            owner.users.for_each(|share| share.take_back());
            owner.accounts.for_each(|share| share.take_back());
            owner.turns.for_each(|share| share.take_back());
        }
    }
}
