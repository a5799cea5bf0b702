//! Laws over random histories: requests, time that passes, credits, writes and refreshes in any order.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;
use crate::domain::{KEY_WINDOWS, SUBSCRIPTION_WINDOWS};

const USERS: usize = 2;
/// Keys; key `k` is of user `k % USERS`.
const KEYS: usize = 4;
const BERLIN: Tz = chrono_tz::Europe::Berlin;

/// Something that happens. Numbers choose among what there is.
#[derive(Clone, Debug)]
enum Event {
    Reserve {
        key: usize,
        subscription: bool,
        want: i64,
        least: i64,
        take_what_is_free: bool,
    },
    Settle {
        nth: usize,
        charge: i64,
    },
    /// A running request costs something else now, perhaps paid from elsewhere.
    Replace {
        nth: usize,
        subscription: bool,
        want: i64,
        least: i64,
        take_what_is_free: bool,
    },
    Void {
        nth: usize,
    },
    /// Panics with the hold in hand.
    Panic {
        nth: usize,
    },
    /// Another process adds to a balance.
    Credit {
        user: usize,
        amount: i64,
    },
    /// The writer writes so many records.
    Write {
        count: usize,
    },
    Refresh,
    /// Time passes.
    Pass {
        minutes: i64,
    },
}

fn event() -> impl Strategy<Value = Event> {
    let amount = 0..60_i64;
    let reserve = (
        0..KEYS,
        any::<bool>(),
        amount.clone(),
        0..5_i64,
        any::<bool>(),
    );
    let replace = (
        any::<usize>(),
        any::<bool>(),
        amount.clone(),
        0..5_i64,
        any::<bool>(),
    );
    prop_oneof![
        2 => replace.prop_map(|(nth, subscription, want, least, take_what_is_free)| {
            Event::Replace { nth, subscription, want, least, take_what_is_free }
        }),
        8 => reserve.prop_map(|(key, subscription, want, least, take_what_is_free)| {
            Event::Reserve { key, subscription, want, least, take_what_is_free }
        }),
        5 => (any::<usize>(), amount.clone()).prop_map(|(nth, charge)| Event::Settle { nth, charge }),
        1 => any::<usize>().prop_map(|nth| Event::Void { nth }),
        1 => any::<usize>().prop_map(|nth| Event::Panic { nth }),
        2 => (0..USERS, 0..200_i64).prop_map(|(user, amount)| Event::Credit { user, amount }),
        2 => (0..5_usize).prop_map(|count| Event::Write { count }),
        2 => Just(Event::Refresh),
        2 => prop_oneof![0..5_i64, 0..600_i64, 0..12_000_i64]
            .prop_map(|minutes| Event::Pass { minutes }),
    ]
}

fn limits() -> impl Strategy<Value = Limits> {
    let limit = || proptest::option::of(prop_oneof![Just(0), 1..300_i64].prop_map(Money));
    let three = || [limit(), limit(), limit()];
    (limit(), three(), three()).prop_map(|(quota, key_windows, subscription)| Limits {
        quota,
        key_windows,
        subscription,
        ..Limits::default()
    })
}

fn mode() -> impl Strategy<Value = Reservation> {
    prop_oneof![
        Just(Reservation::Available),
        Just(Reservation::Strict),
        Just(Reservation::None),
    ]
}

fn payer_of(key: usize, subscription: bool) -> Payer {
    Payer {
        user: UserId((key % USERS) as i64),
        key: ApiKeyId(key as i64),
        group: GroupId(1),
        pays: if subscription {
            Pays::Subscription
        } else {
            Pays::Balance
        },
    }
}

