//! Any beginning of a journal, taken up any number of times, gives the same database.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::time::Duration;

use chrono_tz::Tz;
use proptest::prelude::*;
use tempfile::TempDir;
use tollgate_filters::usage::TokenUsage;

use super::*;
use crate::billing::journal::{Draft, Options, Progress, Reserved};
use crate::billing::price_map::Prices;
use crate::config::load_resources;
use crate::domain::{
    AccountId, ApiKeyId, Directory, GroupId, JournalPosition, Multiplier, Outcome, Secret, UserId,
};
use crate::storage::{ApplyOptions, Store, UsageFilter};

const RESOURCES: &str = r#"
groups: [{ name: main, platform: openai }]
accounts:
  - { name: a1, platform: openai, credentials: { api_key: sk-test }, groups: [main] }
users: [{ name: alice, balance: "10.00" }]
api_keys:
  - { name: k, key: tg-recovery-0123456789, user: alice, group: main, rate_limits: { "5h": "5" } }
"#;

fn now() -> DateTime<Utc> {
    DateTime::from_timestamp(1_790_003_600, 0).unwrap()
}

/// A request that has been sent and of which nothing is known yet.
fn blank(number: usize) -> UsageRecord {
    UsageRecord {
        user_id: UserId(1),
        api_key_id: ApiKeyId(1),
        group_id: GroupId(1),
        account_id: AccountId(1),
        platform: Platform::Anthropic,
        created_at: now(),
        ..UsageRecord::blank(&format!("req_{number}"))
    }
}

fn options(directory: &Path) -> Options {
    Options {
        directory: directory.to_owned(),
        segment_bytes: 65_536,
        sync_interval: Duration::from_millis(1),
        database: 0,
    }
}

#[test]
fn what_was_reported_before_the_end_is_no_report_where_output_is_counted_at_the_end() {
    let snapshot = Snapshot::new(Directory::default(), &Arc::new(Prices::built_in()));
    let tokens = TokenUsage {
        input: 100,
        output: 3,
        ..TokenUsage::default()
    };
    for (platform, expected) in [
        (Platform::OpenAi, UsageSource::Reported),
        (Platform::Anthropic, UsageSource::Estimated),
        // Its relays speak Anthropic's dialect.
        (Platform::Antigravity, UsageSource::Estimated),
    ] {
        let unfinished = Unfinished {
            draft: Draft {
                record: UsageRecord {
                    platform,
                    ..blank(1)
                },
                body_len: 400,
                reserved: Money(0),
            },
            progress: Some(Progress {
                usage: Some(tokens),
                ..Progress::default()
            }),
        };
        let record = settle(unfinished, &snapshot, Reservation::Available, now());
        assert_eq!(
            (record.usage_source, record.tokens),
            (expected, tokens),
            "{platform}"
        );
    }
}

/// How far a request of the history comes.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Voided,
    Reserved,
    Sent,
    Progressed,
    Settled,
}

fn tell(journal: &Journal, number: usize, fate: Fate) {
    let id = format!("req_{number}");
    journal.reserved(&Reserved {
        request_id: id.clone(),
        user_id: UserId(1),
        api_key_id: ApiKeyId(1),
        amount: Money(1_000),
        at: now(),
    });
    match fate {
        Fate::Voided => return journal.voided(&id),
        Fate::Reserved => return,
        Fate::Sent | Fate::Progressed | Fate::Settled => {}
    }
    let record = blank(number);
    let draft = Draft {
        record: record.clone(),
        body_len: 400,
        reserved: Money(1_000),
    };
    journal.sent(&draft).unwrap();
    if matches!(fate, Fate::Progressed) {
        let progress = Progress {
            output_bytes: 40 * number as u64,
            ..Progress::default()
        };
        journal.progress(&id, progress);
    }
    if matches!(fate, Fate::Settled) {
        journal.settled(Arc::new(UsageRecord {
            cost: Money(5_000 + number as i64),
            charge: Money(5_000 + number as i64),
            usage_source: UsageSource::Reported,
            outcome: Outcome::Ok,
            status: 200,
            ..record
        }));
    }
}

/// Everything that a journal is to leave in a database, as text.
async fn contents(store: &Store) -> String {
    let wrong = store.verify_ledger().await.unwrap();
    assert!(wrong.is_empty(), "{wrong:?}");
    let all = UsageFilter::since(DateTime::UNIX_EPOCH);
    let mut records = store.usage_records(&all, None, 1_000).await.unwrap();
    records.sort_by(|a, b| a.request_id.cmp(&b.request_id));
    let records: Vec<String> = records
        .iter()
        .map(|record| serde_json::to_string(record).unwrap())
        .collect();
    let users = store.list_users(None, &HashMap::new()).await.unwrap();
    let users = serde_json::to_string(&users).unwrap();
    let windows = store.key_windows().await.unwrap();
    format!("{}\n{users}\n{windows:?}", records.join("\n"))
}

/// What a start does with a journal, and a writer after it.
async fn start(
    store: &Store,
    folder: &Path,
    applied: Option<JournalPosition>,
) -> (Arc<Book>, WindowCosts) {
    let costs = costs(store).await;
    let directory = store.load_directory(Multiplier::ONE).await.unwrap();
    let snapshot = Snapshot::new(directory, &Arc::new(Prices::built_in()));
    let book = Arc::new(Book::new(Tz::UTC));
    book.refresh(
        store.balances().await.unwrap(),
        store.key_spend().await.unwrap(),
    );
    let (journal, recovered) = Journal::open(options(folder), applied).unwrap();
    let mode = Reservation::Available;
    take_up(recovered, &journal, &book, &costs, &snapshot, mode, now());
    while !journal.is_empty() {
        let batch = journal.batch(3);
        let settled = store
            .settle(&batch.records, batch.upto, Tz::UTC)
            .await
            .unwrap();
        book.written(&batch.records, &settled.balances, &settled.spend);
        journal.applied(batch.records.len(), batch.upto);
    }
    journal.close();
    (book, costs)
}

