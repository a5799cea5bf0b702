//! An immutable picture of everything the operator configured: groups, accounts, users, keys and
//! price overrides. The store builds one; the request path reads it without locks.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tollgate_filters::passthrough::Rule;

use super::{
    Account, AccountId, ApiKey, Channel, Group, GroupId, GroupRules, KeyHash, Platform,
    Subscription, SubscriptionType, User, UserId,
};
use crate::domain::price::PriceMap;

/// One consistent picture of the configured objects.
#[derive(Debug, Default)]
pub struct Directory {
    /// The store's change counter this picture was read at.
    pub version: i64,
    groups: HashMap<GroupId, Arc<Group>>,
    rules: HashMap<GroupId, Arc<GroupRules>>,
    accounts: HashMap<AccountId, Arc<Account>>,
    accounts_of_group: HashMap<GroupId, Vec<Arc<Account>>>,
    intercepting: HashSet<GroupId>,
    users: HashMap<UserId, Arc<User>>,
    keys: HashMap<KeyHash, Arc<ApiKey>>,
    subscriptions: HashMap<(UserId, GroupId), Arc<Subscription>>,
    channels: HashMap<GroupId, Arc<Channel>>,
    /// What of upstream errors reaches clients, by priority, then name; disabled ones too.
    pub error_rules: Vec<Rule>,
    /// Prices that win over the price map (`prices:` of the resources).
    pub price_overrides: PriceMap,
}

/// What a directory is made of, in no order.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    /// The store's change counter these were read at.
    pub version: i64,
    /// All groups.
    pub groups: Vec<Group>,
    /// All accounts.
    pub accounts: Vec<Account>,
    /// All users.
    pub users: Vec<User>,
    /// All API keys.
    pub keys: Vec<ApiKey>,
    /// All subscriptions.
    pub subscriptions: Vec<Subscription>,
    /// All channels.
    pub channels: Vec<Channel>,
    /// All error passthrough rules.
    pub error_rules: Vec<Rule>,
    /// Price overrides.
    pub price_overrides: PriceMap,
}

impl Directory {
    /// Builds the indexes. Accounts of a group are kept in id order, error rules by priority.
    pub fn new(objects: Objects) -> Directory {
        let Objects {
            version,
            groups,
            accounts,
            users,
            keys,
            subscriptions,
            channels,
            mut error_rules,
            price_overrides,
        } = objects;
        let mut channel_of_group = HashMap::new();
        for channel in channels.into_iter().map(Arc::new) {
            for group in &channel.groups {
                channel_of_group.insert(*group, channel.clone());
            }
        }
        error_rules.sort_by(|a, b| (a.priority, &a.name).cmp(&(b.priority, &b.name)));
        let group_ids = groups.iter().map(|g| (g.name.as_str(), g.id)).collect();
        let account_ids = accounts.iter().map(|a| (a.name.as_str(), a.id)).collect();
        let rules = groups
            .iter()
            .map(|group| {
                let rules = GroupRules::new(&group.options, &group_ids, &account_ids);
                (group.id, Arc::new(rules))
            })
            .collect();
        let accounts: HashMap<_, _> = accounts.into_iter().map(|a| (a.id, Arc::new(a))).collect();
        let mut accounts_of_group: HashMap<GroupId, Vec<Arc<Account>>> = HashMap::new();
        for account in accounts.values() {
            for group in &account.groups {
                accounts_of_group
                    .entry(*group)
                    .or_default()
                    .push(account.clone());
            }
        }
        for list in accounts_of_group.values_mut() {
            list.sort_by_key(|a| a.id);
        }
        let intercepting = accounts.values().filter(|a| a.habits.intercepts);
        let intercepting = intercepting
            .flat_map(|a| a.groups.iter().copied())
            .collect();
        Directory {
            version,
            rules,
            groups: groups.into_iter().map(|g| (g.id, Arc::new(g))).collect(),
            accounts,
            accounts_of_group,
            intercepting,
            users: users.into_iter().map(|u| (u.id, Arc::new(u))).collect(),
            keys: keys.into_iter().map(|k| (k.hash, Arc::new(k))).collect(),
            subscriptions: subscriptions
                .into_iter()
                .map(|s| ((s.user, s.group), Arc::new(s)))
                .collect(),
            channels: channel_of_group,
            error_rules,
            price_overrides,
        }
    }

    /// The key with this hash.
    pub fn key(&self, hash: &KeyHash) -> Option<&Arc<ApiKey>> {
        self.keys.get(hash)
    }

