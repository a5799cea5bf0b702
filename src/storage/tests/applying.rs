//! `apply`: what it creates, changes, leaves, removes and refuses.

use super::*;
use crate::domain::{ApiKeyStatus, UserStatus};
use crate::storage::StorageError;

const DRY: ApplyOptions = ApplyOptions {
    prune: false,
    dry_run: true,
};
const PRUNE: ApplyOptions = ApplyOptions {
    prune: true,
    dry_run: false,
};

const EVERYTHING: [&str; 9] = [
    "groups/main",
    "groups/spare",
    "users/alice",
    "users/bob",
    "accounts/one",
    "api_keys/alice-laptop",
    "api_keys/bob-laptop",
    "error_passthrough_rules/busy",
    "prices/gpt-5",
];

const RULE: &str = "error_passthrough_rules/busy";

/// Everything the store holds, comparable.
async fn dump(store: &Store) -> String {
    let mut text = String::new();
    text += &serde_json::to_string(&store.list_groups(None).await.unwrap()).unwrap();
    text += &serde_json::to_string(&store.list_accounts(None, at(0)).await.unwrap()).unwrap();
    text +=
        &serde_json::to_string(&store.list_users(None, &HashMap::new()).await.unwrap()).unwrap();
    text += &serde_json::to_string(&store.list_rules(None).await.unwrap()).unwrap();
    text += &serde_json::to_string(&store.list_keys(None, at(0), Tz::UTC).await.unwrap()).unwrap();
    text + &store.version().await.unwrap().to_string()
}

#[tokio::test]
async fn a_second_apply_leaves_everything() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir).await;
    assert!(store.is_empty().await.unwrap());
    let first = apply(&store, &resources()).await;
    assert_eq!(first.created, EVERYTHING);
    assert!(first.changed.is_empty() && first.left.is_empty() && first.removed.is_empty());
    assert_eq!(store.version().await.unwrap(), 1);
    assert!(!store.is_empty().await.unwrap());

    let before = dump(&store).await;
    let second = apply(&store, &resources()).await;
    assert_eq!(second.left, EVERYTHING);
    assert!(!second.has_changes());
    assert_eq!(dump(&store).await, before, "not even the counter moves");
}

#[tokio::test]
async fn a_dry_run_says_the_same_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir).await;
    let mut wanted = resources();
    wanted.api_keys.push(key("generated", None, "alice"));
    let dry = store.apply(&wanted, DRY).await.unwrap();
    assert!(store.is_empty().await.unwrap());
    assert_eq!(store.version().await.unwrap(), 0);
    assert!(dry.generated_keys.is_empty(), "a key that will never work");
    let real = apply(&store, &wanted).await;
    assert_eq!(dry.created, real.created);
    assert_eq!(real.generated_keys.len(), 1);

    let before = dump(&store).await;
    let both = ApplyOptions {
        prune: true,
        dry_run: true,
    };
    let report = store.apply(&Resources::default(), both).await.unwrap();
    assert_eq!(report.removed.len(), 10);
    assert_eq!(dump(&store).await, before);
}

