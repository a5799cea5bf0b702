//! Which groups accounts may be in, by their platforms. One function for both who asks: `check`, which knows the files
//! only, and `apply`, which also knows what the store holds.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::{Others, Resources};
use crate::domain::Platform;
use crate::domain::account::options::MIXED_SCHEDULING;

impl Resources {
    /// A mistake for every account that is in a group of a platform whose groups it does not serve. Names that nobody
    /// has are passed over: that is said elsewhere.
    pub fn check_platforms(&self, others: &Others) -> Vec<String> {
        let beside = others.groups.iter();
        let beside = beside.map(|(name, facts)| (name.as_str(), facts.platform.as_str()));
        let in_files = self.groups.iter();
        let in_files = in_files.map(|group| (group.name.as_str(), group.platform.as_str()));
        let platforms: HashMap<&str, &str> = beside.chain(in_files).collect();

        let mut problems = Vec::new();
        let mut check = |account: &str, platform: &str, extra: &Map<String, Value>, group: &str| {
            let Some(&of_group) = platforms.get(group) else {
                return;
            };
            if !serves(platform, extra, of_group) {
                problems.push(format!(
                    "accounts/{account}: its platform is {platform} but groups/{group} is of {of_group}"
                ));
            }
        };
        for account in &self.accounts {
            for group in &account.groups {
                let platform = account.platform.as_str();
                check(&account.name, platform, &account.extra, group);
            }
        }
        // Accounts that stay where they are while their group becomes another platform's.
        for (name, facts) in others.accounts.iter().filter(|(_, facts)| facts.enabled) {
            for group in facts.groups.intersection(&others.turned) {
                check(name, &facts.platform, &facts.extra, group);
            }
        }
        problems
    }
}

