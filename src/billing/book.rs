//! What users may spend, in memory: balances, key quotas, rate windows, subscriptions and requests a
//! minute, decided together. The request path asks here; the database is never asked.
//!
//! ```text
//! left = what the limit allows − what is spent        spent = stored + settled since
//! free = left − what running requests hold
//! ```
//!
//! - [`Book::reserve`] sets money aside, all or nothing, and gives a [`Hold`]. Two requests never count on
//!   the same dollar.
//! - [`Hold::settle`] puts the charge in its place; dropping the hold gives everything back, also when
//!   a task is dropped or panics.
//! - [`Denied`] tells what is used up from what is only held by running requests: for that one waits
//!   ([`Book::changed`]) and asks again.
//!
//! Balances and the spending of keys are `stored` (as last read from the database) and `pending` (settled,
//! not yet written): a refresh can never resurrect spent money. Windows are loaded once; from then on the
//! book and the database fold the same charges by the same rule.
//!
//! A user is one small mutex, a key another, always taken in this order, so that one decision sees and
//! changes everything at once, and users never meet each other.

mod decide;
mod hold;
mod purse;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use chrono_tz::Tz;

use crate::config::Reservation;
use crate::domain::{
    ApiKeyId, BillingType, GroupId, Money, UsageRecord, UserId, Window, WindowKind,
};
use crate::state::dense::Dense;

pub use hold::Hold;
use purse::{KeyPurse, UserPurse};

/// No request is charged, or has reserved, more than a million dollars: what says so comes from a
/// provider that reports nonsense. The store holds charges to the same (`storage/settle.rs`), and sums of
/// amounts that are held to it stay far inside their range.
pub const MOST_A_REQUEST: Money = Money::from_usd(1_000_000);

/// What pays for a request.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Pays {
    /// The user's balance.
    Balance,
    /// The user's subscription to the group. The balance is not touched.
    Subscription,
}

impl Pays {
    /// As a record has it; `None` where nobody pays (simple mode).
    pub const fn of(billing_type: BillingType) -> Option<Pays> {
        match billing_type {
            BillingType::Balance => Some(Pays::Balance),
            BillingType::Subscription => Some(Pays::Subscription),
            BillingType::None => None,
        }
    }
}

/// Whose money it is. The quota and the windows of the key count however it is paid.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Payer {
    /// The user.
    pub user: UserId,
    /// The key the user came with.
    pub key: ApiKeyId,
    /// The key's group.
    pub group: GroupId,
    /// Balance or subscription.
    pub pays: Pays,
}

impl Payer {
    /// Who pays a record; `None` where nobody does.
    pub fn of(record: &UsageRecord) -> Option<Payer> {
        Some(Payer {
            user: record.user_id,
            key: record.api_key_id,
            group: record.group_id,
            pays: Pays::of(record.billing_type)?,
        })
    }
}

/// The limits of a request. What is `None` (or 0 requests a minute) is not limited.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Limits {
    /// USD over the key's whole life.
    pub quota: Option<Money>,
    /// USD in the key's windows, as [`crate::domain::KEY_WINDOWS`].
    pub key_windows: [Option<Money>; 3],
    /// USD in the subscription's windows, as [`crate::domain::SUBSCRIPTION_WINDOWS`]. They count only where
    /// the subscription pays.
    pub subscription: [Option<Money>; 3],
    /// Requests of the user a minute.
    pub user_rpm: u32,
    /// Requests of the user in the group a minute.
    pub group_rpm: u32,
}

/// Which limits of requests a minute a request is held to, and counted in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Count {
    /// None.
    No,
    /// The user's and the group's.
    Yes,
    /// The group's: the user's has it already, from where it came in.
    InGroup,
}

/// A question: may this be spent?
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ask {
    /// Whose money.
    pub payer: Payer,
    /// What limits it.
    pub limits: Limits,
    /// What is reserved where it is there.
    pub want: Money,
    /// With less left than this, no grant makes sense: in `strict` the cheapest useful answer, else 0.
    pub least: Money,
    /// How sure one wants to be.
    pub mode: Reservation,
    /// `strict`, and the wait for held money is over: take what is free, if it is at least `least`.
    pub take_what_is_free: bool,
    /// Whether the request counts as one of the minute. Without, limits by the minute are not looked at.
    pub count_request: Count,
}

/// One limit.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Limit {
    /// The user's balance.
    Balance,
    /// The key's quota.
    Quota,
    /// One of the key's rate windows.
    KeyWindow(WindowKind),
    /// One of the subscription's windows.
    Subscription(WindowKind),
    /// Requests of the user a minute.
    UserRpm,
    /// Requests of the user in the group a minute.
    GroupRpm,
}