#[tokio::test]
async fn every_single_change_is_seen_and_takes() {
    type Change = fn(&mut Resources);
    let changes: [(&str, Change); 38] = [
        ("groups/main", |r| r.groups[0].enabled = false),
        ("groups/main", |r| r.groups[0].rate_multiplier = None),
        ("groups/main", |r| {
            r.groups[0].subscription_type = SubscriptionType::Subscription
        }),
        ("groups/main", |r| {
            r.groups[0].monthly_limit = Some(Money(1))
        }),
        ("groups/main", |r| r.groups[0].rpm_limit = 1),
        ("groups/main", |r| r.groups[0].options.clear()),
        ("accounts/one", |r| r.accounts[0].enabled = false),
        ("accounts/one", |r| {
            r.accounts[0].credentials.api_key = Secret::new("sk-new")
        }),
        ("accounts/one", |r| {
            r.accounts[0].credentials.base_url = None
        }),
        ("accounts/one", |r| r.accounts[0].credentials.other.clear()),
        ("accounts/one", |r| r.accounts[0].groups.truncate(1)),
        ("accounts/one", |r| r.accounts[0].proxy = None),
        ("accounts/one", |r| {
            r.accounts[0].proxy = Some(Secret::new("http://p"))
        }),
        ("accounts/one", |r| {
            r.accounts[0].model_mapping = ModelMapping::default()
        }),
        ("accounts/one", |r| r.accounts[0].extra.clear()),
        ("accounts/one", |r| r.accounts[0].expires_at = None),
        ("users/alice", |r| r.users[0].enabled = false),
        ("users/alice", |r| r.users[0].concurrency = 1),
        ("users/alice", |r| r.users[0].group_multipliers.clear()),
        ("users/alice", |r| {
            r.users[0]
                .group_multipliers
                .insert("spare".to_owned(), Multiplier::ONE);
        }),
        ("api_keys/alice-laptop", |r| r.api_keys[0].quota = None),
        ("api_keys/alice-laptop", |r| {
            r.api_keys[0].user = "bob".to_owned()
        }),
        ("api_keys/alice-laptop", |r| r.api_keys[0].group = None),
        ("api_keys/alice-laptop", |r| r.api_keys[0].ip_deny.clear()),
        (RULE, |r| r.error_passthrough_rules[0].enabled = false),
        (RULE, |r| r.error_passthrough_rules[0].priority = -1),
        (RULE, |r| {
            r.error_passthrough_rules[0].error_codes.truncate(1)
        }),
        (RULE, |r| r.error_passthrough_rules[0].keywords.clear()),
        (RULE, |r| {
            r.error_passthrough_rules[0].match_mode = MatchMode::Any
        }),
        (RULE, |r| r.error_passthrough_rules[0].platforms.clear()),
        (RULE, |r| {
            r.error_passthrough_rules[0].passthrough_code = true
        }),
        (RULE, |r| r.error_passthrough_rules[0].response_code = None),
        (RULE, |r| {
            r.error_passthrough_rules[0].passthrough_body = true
        }),
        (RULE, |r| r.error_passthrough_rules[0].custom_message = None),
        (RULE, |r| {
            r.error_passthrough_rules[0].skip_monitoring = false
        }),
        (RULE, |r| r.error_passthrough_rules[0].description.clear()),
        (RULE, |r| {
            r.error_passthrough_rules[0].response_code = Some(599)
        }),
        ("prices/gpt-5", |r| {
            r.prices.get_mut("gpt-5").unwrap().output = Some(Price(1));
        }),
    ];
    let (_dir, store) = filled().await;
    for (number, (name, change)) in changes.into_iter().enumerate() {
        let mut wanted = resources();
        change(&mut wanted);
        let report = apply(&store, &wanted).await;
        assert_eq!(report.changed, [name], "change {number}");
        assert!(report.created.is_empty() && report.removed.is_empty());
        let again = apply(&store, &wanted).await;
        assert!(
            !again.has_changes(),
            "change {number} did not take: {:?}",
            again.changed
        );
        let back = apply(&store, &resources()).await;
        assert_eq!(back.changed, [name], "change {number}, back");
    }
    assert!(store.verify_ledger().await.unwrap().is_empty());
}

#[tokio::test]
async fn every_mistake_is_told_at_once_and_nothing_is_applied() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir).await;
    let mut wanted = resources();
    wanted.groups[1].options = serde_json::json!({
        "fallback_group_on_invalid_request": "g1",
        "model_routing": {"gpt-*": ["one", "a1"]},
    })
    .as_object()
    .unwrap()
    .clone();
    wanted.groups[1].platform = Platform::Gemini;
    wanted.accounts[0].groups.push("g2".to_owned());
    wanted.users[0]
        .group_multipliers
        .insert("g3".to_owned(), Multiplier::ONE);
    wanted.users[1].balance = Some(Money(i64::MAX));
    wanted.api_keys[0].group = Some("g4".to_owned());
    wanted.api_keys[1].user = "u1".to_owned();
    wanted.api_keys[1].key = wanted.api_keys[0].key.clone();
    wanted.users.push(user("alice", "1"));
    wanted.error_passthrough_rules.push(rule("busy", 1));
    let error = store
        .apply(&wanted, ApplyOptions::default())
        .await
        .unwrap_err();
    let StorageError::Invalid(problems) = error else {
        panic!("{error}")
    };
    assert_eq!(
        problems,
        [
            "users/alice: is given twice",
            "error_passthrough_rules/busy: is given twice",
            "groups/spare: fallback_group_on_invalid_request: there is no group named \"g1\"",
            "groups/spare: model_routing.gpt-*: there is no account named \"a1\"",
            "accounts/one: groups: there is no group named \"g2\"",
            "users/alice: group_multipliers: there is no group named \"g3\"",
            "api_keys/alice-laptop: group: there is no group named \"g4\"",
            "api_keys/bob-laptop: user: there is no user named \"u1\"",
            "accounts/one: its platform is openai but groups/spare is of gemini",
            "groups/main: fallback_group: groups/spare is of platform gemini, this group of openai; it must be of the same",
            "users/bob: balance: at most 1000000000",
            "api_keys/bob-laptop: key: is the same as that of api_keys/alice-laptop",
        ]
    );
    assert!(store.is_empty().await.unwrap());
}

