//! The names by which resources refer to each other.

use std::collections::HashSet;
use std::fmt;

use super::{GroupResource, Resources};
use crate::domain::SubscriptionType;

/// What a name is a name of.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Kind {
    /// A group.
    Group,
    /// An account.
    Account,
    /// A user.
    User,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Kind::Group => "group",
            Kind::Account => "account",
            Kind::User => "user",
        }
    }
}

/// A name that a resource gives of another. Displayed as the mistake it is when nothing has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reference<'a> {
    /// The resource and its field: `accounts/openai-1: groups`.
    pub place: String,
    /// What is meant.
    pub kind: Kind,
    /// Its name.
    pub name: &'a str,
}

impl fmt::Display for Reference<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Reference { place, kind, name } = self;
        write!(f, "{place}: there is no {} named {name:?}", kind.as_str())
    }
}

impl Resources {
    /// Every reference, in the order of the kinds.
    pub fn references(&self) -> Vec<Reference<'_>> {
        let mut all = Vec::new();
        for group in &self.groups {
            of_group(group, &mut all);
        }
        let mut add = |place: String, kind, name| all.push(Reference { place, kind, name });
        for account in &self.accounts {
            for name in &account.groups {
                add(
                    format!("accounts/{}: groups", account.name),
                    Kind::Group,
                    name,
                );
            }
        }
        for user in &self.users {
            for name in user.group_multipliers.keys() {
                let place = format!("users/{}: group_multipliers", user.name);
                add(place, Kind::Group, name);
            }
        }
        for key in &self.api_keys {
            add(
                format!("api_keys/{}: user", key.name),
                Kind::User,
                &key.user,
            );
            if let Some(group) = &key.group {
                add(format!("api_keys/{}: group", key.name), Kind::Group, group);
            }
        }
        for subscription in &self.subscriptions {
            let place = format!("subscriptions/{}", subscription.name());
            add(format!("{place}: user"), Kind::User, &subscription.user);
            add(format!("{place}: group"), Kind::Group, &subscription.group);
        }
        for channel in &self.channels {
            for name in &channel.groups {
                let place = format!("channels/{}: groups", channel.name);
                add(place, Kind::Group, name);
            }
        }
        all
    }

    /// A warning for every subscription to one of these groups that is paid from the balance.
    pub(crate) fn unused_subscriptions(&self) -> Vec<String> {
        let from_balance: HashSet<&str> = self
            .groups
            .iter()
            .filter(|group| group.subscription_type == SubscriptionType::Standard)
            .map(|group| group.name.as_str())
            .collect();
        let unused = self.subscriptions.iter();
        let unused = unused.filter(|s| from_balance.contains(s.group.as_str()));
        unused
            .map(|s| unused_subscription(&s.name(), &s.group))
            .collect()
    }

    /// The references to what is not among these resources.
    pub fn missing(&self) -> Vec<Reference<'_>> {
        let groups = self.groups.iter().map(|r| (Kind::Group, r.name.as_str()));
        let accounts = self
            .accounts
            .iter()
            .map(|r| (Kind::Account, r.name.as_str()));
        let users = self.users.iter().map(|r| (Kind::User, r.name.as_str()));
        let here: HashSet<_> = groups.chain(accounts).chain(users).collect();
        let mut missing = self.references();
        missing.retain(|reference| !here.contains(&(reference.kind, reference.name)));
        missing
    }
}

/// What is said of a subscription that nothing is paid with.
pub(crate) fn unused_subscription(name: &str, group: &str) -> String {
    format!("subscriptions/{name}: not used, since groups/{group} is paid from the balance")
}

/// The options of a group are kept as written; these have names in them.
fn of_group<'a>(group: &'a GroupResource, all: &mut Vec<Reference<'a>>) {
    for field in ["fallback_group", "fallback_group_on_invalid_request"] {
        if let Some(name) = group.options.get(field).and_then(|v| v.as_str()) {
            all.push(Reference {
                place: format!("groups/{}: {field}", group.name),
                kind: Kind::Group,
                name,
            });
        }
    }
    let routing = group.options.get("model_routing");
    for (pattern, targets) in routing.and_then(|v| v.as_object()).into_iter().flatten() {
        let targets = targets.as_array().into_iter().flatten();
        for name in targets.filter_map(|v| v.as_str()) {
            all.push(Reference {
                place: format!("groups/{}: model_routing.{pattern}", group.name),
                kind: Kind::Account,
                name,
            });
        }
    }
}
