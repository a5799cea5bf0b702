//! What the rules of groups ask of other groups and of accounts: groups that requests go on to must be able to take
//! them, and must not send them round in a circle. One function for both who asks: `check`, which knows the files
//! only, and `apply`, which also knows what the store holds.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::Resources;
use crate::domain::group::rules;
use crate::domain::{Platform, SubscriptionType};

/// What of a group the rules of others depend on, and what it says of others itself.
#[derive(Clone, PartialEq, Debug)]
pub struct GroupFacts {
    /// Operator's intent, once everything is applied.
    pub enabled: bool,
    /// Platform of its accounts, as resources name it.
    pub platform: String,
    /// Its users pay by subscription.
    pub by_subscription: bool,
    /// Its other options.
    pub options: Map<String, Value>,
}

impl GroupFacts {
    fn names(&self, option: &str) -> Option<&str> {
        self.options.get(option).and_then(Value::as_str)
    }

    fn claude_code_only(&self) -> bool {
        self.options
            .get(rules::CLAUDE_CODE_ONLY)
            .is_some_and(|on| on == true)
    }
}

/// What of an account depends on the groups it is in, and they on it.
#[derive(Clone, PartialEq, Debug)]
pub struct AccountFacts {
    /// Operator's intent, once everything is applied.
    pub enabled: bool,
    /// Provider family, as resources name it.
    pub platform: String,
    /// Names of its groups.
    pub groups: BTreeSet<String>,
    /// Its options.
    pub extra: Map<String, Value>,
}

/// What there is beside the files.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Others {
    /// Groups that the files do not name.
    pub groups: BTreeMap<String, GroupFacts>,
    /// Accounts that the files do not name.
    pub accounts: BTreeMap<String, AccountFacts>,
    /// Groups that the files name and that were another platform's.
    pub turned: BTreeSet<String>,
}

/// What was found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Findings {
    /// What must not be applied.
    pub problems: Vec<String>,
    /// What is allowed but hardly meant.
    pub warnings: Vec<String>,
}

impl Resources {
    /// Checks the rules of groups in the files, and those of other groups that speak of one in the files. Names that
    /// nobody has are passed over: that is said elsewhere.
    pub fn check_group_rules(&self, others: &Others) -> Findings {
        let mut all: BTreeMap<&str, GroupFacts> = others
            .groups
            .iter()
            .map(|(name, facts)| (name.as_str(), facts.clone()))
            .collect();
        let mut order: Vec<&str> = Vec::new();
        for group in &self.groups {
            order.push(&group.name);
            let facts = GroupFacts {
                enabled: group.enabled,
                platform: group.platform.as_str().to_owned(),
                by_subscription: group.subscription_type == SubscriptionType::Subscription,
                options: group.options.clone(),
            };
            all.insert(&group.name, facts);
        }
        let in_files: BTreeSet<&str> = order.iter().copied().collect();
        order.extend(
            others
                .groups
                .keys()
                .map(String::as_str)
                .filter(|n| !in_files.contains(n)),
        );

        let mut check = Check {
            all: &all,
            in_files: &in_files,
            circles: BTreeSet::new(),
            found: Findings::default(),
        };
        for name in order {
            check.fallback(name);
            check.fallback_on_invalid_request(name);
        }
        let mut found = check.found;
        self.check_routing(others, &mut found);
        found
    }

    /// Accounts that a group's routing names serve it only if they are in it.
    fn check_routing(&self, others: &Others, found: &mut Findings) {
        let mut groups_of: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for (name, facts) in &others.accounts {
            groups_of.insert(name, facts.groups.iter().map(String::as_str).collect());
        }
        for account in &self.accounts {
            groups_of.insert(
                &account.name,
                account.groups.iter().map(String::as_str).collect(),
            );
        }
        for group in &self.groups {
            let routing = group.options.get(rules::MODEL_ROUTING);
            for (pattern, names) in routing.and_then(Value::as_object).into_iter().flatten() {
                let names = names.as_array().into_iter().flatten();
                for name in names.filter_map(Value::as_str) {
                    let groups = groups_of.get(name);
                    if groups.is_some_and(|groups| !groups.contains(group.name.as_str())) {
                        found.warnings.push(format!(
                            "groups/{}: model_routing.{pattern}: accounts/{name} is not in this group and will not \
                             be asked",
                            group.name
                        ));
                    }
                }
            }
        }
    }
}

