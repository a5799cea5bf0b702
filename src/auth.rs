//! Authentication: a client's key → the principal it stands for.
//!
//! The checks and their order are those of SPEC 1.3. Everything is looked up in the directory, so a
//! request never asks the database.

pub mod ip;

use std::net::IpAddr;
use std::sync::Arc;

use chrono::{DateTime, Utc};

use crate::domain::{
    ApiKey, ApiKeyStatus, Directory, Group, KeyHash, Money, Multiplier, SubscriptionType, User,
    UserStatus,
};

/// Who asks, and on whose account.
#[derive(Clone, Debug)]
pub struct Principal {
    /// The key presented.
    pub key: Arc<ApiKey>,
    /// Its owner.
    pub user: Arc<User>,
    /// Its group.
    pub group: Arc<Group>,
    /// What the user pays relative to list price in this group.
    pub multiplier: Multiplier,
}

/// Why a key may not be used, in the order the checks are made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AuthError {
    /// No such key.
    #[error("the API key is not known")]
    UnknownKey,
    /// Switched off.
    #[error("the API key is disabled")]
    KeyDisabled,
    /// The address is denied or not allowed.
    #[error("this address may not use the API key")]
    AddressDenied,
    /// The key belongs to nobody.
    #[error("the API key has no user")]
    UserMissing,
    /// The user is switched off.
    #[error("the user is disabled")]
    UserInactive,
    /// The key belongs to no group, or to one that is gone or switched off.
    #[error("the API key has no group")]
    GroupMissing,
    /// The group needs a subscription and the user has none.
    #[error("the user has no subscription to the group")]
    SubscriptionMissing,
    /// Its whole-life quota is used up.
    #[error("the API key's quota is used up")]
    QuotaExhausted,
    /// Past its expiry.
    #[error("the API key has expired")]
    KeyExpired,
    /// Nothing left to spend.
    #[error("the balance is used up")]
    BalanceExhausted,
}

/// What of money the checks look at.
#[derive(Clone, Copy, Debug)]
pub struct Funds {
    /// Left on the user's balance.
    pub balance: Money,
    /// Spent with this key so far.
    pub key_spent: Money,
}

/// Asks what a key and its user have left.
pub type AskFunds<'f> = dyn Fn(&ApiKey, &User) -> Funds + 'f;

/// Finds the key and makes every check of SPEC 1.3. `funds` is asked only where money matters;
/// `None` = simple mode, where nothing is billed.
pub fn authenticate(
    directory: &Directory,
    hash: &KeyHash,
    ip: IpAddr,
    now: DateTime<Utc>,
    funds: Option<&AskFunds<'_>>,
) -> Result<Principal, AuthError> {
    let key = directory.key(hash).ok_or(AuthError::UnknownKey)?;
    if key.status == ApiKeyStatus::Disabled {
        return Err(AuthError::KeyDisabled);
    }
    if !ip::is_allowed(ip, &key.ip_allow, &key.ip_deny) {
        return Err(AuthError::AddressDenied);
    }
    let user = key
        .user
        .and_then(|id| directory.user(id))
        .ok_or(AuthError::UserMissing)?;
    if user.status != UserStatus::Active {
        return Err(AuthError::UserInactive);
    }
    let group = key
        .group
        .and_then(|id| directory.group(id))
        .filter(|group| group.enabled);
    if let Some(funds) = funds {
        if group.is_some_and(|g| g.subscription_type == SubscriptionType::Subscription) {
            return Err(AuthError::SubscriptionMissing);
        }
        if key.status == ApiKeyStatus::QuotaExhausted {
            return Err(AuthError::QuotaExhausted);
        }
        if key.status == ApiKeyStatus::Expired || key.expires_at.is_some_and(|end| end <= now) {
            return Err(AuthError::KeyExpired);
        }
        may_spend(key, funds(key, user))?;
    }
    // Last, as "group required" stands behind authentication (SPEC 1.1, 1.4).
    let group = group.ok_or(AuthError::GroupMissing)?;
    Ok(Principal {
        key: key.clone(),
        user: user.clone(),
        group: group.clone(),
        multiplier: user
            .group_multipliers
            .get(&group.id)
            .copied()
            .unwrap_or(group.rate_multiplier),
    })
}

