//! Random histories of the journal, its disk and the database, with crashes at any moment.

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

#[derive(Clone, Copy, Debug)]
enum Step {
    Reserve(u8),
    Send(u8),
    Progress(u8),
    Settle(u8),
    Void(u8),
    Apply(u8),
    ApplyAndCrashBeforeTold(u8),
    Turn,
    Sync,
    Crash,
    Disk(Fault),
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    None,
    Full,
    Write(u16),
    Sync,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u8..12).prop_map(Step::Reserve),
        6 => (0u8..12).prop_map(Step::Send),
        3 => (0u8..12).prop_map(Step::Progress),
        6 => (0u8..12).prop_map(Step::Settle),
        2 => (0u8..12).prop_map(Step::Void),
        2 => (1u8..6).prop_map(Step::Apply),
        1 => (1u8..6).prop_map(Step::ApplyAndCrashBeforeTold),
        4 => Just(Step::Turn),
        1 => Just(Step::Sync),
        1 => Just(Step::Crash),
    ]
}

fn fault() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => Just(Fault::None),
        1 => Just(Fault::Full),
        1 => (0u16..3000).prop_map(Fault::Write),
        1 => Just(Fault::Sync),
    ]
    .prop_map(Step::Disk)
}

/// What is so, whatever the journal says. A slot's request has a new id after its end.
#[derive(Debug, Default)]
struct Truth {
    generation: BTreeMap<u8, u32>,
    /// Slot → whether it was sent.
    open: BTreeMap<u8, bool>,
    settled: BTreeSet<String>,
    /// Settled while the journal could not be written: a crash may lose these.
    at_risk: BTreeSet<String>,
    database: BTreeSet<String>,
    watermark: Option<JournalPosition>,
}

impl Truth {
    fn id(&self, slot: u8) -> String {
        format!("req_{slot}_{}", self.generation.get(&slot).unwrap_or(&0))
    }

    fn end(&mut self, slot: u8) {
        self.open.remove(&slot);
        *self.generation.entry(slot).or_default() += 1;
    }

    fn commit(&mut self, journal: &Journal, most: u8) -> (usize, Option<JournalPosition>) {
        let batch = journal.batch(usize::from(most));
        for record in &batch.records {
            self.database.insert(record.request_id.clone());
        }
        if let Some(upto) = batch.upto {
            assert!(self.watermark.is_none_or(|before| before <= upto));
            self.watermark = Some(upto);
        }
        (batch.records.len(), batch.upto)
    }
}

/// Runs a history; after every crash what comes back is compared with the truth.
fn run(steps: &[Step]) {
    let mut directory = tempfile::tempdir().unwrap();
    let disk = FailingDisk::new();
    let mut truth = Truth::default();
    let mut journal = with_disk(directory.path(), None, disk.clone()).0;
    for step in steps.iter().copied().chain([Step::Turn, Step::Crash]) {
        match step {
            Step::Reserve(slot) => {
                if !truth.open.contains_key(&slot) && journal.admit().is_ok() {
                    journal.reserved(&reserved(&truth.id(slot), i64::from(slot)));
                    truth.open.insert(slot, false);
                }
            }
            Step::Send(slot) => {
                let id = truth.id(slot);
                let admitted = truth.open.contains_key(&slot) || journal.admit().is_ok();
                if admitted && journal.sent(&draft(&id, i64::from(slot))).is_ok() {
                    truth.open.insert(slot, true);
                } else if truth.open.get(&slot) == Some(&false) {
                    journal.voided(&id);
                    truth.end(slot);
                }
            }
            Step::Progress(slot) => journal.progress(&truth.id(slot), progress(5)),
            Step::Settle(slot) => {
                if truth.open.get(&slot) == Some(&true) {
                    let id = truth.id(slot);
                    journal.settled(Arc::new(record(&id)));
                    if journal.shared.core.lock().write_failing {
                        truth.at_risk.insert(id.clone());
                    }
                    truth.settled.insert(id);
                    truth.end(slot);
                }
            }
            Step::Void(slot) => {
                if truth.open.get(&slot) == Some(&false) {
                    journal.voided(&truth.id(slot));
                    truth.end(slot);
                }
            }
            Step::Apply(most) => {
                let (count, upto) = truth.commit(&journal, most);
                journal.applied(count, upto);
            }
            Step::ApplyAndCrashBeforeTold(most) => {
                truth.commit(&journal, most);
                (directory, journal) = reopen(&mut truth, &directory, &disk);
            }
            Step::Turn => turn(&journal),
            Step::Sync => journal.shared.sync(),
            Step::Crash => (directory, journal) = reopen(&mut truth, &directory, &disk),
            Step::Disk(fault) => {
                disk.set_full(matches!(fault, Fault::Full));
                disk.set_no_sync(matches!(fault, Fault::Sync));
                disk.write_at_most(match fault {
                    Fault::Write(bytes) => u64::from(bytes),
                    _ => u64::MAX,
                });
            }
        }
        if !journal.state().failing {
            truth.at_risk.clear();
        }
    }
}

fn reopen(truth: &mut Truth, directory: &TempDir, disk: &Arc<FailingDisk>) -> (TempDir, Journal) {
    let after = crash(directory);
    disk.set_full(false);
    disk.set_no_sync(false);
    disk.write_at_most(u64::MAX);
    let (journal, recovered) = with_disk(after.path(), truth.watermark, disk.clone());
    let back: Vec<&str> = settled_ids(&recovered);
    let unique: BTreeSet<&str> = back.iter().copied().collect();
    assert_eq!(unique.len(), back.len(), "{back:?}");
    // Every record is in the database or comes back; nothing else does.
    for id in &truth.settled {
        let safe = truth.database.contains(id) || unique.contains(id.as_str());
        let unfinished = unfinished_ids(&recovered).contains(&id.as_str());
        assert!(
            safe || (truth.at_risk.contains(id) && unfinished),
            "{id} is lost"
        );
    }
    for id in unique {
        assert!(truth.settled.contains(id), "{id} was never settled");
    }
    // Every request that was sent and has no end comes back; one that has its end may only if the
    // end could not be written.
    let unfinished: BTreeSet<&str> = unfinished_ids(&recovered).into_iter().collect();
    for (slot, sent) in &truth.open {
        assert_eq!(
            unfinished.contains(truth.id(*slot).as_str()),
            *sent,
            "{slot}"
        );
    }
    for id in &unfinished {
        let open = truth
            .open
            .iter()
            .any(|(slot, sent)| *sent && truth.id(*slot) == *id);
        assert!(open || truth.at_risk.contains(*id), "{id} is not open");
    }
    // As after a start: what was never sent is void, the rest is settled by estimate, also what the
    // database has already.
    let slots: Vec<u8> = truth.open.keys().copied().collect();
    for slot in slots {
        truth.end(slot);
    }
    for id in unfinished {
        journal.settled(Arc::new(record(id)));
        truth.settled.insert(id.to_owned());
    }
    truth.at_risk.clear();
    (after, journal)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, ..ProptestConfig::default() })]

    #[test]
    fn a_history_with_crashes_loses_nothing_and_makes_nothing_up(steps in vec(step(), 1..120)) {
        run(&steps);
    }

    #[test]
    fn nor_does_one_with_a_failing_disk(
        steps in vec(prop_oneof![5 => step(), 1 => fault()], 1..120),
    ) {
        run(&steps);
    }
}
