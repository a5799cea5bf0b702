//! What is known of one user and of one key: sums, what is held of them, windows, and the requests of
//! this minute. Plain arithmetic behind one lock each; who may have what is decided elsewhere.

use std::collections::HashMap;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{Ask, Count, Payer, Pays};
use crate::domain::{
    GroupId, KEY_WINDOWS, Money, SUBSCRIPTION_WINDOWS, UserId, Window, WindowKind,
};

/// A user. The lock is taken before that of a key, and never the other way round.
#[derive(Default)]
pub(super) struct UserPurse {
    pub funds: Mutex<Funds>,
    /// Told when something was given back, settled or credited.
    pub changed: Arc<Notify>,
}

/// A key.
#[derive(Default)]
pub(super) struct KeyPurse {
    pub spend: Mutex<Spend>,
}

/// What a user has.
#[derive(Debug, Default)]
pub(super) struct Funds {
    /// The balance as last read from the database.
    stored: Money,
    /// Settled from the balance since, not yet written.
    pending: Money,
    /// Held of the balance.
    held: Money,
    /// Holds that are open, whoever pays.
    holds: u64,
    minute: Minute,
    groups: HashMap<GroupId, InGroup>,
}

/// What a user has in one group.
#[derive(Debug)]
struct InGroup {
    /// Held of the subscription.
    held: Money,
    windows: Windows,
    minute: Minute,
}

impl Default for InGroup {
    fn default() -> InGroup {
        InGroup {
            held: Money::ZERO,
            windows: Windows::new(SUBSCRIPTION_WINDOWS),
            minute: Minute::default(),
        }
    }
}

impl Funds {
    pub fn left(&self) -> Money {
        self.stored - self.pending
    }

    pub fn held(&self) -> Money {
        self.held
    }

    /// Open holds, and what they hold of balance and subscriptions.
    pub fn open(&self) -> (u64, Money) {
        let of_groups: Money = self.groups.values().map(|group| group.held).sum();
        (self.holds, self.held + of_groups)
    }

    /// Held of the subscription to `group`, and what is used in one of its windows.
    pub fn used(&self, group: GroupId, window: usize, now: DateTime<Utc>) -> Used {
        self.groups
            .get(&group)
            .map(|group| Used {
                held: group.held,
                ..group.windows.0[window].used(now)
            })
            .unwrap_or_default()
    }

    pub fn windows(&self, group: GroupId, now: DateTime<Utc>) -> [Window; 3] {
        self.groups
            .get(&group)
            .map(|group| group.windows.running(now))
            .unwrap_or_default()
    }

    /// Requests of this minute: of the user, and of the user in `group`.
    pub fn requests(&self, group: GroupId, now: DateTime<Utc>) -> (u32, u32) {
        let in_group = self.groups.get(&group);
        let in_group = in_group.map_or(0, |group| group.minute.count(now));
        (self.minute.count(now), in_group)
    }

    pub fn count_request(&mut self, ask: &Ask, now: DateTime<Utc>) {
        if ask.count_request == Count::Yes {
            self.minute.add(now);
        }
        if ask.count_request != Count::No && ask.limits.group_rpm > 0 {
            self.group(ask.payer.group).minute.add(now);
        }
    }

    pub fn hold(&mut self, payer: &Payer, amount: Money) {
        self.holds += 1;
        *self.held_for(payer) += amount;
    }

    pub fn release(&mut self, payer: &Payer, amount: Money) {
        self.holds -= 1;
        *self.held_for(payer) -= amount;
    }

    pub fn charge(&mut self, payer: &Payer, charge: Money, at: DateTime<Utc>, tz: Tz) {
        match payer.pays {
            Pays::Balance => self.pending += charge,
            Pays::Subscription => self.group(payer.group).windows.add(charge, at, tz),
        }
    }

    pub fn uncharge(&mut self, payer: &Payer, charge: Money, at: DateTime<Utc>) {
        if payer.pays == Pays::Subscription {
            self.group(payer.group).windows.take_back(charge, at);
        }
    }

    /// Whether there is more than before.
    pub fn written(&mut self, stored: Money, charge: Money) -> bool {
        let before = self.left();
        self.stored = stored;
        self.pending -= charge;
        self.left() > before
    }

    pub fn load(&mut self, group: GroupId, windows: [Window; 3], tz: Tz) {
        self.group(group).windows.load(windows, tz);
    }

    fn held_for(&mut self, payer: &Payer) -> &mut Money {
        match payer.pays {
            Pays::Balance => &mut self.held,
            Pays::Subscription => &mut self.group(payer.group).held,
        }
    }

    fn group(&mut self, group: GroupId) -> &mut InGroup {
        self.groups.entry(group).or_default()
    }
}

/// What was spent with a key.
#[derive(Debug)]
pub(super) struct Spend {
    /// As last read from the database.
    stored: Money,
    /// Settled since, not yet written.
    pending: Money,
    /// Held by running requests, of the quota and of every window alike: which window a request will be
    /// charged to is known when it ends.
    held: Money,
    windows: Windows,
    /// Who came with it last: whom to wake when there is more.
    user: Option<UserId>,
}

