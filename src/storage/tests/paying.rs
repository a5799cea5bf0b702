//! Subscriptions and channels: from resources to the directory and to the command line.

use std::collections::BTreeMap;

use super::*;
use crate::config::resources::{ChannelResource, SubscriptionResource};
use crate::domain::{
    BillingModelSource, ChannelPrice, ClassPrices, PriceInterval, SubscriptionStatus,
};
use crate::storage::StorageError;

fn subscription(user: &str, group: &str) -> SubscriptionResource {
    SubscriptionResource {
        user: user.to_owned(),
        group: group.to_owned(),
        enabled: true,
        starts_at: Some(at(0)),
        expires_at: at(1_000_000),
        status: SubscriptionStatus::Active,
    }
}

fn channel(name: &str, groups: &[&str]) -> ChannelResource {
    let per_token = |input| ClassPrices {
        input: Some(Price(input)),
        ..ClassPrices::default()
    };
    let mapping = ModelMapping::new([("gpt-4o*".to_owned(), "gpt-5".to_owned())].into());
    ChannelResource {
        name: name.to_owned(),
        enabled: true,
        groups: groups.iter().map(|g| (*g).to_owned()).collect(),
        model_mapping: BTreeMap::from([(Platform::OpenAi, mapping)]),
        restrict_models: true,
        billing_model_source: BillingModelSource::Upstream,
        prices: vec![ChannelPrice {
            platform: Platform::OpenAi,
            models: vec!["gpt-5*".to_owned()],
            billing_mode: PricingMode::Token,
            prices: per_token(1_250_000_000),
            intervals: vec![PriceInterval {
                min_tokens: 200_000,
                max_tokens: None,
                tier_label: None,
                prices: per_token(2_500_000_000),
            }],
        }],
    }
}

/// The fixture with a subscription group, a subscription and a channel.
fn paid() -> Resources {
    let mut resources = resources();
    let mut sub = group("sub");
    sub.subscription_type = SubscriptionType::Subscription;
    sub.weekly_limit = Some(Money::from_usd(3));
    resources.groups.push(sub);
    resources.subscriptions = vec![subscription("alice", "sub")];
    resources.channels = vec![channel("default", &["main", "sub"])];
    resources
}