/// A limit that is in the way, and how it stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// Which.
    pub limit: Limit,
    /// The limit itself; `None` for the balance, and where requests are counted.
    pub amount: Option<Money>,
    /// What is left of it, not counting what is held. Below zero where it was overdrawn.
    pub left: Money,
    /// What running requests hold of that.
    pub held: Money,
    /// When there is something again by itself; `None` = not before somebody sees to it.
    pub resets_at: Option<DateTime<Utc>>,
}

impl Refusal {
    /// What can be reserved.
    pub fn free(&self) -> Money {
        self.left - self.held
    }
}

/// Why a request may not go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Denied {
    /// The limit is used up, or what is left of it is not enough for anything useful.
    #[error("{:?} is used up", .0.limit)]
    Refused(Refusal),
    /// There is enough, but running requests hold it. It is worth waiting: see [`Book::changed`].
    #[error("what is left of {:?} is held by running requests", .0.limit)]
    Held(Refusal),
}

/// How a user and one of its keys stand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Standing {
    /// Left to spend, not counting what is held.
    pub balance: Money,
    /// Held of the balance by running requests.
    pub reserved: Money,
    /// Spent with the key in its whole life.
    pub key_spent: Money,
    /// The key's windows; one that is over is empty.
    pub key_windows: [Window; 3],
    /// The windows of the user's subscription to the group; one that is over is empty.
    pub subscription_windows: [Window; 3],
}

/// What running requests hold altogether.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct OpenHolds {
    /// How many there are.
    pub count: u64,
    /// What they hold, whoever pays.
    pub sum: Money,
}

/// What everybody may spend. See the module.
pub struct Book {
    users: Dense<UserPurse>,
    keys: Dense<KeyPurse>,
    tz: Tz,
}

impl Book {
    /// A book in which nobody has anything. Days begin at midnight in `tz`.
    pub fn new(tz: Tz) -> Book {
        Book {
            users: Dense::new(),
            keys: Dense::new(),
            tz,
        }
    }

    /// Sets money aside and counts the request, or neither.
    ///
    /// Limits that are used up come first, whatever is held; of several, the one that takes longest to
    /// come back is told. Then money that is held, and requests a minute last.
    ///
    /// # Errors
    /// [`Denied`]; then nothing has been taken.
    pub fn reserve(&self, ask: &Ask, now: DateTime<Utc>) -> Result<Hold, Denied> {
        let (user, key) = (self.user(ask.payer.user), self.key(ask.payer.key));
        let amount = {
            let mut funds = user.funds.lock();
            let mut spend = key.spend.lock();
            let amount = decide::decide(ask, &funds, &spend, now)?;
            funds.hold(&ask.payer, amount);
            spend.hold(&ask.payer, amount);
            funds.count_request(ask, now);
            amount
        };
        Ok(Hold::new(user, key, ask, amount, self.tz))
    }

    /// What [`Book::reserve`] would set aside now. Takes and counts nothing.
    ///
    /// # Errors
    /// [`Denied`], as it would.
    pub fn check(&self, ask: &Ask, now: DateTime<Utc>) -> Result<Money, Denied> {
        let (user, key) = (self.user(ask.payer.user), self.key(ask.payer.key));
        let funds = user.funds.lock();
        let spend = key.spend.lock();
        decide::decide(ask, &funds, &spend, now)
    }