#[tokio::test]
async fn rules_of_groups_are_checked_against_what_the_store_has() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir).await;
    let group = |name: &str, fallback: Option<&str>| {
        let mut group = resources().groups.remove(0);
        group.name = name.to_owned();
        group.platform = Platform::Anthropic;
        let options = match fallback {
            Some(fallback) => {
                serde_json::json!({"claude_code_only": true, "fallback_group": fallback})
            }
            None => serde_json::json!({}),
        };
        group.options = options.as_object().unwrap().clone();
        group
    };
    let of = |groups: Vec<_>| Resources {
        groups,
        ..Resources::default()
    };
    let stored = of(vec![group("a", Some("b")), group("b", None)]);
    assert_eq!(apply(&store, &stored).await.warnings, Vec::<String>::new());

    // The file names one of the two; that it closes a circle shows with the other.
    let circle = store
        .apply(&of(vec![group("b", Some("a"))]), ApplyOptions::default())
        .await;
    let Err(StorageError::Invalid(problems)) = circle else {
        panic!("{circle:?}")
    };
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].starts_with("groups/b: fallback_group: b → a → b goes round"));
    // Nor may the group at the end of a chain become another platform's.
    let mut turned = group("b", None);
    turned.platform = Platform::OpenAi;
    let turned = of(vec![turned]);
    let turned = store.apply(&turned, ApplyOptions::default()).await;
    assert!(matches!(turned, Err(StorageError::Invalid(_))));
    // It may be disabled, in whichever way; that is said.
    let mut off = group("b", None);
    off.enabled = false;
    let off = apply(&store, &of(vec![group("a", Some("b")), off])).await;
    let warning = "groups/a: fallback_group: groups/b is not enabled, so it takes no requests";
    assert_eq!(off.warnings, [warning]);
    apply(&store, &of(vec![group("b", None)])).await;
    let prune = ApplyOptions {
        prune: true,
        ..ApplyOptions::default()
    };
    let pruned = store.apply(&of(vec![group("a", Some("b"))]), prune).await;
    assert_eq!(pruned.unwrap().warnings, [warning]);
    let shown = store.list_groups(Some("a")).await.unwrap().remove(0);
    assert_eq!(shown.options["fallback_group"], "b");
}

#[tokio::test]
async fn names_in_the_store_need_not_be_in_the_file() {
    let (_dir, store) = filled().await;
    let wanted = Resources {
        accounts: vec![account("two", &["spare"])],
        api_keys: vec![key("bob-desk", Some("tg-desk-0123456789"), "bob")],
        ..Resources::default()
    };
    let report = apply(&store, &wanted).await;
    assert_eq!(report.created, ["accounts/two", "api_keys/bob-desk"]);
    assert!(report.removed.is_empty());
    assert_eq!(store.list_groups(None).await.unwrap().len(), 2);
}