struct Check<'a> {
    all: &'a BTreeMap<&'a str, GroupFacts>,
    in_files: &'a BTreeSet<&'a str>,
    /// Circles that have been told, by their members.
    circles: BTreeSet<BTreeSet<&'a str>>,
    found: Findings,
}

impl<'a> Check<'a> {
    /// The group that an option names, where there is one and either of them is in the files.
    fn target(
        &self,
        name: &'a str,
        option: &str,
    ) -> Option<(&'a GroupFacts, &'a str, &'a GroupFacts)> {
        let group = self.all.get(name)?;
        let (target, facts) = self.all.get_key_value(group.names(option)?)?;
        let concerned = self.in_files.contains(name) || self.in_files.contains(target);
        concerned.then_some((group, *target, facts))
    }

    fn problem(&mut self, name: &str, option: &str, problem: &str) {
        self.found
            .problems
            .push(format!("groups/{name}: {option}: {problem}"));
    }

    fn warning(&mut self, name: &str, option: &str, warning: &str) {
        self.found
            .warnings
            .push(format!("groups/{name}: {option}: {warning}"));
    }

    /// The group for other clients than Claude Code.
    fn fallback(&mut self, name: &'a str) {
        const OPTION: &str = rules::FALLBACK_GROUP;
        let Some((group, target, facts)) = self.target(name, OPTION) else {
            return;
        };
        if group.platform != facts.platform {
            let problem = format!(
                "groups/{target} is of platform {}, this group of {}; it must be of the same",
                facts.platform, group.platform
            );
            self.problem(name, OPTION, &problem);
        }
        if target == name {
            self.problem(
                name,
                OPTION,
                "this is the group itself; name another, or none",
            );
            return;
        }
        if !facts.enabled {
            let warning = format!("groups/{target} is not enabled, so it takes no requests");
            self.warning(name, OPTION, &warning);
        }
        if group.claude_code_only() {
            self.circle(name);
        }
    }

    /// Groups for Claude Code only that send other clients round.
    fn circle(&mut self, name: &'a str) {
        let mut chain = vec![name];
        let mut last = name;
        loop {
            let Some(facts) = self.all.get(last).filter(|facts| facts.claude_code_only()) else {
                return;
            };
            let Some(next) = facts.names(rules::FALLBACK_GROUP) else {
                return;
            };
            let Some((next, _)) = self.all.get_key_value(next) else {
                return;
            };
            if let Some(begin) = chain.iter().position(|passed| passed == next) {
                // A group that names itself has been told so.
                let members: BTreeSet<&str> = chain[begin..].iter().copied().collect();
                if begin == 0 && members.len() > 1 && self.circles.insert(members) {
                    chain.push(*next);
                    let problem = format!(
                        "{} goes round in a circle; other clients than Claude Code need a group that takes them at \
                         its end, or none",
                        chain.join(" → ")
                    );
                    self.problem(name, rules::FALLBACK_GROUP, &problem);
                }
                return;
            }
            chain.push(*next);
            last = *next;
        }
    }