async fn costs(store: &Store) -> WindowCosts {
    let costs = store.costs_by_minute(Platform::Anthropic, DateTime::UNIX_EPOCH);
    WindowCosts::loaded(costs.await.unwrap(), now())
}

fn copy(from: &Path, to: &Path, cut: u64) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let copied = to.join(path.file_name().unwrap());
        std::fs::copy(&path, &copied).unwrap();
        if path.extension().is_some_and(|e| e == "journal") {
            let file = std::fs::File::options().write(true).open(&copied).unwrap();
            let whole = file.metadata().unwrap().len();
            // What was never written reads as zeros, as it does after a crash.
            file.set_len(cut.min(whole)).unwrap();
            file.set_len(whole).unwrap();
        }
    }
}

async fn store_in(folder: &Path) -> Store {
    let secret = Secret::new("the secret of these tests");
    let store = Store::open(folder, &secret).await.unwrap();
    let file = folder.join("resources.yaml");
    std::fs::write(&file, RESOURCES).unwrap();
    let (resources, _) = load_resources(&[file], &BTreeMap::new()).unwrap();
    store
        .apply(&resources, ApplyOptions::default())
        .await
        .unwrap();
    store
}

fn fates() -> impl Strategy<Value = Vec<Fate>> {
    let fate = prop_oneof![
        1 => Just(Fate::Voided),
        1 => Just(Fate::Reserved),
        1 => Just(Fate::Sent),
        1 => Just(Fate::Progressed),
        3 => Just(Fate::Settled),
    ];
    prop::collection::vec(fate, 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn any_beginning_of_a_journal_gives_one_database(fates in fates(), share in prop_oneof![Just(1.0), 0.0..1.0f64]) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let dir = TempDir::new().unwrap();
        let original = dir.path().join("original");
        let (journal, _) = Journal::open(options(&original), None).unwrap();
        for (number, fate) in fates.iter().enumerate() {
            tell(&journal, number, *fate);
        }
        journal.close();
        // Entries take some hundred bytes each, behind the header.
        let cut = 64 + (share * 900.0 * fates.len() as f64) as u64;
        runtime.block_on(async {
            let data = dir.path().join("data");
            std::fs::create_dir(&data).unwrap();
            let store = store_in(&data).await;
            let folder = dir.path().join("first");
            copy(&original, &folder, cut);
            let (book, window) = start(&store, &folder, None).await;
            // What memory has counted is what the next start will find.
            let sum = |costs: &WindowCosts| costs.since(AccountId(1), DateTime::UNIX_EPOCH, now());
            prop_assert_eq!(sum(&window), sum(&costs(&store).await));
            let once = contents(&store).await;
            prop_assert_eq!(book.balance(UserId(1)), store.balances().await.unwrap()[0].1);

            // The next start, one whose mark was lost with the database's last commit, and the same
            // beginning once more.
            start(&store, &folder, store.watermark().await.unwrap()).await;
            prop_assert_eq!(&contents(&store).await, &once);
            start(&store, &folder, None).await;
            prop_assert_eq!(&contents(&store).await, &once);
            let again = dir.path().join("again");
            copy(&original, &again, cut);
            let (book, _) = start(&store, &again, None).await;
            prop_assert_eq!(&contents(&store).await, &once);
            prop_assert_eq!(book.balance(UserId(1)), store.balances().await.unwrap()[0].1);

            // A whole journal leaves nothing out.
            if share == 1.0 {
                let sent = fates.iter().filter(|f| !matches!(f, Fate::Voided | Fate::Reserved));
                prop_assert_eq!(once.matches("\"request_id\"").count(), sent.count());
            }
            store.close().await.unwrap();
            Ok(())
        })?;
    }
}

#[tokio::test]
async fn a_prompt_that_went_elsewhere_is_charged_as_its_group_says() {
    let folder = TempDir::new().unwrap();
    let store = store_in(folder.path()).await;
    let text = RESOURCES.replace(
        "platform: openai }]",
        "platform: openai, forced_cache_billing: true }]",
    );
    assert_ne!(text, RESOURCES);
    let file = folder.path().join("forced.yaml");
    std::fs::write(&file, text).unwrap();
    let (resources, _) = load_resources(&[file], &BTreeMap::new()).unwrap();
    let settled = async |switches: u32| {
        let directory = store.load_directory(Multiplier::ONE).await.unwrap();
        let snapshot = Snapshot::new(directory, &Arc::new(Prices::built_in()));
        let draft = Draft {
            record: UsageRecord {
                account_switches: switches,
                ..blank(1)
            },
            body_len: 400,
            reserved: Money::ZERO,
        };
        let unfinished = Unfinished {
            draft,
            progress: None,
        };
        let tokens = settle(unfinished, &snapshot, Reservation::None, now()).tokens;
        (tokens.input, tokens.cache_read)
    };
    assert_eq!((settled(0).await, settled(1).await), ((100, 0), (100, 0)));
    let options = ApplyOptions::default();
    store.apply(&resources, options).await.unwrap();
    assert_eq!((settled(0).await, settled(1).await), ((100, 0), (0, 100)));
}