#[tokio::test]
async fn an_account_serves_groups_of_its_own_platform() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir).await;
    let mut groups = Resources::default();
    for platform in Platform::ALL {
        let mut of_platform = group(platform.as_str());
        of_platform.platform = platform;
        groups.groups.push(of_platform);
    }
    apply(&store, &groups).await;
    for in_file in [false, true] {
        for platform in Platform::ALL {
            for serves in Platform::ALL {
                for (extra, mixed) in [
                    (serde_json::json!({}), false),
                    (serde_json::json!({"mixed_scheduling": "true"}), false),
                    (serde_json::json!({"mixed_scheduling": true}), true),
                ] {
                    let mut one = account("one", &[serves.as_str()]);
                    one.platform = platform;
                    one.extra = extra.as_object().unwrap().clone();
                    let wanted = Resources {
                        groups: if in_file {
                            groups.groups.clone()
                        } else {
                            Vec::new()
                        },
                        accounts: vec![one],
                        ..Resources::default()
                    };
                    let mixes = platform == Platform::Antigravity
                        && [Platform::Anthropic, Platform::Gemini].contains(&serves);
                    let expected = if platform == serves || mixed && mixes {
                        None
                    } else {
                        Some(format!(
                            "accounts/one: its platform is {platform} but groups/{serves} is of {serves}"
                        ))
                    };
                    let error = store.apply(&wanted, DRY).await.err();
                    assert_eq!(error.map(|e| e.to_string()), expected);
                }
            }
        }
    }
}

#[tokio::test]
async fn a_group_does_not_change_its_platform_under_its_accounts() {
    let (_dir, store) = filled().await;
    let mut turned = group("main");
    turned.platform = Platform::Anthropic;
    let wanted = Resources {
        groups: vec![turned],
        ..Resources::default()
    };
    let error = store.apply(&wanted, DRY).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "accounts/one: its platform is openai but groups/main is of anthropic"
    );
    // Together with them, or without them, it may.
    let mut both = wanted.clone();
    both.accounts.push(account("one", &["main"]));
    both.accounts[0].platform = Platform::Anthropic;
    for (wanted, how) in [(&both, ApplyOptions::default()), (&wanted, PRUNE)] {
        let how = ApplyOptions {
            dry_run: true,
            ..how
        };
        let report = store.apply(wanted, how).await.unwrap();
        assert!(report.changed.contains(&"groups/main".to_owned()));
    }
}

#[tokio::test]
async fn prune_disables_and_keeps_history() {
    let (_dir, store) = filled().await;
    store
        .settle(&[record("r-1", "1")], None, Tz::UTC)
        .await
        .unwrap();
    let mut wanted = resources();
    wanted.groups.truncate(1);
    wanted.groups[0].options.clear();
    wanted.accounts.clear();
    wanted.users.truncate(1);
    wanted.api_keys.truncate(1);
    wanted.error_passthrough_rules.clear();
    wanted.prices.clear();
    let report = store.apply(&wanted, PRUNE).await.unwrap();
    let removed = [
        "groups/spare",
        "accounts/one",
        "users/bob",
        "api_keys/bob-laptop",
        RULE,
        "prices/gpt-5",
    ];
    assert_eq!(report.removed, removed);
    assert_eq!(report.changed, ["groups/main"]);
    assert!(!store.apply(&wanted, PRUNE).await.unwrap().has_changes());

    let directory = store.load_directory(Multiplier::ONE).await.unwrap();
    let bob = directory
        .key(&store.hasher().hash("tg-bob-0123456789abcdef"))
        .unwrap();
    assert_eq!(bob.status, ApiKeyStatus::Disabled);
    assert_eq!(
        directory.user(bob.user.unwrap()).unwrap().status,
        UserStatus::Disabled
    );
    assert!(directory.accounts().all(|account| !account.enabled));
    assert!(directory.price_overrides.is_empty());
    let [busy] = directory.error_rules.as_slice() else {
        panic!("{:?}", directory.error_rules)
    };
    assert!(!busy.enabled, "disabled, not gone");
    assert_eq!(
        store
            .list_users(Some("alice"), &HashMap::new())
            .await
            .unwrap()[0]
            .balance,
        Money::from_usd(9)
    );

    let back = apply(&store, &resources()).await;
    assert_eq!(back.created, ["prices/gpt-5"]);
    assert_eq!(back.changed.len(), 6, "named again, they are enabled again");
}

#[tokio::test]
async fn a_balance_is_only_set_when_the_user_is_created() {
    let (_dir, store) = filled().await;
    let mut wanted = resources();
    wanted.users[0].balance = Some(Money::from_usd(1000));
    assert!(!apply(&store, &wanted).await.has_changes());
    let alice = &store
        .list_users(Some("alice"), &HashMap::new())
        .await
        .unwrap()[0];
    assert_eq!(alice.balance, Money::from_usd(10));
    assert!(store.verify_ledger().await.unwrap().is_empty());
}

