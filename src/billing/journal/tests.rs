//! The journal against a real folder, and against a disk that fails when it is told to.

mod bytes;
mod databases;
mod failures;
mod histories;
mod keeping;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use chrono::DateTime;
use tempfile::TempDir;
use tollgate_filters::usage::TokenUsage;

use super::core::{Shared, Tuning};
use super::disk::{Disk, RealDisk};
use super::{Draft, Journal, Options, Progress, Recovered, Reserved};
use crate::domain::{
    AccountId, ApiKeyId, AttemptTrace, BillingType, GroupId, JournalPosition, Money, Multiplier,
    Outcome, Platform, PricingMode, UsageRecord, UsageSource, UserId,
};

/// So small that segments change all the time.
const SMALL: Tuning = Tuning {
    room_bytes: 512,
    headroom_bytes: 1024,
};

/// The database of these tests.
const DATABASE: u64 = 0xd1;

/// A record of that request.
fn record(request_id: &str) -> UsageRecord {
    UsageRecord {
        request_id: request_id.to_owned(),
        client_request_id: None,
        upstream_request_id: Some("req_up".to_owned()),
        created_at: DateTime::from_timestamp(1_790_000_000, 123_456_789).unwrap(),
        user_id: UserId(7),
        user: "zoë".to_owned(),
        api_key_id: ApiKeyId(8),
        api_key: "laptop".to_owned(),
        group_id: GroupId(9),
        group: "main".to_owned(),
        fallback_from_group: None,
        account_id: AccountId(-1),
        account: "acct".to_owned(),
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
            input: 1000,
            output: 300,
            ..TokenUsage::default()
        },
        image_count: 0,
        cost: Money(1_234_567),
        charge: Money(2_469_134),
        rate_multiplier: Multiplier(2_000_000),
        account_rate_multiplier: Multiplier::ONE,
        billing_type: BillingType::Balance,
        billing_mode: PricingMode::Token,
        channel: None,
        billing_tier: None,
        priced: true,
        service_tier: None,
        reasoning_effort: None,
        attempts: 2,
        account_switches: 1,
        trail: vec![AttemptTrace {
            account: "other".to_owned(),
            result: "limited".to_owned(),
            status: Some(429),
            duration_ms: 31,
        }],
        duration_ms: 4000,
        first_token_ms: Some(300),
        usage_source: UsageSource::Reported,
        client_disconnected: false,
        ip: Some("192.0.2.7".to_owned()),
        user_agent: None,
    }
}

fn draft(request_id: &str, reserved: i64) -> Draft {
    Draft {
        record: UsageRecord {
            status: 0,
            outcome: Outcome::Interrupted,
            tokens: TokenUsage::default(),
            cost: Money::ZERO,
            charge: Money::ZERO,
            ..record(request_id)
        },
        body_len: 4711,
        reserved: Money(reserved),
    }
}

fn reserved(request_id: &str, amount: i64) -> Reserved {
    Reserved {
        request_id: request_id.to_owned(),
        user_id: UserId(7),
        api_key_id: ApiKeyId(8),
        amount: Money(amount),
        at: DateTime::from_timestamp(1_790_000_000, 0).unwrap(),
    }
}

fn progress(output_bytes: u64) -> Progress {
    Progress {
        output_bytes,
        ..Progress::default()
    }
}

fn options(directory: &Path, segment_bytes: u64) -> Options {
    Options {
        directory: directory.join("journal"),
        segment_bytes,
        sync_interval: Duration::from_millis(1),
        database: DATABASE,
    }
}

/// A journal without its thread: the test does what the thread would do, when it wants.
fn small(directory: &Path, applied: Option<JournalPosition>) -> (Journal, Recovered) {
    with_disk(directory, applied, Arc::new(RealDisk))
}

fn with_disk(
    directory: &Path,
    applied: Option<JournalPosition>,
    disk: Arc<dyn Disk>,
) -> (Journal, Recovered) {
    Journal::prepare(options(directory, 0), applied, SMALL, disk).unwrap()
}