async fn refused(store: &Store, resources: &Resources) -> Vec<String> {
    match store.apply(resources, ApplyOptions::default()).await {
        Err(StorageError::Invalid(problems)) => problems,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn they_are_applied_changed_left_and_pruned() {
    let (_dir, store) = filled().await;
    let mut wanted = paid();
    let report = apply(&store, &wanted).await;
    assert_eq!(
        report.created,
        ["groups/sub", "subscriptions/alice/sub", "channels/default"]
    );
    assert!(!apply(&store, &wanted).await.has_changes());

    let directory = store.load_directory(Multiplier::ONE).await.unwrap();
    let held = directory.subscription(UserId(1), GroupId(3)).unwrap();
    assert!(held.is_valid(at(0)) && !held.is_valid(at(1_000_000)));
    let bound = directory.channel_of(GroupId(1)).unwrap();
    assert_eq!(bound.groups, [GroupId(1), GroupId(3)]);
    assert_eq!(bound.prices, wanted.channels[0].prices);
    assert_eq!(bound.model_mapping, wanted.channels[0].model_mapping);
    assert!(bound.restrict_models);
    assert_eq!(bound.billing_model_source, BillingModelSource::Upstream);
    assert!(directory.channel_of(GroupId(2)).is_none());

    wanted.subscriptions[0].expires_at = at(2_000_000);
    wanted.channels[0].groups = vec!["spare".to_owned()];
    let report = apply(&store, &wanted).await;
    assert_eq!(
        report.changed,
        ["subscriptions/alice/sub", "channels/default"]
    );
    let directory = store.load_directory(Multiplier::ONE).await.unwrap();
    assert!(directory.channel_of(GroupId(1)).is_none());
    assert!(directory.channel_of(GroupId(2)).is_some());

    let options = ApplyOptions {
        prune: true,
        dry_run: false,
    };
    wanted.subscriptions.clear();
    wanted.channels.clear();
    let report = store.apply(&wanted, options).await.unwrap();
    assert_eq!(
        report.removed,
        ["subscriptions/alice/sub", "channels/default"]
    );
    let directory = store.load_directory(Multiplier::ONE).await.unwrap();
    let held = directory.subscription(UserId(1), GroupId(3)).unwrap();
    assert_eq!(held.status, SubscriptionStatus::Suspended);
    assert!(directory.channel_of(GroupId(2)).is_none());
    let again = store.apply(&wanted, options).await.unwrap();
    assert!(!again.has_changes());
}

#[tokio::test]
async fn a_group_may_go_from_one_channel_to_another() {
    let (_dir, store) = filled().await;
    let mut wanted = paid();
    wanted.channels = vec![channel("one", &["main"]), channel("two", &["spare"])];
    apply(&store, &wanted).await;
    wanted.channels = vec![channel("one", &["spare"]), channel("two", &["main"])];
    let report = apply(&store, &wanted).await;
    assert_eq!(report.changed, ["channels/one", "channels/two"]);
    let directory = store.load_directory(Multiplier::ONE).await.unwrap();
    assert_eq!(directory.channel_of(GroupId(1)).unwrap().name, "two");

    // Not from one that stays as it is, but from one that is disabled.
    wanted.channels = vec![channel("three", &["main"])];
    assert_eq!(
        refused(&store, &wanted).await,
        [
            "channels/three: groups/main is in channels/two already, which the file does not name; \
             name it, without that group or with `enabled: false`, or apply with --prune"
        ]
    );
    let mut off = wanted.clone();
    off.channels = vec![channel("two", &["main"])];
    off.channels[0].enabled = false;
    apply(&store, &off).await;
    apply(&store, &wanted).await;
    let directory = store.load_directory(Multiplier::ONE).await.unwrap();
    assert_eq!(directory.channel_of(GroupId(1)).unwrap().name, "three");
    // Or from one that the same command prunes.
    wanted.channels = vec![channel("four", &["main", "spare"])];
    let prune = ApplyOptions {
        prune: true,
        dry_run: false,
    };
    let report = store.apply(&wanted, prune).await.unwrap();
    assert_eq!(report.removed, ["channels/one", "channels/three"]);
}

#[tokio::test]
async fn mistakes_are_told_all_at_once_and_nothing_is_applied() {
    let (_dir, store) = filled().await;
    let mut wanted = paid();
    wanted.subscriptions = vec![
        subscription("alice", "sub"),
        subscription("alice", "sub"),
        subscription("eve", "none"),
    ];
    wanted.channels = vec![
        channel("one", &["main", "none"]),
        channel("two", &["main"]),
        channel("two", &[]),
    ];
    let mut problems = refused(&store, &wanted).await;
    problems.sort();
    assert_eq!(
        problems,
        [
            "channels/one: groups: there is no group named \"none\"",
            "channels/two: groups/main is in channels/one already; leave it to one of them, or give \
             one `enabled: false`",
            "channels/two: is given twice",
            "subscriptions/alice/sub: is given twice",
            "subscriptions/eve/none: group: there is no group named \"none\"",
            "subscriptions/eve/none: user: there is no user named \"eve\"",
        ]
    );
    assert!(store.list_channels(None).await.unwrap().is_empty());

    let mut over = paid();
    over.subscriptions = vec![
        subscription("alice", "sub"),
        subscription("bob", "sub"),
        subscription("eve", "sub"),
    ];
    over.subscriptions[0].starts_at = None;
    over.subscriptions[0].expires_at = at(-1_000_000_000);
    over.subscriptions[1].expires_at = at(0);
    assert_eq!(
        refused(&store, &over).await,
        [
            "subscriptions/eve/sub: user: there is no user named \"eve\"",
            "subscriptions/alice/sub: expires_at: is not after it is first applied",
            "subscriptions/bob/sub: expires_at: is not after `starts_at`",
        ]
    );
}

#[tokio::test]
async fn a_disabled_channel_does_not_claim_its_groups() {
    let (_dir, store) = filled().await;
    let bound = async || {
        let directory = store.load_directory(Multiplier::ONE).await.unwrap();
        [1, 2].map(|id| Some(directory.channel_of(GroupId(id))?.name.clone()))
    };
    let some = |name: &str| Some(name.to_owned());
    let mut wanted = paid();
    wanted.channels = vec![
        channel("old", &["main", "spare"]),
        channel("new", &["main"]),
    ];
    wanted.channels[0].enabled = false;
    // Twice: what is there already is left.
    apply(&store, &wanted).await;
    assert!(!apply(&store, &wanted).await.has_changes());
    assert_eq!(bound().await, [some("new"), None]);
    let shown = store.list_channels(Some("old")).await.unwrap();
    assert_eq!(shown[0].groups, ["spare"], "what no other has");

    // In a file of its own, beside one that is in the store.
    let mut off = wanted.clone();
    off.channels.truncate(1);
    assert!(!apply(&store, &off).await.has_changes());
    assert_eq!(bound().await, [some("new"), None]);

    // They trade places.
    (wanted.channels[0].enabled, wanted.channels[1].enabled) = (true, false);
    apply(&store, &wanted).await;
    assert_eq!(bound().await, [some("old"), some("old")]);
    assert!(!apply(&store, &wanted).await.has_changes());
}

#[tokio::test]
async fn a_subscription_without_a_start_starts_once() {
    let (_dir, store) = filled().await;
    let mut wanted = paid();
    wanted.subscriptions[0].starts_at = None;
    wanted.subscriptions[0].expires_at = "2999-01-01T00:00:00Z".parse().unwrap();
    apply(&store, &wanted).await;
    let start = async || {
        let directory = store.load_directory(Multiplier::ONE).await.unwrap();
        let held = directory.subscription(UserId(1), GroupId(3)).unwrap();
        held.starts_at
    };
    let first = start().await;
    assert!(!apply(&store, &wanted).await.has_changes());
    assert_eq!(start().await, first);
}

#[tokio::test]
async fn of_a_group_in_the_store_it_is_said_that_it_needs_no_subscription() {
    let (_dir, store) = filled().await;
    let wanted = Resources {
        subscriptions: vec![subscription("bob", "spare")],
        ..Resources::default()
    };
    let report = apply(&store, &wanted).await;
    assert_eq!(
        report.warnings,
        ["subscriptions/bob/spare: not used, since groups/spare is paid from the balance"]
    );
}

#[tokio::test]
async fn they_are_shown_as_they_were_written() {
    let (_dir, store) = filled().await;
    apply(&store, &paid()).await;
    let mut used = record("r-1", "2");
    used.billing_type = BillingType::Subscription;
    used.group_id = GroupId(3);
    store.settle(&[used], None, Tz::UTC).await.unwrap();
    let now = at(60);
    let shown = store
        .list_subscriptions(Some("alice/sub"), now, Tz::UTC)
        .await
        .unwrap();
    let json = serde_json::to_value(&shown[0]).unwrap();
    assert_eq!(json["name"], "alice/sub");
    assert_eq!(
        (&json["status"], &json["usable"]),
        (&"active".into(), &true.into())
    );
    assert_eq!(
        json["windows"][1],
        serde_json::json!({"window": "7d", "used": "2", "limit": "3", "resets_at": json["windows"][1]["resets_at"]})
    );
    let later = at(40 * 86_400);
    let shown = store
        .list_subscriptions(None, later, Tz::UTC)
        .await
        .unwrap();
    assert!(!shown[0].usable);
    assert!(
        shown[0]
            .windows
            .iter()
            .all(|w| w.used == Money::ZERO && w.resets_at.is_none())
    );
    let none = store
        .list_subscriptions(Some("bob/sub"), now, Tz::UTC)
        .await;
    assert!(none.unwrap().is_empty());

    let shown = store.list_channels(Some("default")).await.unwrap();
    let mut json = serde_json::to_value(&shown[0]).unwrap();
    json.as_object_mut().unwrap().remove("created_at").unwrap();
    assert_eq!(
        json,
        serde_json::json!({
            "name": "default", "enabled": true, "groups": ["main", "sub"],
            "model_mapping": {"openai": {"gpt-4o*": "gpt-5"}},
            "restrict_models": true, "billing_model_source": "upstream",
            "prices": [{
                "platform": "openai", "models": ["gpt-5*"], "billing_mode": "token",
                "input_per_million": "1.25",
                "intervals": [{
                    "min_tokens": 200_000, "max_tokens": null, "tier_label": null,
                    "input_per_million": "2.5",
                }],
            }],
        })
    );
}