#[tokio::test]
async fn keys_rotate_swap_and_keep_what_was_used() {
    let (_dir, store) = filled().await;
    store
        .settle(&[record("r-1", "1")], None, Tz::UTC)
        .await
        .unwrap();
    let alice = store.hasher().hash("tg-alice-0123456789abcdef");
    let bob = store.hasher().hash("tg-bob-0123456789abcdef");

    let mut rotated = resources();
    rotated.api_keys[0].key = Some(Secret::new("tg-new-0123456789abcdef"));
    assert_eq!(
        apply(&store, &rotated).await.changed,
        ["api_keys/alice-laptop"]
    );
    let directory = store.load_directory(Multiplier::ONE).await.unwrap();
    assert!(directory.key(&alice).is_none());
    let new = directory
        .key(&store.hasher().hash("tg-new-0123456789abcdef"))
        .unwrap();
    assert_eq!(
        (new.name.as_str(), new.hint.as_str()),
        ("alice-laptop", "tg-new-")
    );
    assert_eq!(store.key_spend().await.unwrap()[0].1, Money::from_usd(1));

    // Without a text the key stays as it is.
    rotated.api_keys[0].key = None;
    let report = apply(&store, &rotated).await;
    assert!(!report.has_changes() && report.generated_keys.is_empty());

    let mut swapped = resources();
    swapped.api_keys[0].key = resources().api_keys[1].key.clone();
    swapped.api_keys[1].key = resources().api_keys[0].key.clone();
    assert_eq!(apply(&store, &swapped).await.changed.len(), 2);
    let directory = store.load_directory(Multiplier::ONE).await.unwrap();
    assert_eq!(directory.key(&alice).unwrap().name, "bob-laptop");
    assert_eq!(directory.key(&bob).unwrap().name, "alice-laptop");

    // A text that a key outside the file holds is refused.
    let mut taken = Resources::default();
    taken
        .api_keys
        .push(key("third", Some("tg-bob-0123456789abcdef"), "bob"));
    let error = store
        .apply(&taken, ApplyOptions::default())
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("api_keys/alice-laptop"),
        "{error}"
    );
}

#[tokio::test]
async fn a_key_without_text_is_generated_once() {
    let (_dir, store) = filled().await;
    let mut wanted = resources();
    wanted.api_keys.push(key("desk", None, "alice"));
    let report = apply(&store, &wanted).await;
    let [(name, text)] = report.generated_keys.as_slice() else {
        panic!("{:?}", report.generated_keys)
    };
    assert_eq!(name, "desk");
    let directory = store.load_directory(Multiplier::ONE).await.unwrap();
    assert_eq!(
        directory
            .key(&store.hasher().hash(text.expose()))
            .unwrap()
            .name,
        "desk"
    );
    assert!(apply(&store, &wanted).await.generated_keys.is_empty());
    assert!(
        !serde_json::to_string(&report)
            .unwrap()
            .contains(text.expose())
    );
}

#[tokio::test]
async fn what_is_hardly_meant_is_warned_of() {
    let (_dir, store) = filled().await;
    let mut wanted = resources();
    wanted.accounts[0].groups.clear();
    wanted.api_keys[0].group = None;
    let report = apply(&store, &wanted).await;
    assert_eq!(report.warnings.len(), 2, "{:?}", report.warnings);
}

#[tokio::test]
async fn thousands_of_objects_go_in_and_come_out() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir).await;
    let mut wanted = resources();
    for number in 0..3_000 {
        wanted
            .accounts
            .push(account(&format!("a-{number}"), &["main"]));
        let text = format!("tg-{number:032}");
        wanted
            .api_keys
            .push(key(&format!("k-{number}"), Some(&text), "alice"));
    }
    apply(&store, &wanted).await;
    assert!(!apply(&store, &wanted).await.has_changes());
    let directory = store.load_directory(Multiplier::ONE).await.unwrap();
    assert_eq!(directory.accounts_of(GroupId(1)).len(), 3_001);
    assert_eq!(store.key_spend().await.unwrap().len(), 3_002);
}
