//! What users have left, in memory: the balance in the database less what is settled but not yet
//! written. The request path asks here; the database is never asked.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use crate::domain::{ApiKeyId, Money, UserId};

/// Money known of one owner (a user's balance, or what a key has spent).
#[derive(Clone, Copy, Debug, Default)]
struct Amount {
    /// As last read from the database.
    stored: Money,
    /// Settled since, not yet written.
    pending: Money,
}

/// Balances of users and spending of keys.
#[derive(Debug, Default)]
pub struct Balances {
    users: RwLock<HashMap<UserId, Arc<Mutex<Amount>>>>,
    keys: RwLock<HashMap<ApiKeyId, Arc<Mutex<Amount>>>>,
}

fn entry<K: std::hash::Hash + Eq + Copy>(
    map: &RwLock<HashMap<K, Arc<Mutex<Amount>>>>,
    key: K,
) -> Arc<Mutex<Amount>> {
    if let Some(found) = map.read().get(&key) {
        return found.clone();
    }
    map.write().entry(key).or_default().clone()
}

fn read<K: std::hash::Hash + Eq>(map: &RwLock<HashMap<K, Arc<Mutex<Amount>>>>, key: &K) -> Amount {
    map.read()
        .get(key)
        .map_or(Amount::default(), |amount| *amount.lock())
}

impl Balances {
    /// What `user` can still spend. Unknown users have nothing.
    pub fn balance(&self, user: UserId) -> Money {
        let amount = read(&self.users, &user);
        amount.stored - amount.pending
    }

    /// What has been spent with `key`.
    pub fn key_spent(&self, key: ApiKeyId) -> Money {
        let amount = read(&self.keys, &key);
        amount.stored + amount.pending
    }

    /// Counts a charge at the moment it is known, before it is written.
    pub fn settle(&self, user: UserId, key: ApiKeyId, charge: Money) {
        entry(&self.users, user).lock().pending += charge;
        entry(&self.keys, key).lock().pending += charge;
    }

    /// The charge of `settle` is in the database now: `stored` there includes it. Called by the
    /// writer for every touched owner, in one step each, so that no reader counts it twice.
    pub fn written_user(&self, user: UserId, stored: Money, charge: Money) {
        let amount = entry(&self.users, user);
        let mut amount = amount.lock();
        amount.stored = stored;
        amount.pending -= charge;
    }

    /// The same for a key's spending.
    pub fn written_key(&self, key: ApiKeyId, stored: Money, charge: Money) {
        let amount = entry(&self.keys, key);
        let mut amount = amount.lock();
        amount.stored = stored;
        amount.pending -= charge;
    }

    /// What the database holds, read at a moment when nothing was being written. What is settled
    /// but not yet written stays subtracted: a refresh never resurrects spent money.
    pub fn refresh(&self, balances: Vec<(UserId, Money)>, spent: Vec<(ApiKeyId, Money)>) {
        for (user, stored) in balances {
            entry(&self.users, user).lock().stored = stored;
        }
        for (key, stored) in spent {
            entry(&self.keys, key).lock().stored = stored;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USER: UserId = UserId(1);
    const KEY: ApiKeyId = ApiKeyId(1);

    #[test]
    fn a_refresh_never_resurrects_spent_money() {
        let book = Balances::default();
        assert_eq!(book.balance(USER), Money(0));
        book.refresh(vec![(USER, Money(100))], vec![(KEY, Money(5))]);
        book.settle(USER, KEY, Money(30));
        assert_eq!(book.balance(USER), Money(70));
        assert_eq!(book.key_spent(KEY), Money(35));
        book.refresh(vec![(USER, Money(100))], vec![(KEY, Money(5))]);
        assert_eq!(book.balance(USER), Money(70), "not yet written");
        book.written_user(USER, Money(70), Money(30));
        book.written_key(KEY, Money(35), Money(30));
        assert_eq!(book.balance(USER), Money(70));
        assert_eq!(book.key_spent(KEY), Money(35));
        book.refresh(vec![(USER, Money(170))], vec![]);
        assert_eq!(book.balance(USER), Money(170), "a credit arrived");
    }

    #[test]
    fn a_charge_may_exceed_the_balance_and_is_kept_in_full() {
        let book = Balances::default();
        book.refresh(vec![(USER, Money(10))], vec![]);
        book.settle(USER, KEY, Money(30));
        assert_eq!(book.balance(USER), Money(-20));
    }
}