impl Default for Spend {
    fn default() -> Spend {
        Spend {
            stored: Money::ZERO,
            pending: Money::ZERO,
            held: Money::ZERO,
            windows: Windows::new(KEY_WINDOWS),
            user: None,
        }
    }
}

impl Spend {
    pub fn spent(&self) -> Money {
        self.stored + self.pending
    }

    pub fn held(&self) -> Money {
        self.held
    }

    /// Held, and used in one of its windows.
    pub fn used(&self, window: usize, now: DateTime<Utc>) -> Used {
        Used {
            held: self.held,
            ..self.windows.0[window].used(now)
        }
    }

    pub fn windows(&self, now: DateTime<Utc>) -> [Window; 3] {
        self.windows.running(now)
    }

    pub fn hold(&mut self, payer: &Payer, amount: Money) {
        self.user = Some(payer.user);
        self.held += amount;
    }

    pub fn release(&mut self, amount: Money) {
        self.held -= amount;
    }

    pub fn charge(&mut self, payer: &Payer, charge: Money, at: DateTime<Utc>, tz: Tz) {
        self.user = Some(payer.user);
        self.pending += charge;
        self.windows.add(charge, at, tz);
    }

    pub fn uncharge(&mut self, charge: Money, at: DateTime<Utc>) {
        self.windows.take_back(charge, at);
    }

    /// Who can spend more than before, if anybody can.
    pub fn written(&mut self, stored: Money, charge: Money) -> Option<UserId> {
        let before = self.spent();
        self.stored = stored;
        self.pending -= charge;
        self.user.filter(|_| self.spent() < before)
    }

    pub fn load(&mut self, windows: [Window; 3], tz: Tz) {
        self.windows.load(windows, tz);
    }
}

/// What one window has counted at a moment, and what is held of it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Used {
    pub used: Money,
    pub held: Money,
    /// When it is over; `None` while nothing runs.
    pub resets_at: Option<DateTime<Utc>>,
}

/// Three windows of different lengths over the same charges.
#[derive(Debug)]
struct Windows([Running; 3]);

impl Windows {
    fn new(kinds: [WindowKind; 3]) -> Windows {
        Windows(kinds.map(|kind| Running {
            kind,
            window: Window::default(),
            ends: None,
        }))
    }

    fn load(&mut self, windows: [Window; 3], tz: Tz) {
        for (running, window) in self.0.iter_mut().zip(windows) {
            running.ends = window.resets_at(running.kind, tz);
            running.window = window;
        }
    }

    fn running(&self, now: DateTime<Utc>) -> [Window; 3] {
        let running = |of: &Running| of.ends.is_some_and(|ends| now < ends);
        [0, 1, 2].map(|n| match &self.0[n] {
            of if running(of) => of.window,
            _ => Window::default(),
        })
    }

    fn add(&mut self, charge: Money, at: DateTime<Utc>, tz: Tz) {
        // A window begins with its first charge; what costs nothing is none.
        if charge == Money::ZERO {
            return;
        }
        for running in &mut self.0 {
            running.add(charge, at, tz);
        }
    }

    fn take_back(&mut self, charge: Money, at: DateTime<Utc>) {
        for running in &mut self.0 {
            // Only where it is still counted: not in a window that has begun since.
            if running.window.start.is_some_and(|start| start <= at) {
                let used = running.window.used - charge;
                running.window.used = used.max(Money::ZERO);
            }
        }
    }
}

/// A window with its end at hand: finding it takes the calendar, comparing with it does not.
#[derive(Debug)]
struct Running {
    kind: WindowKind,
    window: Window,
    ends: Option<DateTime<Utc>>,
}

impl Running {
    fn used(&self, now: DateTime<Utc>) -> Used {
        match self.ends {
            Some(ends) if now < ends => Used {
                used: self.window.used,
                held: Money::ZERO,
                resets_at: Some(ends),
            },
            _ => Used::default(),
        }
    }

    /// As [`Window::add`].
    fn add(&mut self, charge: Money, at: DateTime<Utc>, tz: Tz) {
        if self.ends.is_some_and(|ends| at < ends) {
            self.window.used += charge;
        } else {
            self.window.add(self.kind, charge, at, tz);
            self.ends = self.window.resets_at(self.kind, tz);
        }
    }
}

/// Requests of one calendar minute of UTC.
#[derive(Clone, Copy, Debug, Default)]
struct Minute {
    number: i64,
    count: u32,
}

impl Minute {
    /// Whether `now` counts here: in this minute or, by a thread that read its clock a moment earlier, in
    /// the one before. A clock that was set back further begins anew.
    fn has(&self, now: DateTime<Utc>) -> bool {
        let number = minute(now);
        number == self.number || number == self.number - 1
    }

    fn count(&self, now: DateTime<Utc>) -> u32 {
        if self.has(now) { self.count } else { 0 }
    }

    fn add(&mut self, now: DateTime<Utc>) {
        if !self.has(now) {
            *self = Minute {
                number: minute(now),
                count: 0,
            };
        }
        self.count = self.count.saturating_add(1);
    }
}

/// The calendar minutes of UTC, numbered.
fn minute(now: DateTime<Utc>) -> i64 {
    now.timestamp().div_euclid(60)
}

/// When the next minute begins.
pub(super) fn next_minute(now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp((minute(now) + 1) * 60, 0)
}
