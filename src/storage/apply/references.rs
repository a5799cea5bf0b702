//! Everything that must hold before anything is written; all mistakes are told at once.

use std::collections::{HashMap, HashSet};

use super::held::Held;
use crate::config::resources::{AccountFacts, GroupFacts, Kind, Others, Resources};
use crate::domain::{KeyHash, SubscriptionType};
use crate::storage::convert::{millis, now_millis, subscription_name};
use crate::storage::{KeyHasher, StorageError};

/// Largest opening balance in nano-dollars: a billion dollars, far inside the ledger's range.
const MAX_OPENING_NANOS: i64 = 1_000_000_000_000_000_000;

/// Refuses unknown references, accounts in groups of another platform, rules of groups that cannot be followed,
/// names given twice and key texts used twice. Returns what is allowed but hardly meant.
pub(super) fn check(
    resources: &Resources,
    held: &Held,
    hasher: &KeyHasher,
    prune: bool,
) -> Result<Vec<String>, StorageError> {
    let mut problems = Vec::new();
    duplicates(
        "groups",
        resources.groups.iter().map(|r| &r.name),
        &mut problems,
    );
    duplicates(
        "accounts",
        resources.accounts.iter().map(|r| &r.name),
        &mut problems,
    );
    duplicates(
        "users",
        resources.users.iter().map(|r| &r.name),
        &mut problems,
    );
    duplicates(
        "api_keys",
        resources.api_keys.iter().map(|r| &r.name),
        &mut problems,
    );
    duplicates(
        "channels",
        resources.channels.iter().map(|r| &r.name),
        &mut problems,
    );
    let mut pairs = HashSet::new();
    for subscription in &resources.subscriptions {
        if !pairs.insert((&subscription.user, &subscription.group)) {
            let name = subscription.name();
            problems.push(format!("subscriptions/{name}: is given twice"));
        }
    }
    duplicates(
        "error_passthrough_rules",
        resources.error_passthrough_rules.iter().map(|r| &r.name),
        &mut problems,
    );

    for reference in resources.missing() {
        let in_store = match reference.kind {
            Kind::Group => held.groups.contains_key(reference.name),
            Kind::Account => held.accounts.contains_key(reference.name),
            Kind::User => held.users.contains_key(reference.name),
        };
        if !in_store {
            problems.push(reference.to_string());
        }
    }
    let others = others(resources, held, prune);
    problems.extend(resources.check_platforms(&others));
    let rules = resources.check_group_rules(&others);
    problems.extend(rules.problems);
    check_subscriptions(resources, held, &mut problems);
    check_channels(resources, held, prune, &mut problems);
    for user in &resources.users {
        if user
            .balance
            .is_some_and(|b| b.0.unsigned_abs() > MAX_OPENING_NANOS.unsigned_abs())
        {
            problems.push(format!("users/{}: balance: at most 1000000000", user.name));
        }
    }
    check_key_texts(resources, held, hasher, &mut problems);
    if problems.is_empty() {
        Ok(rules.warnings)
    } else {
        Err(StorageError::Invalid(problems))
    }
}

/// What the store has that the file does not name, as it will be.
fn others(resources: &Resources, held: &Held, prune: bool) -> Others {
    let groups_named: HashSet<&str> = resources.groups.iter().map(|r| r.name.as_str()).collect();
    let accounts_named: HashSet<&str> =
        resources.accounts.iter().map(|r| r.name.as_str()).collect();
    let group_names: HashMap<i64, &String> = held
        .groups
        .iter()
        .map(|(name, row)| (row.id, name))
        .collect();
    let subscription = subscription_name(SubscriptionType::Subscription);
    let groups = held.groups.values();
    let groups = groups.filter(|row| !groups_named.contains(row.name.as_str()));
    let accounts = held.accounts.values();
    let accounts =
        accounts.filter(|row| row.enabled && !accounts_named.contains(row.name.as_str()));
    Others {
        groups: groups
            .map(|row| {
                let facts = GroupFacts {
                    enabled: row.enabled && !prune,
                    platform: row.platform.clone(),
                    by_subscription: row.subscription_type == subscription,
                    // Written by this program. A row that it could not read would not be served either.
                    options: serde_json::from_str(&row.options).unwrap_or_default(),
                };
                (row.name.clone(), facts)
            })
            .collect(),
        accounts: accounts
            .map(|row| {
                let ids = held.account_groups.get(&row.id).into_iter().flatten();
                let names = ids.filter_map(|id| group_names.get(id).map(|name| (*name).clone()));
                let facts = AccountFacts {
                    enabled: !prune,
                    platform: row.platform.clone(),
                    groups: names.collect(),
                    extra: serde_json::from_str(&row.extra).unwrap_or_default(),
                };
                (row.name.clone(), facts)
            })
            .collect(),
        turned: resources
            .groups
            .iter()
            .filter(|r| {
                let stored = held.groups.get(&r.name);
                stored.is_some_and(|row| row.platform != r.platform.as_str())
            })
            .map(|r| r.name.clone())
            .collect(),
    }
}

