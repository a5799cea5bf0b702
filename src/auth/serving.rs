//! Which group serves a request: the key's own, or the one that its own leaves the request to (SPEC 6.3).
//!
//! A group may be for Claude Code only. What comes from any other client then goes to its fallback group, which may
//! be such a group again, and is served and paid for there in every respect. Authentication stays that of the key in
//! its own group: who may not use that one does not get to the other.

use std::sync::Arc;

use chrono::{DateTime, Utc};

use super::{AuthError, Principal, is_subscribed};
use crate::domain::{Directory, Group, SubscriptionType};

/// The principal in the group that serves it; `None` = in its own. `now` is given where subscriptions matter,
/// which they do not in simple mode.
///
/// # Errors
/// [`AuthError::OnlyClaudeCode`], or what is wrong with the user's subscription to the group that would serve.
pub fn serving(
    directory: &Directory,
    principal: &Principal,
    is_claude_code: bool,
    now: Option<DateTime<Utc>>,
) -> Result<Option<Principal>, AuthError> {
    let own = &principal.group;
    let group = group_for(directory, own, is_claude_code).ok_or(AuthError::OnlyClaudeCode)?;
    if group.id == own.id {
        return Ok(None);
    }
    let there = principal.in_group(directory, &group);
    if let Some(now) = now
        && group.subscription_type == SubscriptionType::Subscription
    {
        is_subscribed(there.subscription.as_deref(), now)?;
    }
    Ok(Some(there))
}

