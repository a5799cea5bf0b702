//! Records of users and keys that this database does not know: they stop nothing and bill nobody.

use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::storage::UsageRecordView;

async fn balances(store: &Store) -> Vec<String> {
    let users = store.list_users(None, &HashMap::new()).await.unwrap();
    users.iter().map(|user| user.balance.to_string()).collect()
}

fn lines(dir: &TempDir) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(dir.path().join("unbilled.jsonl")).unwrap_or_default();
    let lines = text.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[tokio::test]
async fn whoever_is_not_here_is_put_aside_and_the_rest_goes_on() {
    let (dir, store) = filled().await;
    let with = |id: &str, change: fn(&mut UsageRecord)| {
        let mut record = record(id, "1");
        change(&mut record);
        record
    };
    let batch = [
        record("r-1", "1"),
        with("r-2", |r| r.user_id = UserId(99)),
        // Bob's number now.
        with("r-3", |r| r.user_id = UserId(2)),
        with("r-4", |r| r.api_key_id = ApiKeyId(99)),
        with("r-5", |r| r.api_key = "another".to_owned()),
        bobs("r-6", "2"),
        with("r-2", |r| r.user_id = UserId(99)),
    ];
    let settled = store.settle(&batch, None, Tz::UTC).await.unwrap();
    assert_eq!((settled.inserted, settled.put_aside), (2, 4));
    assert_eq!(balances(&store).await, ["9", "-2"]);
    // Whoever counted them in memory is to count them no more.
    let usd = |text: &str| text.parse::<Money>().unwrap();
    assert_eq!(
        settled.balances,
        [
            (UserId(1), usd("9")),
            (UserId(2), usd("-2")),
            (UserId(99), Money::ZERO)
        ]
    );
    assert_eq!(
        settled.spend,
        [
            (ApiKeyId(1), usd("1")),
            (ApiKeyId(2), usd("2")),
            (ApiKeyId(99), Money::ZERO)
        ]
    );
    assert_eq!(store.verify_ledger().await.unwrap(), []);

    let found = lines(&dir);
    let reasons: Vec<(&str, &str)> = found
        .iter()
        .map(|line| {
            (
                line["request_id"].as_str().unwrap(),
                line["reason"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        reasons,
        [
            ("r-2", "there is no user 99 (\"alice\") in this database"),
            ("r-3", "user 2 is \"bob\" in this database, not \"alice\""),
            (
                "r-4",
                "there is no key 99 (\"alice-laptop\") in this database"
            ),
            (
                "r-5",
                "key 1 is \"alice-laptop\" in this database, not \"another\""
            ),
        ]
    );
    assert_eq!(
        (&found[0]["user_id"], &found[2]["api_key_id"]),
        (&99.into(), &99.into())
    );
    let file = std::fs::metadata(dir.path().join("unbilled.jsonl")).unwrap();
    assert_eq!(file.permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn the_file_has_what_the_record_would_have_shown() {
    let (dir, store) = filled().await;
    let mut unknown = record("r-1", "1");
    unknown.trail = vec![crate::domain::AttemptTrace {
        account: "one".to_owned(),
        result: "answered".to_owned(),
        status: Some(200),
        duration_ms: 3,
    }];
    let known = unknown.clone();
    unknown.user_id = UserId(99);
    store.settle(&[unknown], None, Tz::UTC).await.unwrap();
    store.settle(&[known], None, Tz::UTC).await.unwrap();
    let all = crate::storage::UsageFilter::since(at(-1));
    let shown = store.usage_records(&all, None, 9).await.unwrap();
    let mut aside = lines(&dir).remove(0);
    for own in ["reason", "user_id", "api_key_id"] {
        aside.as_object_mut().unwrap().remove(own).unwrap();
    }
    assert_eq!(aside, serde_json::to_value(&shown[0]).unwrap());
}

#[tokio::test]
async fn a_batch_that_comes_again_is_put_aside_once() {
    let (dir, store) = filled().await;
    let mut unknown = record("r-2", "1");
    unknown.user_id = UserId(99);
    let batch = [record("r-1", "1"), unknown];
    for _ in 0..2 {
        fail_commits(&store, true).await;
        store.settle(&batch, None, Tz::UTC).await.unwrap_err();
    }
    assert_eq!(lines(&dir).len(), 1, "written before the commit, once");
    fail_commits(&store, false).await;
    let settled = store.settle(&batch, None, Tz::UTC).await.unwrap();
    assert_eq!((settled.inserted, settled.put_aside), (1, 1));
    assert_eq!(lines(&dir).len(), 1);

    // What is in the database already was charged: it is nothing to look at.
    let mut charged = record("r-1", "1");
    charged.user_id = UserId(2);
    let settled = store.settle(&[charged], None, Tz::UTC).await.unwrap();
    assert_eq!((settled.inserted, settled.put_aside), (0, 0));
    assert_eq!(lines(&dir).len(), 1);
}

/// Makes commits fail: a row that may be wrong until the end of its transaction, and is.
async fn fail_commits(store: &Store, fail: bool) {
    let sql = if fail {
        "CREATE TABLE IF NOT EXISTS loose (id INTEGER REFERENCES users (id) DEFERRABLE INITIALLY DEFERRED); \
         CREATE TRIGGER IF NOT EXISTS fail AFTER INSERT ON usage_entries BEGIN INSERT INTO loose VALUES (77); END"
    } else {
        "DROP TRIGGER fail"
    };
    let writer = &store.inner.pools.writer;
    writer.execute_unprepared(sql).await.unwrap();
}

#[tokio::test]
async fn a_user_who_comes_later_is_found() {
    let (_dir, store) = filled().await;
    let mut carols = record("r-1", "1");
    (carols.user_id, carols.user) = (UserId(3), "carol".to_owned());
    let batch = [carols];
    let settled = store.settle(&batch, None, Tz::UTC).await.unwrap();
    assert_eq!(settled.put_aside, 1);
    let mut wanted = resources();
    wanted.users.push(user("carol", "5"));
    apply(&store, &wanted).await;
    let settled = store.settle(&batch, None, Tz::UTC).await.unwrap();
    assert_eq!((settled.inserted, settled.put_aside), (1, 0));
    assert_eq!(balances(&store).await, ["10", "0", "4"]);
}

#[tokio::test]
async fn it_is_known_which_requests_have_a_record() {
    let (_dir, store) = filled().await;
    let batch = [record("r-1", "1"), record("r'2", "0")];
    store.settle(&batch, None, Tz::UTC).await.unwrap();
    let asked = ["r-1", "r'2", "r-3", "r-1"].map(str::to_owned);
    let known = store.known_requests(&asked).await.unwrap();
    assert_eq!(known, ["r-1", "r'2"].map(str::to_owned).into());
    let many: Vec<String> = (0..30_000).map(|n| format!("r-{n}")).collect();
    assert_eq!(store.known_requests(&many).await.unwrap().len(), 1);
    assert!(store.known_requests(&[]).await.unwrap().is_empty());
}

#[test]
fn the_names_of_the_fields_are_those_that_are_written() {
    let view = UsageRecordView::of(&record("r-1", "1"));
    let written = serde_json::to_string(&view).unwrap();
    let mut rest = written.as_str();
    for field in UsageRecordView::FIELDS {
        let place = rest.find(&format!("\"{field}\":"));
        let place = place.unwrap_or_else(|| panic!("{field} is not there, or not in its place"));
        rest = &rest[place + field.len()..];
    }
    let json: serde_json::Value = serde_json::from_str(&written).unwrap();
    assert_eq!(
        json.as_object().unwrap().len(),
        UsageRecordView::FIELDS.len()
    );
}
