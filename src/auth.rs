//! Authentication: a client's key → the principal it stands for.
//!
//! The checks and their order are those of SPEC 1.3. Everything is looked up in the directory, so a
//! request never asks the database.

pub mod ip;
pub mod serving;

use std::net::IpAddr;
use std::sync::Arc;

use chrono::{DateTime, Utc};

use crate::domain::{
    ApiKey, ApiKeyStatus, Directory, Group, KeyHash, Money, Multiplier, Subscription,
    SubscriptionType, User, UserStatus,
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
    /// The user's subscription, where the group wants one. Of a request for inference it is valid.
    pub subscription: Option<Arc<Subscription>>,
}

impl Principal {
    fn new(
        directory: &Directory,
        key: &Arc<ApiKey>,
        user: &Arc<User>,
        group: &Arc<Group>,
    ) -> Principal {
        let own_multiplier = user.group_multipliers.get(&group.id);
        let subscription = match group.subscription_type {
            SubscriptionType::Subscription => directory.subscription(user.id, group.id),
            SubscriptionType::Standard => None,
        };
        Principal {
            key: key.clone(),
            user: user.clone(),
            group: group.clone(),
            multiplier: own_multiplier.copied().unwrap_or(group.rate_multiplier),
            subscription: subscription.cloned(),
        }
    }

    /// The same key and user in another group, which its own group's rules send the request on to. Whether it
    /// may be used there is not asked here.
    pub fn in_group(&self, directory: &Directory, group: &Arc<Group>) -> Principal {
        Principal::new(directory, &self.key, &self.user, group)
    }
}

/// What the principal is wanted for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// Something that costs money.
    Inference,
    /// `GET /v1/usage`. Who has used everything up may still ask what was used, and until when it
    /// lasted: a key that is expired or exhausted passes, and so does an empty balance or a subscription
    /// that has run out.
    Usage,
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
    /// The subscription is for later.
    #[error("the user's subscription to the group has not begun, it begins at {begins}")]
    SubscriptionNotBegun {
        /// When it may be used.
        begins: DateTime<Utc>,
    },
    /// The subscription has run out or is suspended.
    #[error("the user's subscription to the group is not valid")]
    SubscriptionInvalid,
    /// Its whole-life quota is used up.
    #[error("the API key's quota is used up")]
    QuotaExhausted,
    /// Past its expiry.
    #[error("the API key has expired")]
    KeyExpired,
    /// Nothing left to spend.
    #[error("the balance is used up")]
    BalanceExhausted,
    /// The group is for another client, and names no group that this one may use.
    #[error("the group only allows Claude Code clients")]
    OnlyClaudeCode,
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

/// Finds the key and makes every check of SPEC 1.3 that `purpose` asks for. `funds` is asked only where
/// money matters; `None` = simple mode, where nothing is billed.
///
/// # Errors
/// The first check that fails.
pub fn authenticate(
    directory: &Directory,
    hash: &KeyHash,
    ip: IpAddr,
    now: DateTime<Utc>,
    funds: Option<&AskFunds<'_>>,
    purpose: Purpose,
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
    let subscription = group.and_then(|group| directory.subscription(user.id, group.id));
    let by_subscription =
        group.is_some_and(|g| g.subscription_type == SubscriptionType::Subscription);
    if let Some(funds) = funds {
        if by_subscription && subscription.is_none() {
            return Err(AuthError::SubscriptionMissing);
        }
        if purpose == Purpose::Inference {
            if key.status == ApiKeyStatus::QuotaExhausted {
                return Err(AuthError::QuotaExhausted);
            }
            if key.status == ApiKeyStatus::Expired || key.expires_at.is_some_and(|end| end <= now) {
                return Err(AuthError::KeyExpired);
            }
            let funds = funds(key, user);
            if by_subscription {
                within_quota(key, funds)?;
                is_subscribed(subscription.map(Arc::as_ref), now)?;
            } else {
                may_spend(key, funds)?;
            }
        }
    }
    // Last, as "group required" stands behind authentication (SPEC 1.1, 1.4).
    let group = group.ok_or(AuthError::GroupMissing)?;
    Ok(Principal::new(directory, key, user, group))
}

/// Whether a user's subscription to a group that wants one may be used at `now`.
fn is_subscribed(subscription: Option<&Subscription>, now: DateTime<Utc>) -> Result<(), AuthError> {
    match subscription {
        None => Err(AuthError::SubscriptionMissing),
        Some(subscription) if subscription.is_valid(now) => Ok(()),
        Some(subscription) if subscription.is_for_later(now) => {
            let begins = subscription.starts_at;
            Err(AuthError::SubscriptionNotBegun { begins })
        }
        Some(_) => Err(AuthError::SubscriptionInvalid),
    }
}

