//! Keys made, balances credited and accounts paused from the command line.

use super::*;
use crate::storage::{Names, StorageError};

#[tokio::test]
async fn a_made_key_works_and_is_named() {
    let (_dir, store) = filled().await;
    let first = store.create_key("alice", "main", None).await.unwrap();
    store
        .create_key("alice", "main", Some("desk"))
        .await
        .unwrap();
    store.create_key("alice", "spare", None).await.unwrap();
    let names: Vec<String> = store
        .list_keys(None, at(0), Tz::UTC)
        .await
        .unwrap()
        .into_iter()
        .map(|key| key.name)
        .collect();
    assert_eq!(
        names,
        ["alice-2", "alice-4", "alice-laptop", "bob-laptop", "desk"]
    );
    let directory = store.load_directory(Multiplier::ONE).await.unwrap();
    let key = directory.key(&store.hasher().hash(first.expose())).unwrap();
    assert_eq!((key.user, key.group), (Some(UserId(1)), Some(GroupId(1))));
    assert!(first.expose().starts_with(&key.hint) && key.hint.len() == 8);
    assert_eq!(directory.version, 4);
}

#[tokio::test]
async fn a_key_for_nobody_or_under_a_taken_name_is_refused() {
    const RULE: &str = "name: must be a name of 1 to 128 characters, without control characters \
                        or spaces around it";
    let too_long = "k".repeat(129);
    let (_dir, store) = filled().await;
    for (user, group, name, message) in [
        ("eve", "main", None, "there is no user named eve"),
        ("alice", "none", None, "there is no group named none"),
        ("alice", "main", Some(""), RULE),
        ("alice", "main", Some(" k"), RULE),
        ("alice", "main", Some("k\n"), RULE),
        ("alice", "main", Some("k\u{1b}[2Jx"), RULE),
        ("alice", "main", Some(too_long.as_str()), RULE),
        (
            "alice",
            "main",
            Some("bob-laptop"),
            "name: there is already a key named bob-laptop",
        ),
    ] {
        let error = store.create_key(user, group, name).await.unwrap_err();
        assert_eq!(error.to_string(), message);
    }
    assert_eq!(store.version().await.unwrap(), 1);
}

#[tokio::test]
async fn credits_add_up_in_the_ledger() {
    let (_dir, store) = filled().await;
    let usd = |text: &str| text.parse::<Money>().unwrap();
    for (amount, balance) in [("5", "15"), ("0.000000001", "15.000000001")] {
        let posted = store
            .credit("alice", usd(amount), Posting::default())
            .await
            .unwrap();
        assert_eq!(posted.balance, usd(balance));
    }
    let posted = store
        .debit("alice", usd("20"), Posting::default())
        .await
        .unwrap();
    assert_eq!(posted.amount, usd("-20"));
    assert_eq!(posted.balance, usd("-4.999999999"));
    assert_eq!(store.version().await.unwrap(), 4);
    assert!(store.verify_ledger().await.unwrap().is_empty());
    let zero = store
        .credit("alice", Money::ZERO, Posting::default())
        .await
        .unwrap_err();
    assert!(matches!(zero, StorageError::Invalid(_)));
    let much = store
        .credit("alice", Money(i64::MAX), Posting::default())
        .await
        .unwrap_err();
    assert!(matches!(much, StorageError::Invalid(_)));
    let little = store
        .credit("alice", Money(i64::MIN), Posting::default())
        .await
        .unwrap_err();
    assert!(matches!(little, StorageError::Invalid(_)));
    let nobody = store
        .credit("eve", Money(1), Posting::default())
        .await
        .unwrap_err();
    assert_eq!(nobody.to_string(), "there is no user named eve");
}

#[tokio::test]
async fn pausing_and_resuming_survive_an_apply() {
    let (_dir, store) = filled().await;
    let mut wanted = resources();
    wanted.accounts.push(account("two", &["main"]));
    apply(&store, &wanted).await;

    let one = ["one".to_owned()];
    let paused = store
        .set_paused(Names::List(&one), true, at(1))
        .await
        .unwrap();
    assert_eq!(paused, ["one"]);
    assert!(
        !apply(&store, &wanted).await.has_changes(),
        "a pause is not the file's"
    );
    let views = store.list_accounts(None, at(0)).await.unwrap();
    assert_eq!((views[0].paused, views[0].resumed_at), (true, None));
    assert!(!views[1].paused);

    let all = store.set_paused(Names::All, false, at(2)).await.unwrap();
    assert_eq!(all, ["one", "two"]);
    let directory = store.load_directory(Multiplier::ONE).await.unwrap();
    for account in directory.accounts() {
        assert!(!account.paused);
        assert_eq!(account.resumed_at, Some(at(2)));
    }
    assert_eq!(store.version().await.unwrap(), 4);

    let names = ["one".to_owned(), "x".to_owned(), "y".to_owned()];
    let error = store
        .set_paused(Names::List(&names), true, at(3))
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), "there is no account named x, y");
    assert!(!store.list_accounts(Some("one"), at(0)).await.unwrap()[0].paused);
}

#[tokio::test]
async fn pausing_nothing_counts_as_no_change() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir).await;
    assert!(
        store
            .set_paused(Names::All, true, at(0))
            .await
            .unwrap()
            .is_empty()
    );
    assert_eq!(store.version().await.unwrap(), 0);
}