/// Whether there is anything left to spend: the last checks, made again after a wait.
pub fn may_spend(key: &ApiKey, funds: Funds) -> Result<(), AuthError> {
    if key
        .quota
        .is_some_and(|quota| quota.is_positive() && funds.key_spent >= quota)
    {
        return Err(AuthError::QuotaExhausted);
    }
    if !funds.balance.is_positive() {
        return Err(AuthError::BalanceExhausted);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{ApiKeyId, GroupId, Objects, Platform, UserId};

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000, 0).unwrap()
    }

    fn key() -> ApiKey {
        ApiKey {
            id: ApiKeyId(1),
            name: "k".into(),
            hash: KeyHash([7; 32]),
            hint: "tg-k".into(),
            user: Some(UserId(1)),
            group: Some(GroupId(1)),
            status: ApiKeyStatus::Active,
            quota: None,
            rate_limits: [None; 3],
            expires_at: None,
            ip_allow: vec![],
            ip_deny: vec![],
        }
    }

    fn user() -> User {
        User {
            id: UserId(1),
            name: "u".into(),
            status: UserStatus::Active,
            concurrency: 5,
            rpm_limit: 0,
            group_multipliers: Default::default(),
        }
    }

    fn group() -> Group {
        Group {
            id: GroupId(1),
            name: "g".into(),
            enabled: true,
            platform: Platform::OpenAi,
            rate_multiplier: Multiplier(2_000_000),
            subscription_type: SubscriptionType::Standard,
            daily_limit: None,
            weekly_limit: None,
            monthly_limit: None,
            rpm_limit: 0,
            options: Default::default(),
        }
    }

    const RICH: Funds = Funds {
        balance: Money(1),
        key_spent: Money(0),
    };

    fn check(
        key: ApiKey,
        user: User,
        group: Group,
        funds: Option<Funds>,
    ) -> Result<Principal, AuthError> {
        let hash = key.hash;
        let directory = Directory::new(Objects {
            groups: vec![group],
            users: vec![user],
            keys: vec![key],
            ..Objects::default()
        });
        let ask = move |_: &ApiKey, _: &User| funds.unwrap();
        authenticate(
            &directory,
            &hash,
            "10.1.2.3".parse().unwrap(),
            now(),
            funds.as_ref().map(|_| &ask as &AskFunds<'_>),
        )
    }

    #[test]
    fn every_row_of_the_specification() {
        use AuthError::*;
        type Change = fn(&mut ApiKey, &mut User, &mut Group, &mut Funds);
        let rows: [(&str, Change, Option<AuthError>); 16] = [
            ("all is well", |_, _, _, _| {}, None),
            (
                "disabled key",
                |k, _, _, _| k.status = ApiKeyStatus::Disabled,
                Some(KeyDisabled),
            ),
            (
                "denied address",
                |k, _, _, _| k.ip_deny = vec!["10.0.0.0/8".into()],
                Some(AddressDenied),
            ),
            (
                "address not allowed",
                |k, _, _, _| k.ip_allow = vec!["192.0.2.1".into()],
                Some(AddressDenied),
            ),
            ("no user", |k, _, _, _| k.user = None, Some(UserMissing)),
            (
                "unknown user",
                |k, _, _, _| k.user = Some(UserId(9)),
                Some(UserMissing),
            ),
            (
                "inactive user",
                |_, u, _, _| u.status = UserStatus::Disabled,
                Some(UserInactive),
            ),
            ("no group", |k, _, _, _| k.group = None, Some(GroupMissing)),
            (
                "disabled group",
                |_, _, g, _| g.enabled = false,
                Some(GroupMissing),
            ),
            (
                "no subscription",
                |_, _, g, _| g.subscription_type = SubscriptionType::Subscription,
                Some(SubscriptionMissing),
            ),
            (
                "quota status",
                |k, _, _, _| k.status = ApiKeyStatus::QuotaExhausted,
                Some(QuotaExhausted),
            ),
            (
                "expired status",
                |k, _, _, _| k.status = ApiKeyStatus::Expired,
                Some(KeyExpired),
            ),
            (
                "expires at this moment",
                |k, _, _, _| k.expires_at = Some(now()),
                Some(KeyExpired),
            ),
            (
                "quota reached exactly",
                |k, _, _, f| {
                    k.quota = Some(Money(5));
                    f.key_spent = Money(5)
                },
                Some(QuotaExhausted),
            ),
            (
                "balance zero",
                |_, _, _, f| f.balance = Money(0),
                Some(BalanceExhausted),
            ),
            (
                "broke before groupless",
                |k, _, _, f| {
                    k.group = None;
                    f.balance = Money(0)
                },
                Some(BalanceExhausted),
            ),
        ];
        for (name, change, expected) in rows {
            let (mut k, mut u, mut g, mut f) = (key(), user(), group(), RICH);
            change(&mut k, &mut u, &mut g, &mut f);
            assert_eq!(check(k, u, g, Some(f)).err(), expected, "{name}");
        }
    }

    #[test]
    fn an_unknown_key_is_nobody() {
        let directory = Directory::default();
        let ip = "10.1.2.3".parse().unwrap();
        assert_eq!(
            authenticate(&directory, &KeyHash([1; 32]), ip, now(), None).err(),
            Some(AuthError::UnknownKey)
        );
    }

    #[test]
    fn simple_mode_looks_at_no_money() {
        let mut k = key();
        k.status = ApiKeyStatus::Expired;
        assert!(check(k, user(), group(), None).is_ok());
    }

    #[test]
    fn the_users_own_multiplier_wins() {
        let principal = check(key(), user(), group(), Some(RICH)).unwrap();
        assert_eq!(principal.multiplier, Multiplier(2_000_000));
        let mut special = user();
        special
            .group_multipliers
            .insert(GroupId(1), Multiplier(500_000));
        let principal = check(key(), special, group(), Some(RICH)).unwrap();
        assert_eq!(principal.multiplier, Multiplier(500_000));
    }
}