/// Whether there is anything left to spend: the last checks, made again after a wait.
///
/// # Errors
/// [`AuthError::QuotaExhausted`] or [`AuthError::BalanceExhausted`].
pub fn may_spend(key: &ApiKey, funds: Funds) -> Result<(), AuthError> {
    within_quota(key, funds)?;
    if !funds.balance.is_positive() {
        return Err(AuthError::BalanceExhausted);
    }
    Ok(())
}

/// Whether the key's quota has anything left, which counts whoever pays.
///
/// # Errors
/// [`AuthError::QuotaExhausted`].
pub fn within_quota(key: &ApiKey, funds: Funds) -> Result<(), AuthError> {
    if key
        .quota
        .is_some_and(|quota| quota.is_positive() && funds.key_spent >= quota)
    {
        return Err(AuthError::QuotaExhausted);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{
        ApiKeyId, GroupId, Objects, Platform, SubscriptionId, SubscriptionStatus, UserId,
    };

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

    /// What a row of the tables changes.
    struct Case {
        key: ApiKey,
        user: User,
        group: Group,
        funds: Option<Funds>,
        subscription: Option<Subscription>,
    }

    fn case() -> Case {
        Case {
            key: key(),
            user: user(),
            group: group(),
            funds: Some(RICH),
            subscription: None,
        }
    }

    impl Case {
        /// In a group that wants a subscription, with one of that status for `hours` from now on.
        fn subscribe(&mut self, status: SubscriptionStatus, hours: std::ops::Range<i64>) {
            let hour = |hours| now() + chrono::TimeDelta::hours(hours);
            self.group.subscription_type = SubscriptionType::Subscription;
            self.subscription = Some(Subscription {
                id: SubscriptionId(1),
                user: UserId(1),
                group: GroupId(1),
                starts_at: hour(hours.start),
                expires_at: hour(hours.end),
                status,
            });
        }
    }

    fn check(case: &Case, purpose: Purpose) -> Result<Principal, AuthError> {
        let directory = Directory::new(Objects {
            groups: vec![case.group.clone()],
            users: vec![case.user.clone()],
            keys: vec![case.key.clone()],
            subscriptions: case.subscription.iter().cloned().collect(),
            ..Objects::default()
        });
        let funds = case.funds;
        let ask = move |_: &ApiKey, _: &User| funds.unwrap();
        authenticate(
            &directory,
            &case.key.hash,
            "10.1.2.3".parse().unwrap(),
            now(),
            funds.as_ref().map(|_| &ask as &AskFunds<'_>),
            purpose,
        )
    }

    /// What is changed, and the answers to inference and to `GET /v1/usage`.
    type Row = (
        &'static str,
        fn(&mut Case),
        Option<AuthError>,
        Option<AuthError>,
    );

    #[test]
    fn every_row_of_the_specification() {
        use AuthError::*;
        use SubscriptionStatus::{Active, Suspended};
        #[rustfmt::skip]
        let rows: [Row; 26] = [
            ("all is well", |_| {}, None, None),
            ("disabled key", |c| c.key.status = ApiKeyStatus::Disabled, Some(KeyDisabled), Some(KeyDisabled)),
            ("denied address", |c| c.key.ip_deny = vec!["10.0.0.0/8".into()], Some(AddressDenied), Some(AddressDenied)),
            ("address not allowed", |c| c.key.ip_allow = vec!["192.0.2.1".into()], Some(AddressDenied), Some(AddressDenied)),
            ("no user", |c| c.key.user = None, Some(UserMissing), Some(UserMissing)),
            ("unknown user", |c| c.key.user = Some(UserId(9)), Some(UserMissing), Some(UserMissing)),
            ("inactive user", |c| c.user.status = UserStatus::Disabled, Some(UserInactive), Some(UserInactive)),
            ("no group", |c| c.key.group = None, Some(GroupMissing), Some(GroupMissing)),
            ("disabled group", |c| c.group.enabled = false, Some(GroupMissing), Some(GroupMissing)),
            ("no subscription", |c| c.group.subscription_type = SubscriptionType::Subscription, Some(SubscriptionMissing), Some(SubscriptionMissing)),
            ("no subscription, exhausted", |c| {
                c.group.subscription_type = SubscriptionType::Subscription;
                c.key.status = ApiKeyStatus::QuotaExhausted;
            }, Some(SubscriptionMissing), Some(SubscriptionMissing)),
            ("quota status", |c| c.key.status = ApiKeyStatus::QuotaExhausted, Some(QuotaExhausted), None),
            ("expired status", |c| c.key.status = ApiKeyStatus::Expired, Some(KeyExpired), None),
            ("expires at this moment", |c| c.key.expires_at = Some(now()), Some(KeyExpired), None),
            ("quota reached exactly", |c| {
                c.key.quota = Some(Money(5));
                c.funds = Some(Funds { key_spent: Money(5), ..RICH });
            }, Some(QuotaExhausted), None),
            ("a quota of zero is none", |c| c.key.quota = Some(Money(0)), None, None),
            ("balance zero", |c| c.funds = Some(Funds { balance: Money(0), ..RICH }), Some(BalanceExhausted), None),
            ("broke before groupless", |c| {
                c.key.group = None;
                c.funds = Some(Funds { balance: Money(0), ..RICH });
            }, Some(BalanceExhausted), Some(GroupMissing)),
            ("disabled before expired", |c| {
                c.key.status = ApiKeyStatus::Disabled;
                c.key.expires_at = Some(now());
            }, Some(KeyDisabled), Some(KeyDisabled)),
            ("a subscription", |c| c.subscribe(Active, 0..1), None, None),
            ("a subscription pays, not the balance", |c| {
                c.subscribe(Active, 0..1);
                c.funds = Some(Funds { balance: Money(-1), ..RICH });
            }, None, None),
            ("a subscription within a quota", |c| {
                c.subscribe(Suspended, 0..1);
                c.key.quota = Some(Money(5));
                c.funds = Some(Funds { key_spent: Money(5), ..RICH });
            }, Some(QuotaExhausted), None),
            ("a subscription that has run out", |c| c.subscribe(Active, -1..0), Some(SubscriptionInvalid), None),
            ("a subscription that has not begun", |c| c.subscribe(Active, 1..2), Some(SubscriptionNotBegun { begins: now() + chrono::TimeDelta::hours(1) }), None),
            ("a suspended subscription that has not begun", |c| c.subscribe(Suspended, 1..2), Some(SubscriptionInvalid), None),
            ("a suspended subscription", |c| c.subscribe(Suspended, 0..1), Some(SubscriptionInvalid), None),
        ];
        for (name, change, inference, usage) in rows {
            let mut case = case();
            change(&mut case);
            assert_eq!(check(&case, Purpose::Inference).err(), inference, "{name}");
            assert_eq!(check(&case, Purpose::Usage).err(), usage, "{name}, usage");
        }
    }

    #[test]
    fn a_subscription_comes_along_where_the_group_wants_one() {
        let mut case = case();
        case.subscribe(SubscriptionStatus::Active, 0..1);
        let principal = check(&case, Purpose::Inference).unwrap();
        assert_eq!(
            principal.subscription.as_deref(),
            case.subscription.as_ref()
        );
        case.group.subscription_type = SubscriptionType::Standard;
        let principal = check(&case, Purpose::Inference).unwrap();
        assert_eq!(principal.subscription, None);
    }

    #[test]
    fn an_unknown_key_is_nobody() {
        let directory = Directory::default();
        let ip = "10.1.2.3".parse().unwrap();
        assert_eq!(
            authenticate(
                &directory,
                &KeyHash([1; 32]),
                ip,
                now(),
                None,
                Purpose::Usage
            )
            .err(),
            Some(AuthError::UnknownKey)
        );
    }

    #[test]
    fn simple_mode_looks_at_no_money() {
        let mut case = case();
        case.funds = None;
        case.key.status = ApiKeyStatus::Expired;
        case.group.subscription_type = SubscriptionType::Subscription;
        for purpose in [Purpose::Inference, Purpose::Usage] {
            assert!(check(&case, purpose).is_ok());
        }
    }

    #[test]
    fn the_users_own_multiplier_wins() {
        let mut case = case();
        let principal = check(&case, Purpose::Inference).unwrap();
        assert_eq!(principal.multiplier, Multiplier(2_000_000));
        case.user
            .group_multipliers
            .insert(GroupId(1), Multiplier(500_000));
        let principal = check(&case, Purpose::Inference).unwrap();
        assert_eq!(principal.multiplier, Multiplier(500_000));
    }
}
