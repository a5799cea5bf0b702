//! Subscriptions: what lets a user use a group without paying from a balance.

use chrono::{DateTime, Utc};

use super::{GroupId, SubscriptionId, UserId};

/// The operator's word on a subscription. Whether it has run out is a matter of the clock.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SubscriptionStatus {
    /// May be used between its start and its end.
    #[default]
    Active,
    /// Held up for now.
    Suspended,
    /// Ended before its time.
    Expired,
}

impl SubscriptionStatus {
    /// The name in resources and in the store.
    pub const fn as_str(self) -> &'static str {
        match self {
            SubscriptionStatus::Active => "active",
            SubscriptionStatus::Suspended => "suspended",
            SubscriptionStatus::Expired => "expired",
        }
    }
}

/// A user's subscription to a group. There is at most one for each pair.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Subscription {
    /// Row id.
    pub id: SubscriptionId,
    /// Whose.
    pub user: UserId,
    /// To which group.
    pub group: GroupId,
    /// Usable from then on.
    pub starts_at: DateTime<Utc>,
    /// Not usable from then on.
    pub expires_at: DateTime<Utc>,
    /// The operator's word.
    pub status: SubscriptionStatus,
}

impl Subscription {
    /// Whether it may be used at `now`.
    pub fn is_valid(&self, now: DateTime<Utc>) -> bool {
        self.status == SubscriptionStatus::Active && self.starts_at <= now && now < self.expires_at
    }

    /// Whether it needs nothing but time to be usable.
    pub fn is_for_later(&self, now: DateTime<Utc>) -> bool {
        self.status == SubscriptionStatus::Active && now < self.starts_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_valid_from_its_start_until_its_end() {
        let second = |s: i64| DateTime::from_timestamp(1_800_000_000 + s, 0).unwrap();
        let mut subscription = Subscription {
            id: SubscriptionId(1),
            user: UserId(1),
            group: GroupId(1),
            starts_at: second(0),
            expires_at: second(10),
            status: SubscriptionStatus::Active,
        };
        let valid: Vec<bool> = [-1, 0, 9, 10]
            .map(|s| subscription.is_valid(second(s)))
            .to_vec();
        assert_eq!(valid, [false, true, true, false]);
        let later = [-1, 0, 10].map(|s| subscription.is_for_later(second(s)));
        assert_eq!(later, [true, false, false]);
        subscription.status = SubscriptionStatus::Suspended;
        assert!(!subscription.is_valid(second(5)));
        assert!(!subscription.is_for_later(second(-1)));
    }
}