/// One turn of the thread.
fn turn(journal: &Journal) {
    journal.shared.make_room();
    journal.shared.sync();
    journal.shared.let_go();
}

/// Everything that is queued goes to the database; its new watermark.
fn apply_all(journal: &Journal) -> Option<JournalPosition> {
    let batch = journal.batch(usize::MAX);
    journal.applied(batch.records.len(), batch.upto);
    batch.upto
}

/// What a crash of the program leaves at this moment.
fn crash(directory: &TempDir) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    std::fs::create_dir(copy.path().join("journal")).unwrap();
    for name in files(directory.path()) {
        let to = copy.path().join("journal").join(name.file_name().unwrap());
        std::fs::copy(&name, to).unwrap();
    }
    copy
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(directory.join("journal"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files
}

fn segments(directory: &Path) -> Vec<PathBuf> {
    let mut files = files(directory);
    files.retain(|path| path.extension().is_some_and(|suffix| suffix == "journal"));
    files
}

fn settled_ids(recovered: &Recovered) -> Vec<&str> {
    let ids = recovered.settled.iter();
    ids.map(|record| record.request_id.as_str()).collect()
}

fn unfinished_ids(recovered: &Recovered) -> Vec<&str> {
    let unfinished = recovered.unfinished.iter();
    unfinished
        .map(|unfinished| unfinished.draft.record.request_id.as_str())
        .collect()
}

/// A disk that fails as told.
#[derive(Debug, Default)]
struct FailingDisk {
    /// Nothing can be created or made larger.
    full: AtomicBool,
    /// Writes fail after this many more bytes have been written; `u64::MAX` is never.
    write_budget: AtomicU64,
    /// Syncs fail.
    no_sync: AtomicBool,
    /// Syncs panic, as no disk does and a fault of ours might.
    panics: AtomicBool,
    /// Files are never removed while this journal is locked.
    unlocked: OnceLock<Weak<Shared>>,
    removed: AtomicU64,
}

impl FailingDisk {
    fn new() -> Arc<FailingDisk> {
        let disk = FailingDisk::default();
        disk.write_budget.store(u64::MAX, Ordering::Relaxed);
        Arc::new(disk)
    }

    fn set_full(&self, full: bool) {
        self.full.store(full, Ordering::Relaxed);
    }

    fn set_no_sync(&self, no_sync: bool) {
        self.no_sync.store(no_sync, Ordering::Relaxed);
    }

    fn write_at_most(&self, bytes: u64) {
        self.write_budget.store(bytes, Ordering::Relaxed);
    }
}

impl Disk for FailingDisk {
    fn create(&self, path: &Path, bytes: u64) -> io::Result<File> {
        if self.full.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        RealDisk.create(path, bytes)
    }

    fn extend(&self, file: &File, from: u64, to: u64) -> io::Result<()> {
        if self.full.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        RealDisk.extend(file, from, to)
    }

    fn write(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        let budget = self.write_budget.load(Ordering::Relaxed);
        if budget == u64::MAX {
            return RealDisk.write(file, bytes, offset);
        }
        // As a disk does it: a part is written before the error.
        let part = bytes.len().min(usize::try_from(budget).unwrap());
        RealDisk.write(file, &bytes[..part], offset)?;
        self.write_budget
            .store(budget - part as u64, Ordering::Relaxed);
        match part == bytes.len() {
            true => Ok(()),
            false => Err(io::ErrorKind::StorageFull.into()),
        }
    }

    /// What a crash of the program leaves needs no device, so nothing is waited for here.
    fn sync(&self, _: &File) -> io::Result<()> {
        assert!(!self.panics.load(Ordering::Relaxed), "meant by the test");
        match self.no_sync.load(Ordering::Relaxed) {
            true => Err(io::Error::other("no sync today")),
            false => Ok(()),
        }
    }

    fn sync_directory(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        if let Some(shared) = self.unlocked.get().and_then(Weak::upgrade) {
            assert!(shared.core.try_lock().is_some(), "the journal is locked");
        }
        self.removed.fetch_add(1, Ordering::Relaxed);
        RealDisk.remove(path)
    }
}