/// The book beside what it should say.
struct World {
    book: Book,
    mode: Reservation,
    limits: Limits,
    now: DateTime<Utc>,
    holds: Vec<Hold>,
    /// What has been credited and told to the book.
    credited: [Money; USERS],
    spent_of_balance: [Money; USERS],
    spent_with_key: [Money; KEYS],
    key_windows: [[Window; 3]; KEYS],
    subscription_windows: [[Window; 3]; USERS],
    /// The database.
    stored: [Money; USERS],
    stored_spend: [Money; KEYS],
    unwritten: VecDeque<Arc<UsageRecord>>,
}

impl World {
    fn new(mode: Reservation, limits: Limits) -> World {
        World {
            book: Book::new(BERLIN),
            mode,
            limits,
            now: at(0),
            holds: Vec::new(),
            credited: Default::default(),
            spent_of_balance: Default::default(),
            spent_with_key: Default::default(),
            key_windows: Default::default(),
            subscription_windows: Default::default(),
            stored: Default::default(),
            stored_spend: Default::default(),
            unwritten: VecDeque::new(),
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Reserve {
                key,
                subscription,
                want,
                least,
                take_what_is_free,
            } => {
                let payer = payer_of(key, subscription);
                self.reserve(&self.ask(payer, want, least, take_what_is_free));
            }
            Event::Replace {
                nth,
                subscription,
                want,
                least,
                take_what_is_free,
            } => {
                if let Some(hold) = self.take(nth) {
                    let payer = payer_of(hold.payer().key.0 as usize, subscription);
                    self.replace(hold, &self.ask(payer, want, least, take_what_is_free));
                }
            }
            Event::Settle { nth, charge } => {
                if let Some(hold) = self.take(nth) {
                    self.settle(hold, Money(charge));
                }
            }
            Event::Void { nth } => drop(self.take(nth)),
            Event::Panic { nth } => {
                let hold = self.take(nth);
                let unwound = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    let _hold = hold;
                    std::panic::resume_unwind(Box::new(()));
                }));
                assert!(unwound.is_err());
            }
            Event::Credit { user, amount } => self.stored[user] += Money(amount),
            Event::Write { count } => self.write(count),
            Event::Refresh => self.refresh(),
            Event::Pass { minutes } => self.now += TimeDelta::minutes(minutes),
        }
    }

    fn ask(&self, payer: Payer, want: i64, least: i64, take_what_is_free: bool) -> Ask {
        let strict = self.mode == Reservation::Strict;
        Ask {
            payer,
            limits: self.limits,
            want: Money(want.max(least)),
            least: Money(if strict { least } else { 0 }),
            mode: self.mode,
            take_what_is_free,
            count_request: Count::No,
        }
    }

    fn take(&mut self, nth: usize) -> Option<Hold> {
        let count = self.holds.len();
        (count > 0).then(|| self.holds.swap_remove(nth % count))
    }

    /// Left and held of every limit of this payer, by what should be known.
    fn purses(&self, payer: &Payer) -> Vec<(Money, Money)> {
        let (user, key) = (payer.user.0 as usize, payer.key.0 as usize);
        let held = |of: &dyn Fn(&Payer) -> bool| -> Money {
            let held = self.holds.iter().filter(|hold| of(hold.payer()));
            held.map(Hold::amount).sum()
        };
        let of_key = held(&|p| p.key == payer.key);
        let of_purse = held(&|p| p.user == payer.user && p.pays == payer.pays);
        let mut purses = Vec::new();
        let mut windows = |limits: [Option<Money>; 3], windows: [Window; 3], kinds, held| {
            let kinds: [WindowKind; 3] = kinds;
            for n in 0..3 {
                if let Some(limit) = limits[n] {
                    let used = windows[n].used_at(kinds[n], self.now, BERLIN);
                    purses.push((limit - used, held));
                }
            }
        };
        windows(
            self.limits.key_windows,
            self.key_windows[key],
            KEY_WINDOWS,
            of_key,
        );
        if payer.pays == Pays::Subscription {
            windows(
                self.limits.subscription,
                self.subscription_windows[user],
                SUBSCRIPTION_WINDOWS,
                of_purse,
            );
        } else {
            let balance = self.credited[user] - self.spent_of_balance[user];
            purses.push((balance, of_purse));
        }
        if let Some(quota) = self.limits.quota {
            purses.push((quota - self.spent_with_key[key], of_key));
        }
        purses
    }

    fn reserve(&mut self, ask: &Ask) {
        let checked = self.book.check(ask, self.now);
        let reserved = self.book.reserve(ask, self.now);
        assert_eq!(checked, reserved.as_ref().map(Hold::amount).map_err(|e| *e));
        self.decided(ask, reserved);
    }

    /// As if what it holds were free, and nobody came between.
    fn replace(&mut self, hold: Hold, ask: &Ask) {
        let before = (*hold.payer(), hold.amount());
        match hold.replace(ask, self.now) {
            Ok(hold) => self.decided(ask, Ok(hold)),
            Err(denied) => {
                let (hold, denied) = *denied;
                self.decided(ask, Err(denied));
                assert_eq!((*hold.payer(), hold.amount()), before);
                self.holds.push(hold);
            }
        }
    }

    /// What was asked, beside the holds there are, has been decided so.
    fn decided(&mut self, ask: &Ask, reserved: Result<Hold, Denied>) {
        let purses = self.purses(&ask.payer);
        let left = purses.iter().map(|(left, _)| *left).min();
        let free = purses.iter().map(|(left, held)| *left - *held).min();
        let (left, free) = (
            left.unwrap_or(MOST_A_REQUEST),
            free.unwrap_or(MOST_A_REQUEST),
        );
        match reserved {
            Ok(hold) => {
                assert!(left.is_positive() && left >= ask.least);
                assert!(hold.amount() <= ask.want);
                assert!(hold.amount() <= free.max(Money(0)), "the same dollar twice");
                if ask.mode == Reservation::Strict && !ask.take_what_is_free {
                    assert_eq!(hold.amount(), ask.want.min(left));
                }
                self.holds.push(hold);
            }
            Err(Denied::Refused(refusal)) => {
                assert!(!left.is_positive() || left < ask.least, "{refusal:?}");
                assert!(!refusal.left.is_positive() || refusal.left < ask.least);
            }
            Err(Denied::Held(refusal)) => {
                assert!(left.is_positive() && left >= ask.least, "{refusal:?}");
                assert!(refusal.held.is_positive());
                assert!(free < ask.want.min(left));
            }
        }
    }

    fn settle(&mut self, hold: Hold, charge: Money) {
        let payer = *hold.payer();
        let (user, key) = (payer.user.0 as usize, payer.key.0 as usize);
        let reserved = hold.amount();
        let charged = hold.settle(charge, self.now);
        if self.mode != Reservation::Strict || charge <= reserved {
            // Also in strict, what was reserved is there, unless limits were overdrawn.
            assert_eq!(charged, charge);
        }
        assert!(charged <= charge);
        self.spent_with_key[key] += charged;
        let fold = |windows: &mut [Window; 3], kinds: [WindowKind; 3]| {
            if charged != Money(0) {
                for (window, kind) in windows.iter_mut().zip(kinds) {
                    window.add(kind, charged, self.now, BERLIN);
                }
            }
        };
        fold(&mut self.key_windows[key], KEY_WINDOWS);
        match payer.pays {
            Pays::Balance => self.spent_of_balance[user] += charged,
            Pays::Subscription => {
                fold(&mut self.subscription_windows[user], SUBSCRIPTION_WINDOWS);
            }
        }
        self.unwritten.push_back(record(payer, charged.0, self.now));
    }

    /// As the writer and the store do it, for all users and keys that the batch names.
    fn write(&mut self, count: usize) {
        let count = count.min(self.unwritten.len());
        let batch: Vec<_> = self.unwritten.drain(..count).collect();
        let (mut users, mut keys) = (Vec::new(), Vec::new());
        for record in &batch {
            let (user, key) = (record.user_id.0 as usize, record.api_key_id.0 as usize);
            if record.billing_type == BillingType::Balance {
                self.stored[user] -= record.charge;
            }
            self.stored_spend[key] += record.charge;
            users.push(user);
            keys.push(key);
        }
        users.sort_unstable();
        users.dedup();
        keys.sort_unstable();
        keys.dedup();
        let balances: Vec<_> = users
            .iter()
            .map(|u| (UserId(*u as i64), self.stored[*u]))
            .collect();
        let spent: Vec<_> = keys
            .iter()
            .map(|k| (ApiKeyId(*k as i64), self.stored_spend[*k]))
            .collect();
        self.book.written(&batch, &balances, &spent);
        for user in users {
            self.told(user);
        }
    }

    fn refresh(&mut self) {
        let balances = (0..USERS).map(|u| (UserId(u as i64), self.stored[u]));
        let spent = (0..KEYS).map(|k| (ApiKeyId(k as i64), self.stored_spend[k]));
        self.book.refresh(balances.collect(), spent.collect());
        (0..USERS).for_each(|user| self.told(user));
    }

    /// The book has been told the stored balance.
    fn told(&mut self, user: usize) {
        let unwritten = self.unwritten.iter();
        let of_user = unwritten
            .filter(|r| r.user_id.0 as usize == user && r.billing_type == BillingType::Balance);
        let pending: Money = of_user.map(|record| record.charge).sum();
        self.credited[user] = self.stored[user] + (self.spent_of_balance[user] - pending);
    }

    fn laws_hold(&self) {
        let mut open = OpenHolds::default();
        for key in 0..KEYS {
            let payer = payer_of(key, false);
            let user = payer.user.0 as usize;
            let standing = self
                .book
                .standing(payer.user, payer.key, payer.group, self.now);
            let held = self.holds.iter().filter(|hold| {
                hold.payer().user == payer.user && hold.payer().pays == Pays::Balance
            });
            let held: Money = held.map(Hold::amount).sum();
            assert_eq!(standing.reserved, held);
            // free + held + spent = credited
            let free = standing.balance - standing.reserved;
            assert_eq!(
                free + held + self.spent_of_balance[user],
                self.credited[user]
            );
            assert_eq!(standing.key_spent, self.spent_with_key[key]);
            let running = |windows: [Window; 3], kinds: [WindowKind; 3]| {
                let mut kinds = kinds.into_iter();
                windows.map(|window| {
                    let ends = window.resets_at(kinds.next().unwrap(), BERLIN);
                    let runs = ends.is_some_and(|ends| self.now < ends);
                    if runs { window } else { Window::default() }
                })
            };
            let of_key = running(self.key_windows[key], KEY_WINDOWS);
            assert_eq!(standing.key_windows, of_key);
            let subscribed = running(self.subscription_windows[user], SUBSCRIPTION_WINDOWS);
            assert_eq!(standing.subscription_windows, subscribed);
            if self.mode == Reservation::Strict {
                for pays in [false, true] {
                    for (left, held) in self.purses(&payer_of(key, pays)) {
                        assert!(left >= Money(0), "overdrawn in strict");
                        assert!(held <= left, "more held than there is");
                    }
                }
            }
        }
        for hold in &self.holds {
            open.count += 1;
            open.sum += hold.amount();
        }
        assert_eq!(self.book.open_holds(), open);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn money_is_neither_made_nor_lost(
        mode in mode(),
        limits in limits(),
        events in proptest::collection::vec(event(), 1..120),
    ) {
        let mut world = World::new(mode, limits);
        for user in 0..USERS {
            world.stored[user] = Money(100);
        }
        world.refresh();
        for event in events {
            world.happen(event);
            world.laws_hold();
        }
        // Whatever happened: with everything ended, nothing is held.
        world.holds.clear();
        world.laws_hold();
        world.write(usize::MAX);
        world.laws_hold();
    }
}
