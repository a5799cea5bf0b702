//! Money that a running request has set aside.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use chrono_tz::Tz;

use super::decide::{self, Tally};
use super::purse::{KeyPurse, UserPurse};
use super::{Ask, Denied, Limits, Payer, held_to_reason};
use crate::config::Reservation;
use crate::domain::Money;

/// A reservation. Ends by [`Hold::settle`], or goes back whole when dropped.
#[must_use = "dropping it gives the money back"]
pub struct Hold {
    user: Arc<UserPurse>,
    key: Arc<KeyPurse>,
    payer: Payer,
    limits: Limits,
    mode: Reservation,
    amount: Money,
    tz: Tz,
    open: bool,
}

impl Hold {
    /// The amount must have been counted as held.
    pub(super) fn new(
        user: Arc<UserPurse>,
        key: Arc<KeyPurse>,
        ask: &Ask,
        amount: Money,
        tz: Tz,
    ) -> Hold {
        Hold {
            user,
            key,
            payer: ask.payer,
            limits: ask.limits,
            mode: ask.mode,
            amount,
            tz,
            open: true,
        }
    }

    /// What is set aside. In `available` it may be less than was wanted.
    pub fn amount(&self) -> Money {
        self.amount
    }

    /// Who pays.
    pub fn payer(&self) -> &Payer {
        &self.payer
    }

    /// Asks again for the same request, which costs something else now: this money and no other gives way to what is
    /// granted, in one step, so that what it holds itself is never in its way and nobody comes between. User and key
    /// of `ask` are taken to be those of this hold.
    ///
    /// # Errors
    /// [`Denied`], and the hold as it was.
    pub fn replace(self, ask: &Ask, now: DateTime<Utc>) -> Result<Hold, Box<(Hold, Denied)>> {
        let ask = Ask {
            payer: Payer {
                user: self.payer.user,
                key: self.payer.key,
                ..ask.payer
            },
            ..*ask
        };
        let granted = {
            let mut funds = self.user.funds.lock();
            let mut spend = self.key.spend.lock();
            funds.release(&self.payer, self.amount);
            spend.release(self.amount);
            let granted = decide::decide(&ask, &funds, &spend, now);
            let (payer, amount) = match granted {
                Ok(amount) => (&ask.payer, amount),
                Err(_) => (&self.payer, self.amount),
            };
            funds.hold(payer, amount);
            spend.hold(payer, amount);
            if granted.is_ok() {
                funds.count_request(&ask, now);
            }
            granted
        };
        match granted {
            Ok(amount) => {
                let (user, key, tz) = (self.user.clone(), self.key.clone(), self.tz);
                self.forget();
                // There may be more now, of the one purse or the other.
                user.changed.notify_waiters();
                Ok(Hold::new(user, key, &ask, amount, tz))
            }
            Err(denied) => Err(Box::new((self, denied))),
        }
    }

    /// What it held is accounted for.
    fn forget(mut self) {
        self.open = false;
    }

    /// Counts the charge of a request that ended at `at` ([`UsageRecord::settled_at`]), and gives back what
    /// it did not need. Returns what is really charged, which is what the record must say: in `strict`
    /// never more than was set aside and what is free beside it, else the charge.
    ///
    /// [`UsageRecord::settled_at`]: crate::domain::UsageRecord::settled_at
    pub fn settle(mut self, charge: Money, at: DateTime<Utc>) -> Money {
        let mut charge = held_to_reason(charge);
        {
            let mut funds = self.user.funds.lock();
            let mut spend = self.key.spend.lock();
            funds.release(&self.payer, self.amount);
            spend.release(self.amount);
            if self.mode == Reservation::Strict {
                let free = Tally::of(&self.payer, &self.limits, &funds, &spend, at).free();
                charge = charge.min(free.max(Money::ZERO));
            }
            funds.charge(&self.payer, charge, at, self.tz);
            spend.charge(&self.payer, charge, at, self.tz);
        }
        self.open = false;
        self.user.changed.notify_waiters();
        charge
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if self.open {
            {
                let mut funds = self.user.funds.lock();
                let mut spend = self.key.spend.lock();
                funds.release(&self.payer, self.amount);
                spend.release(self.amount);
            }
            self.user.changed.notify_waiters();
        }
    }
}

impl std::fmt::Debug for Hold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hold")
            .field("payer", &self.payer)
            .field("amount", &self.amount)
            .finish_non_exhaustive()
    }
}