/// An account serves groups of its own platform; one of Antigravity also those of the dialects it speaks, if it is told
/// to.
fn serves(platform: &str, extra: &Map<String, Value>, of_group: &str) -> bool {
    let mixed = extra.get(MIXED_SCHEDULING).is_some_and(|on| on == true);
    let mixes = mixed
        && platform == Platform::Antigravity.as_str()
        && [Platform::Anthropic, Platform::Gemini]
            .map(Platform::as_str)
            .contains(&of_group);
    platform == of_group || mixes
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use serde_json::json;

    use super::*;
    use crate::config::resources::{AccountFacts, AccountResource, GroupFacts, GroupResource};
    use crate::domain::{AccountType, Credentials, ModelMapping, Multiplier, SubscriptionType};

    fn group(name: &str, platform: Platform) -> GroupResource {
        GroupResource {
            name: name.into(),
            enabled: true,
            platform,
            rate_multiplier: None,
            subscription_type: SubscriptionType::Standard,
            daily_limit: None,
            weekly_limit: None,
            monthly_limit: None,
            rpm_limit: 0,
            options: Map::new(),
        }
    }

    fn account(name: &str, platform: Platform, extra: &Value, groups: &[&str]) -> AccountResource {
        AccountResource {
            name: name.into(),
            enabled: true,
            platform,
            account_type: AccountType::ApiKey,
            credentials: Credentials::default(),
            groups: groups.iter().map(|group| (*group).to_owned()).collect(),
            concurrency: 1,
            priority: 1,
            model_mapping: ModelMapping::default(),
            rate_multiplier: Multiplier::ONE,
            load_factor: None,
            schedulable: true,
            expires_at: None,
            proxy: None,
            extra: extra.as_object().cloned().unwrap(),
        }
    }

    fn beside(platform: Platform, extra: &Value, group: &str) -> AccountFacts {
        AccountFacts {
            enabled: true,
            platform: platform.as_str().into(),
            groups: BTreeSet::from([group.to_owned()]),
            extra: extra.as_object().cloned().unwrap(),
        }
    }

    fn problem(account: &str, platform: Platform, group: &str, of: Platform) -> String {
        format!("accounts/{account}: its platform is {platform} but groups/{group} is of {of}")
    }

    /// The platforms of an account and a group, its options, and whether it may be in that group.
    fn table() -> Vec<(Platform, Platform, Value, bool)> {
        use Platform::{Anthropic, Antigravity, Gemini, OpenAi};
        let mixed = || json!({ "mixed_scheduling": true });
        vec![
            (OpenAi, OpenAi, json!({}), true),
            (Anthropic, Anthropic, json!({}), true),
            (OpenAi, Anthropic, json!({}), false),
            (OpenAi, Anthropic, mixed(), false),
            (Antigravity, Antigravity, json!({}), true),
            (Antigravity, Anthropic, json!({}), false),
            (
                Antigravity,
                Anthropic,
                json!({ "mixed_scheduling": false }),
                false,
            ),
            (
                Antigravity,
                Anthropic,
                json!({ "mixed_scheduling": "true" }),
                false,
            ),
            (Antigravity, Anthropic, mixed(), true),
            (Antigravity, Gemini, mixed(), true),
            (Antigravity, OpenAi, mixed(), false),
            (Anthropic, Antigravity, mixed(), false),
        ]
    }

    #[test]
    fn accounts_are_in_groups_that_they_serve() {
        for (platform, of_group, extra, serves) in table() {
            let wanted = match serves {
                true => vec![],
                false => vec![problem("a", platform, "g", of_group)],
            };
            let what = format!("{platform} in {of_group}, {extra}");
            // Both in the files.
            let mut resources = Resources {
                groups: vec![group("g", of_group)],
                accounts: vec![account("a", platform, &extra, &["g", "unknown"])],
                ..Resources::default()
            };
            let none = Others::default();
            assert_eq!(resources.check_platforms(&none), wanted, "{what}");
            // The group is known to the store only; the files alone cannot tell.
            resources.groups.clear();
            assert_eq!(resources.check_platforms(&none), Vec::<String>::new());
            let facts = GroupFacts {
                enabled: false,
                platform: of_group.as_str().into(),
                by_subscription: false,
                options: Map::new(),
            };
            let store = Others {
                groups: BTreeMap::from([("g".to_owned(), facts)]),
                ..Others::default()
            };
            assert_eq!(resources.check_platforms(&store), wanted, "{what}");
            // The account is, and its group turns.
            let resources = Resources {
                groups: vec![group("g", of_group)],
                ..Resources::default()
            };
            let mut store = Others {
                accounts: BTreeMap::from([("a".to_owned(), beside(platform, &extra, "g"))]),
                turned: BTreeSet::from(["g".to_owned()]),
                ..Others::default()
            };
            assert_eq!(resources.check_platforms(&store), wanted, "{what}");
            // It is about to be disabled.
            store.accounts.get_mut("a").unwrap().enabled = false;
            assert_eq!(resources.check_platforms(&store), Vec::<String>::new());
        }
    }

    #[test]
    fn what_the_files_leave_as_it_is_is_none_of_their_business() {
        let resources = Resources {
            groups: vec![group("g", Platform::OpenAi)],
            ..Resources::default()
        };
        let store = Others {
            accounts: BTreeMap::from([("a".to_owned(), beside(Platform::Gemini, &json!({}), "g"))]),
            ..Others::default()
        };
        assert_eq!(resources.check_platforms(&store), Vec::<String>::new());
    }

    #[test]
    fn every_account_and_group_is_told() {
        let resources = Resources {
            groups: vec![group("g", Platform::OpenAi), group("h", Platform::Gemini)],
            accounts: vec![
                account("b", Platform::Anthropic, &json!({}), &["h", "g"]),
                account("a", Platform::Gemini, &json!({}), &["g", "h"]),
            ],
            ..Resources::default()
        };
        assert_eq!(
            resources.check_platforms(&Others::default()),
            [
                problem("b", Platform::Anthropic, "h", Platform::Gemini),
                problem("b", Platform::Anthropic, "g", Platform::OpenAi),
                problem("a", Platform::Gemini, "g", Platform::OpenAi),
            ]
        );
    }
}