    /// The group for requests that the first one cannot take.
    fn fallback_on_invalid_request(&mut self, name: &'a str) {
        const OPTION: &str = rules::FALLBACK_GROUP_ON_INVALID_REQUEST;
        let Some((_, target, facts)) = self.target(name, OPTION) else {
            return;
        };
        if target == name {
            self.problem(
                name,
                OPTION,
                "this is the group itself; name another, or none",
            );
            return;
        }
        let wrong = [
            (
                facts.platform != Platform::Anthropic.as_str(),
                format!("is of platform {}, it must be of anthropic", facts.platform),
            ),
            (
                facts.by_subscription,
                "is for subscribers; it must be paid from the balance".to_owned(),
            ),
            (
                facts.names(OPTION).is_some(),
                format!("has a {OPTION} itself; requests go on once only"),
            ),
        ];
        for (_, why) in wrong.iter().filter(|(is_wrong, _)| *is_wrong) {
            self.problem(name, OPTION, &format!("groups/{target} {why}"));
        }
        if !facts.enabled {
            let warning = format!("groups/{target} is not enabled, so it takes no requests");
            self.warning(name, OPTION, &warning);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::resources::{AccountResource, GroupResource};
    use crate::domain::{AccountType, Credentials, ModelMapping, Multiplier};

    fn group(name: &str, options: Value) -> GroupResource {
        GroupResource {
            name: name.into(),
            enabled: true,
            platform: Platform::Anthropic,
            rate_multiplier: None,
            subscription_type: SubscriptionType::Standard,
            daily_limit: None,
            weekly_limit: None,
            monthly_limit: None,
            rpm_limit: 0,
            options: options.as_object().cloned().unwrap(),
        }
    }

    fn only(name: &str, fallback: &str) -> GroupResource {
        group(
            name,
            json!({ "claude_code_only": true, "fallback_group": fallback }),
        )
    }

    fn held(options: Value) -> GroupFacts {
        GroupFacts {
            enabled: true,
            platform: "anthropic".into(),
            by_subscription: false,
            options: options.as_object().cloned().unwrap(),
        }
    }

    fn found(groups: Vec<GroupResource>, others: &[(&str, GroupFacts)]) -> Findings {
        let resources = Resources {
            groups,
            ..Resources::default()
        };
        let groups = others.iter();
        resources.check_group_rules(&Others {
            groups: groups
                .map(|(name, facts)| ((*name).to_owned(), facts.clone()))
                .collect(),
            ..Others::default()
        })
    }

    fn problems(groups: Vec<GroupResource>, others: &[(&str, GroupFacts)]) -> Vec<String> {
        found(groups, others).problems
    }

    #[test]
    fn chains_that_end_are_fine() {
        let groups = vec![
            only("a", "b"),
            only("b", "c"),
            group("c", json!({})),
            only("d", "c"),
        ];
        assert_eq!(found(groups, &[]), Findings::default());
        // Where one of them takes everybody nothing goes round.
        let groups = vec![only("a", "b"), group("b", json!({ "fallback_group": "a" }))];
        assert_eq!(found(groups, &[]), Findings::default());
        // Names that nobody has are told elsewhere.
        assert_eq!(found(vec![only("a", "gone")], &[]), Findings::default());
    }

    #[test]
    fn circles_are_told_once_with_their_chain() {
        let circle = |name: &str, chain: &str| {
            format!(
                "groups/{name}: fallback_group: {chain} goes round in a circle; other clients than Claude Code need a \
                 group that takes them at its end, or none"
            )
        };
        let groups = vec![
            only("c", "a"),
            only("a", "b"),
            only("b", "c"),
            only("d", "b"),
            only("x", "y"),
            only("y", "x"),
        ];
        assert_eq!(
            problems(groups, &[]),
            [circle("c", "c → a → b → c"), circle("x", "x → y → x")]
        );
        // A new group may close a circle of which the store has the rest.
        let others = [
            (
                "b",
                held(json!({ "claude_code_only": true, "fallback_group": "a" })),
            ),
            (
                "p",
                held(json!({ "claude_code_only": true, "fallback_group": "q" })),
            ),
            (
                "q",
                held(json!({ "claude_code_only": true, "fallback_group": "p" })),
            ),
        ];
        // That of groups the file says nothing about is none of its business.
        assert_eq!(
            problems(vec![only("a", "b")], &others),
            [circle("a", "a → b → a")]
        );
        assert_eq!(
            problems(vec![only("a", "a")], &[]),
            ["groups/a: fallback_group: this is the group itself; name another, or none"]
        );
    }

    #[test]
    fn a_fallback_is_of_the_same_platform() {
        let mut other = group("other", json!({}));
        other.platform = Platform::OpenAi;
        assert_eq!(
            problems(vec![only("a", "other"), other.clone()], &[]),
            [
                "groups/a: fallback_group: groups/other is of platform openai, this group of anthropic; it must be of the same"
            ]
        );
        // The file may also turn the one that a group of the store falls back to.
        let held = [("a", held(json!({ "fallback_group": "other" })))];
        assert_eq!(problems(vec![other], &held).len(), 1);
    }

    #[test]
    fn requests_that_were_refused_go_on_once_to_a_plain_anthropic_group() {
        let on = |name: &str, target: &str| {
            group(name, json!({ "fallback_group_on_invalid_request": target }))
        };
        let mut wrong = on("wrong", "plain");
        wrong.platform = Platform::Antigravity;
        wrong.subscription_type = SubscriptionType::Subscription;
        let groups = vec![
            on("a", "plain"),
            on("b", "wrong"),
            on("c", "c"),
            group("plain", json!({})),
            wrong,
        ];
        let place = |name: &str| format!("groups/{name}: fallback_group_on_invalid_request: ");
        assert_eq!(
            problems(groups, &[]),
            [
                place("b") + "groups/wrong is of platform antigravity, it must be of anthropic",
                place("b") + "groups/wrong is for subscribers; it must be paid from the balance",
                place("b")
                    + "groups/wrong has a fallback_group_on_invalid_request itself; requests go on once only",
                place("c") + "this is the group itself; name another, or none",
            ]
        );
        let mut subscribed = held(json!({}));
        subscribed.by_subscription = true;
        assert_eq!(
            problems(vec![on("a", "plain")], &[("plain", subscribed)]).len(),
            1
        );
    }

    #[test]
    fn what_is_hardly_meant_is_a_warning() {
        let mut off = group("off", json!({}));
        off.enabled = false;
        let both = json!({
            "claude_code_only": true, "fallback_group": "off", "fallback_group_on_invalid_request": "off",
        });
        let not_enabled = "groups/off is not enabled, so it takes no requests";
        assert_eq!(
            found(vec![group("a", both), off], &[]),
            Findings {
                problems: vec![],
                warnings: vec![
                    format!("groups/a: fallback_group: {not_enabled}"),
                    format!("groups/a: fallback_group_on_invalid_request: {not_enabled}"),
                ],
            }
        );
    }

    #[test]
    fn routing_to_accounts_of_other_groups_is_a_warning() {
        let account = |name: &str, groups: &[&str]| AccountResource {
            name: name.into(),
            enabled: true,
            platform: Platform::Anthropic,
            account_type: AccountType::ApiKey,
            credentials: Credentials::default(),
            groups: groups.iter().map(|g| (*g).to_owned()).collect(),
            concurrency: 1,
            priority: 1,
            model_mapping: ModelMapping::default(),
            rate_multiplier: Multiplier::ONE,
            load_factor: None,
            schedulable: true,
            expires_at: None,
            proxy: None,
            extra: Map::new(),
        };
        let routing =
            json!({ "model_routing": { "opus*": ["in", "out", "stored", "elsewhere", "gone"] } });
        let resources = Resources {
            groups: vec![group("g", routing)],
            accounts: vec![account("in", &["f", "g"]), account("out", &["f"])],
            ..Resources::default()
        };
        let set = |groups: &[&str]| AccountFacts {
            enabled: true,
            platform: "anthropic".into(),
            groups: groups.iter().map(|g| (*g).to_owned()).collect(),
            extra: Map::new(),
        };
        let others = Others {
            accounts: BTreeMap::from([
                ("stored".to_owned(), set(&["g"])),
                ("elsewhere".to_owned(), set(&["f"])),
                // The file has the last word about it.
                ("in".to_owned(), set(&[])),
            ]),
            ..Others::default()
        };
        let warning = |name: &str| {
            format!(
                "groups/g: model_routing.opus*: accounts/{name} is not in this group and will not be asked"
            )
        };
        let found = resources.check_group_rules(&others);
        assert_eq!(found.warnings, [warning("out"), warning("elsewhere")]);
        assert_eq!(found.problems, Vec::<String>::new());
    }
}