/// The first group, from `own` on, that serves such a client. A chain that comes back to where it has been leads
/// nowhere: resources are checked for it, but a store may be older than that check.
fn group_for(directory: &Directory, own: &Arc<Group>, is_claude_code: bool) -> Option<Arc<Group>> {
    let mut passed = Vec::new();
    let mut group = own;
    loop {
        let rules = directory.rules(group.id);
        if is_claude_code || !rules.claude_code_only {
            return Some(group.clone());
        }
        passed.push(group.id);
        group = directory
            .group(rules.fallback?)
            .filter(|next| next.enabled && next.platform == own.platform)
            .filter(|next| !passed.contains(&next.id))?;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::domain::{
        ApiKey, ApiKeyId, ApiKeyStatus, GroupId, KeyHash, Multiplier, Objects, Platform,
        Subscription, SubscriptionId, SubscriptionStatus, User, UserId, UserStatus,
    };

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000, 0).unwrap()
    }

    /// A group for Claude Code only, where `fallback` is given ("" = none).
    fn group(id: i64, name: &str, fallback: Option<&str>) -> Group {
        let mut options = serde_json::Map::new();
        if let Some(fallback) = fallback {
            options.insert("claude_code_only".into(), json!(true));
            options.insert("fallback_group".into(), json!(fallback));
        }
        Group {
            id: GroupId(id),
            name: name.into(),
            enabled: true,
            platform: Platform::Anthropic,
            rate_multiplier: Multiplier(1_000_000 * id.unsigned_abs()),
            subscription_type: SubscriptionType::Standard,
            daily_limit: None,
            weekly_limit: None,
            monthly_limit: None,
            rpm_limit: 0,
            options,
        }
    }

    fn groups() -> Vec<Group> {
        let mut groups = vec![
            group(1, "open", None),
            group(2, "to-open", Some("open")),
            group(3, "to-to-open", Some("to-open")),
            group(4, "alone", Some("")),
            group(5, "self", Some("self")),
            group(6, "round", Some("about")),
            group(7, "about", Some("round")),
            group(8, "to-off", Some("off")),
            group(9, "off", None),
            group(10, "to-other", Some("other")),
            group(11, "other", None),
            group(12, "to-gone", Some("gone")),
            group(13, "to-plan", Some("plan")),
            group(14, "plan", None),
            group(15, "into-round", Some("round")),
        ];
        groups[8].enabled = false;
        groups[10].platform = Platform::OpenAi;
        groups[13].subscription_type = SubscriptionType::Subscription;
        groups
    }

    fn directory(subscriptions: Vec<Subscription>) -> Directory {
        Directory::new(Objects {
            groups: groups(),
            subscriptions,
            ..Objects::default()
        })
    }

    fn principal(directory: &Directory, group: &str) -> Principal {
        let group = directory
            .groups()
            .find(|g| g.name == group)
            .unwrap()
            .clone();
        let key = ApiKey {
            id: ApiKeyId(1),
            name: "k".into(),
            hash: KeyHash([7; 32]),
            hint: "tg-k".into(),
            user: Some(UserId(1)),
            group: Some(group.id),
            status: ApiKeyStatus::Active,
            quota: None,
            rate_limits: [None; 3],
            expires_at: None,
            ip_allow: vec![],
            ip_deny: vec![],
        };
        let user = User {
            id: UserId(1),
            name: "u".into(),
            status: UserStatus::Active,
            concurrency: 5,
            rpm_limit: 0,
            group_multipliers: Default::default(),
        };
        Principal::new(directory, &Arc::new(key), &Arc::new(user), &group)
    }

    fn served_by(
        directory: &Directory,
        group: &str,
        is_claude_code: bool,
        now: Option<DateTime<Utc>>,
    ) -> Result<Option<String>, AuthError> {
        let principal = principal(directory, group);
        let served = serving(directory, &principal, is_claude_code, now)?;
        Ok(served.map(|served| {
            // Everything that depends on the group comes along.
            assert_eq!(served.multiplier, served.group.rate_multiplier);
            assert_eq!(served.key, principal.key);
            served.group.name.clone()
        }))
    }

    #[test]
    fn other_clients_go_where_their_group_says() {
        let directory = directory(vec![]);
        let only = Err(AuthError::OnlyClaudeCode);
        for (group, expected) in [
            ("open", Ok(None)),
            ("to-open", Ok(Some("open"))),
            ("to-to-open", Ok(Some("open"))),
            ("alone", only),
            ("self", only),
            ("round", only),
            ("into-round", only),
            ("to-off", only),
            ("to-other", only),
            ("to-gone", only),
            ("to-plan", Err(AuthError::SubscriptionMissing)),
        ] {
            let expected = expected.map(|name: Option<&str>| name.map(str::to_owned));
            let found = served_by(&directory, group, false, Some(now()));
            assert_eq!(found, expected, "{group}");
            // Claude Code stays wherever it is.
            assert_eq!(served_by(&directory, group, true, Some(now())), Ok(None));
        }
        // Where nothing is billed no subscription is wanted.
        let simple = served_by(&directory, "to-plan", false, None);
        assert_eq!(simple, Ok(Some("plan".to_owned())));
    }

    #[test]
    fn a_group_with_subscriptions_wants_the_users_own() {
        for (from, to, status, expected) in [
            (
                0,
                1,
                SubscriptionStatus::Active,
                Ok(Some("plan".to_owned())),
            ),
            (
                -2,
                0,
                SubscriptionStatus::Active,
                Err(AuthError::SubscriptionInvalid),
            ),
            (
                0,
                1,
                SubscriptionStatus::Suspended,
                Err(AuthError::SubscriptionInvalid),
            ),
            (
                1,
                2,
                SubscriptionStatus::Active,
                Err(AuthError::SubscriptionNotBegun {
                    begins: now() + chrono::TimeDelta::hours(1),
                }),
            ),
        ] {
            let hour = |hours| now() + chrono::TimeDelta::hours(hours);
            let directory = directory(vec![Subscription {
                id: SubscriptionId(1),
                user: UserId(1),
                group: GroupId(14),
                starts_at: hour(from),
                expires_at: hour(to),
                status,
            }]);
            let found = served_by(&directory, "to-plan", false, Some(now()));
            assert_eq!(found, expected, "{from}..{to} {status:?}");
        }
    }
}