    /// The group of this id.
    pub fn group(&self, id: GroupId) -> Option<&Arc<Group>> {
        self.groups.get(&id)
    }

    /// What a group's options say.
    pub fn rules(&self, id: GroupId) -> Arc<GroupRules> {
        self.rules.get(&id).cloned().unwrap_or_default()
    }

    /// The group in which a request of `group` goes on, once, whose prompt is too long there: one of Anthropic's that
    /// is paid from the balance and sends nothing on itself (SPEC 9.7a). `None` where there is none such, whatever is
    /// written.
    pub fn fallback_on_invalid_request(&self, group: GroupId) -> Option<&Arc<Group>> {
        let other = self.group(self.rules(group).fallback_on_invalid_request?)?;
        let fits = other.enabled
            && other.platform == Platform::Anthropic
            && other.subscription_type == SubscriptionType::Standard
            && self.rules(other.id).fallback_on_invalid_request.is_none();
        fits.then_some(other)
    }

    /// The account of this id.
    pub fn account(&self, id: AccountId) -> Option<&Arc<Account>> {
        self.accounts.get(&id)
    }

    /// The user of this id.
    pub fn user(&self, id: UserId) -> Option<&Arc<User>> {
        self.users.get(&id)
    }

    /// The user's subscription to a group, whatever its state.
    pub fn subscription(&self, user: UserId, group: GroupId) -> Option<&Arc<Subscription>> {
        self.subscriptions.get(&(user, group))
    }

    /// The channel of a group, if it is enabled.
    pub fn channel_of(&self, group: GroupId) -> Option<&Arc<Channel>> {
        self.channels.get(&group).filter(|channel| channel.enabled)
    }

    /// All subscriptions, in no order.
    pub fn subscriptions(&self) -> impl Iterator<Item = &Arc<Subscription>> {
        self.subscriptions.values()
    }

    /// Accounts that may serve a group, in id order; empty for an unknown group.
    pub fn accounts_of(&self, group: GroupId) -> &[Arc<Account>] {
        self.accounts_of_group
            .get(&group)
            .map_or(&[], Vec::as_slice)
    }

    /// Whether any account of a group has requests answered here that programs make for themselves
    /// ([`Habits::intercepts`](super::Habits::intercepts)).
    pub fn intercepts(&self, group: GroupId) -> bool {
        self.intercepting.contains(&group)
    }

    /// All accounts, in no order.
    pub fn accounts(&self) -> impl Iterator<Item = &Arc<Account>> {
        self.accounts.values()
    }

    /// All users, in no order.
    pub fn users(&self) -> impl Iterator<Item = &Arc<User>> {
        self.users.values()
    }

    /// All groups, in no order.
    pub fn groups(&self) -> impl Iterator<Item = &Arc<Group>> {
        self.groups.values()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::domain::Multiplier;

    #[test]
    fn a_request_wanders_once_and_only_to_a_group_that_takes_it() {
        let group = |id: i64, name: &str, to: Option<&str>| Group {
            id: GroupId(id),
            name: name.to_owned(),
            enabled: true,
            platform: Platform::Anthropic,
            rate_multiplier: Multiplier::ONE,
            subscription_type: SubscriptionType::Standard,
            daily_limit: None,
            weekly_limit: None,
            monthly_limit: None,
            rpm_limit: 0,
            options: match to {
                Some(to) => json!({ "fallback_group_on_invalid_request": to }),
                None => json!({}),
            }
            .as_object()
            .cloned()
            .unwrap_or_default(),
        };
        let directory = Directory::new(Objects {
            groups: vec![
                group(1, "long", None),
                group(2, "fine", Some("long")),
                group(3, "chained", Some("fine")),
                group(4, "itself", Some("itself")),
                group(5, "gone", Some("nowhere")),
                Group {
                    enabled: false,
                    ..group(6, "off", None)
                },
                group(7, "to-off", Some("off")),
                Group {
                    platform: Platform::OpenAi,
                    ..group(8, "openai", None)
                },
                group(9, "to-openai", Some("openai")),
                Group {
                    subscription_type: SubscriptionType::Subscription,
                    ..group(10, "subscribers", None)
                },
                group(11, "to-subscribers", Some("subscribers")),
            ],
            ..Objects::default()
        });
        for (from, to) in [
            (1, None),
            (2, Some("long")),
            (3, None),
            (4, None),
            (5, None),
            (7, None),
            (9, None),
            (11, None),
            (99, None),
        ] {
            let found = directory.fallback_on_invalid_request(GroupId(from));
            assert_eq!(found.map(|group| &*group.name), to, "{from}");
        }
    }
}