fn duplicates<'a>(kind: &str, names: impl Iterator<Item = &'a String>, problems: &mut Vec<String>) {
    let mut seen = HashSet::new();
    for name in names {
        if !seen.insert(name) {
            problems.push(format!("{kind}/{name}: is given twice"));
        }
    }
}

/// A group has at most one enabled channel, once everything is applied.
fn check_channels(resources: &Resources, held: &Held, prune: bool, problems: &mut Vec<String>) {
    let staying = staying_channels(resources, held, prune);
    let mut in_file: HashMap<&str, &str> = HashMap::new();
    for channel in resources.channels.iter().filter(|r| r.enabled) {
        let name = &channel.name;
        for group in &channel.groups {
            if let Some(other) = staying.get(group.as_str()) {
                problems.push(format!(
                    "channels/{name}: groups/{group} is in channels/{other} already, which the file does \
                     not name; name it, without that group or with `enabled: false`, or apply with --prune"
                ));
            } else if let Some(other) = in_file.insert(group, name) {
                problems.push(format!(
                    "channels/{name}: groups/{group} is in channels/{other} already; leave it to one of \
                     them, or give one `enabled: false`"
                ));
            }
        }
    }
}

/// The groups of enabled channels that the file does not name and that stay as they are, by name.
pub(super) fn staying_channels<'a>(
    resources: &Resources,
    held: &'a Held,
    prune: bool,
) -> HashMap<&'a str, &'a str> {
    if prune {
        return HashMap::new();
    }
    let in_file: HashSet<&str> = resources.channels.iter().map(|r| r.name.as_str()).collect();
    let names: HashMap<i64, &str> = held
        .groups
        .values()
        .map(|row| (row.id, row.name.as_str()))
        .collect();
    let staying = held.channels.values();
    let staying = staying.filter(|row| row.enabled && !in_file.contains(row.name.as_str()));
    let mut groups = HashMap::new();
    for row in staying {
        let of_channel = held.channel_groups.get(&row.id).into_iter().flatten();
        groups.extend(of_channel.filter_map(|id| Some((*names.get(id)?, row.name.as_str()))));
    }
    groups
}

/// A subscription ends after it begins: when the file says, when it was first applied, or now.
fn check_subscriptions(resources: &Resources, held: &Held, problems: &mut Vec<String>) {
    for subscription in &resources.subscriptions {
        let first_applied = || {
            let user = held.users.get(&subscription.user)?.id;
            let group = held.groups.get(&subscription.group)?.id;
            Some(held.subscriptions.get(&(user, group))?.starts_at)
        };
        let problem = match subscription.starts_at {
            Some(start) if subscription.expires_at <= start => "is not after `starts_at`",
            None if millis(subscription.expires_at)
                <= first_applied().unwrap_or_else(now_millis) =>
            {
                "is not after it is first applied"
            }
            _ => continue,
        };
        let name = subscription.name();
        problems.push(format!("subscriptions/{name}: expires_at: {problem}"));
    }
}

/// No two keys may have the same text once everything is applied. The text itself is not shown.
fn check_key_texts(
    resources: &Resources,
    held: &Held,
    hasher: &KeyHasher,
    problems: &mut Vec<String>,
) {
    let given: HashMap<&str, Option<KeyHash>> = resources
        .api_keys
        .iter()
        .map(|r| {
            (
                r.name.as_str(),
                r.key.as_ref().map(|k| hasher.hash(k.expose())),
            )
        })
        .collect();
    let mut owners: HashMap<Vec<u8>, &str> = held
        .api_keys
        .values()
        .filter(|row| !given.get(row.name.as_str()).is_some_and(Option::is_some))
        .map(|row| (row.key_hash.clone(), row.name.as_str()))
        .collect();
    for resource in &resources.api_keys {
        let Some(Some(hash)) = given.get(resource.name.as_str()) else {
            continue;
        };
        let owner = owners.entry(hash.0.to_vec()).or_insert(&resource.name);
        if *owner != resource.name {
            problems.push(format!(
                "api_keys/{}: key: is the same as that of api_keys/{owner}",
                resource.name
            ));
        }
    }
}