    /// Ends when something of the user has changed that may turn [`Denied::Held`] into another answer.
    /// Changes count from this call on, not from the first poll: call it, ask, then await it.
    pub fn changed(&self, user: UserId) -> impl Future<Output = ()> + Send + 'static {
        self.user(user).changed.clone().notified_owned()
    }

    /// What `user` has left, not counting what is held. Unknown users have nothing.
    pub fn balance(&self, user: UserId) -> Money {
        let left = |purse: &Arc<UserPurse>| purse.funds.lock().left();
        self.users.read(user.0, left).unwrap_or_default()
    }

    /// What has been spent with `key` in its whole life.
    pub fn key_spent(&self, key: ApiKeyId) -> Money {
        let spent = |purse: &Arc<KeyPurse>| purse.spend.lock().spent();
        self.keys.read(key.0, spent).unwrap_or_default()
    }

    /// How things stand, as of one moment.
    pub fn standing(
        &self,
        user: UserId,
        key: ApiKeyId,
        group: GroupId,
        now: DateTime<Utc>,
    ) -> Standing {
        let (user, key) = (self.user(user), self.key(key));
        let funds = user.funds.lock();
        let spend = key.spend.lock();
        Standing {
            balance: funds.left(),
            reserved: funds.held(),
            key_spent: spend.spent(),
            key_windows: spend.windows(now),
            subscription_windows: funds.windows(group, now),
        }
    }

    /// What running requests hold, for metrics. Looks at every user.
    pub fn open_holds(&self) -> OpenHolds {
        let mut open = OpenHolds::default();
        self.users.for_each(|purse| {
            let (count, sum) = purse.funds.lock().open();
            open.count += count;
            open.sum += sum;
        });
        open
    }

    /// Counts a settled record for which there is no hold (any more): one that the journal brought back.
    pub fn restore(&self, record: &UsageRecord) {
        let Some(payer) = Payer::of(record) else {
            return;
        };
        let charge = held_to_reason(record.charge);
        let (user, key) = (self.user(payer.user), self.key(payer.key));
        {
            let at = record.settled_at();
            let mut funds = user.funds.lock();
            let mut spend = key.spend.lock();
            funds.charge(&payer, charge, at, self.tz);
            spend.charge(&payer, charge, at, self.tz);
        }
        user.changed.notify_waiters();
    }

    /// A charge that was counted at `at` was given back. Lowers the windows it was counted in; the balance and what
    /// the key has spent come with the next [`Book::refresh`].
    pub fn reversed(&self, payer: &Payer, charge: Money, at: DateTime<Utc>) {
        let charge = held_to_reason(charge);
        let (user, key) = (self.user(payer.user), self.key(payer.key));
        {
            let mut funds = user.funds.lock();
            let mut spend = key.spend.lock();
            funds.uncharge(payer, charge, at);
            spend.uncharge(charge, at);
        }
        user.changed.notify_waiters();
    }

    /// A batch is in the database now, with these sums after it (what `Store::settle` answers). Called
    /// while nobody else reads or writes money there.
    pub fn written(
        &self,
        batch: &[Arc<UsageRecord>],
        balances: &[(UserId, Money)],
        spent: &[(ApiKeyId, Money)],
    ) {
        let mut by_user: HashMap<UserId, Money> = HashMap::new();
        let mut by_key: HashMap<ApiKeyId, Money> = HashMap::new();
        for (payer, record) in batch.iter().filter_map(|r| Some((Payer::of(r)?, r))) {
            let charge = held_to_reason(record.charge);
            if payer.pays == Pays::Balance {
                *by_user.entry(payer.user).or_default() += charge;
            }
            *by_key.entry(payer.key).or_default() += charge;
        }
        for (user, stored) in balances {
            self.written_user(*user, *stored, by_user.remove(user).unwrap_or_default());
        }
        for (key, stored) in spent {
            self.written_key(*key, *stored, by_key.remove(key).unwrap_or_default());
        }
    }

    /// `charge` of what was settled from the user's balance is in the database now: `stored` there
    /// includes it. One step, so that no reader counts it twice.
    pub fn written_user(&self, user: UserId, stored: Money, charge: Money) {
        let user = self.user(user);
        let rose = user.funds.lock().written(stored, charge);
        if rose {
            user.changed.notify_waiters();
        }
    }

    /// The same for what a key has spent.
    pub fn written_key(&self, key: ApiKeyId, stored: Money, charge: Money) {
        let freed = self.key(key).spend.lock().written(stored, charge);
        if let Some(user) = freed {
            self.user(user).changed.notify_waiters();
        }
    }

    /// What the database holds, read at a moment when nothing was being written. What is settled
    /// but not yet written stays subtracted. Who has more than before is woken.
    pub fn refresh(&self, balances: Vec<(UserId, Money)>, spent: Vec<(ApiKeyId, Money)>) {
        for (user, stored) in balances {
            self.written_user(user, stored, Money::ZERO);
        }
        for (key, stored) in spent {
            self.written_key(key, stored, Money::ZERO);
        }
    }

    /// What the windows had counted when the database was last written. Once, before the first request
    /// and before [`Book::restore`].
    pub fn load_windows(
        &self,
        keys: Vec<(ApiKeyId, [Window; 3])>,
        subscriptions: Vec<((UserId, GroupId), [Window; 3])>,
    ) {
        for (key, windows) in keys {
            self.key(key).spend.lock().load(windows, self.tz);
        }
        for ((user, group), windows) in subscriptions {
            let user = self.user(user);
            user.funds.lock().load(group, windows, self.tz);
        }
    }

    fn user(&self, user: UserId) -> Arc<UserPurse> {
        self.users.with(user.0, Arc::default, Arc::clone)
    }

    fn key(&self, key: ApiKeyId) -> Arc<KeyPurse> {
        self.keys.with(key.0, Arc::default, Arc::clone)
    }
}

impl std::fmt::Debug for Book {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Book")
            .field("open_holds", &self.open_holds())
            .finish_non_exhaustive()
    }
}

/// An amount that a request may be charged or have reserved.
fn held_to_reason(amount: Money) -> Money {
    amount.clamp(Money::ZERO, MOST_A_REQUEST)
}
