//! The decision: how much of what is asked for may be set aside. Looks, and changes nothing.

use chrono::{DateTime, Utc};

use super::purse::{Funds, Spend, Used, next_minute};
use super::{
    Ask, Count, Denied, Limit, Limits, MOST_A_REQUEST, Payer, Pays, Refusal, held_to_reason,
};
use crate::config::Reservation;
use crate::domain::{KEY_WINDOWS, Money, SUBSCRIPTION_WINDOWS};

/// What may be reserved, or what is in the way.
pub(super) fn decide(
    ask: &Ask,
    funds: &Funds,
    spend: &Spend,
    now: DateTime<Utc>,
) -> Result<Money, Denied> {
    let tally = Tally::of(&ask.payer, &ask.limits, funds, spend, now);
    let amount = tally.grant(ask)?;
    if ask.count_request != Count::No {
        minute(ask, funds, now)?;
    }
    Ok(amount)
}

/// Requests a minute.
fn minute(ask: &Ask, funds: &Funds, now: DateTime<Utc>) -> Result<(), Denied> {
    let (of_user, in_group) = funds.requests(ask.payer.group, now);
    let limits = [
        (Limit::UserRpm, ask.limits.user_rpm, of_user),
        (Limit::GroupRpm, ask.limits.group_rpm, in_group),
    ];
    let counted_before = usize::from(ask.count_request == Count::InGroup);
    let full = limits
        .into_iter()
        .skip(counted_before)
        .find(|(_, limit, count)| *limit > 0 && count >= limit);
    match full {
        None => Ok(()),
        Some((limit, ..)) => Err(Denied::Refused(Refusal {
            limit,
            amount: None,
            left: Money::ZERO,
            held: Money::ZERO,
            resets_at: next_minute(now),
        })),
    }
}

/// All limits of a request, seen together.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Of those that are used up, the one that takes longest to come back.
    used_up: Option<Refusal>,
    /// Where least is left.
    tightest: Option<Refusal>,
    /// Where least is free.
    scarcest: Option<Refusal>,
}

impl Tally {
    /// How the limits stand at `now`.
    pub fn of(
        payer: &Payer,
        limits: &Limits,
        funds: &Funds,
        spend: &Spend,
        now: DateTime<Utc>,
    ) -> Tally {
        let mut tally = Tally::default();
        if let Some(quota) = limits.quota {
            let used = Used {
                used: spend.spent(),
                held: spend.held(),
                resets_at: None,
            };
            tally.limited(Limit::Quota, quota, used);
        }
        match payer.pays {
            Pays::Balance => tally.meet(Refusal {
                limit: Limit::Balance,
                amount: None,
                left: funds.left(),
                held: funds.held(),
                resets_at: None,
            }),
            Pays::Subscription => {
                for (n, kind) in SUBSCRIPTION_WINDOWS.into_iter().enumerate() {
                    if let Some(amount) = limits.subscription[n] {
                        let used = funds.used(payer.group, n, now);
                        tally.limited(Limit::Subscription(kind), amount, used);
                    }
                }
            }
        }
        for (n, kind) in KEY_WINDOWS.into_iter().enumerate() {
            if let Some(amount) = limits.key_windows[n] {
                tally.limited(Limit::KeyWindow(kind), amount, spend.used(n, now));
            }
        }
        tally
    }

    fn limited(&mut self, limit: Limit, amount: Money, used: Used) {
        self.meet(Refusal {
            limit,
            amount: Some(amount),
            left: amount - used.used,
            held: used.held,
            resets_at: used.resets_at,
        });
    }

    fn meet(&mut self, purse: Refusal) {
        if !purse.left.is_positive() && self.used_up.is_none_or(|other| outlasts(&purse, &other)) {
            self.used_up = Some(purse);
        }
        if self.tightest.is_none_or(|other| purse.left < other.left) {
            self.tightest = Some(purse);
        }
        if self
            .scarcest
            .is_none_or(|other| purse.free() < other.free())
        {
            self.scarcest = Some(purse);
        }
    }

    /// What is left where least is left. Without any limit: more than any request needs.
    fn left(&self) -> Money {
        self.tightest.map_or(MOST_A_REQUEST, |purse| purse.left)
    }

    /// What is free where least is free; below zero when more is held than there is.
    pub fn free(&self) -> Money {
        self.scarcest.map_or(MOST_A_REQUEST, |purse| purse.free())
    }

    fn grant(&self, ask: &Ask) -> Result<Money, Denied> {
        if let Some(purse) = self.used_up {
            return Err(Denied::Refused(purse));
        }
        if let Some(purse) = self.tightest.filter(|purse| purse.left < ask.least) {
            return Err(Denied::Refused(purse));
        }
        let (want, free) = (held_to_reason(ask.want), self.free());
        let granted = match ask.mode {
            Reservation::None => Some(Money::ZERO),
            Reservation::Available => match want.min(free) {
                amount if amount.is_positive() => Some(amount),
                _ => (want == Money::ZERO).then_some(Money::ZERO),
            },
            Reservation::Strict => {
                let target = want.min(self.left());
                if free >= target {
                    Some(target)
                } else {
                    let enough = free.is_positive() && free >= ask.least;
                    (ask.take_what_is_free && enough).then_some(free)
                }
            }
        };
        match (granted, self.scarcest) {
            (Some(amount), _) => Ok(amount),
            (None, Some(purse)) => Err(Denied::Held(purse)),
            // Without a limit, more is free than can be wanted.
            (None, None) => Ok(Money::ZERO),
        }
    }
}

/// Whether `purse` takes longer to come back than `other`: what does not reset by itself longest of all.
fn outlasts(purse: &Refusal, other: &Refusal) -> bool {
    match (purse.resets_at, other.resets_at) {
        (_, None) => false,
        (None, Some(_)) => true,
        (Some(mine), Some(its)) => mine > its,
    }
}
