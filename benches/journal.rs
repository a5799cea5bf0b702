//! How fast do requests tell the journal that they go upstream and how they ended?
//!
//! Every round is one request: `reserved` and `sent` (one write), `settled` (another), with the thread
//! syncing as in a server and records taken out as the writer does: `cargo bench --bench journal`.
//! `JOURNAL_DIR` is where the journal is made; the usual folder for temporary files may be in memory.

use std::hint::black_box;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use chrono::DateTime;
use criterion::{BenchmarkId, Criterion, Throughput};
use tollgate::billing::journal::codec::Encoder;
use tollgate::billing::journal::{Draft, Journal, Options, Reserved};
use tollgate::domain::{
    AccountId, ApiKeyId, BillingType, GroupId, Money, Multiplier, Outcome, Platform, PricingMode,
    UsageRecord, UsageSource, UserId,
};
use tollgate_filters::usage::TokenUsage;

/// As in conf/tollgate.yaml.
const SEGMENT_BYTES: u64 = 16 << 20;
const SYNC_INTERVAL: Duration = Duration::from_millis(50);
/// Records that the writer takes at once.
const BATCH: usize = 2000;

fn record(number: u64) -> UsageRecord {
    UsageRecord {
        request_id: format!("req_8f3a61c09be24d57{number:08x}"),
        client_request_id: None,
        upstream_request_id: Some(format!("req_{number:032x}")),
        created_at: DateTime::from_timestamp_millis(1_790_000_000_123).unwrap_or_default(),
        user_id: UserId(17),
        user: "user-17".to_owned(),
        api_key_id: ApiKeyId(18),
        api_key: "key-18".to_owned(),
        group_id: GroupId(1),
        group: "main".to_owned(),
        fallback_from_group: None,
        account_id: AccountId(3),
        account: "account-3".to_owned(),
        platform: Platform::OpenAi,
        endpoint: "/v1/responses".to_owned(),
        upstream_endpoint: "/v1/responses".to_owned(),
        requested_model: "gpt-5".to_owned(),
        model: "gpt-5".to_owned(),
        upstream_model: "gpt-5".to_owned(),
        model_mapping_chain: None,
        stream: true,
        status: 200,
        outcome: Outcome::Ok,
        tokens: TokenUsage {
            input: 1700,
            output: 800,
            cache_read: 400,
            ..TokenUsage::default()
        },
        image_count: 0,
        cost: Money(1_000_000),
        charge: Money(1_000_000),
        rate_multiplier: Multiplier::ONE,
        account_rate_multiplier: Multiplier::ONE,
        billing_type: BillingType::Balance,
        billing_mode: PricingMode::Token,
        channel: None,
        billing_tier: None,
        priced: true,
        service_tier: None,
        reasoning_effort: Some("medium".to_owned()),
        attempts: 1,
        account_switches: 0,
        trail: Vec::new(),
        duration_ms: 9000,
        first_token_ms: Some(700),
        usage_source: UsageSource::Reported,
        client_disconnected: false,
        ip: Some("192.0.2.7".to_owned()),
        user_agent: Some("OpenAI/Python 2.3.0".to_owned()),
    }
}

/// One request, from its reservation to its end.
fn request(journal: &Journal, number: u64, at: DateTime<chrono::Utc>) {
    let record = record(number);
    journal.reserved(&Reserved {
        request_id: record.request_id.clone(),
        user_id: record.user_id,
        api_key_id: record.api_key_id,
        amount: Money(5_000_000),
        at,
    });
    let draft = Draft {
        record,
        body_len: 6_000,
        reserved: Money(5_000_000),
    };
    if let Err(error) = journal.sent(&draft) {
        panic!("the journal cannot be measured: {error}");
    }
    journal.settled(Arc::new(draft.record));
}

/// How long `rounds` requests take, shared between `threads`.
fn requests(journal: &Journal, next: &AtomicU64, threads: u64, rounds: u64) -> Duration {
    let at = DateTime::from_timestamp_millis(1_790_000_000_123).unwrap_or_default();
    let began = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let share = rounds / threads + u64::from(thread < rounds % threads);
            scope.spawn(move || {
                for _ in 0..share {
                    request(journal, next.fetch_add(1, Ordering::Relaxed), at);
                }
            });
        }
    });
    began.elapsed()
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    criterion.bench_function("journal/encode_record", |bencher| {
        let record = record(1);
        bencher.iter(|| {
            let mut encoder = Encoder::default();
            encoder.record(black_box(&record));
            encoder.finish()
        });
    });

    let folder = std::env::var_os("JOURNAL_DIR").map(PathBuf::from);
    let directory = match &folder {
        Some(folder) => tempfile::tempdir_in(folder),
        None => tempfile::tempdir(),
    };
    let directory = match directory {
        Ok(directory) => directory,
        Err(error) => panic!("a folder is needed: {error}"),
    };
    let options = Options {
        directory: directory.path().join("journal"),
        segment_bytes: SEGMENT_BYTES,
        sync_interval: SYNC_INTERVAL,
        database: 0,
    };
    let journal = match Journal::open(options, None) {
        Ok((journal, _)) => journal,
        Err(error) => panic!("the journal does not open: {error}"),
    };
    let stop = AtomicBool::new(false);
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let batch = journal.batch(BATCH);
                journal.applied(batch.records.len(), batch.upto);
                std::thread::park_timeout(Duration::from_millis(5));
            }
        });
        let mut group = criterion.benchmark_group("journal/sent_and_settled");
        group.throughput(Throughput::Elements(1));
        for threads in [1, 4] {
            group.bench_with_input(
                BenchmarkId::new("threads", threads),
                &threads,
                |bencher, threads| {
                    bencher.iter_custom(|rounds| requests(&journal, &next, *threads, rounds));
                },
            );
        }
        group.finish();
        stop.store(true, Ordering::Relaxed);
    });
    let state = journal.state();
    println!("syncs {}, bytes on disk {}", state.syncs, state.disk_bytes);
    criterion.final_summary();
}
