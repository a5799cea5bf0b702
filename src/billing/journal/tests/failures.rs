//! A disk that is full, that fails in the middle of a write, that does not sync; a thread that dies.

use std::collections::HashSet;

use super::*;
use crate::billing::journal::{JournalError, JournalFull, keeper};

#[test]
fn a_full_disk_refuses_new_requests_and_lets_admitted_ones_finish() {
    let directory = tempfile::tempdir().unwrap();
    let disk = FailingDisk::new();
    let (journal, _) = with_disk(directory.path(), None, disk.clone());
    disk.set_full(true);
    let mut rooms = Vec::new();
    let full = loop {
        match journal.admit() {
            Ok(room) => rooms.push(room),
            Err(full) => break full,
        }
        assert!(rooms.len() < 1000);
    };
    assert_eq!(full, JournalFull::NoRoom);
    assert!(rooms.len() > 1);
    let mut expected = Vec::new();
    for (n, room) in rooms.into_iter().enumerate() {
        let id = format!("req_{n}");
        // Room for this is promised: nothing is written to a spare that could not be had.
        journal.sent(&draft(&id, 1)).unwrap();
        journal.settled(Arc::new(record(&id)));
        drop(room);
        expected.push(id);
        turn(&journal);
    }
    assert!(!journal.state().failing);
    let (_, recovered) = small(crash(&directory).path(), None);
    assert_eq!(settled_ids(&recovered), expected);
    // Segments that are applied make room again, without a spare that could be created.
    apply_all(&journal);
    turn(&journal);
    disk.set_full(false);
    turn(&journal);
    journal.admit().unwrap();
}

#[test]
fn rooms_are_given_back() {
    let directory = tempfile::tempdir().unwrap();
    let (journal, _) = small(directory.path(), None);
    let rooms: Vec<_> = (0..100).map(|_| journal.admit().unwrap()).collect();
    assert!(journal.state().disk_bytes >= 100 * SMALL.room_bytes);
    drop(rooms);
    turn(&journal);
    let left = journal.state().disk_bytes;
    assert!(left < 20 * SMALL.room_bytes, "{left}");
}

#[test]
fn a_write_that_fails_in_the_middle_loses_nothing() {
    let whole = record("whole");
    for budget in [0, 1, 8, 9, 100, 300, 450] {
        let directory = tempfile::tempdir().unwrap();
        let disk = FailingDisk::new();
        let (journal, _) = with_disk(directory.path(), None, disk.clone());
        journal.settled(Arc::new(whole.clone()));
        journal.sent(&draft("running", 5)).unwrap();
        let before = journal.batch(9).upto;
        disk.write_at_most(budget);
        for id in ["a", "b", "c"] {
            journal.settled(Arc::new(record(id)));
        }
        let failed = journal.sent(&draft("late", 5)).unwrap_err();
        assert!(matches!(failed, JournalError::Failing), "{failed}");
        assert_eq!(journal.admit().unwrap_err(), JournalFull::Failing);
        assert!(journal.state().failing);
        // They go to the database although they are not in the journal.
        let batch = journal.batch(9);
        let ids: Vec<_> = batch.records.iter().map(|r| r.request_id.clone()).collect();
        assert_eq!(ids, ["whole", "a", "b", "c"]);
        // The watermark passes only what is written.
        let batch = journal.batch(2);
        let (_, recovered) = small(crash(&directory).path(), batch.upto);
        assert_eq!(unfinished_ids(&recovered), ["running"]);
        assert!(batch.upto >= before);
        journal.applied(2, batch.upto);
        turn(&journal);
        assert!(journal.state().failing);

        disk.write_at_most(u64::MAX);
        turn(&journal);
        assert!(!journal.state().failing);
        journal.admit().unwrap();
        journal.sent(&draft("late", 5)).unwrap();
        journal.settled(Arc::new(record("d")));
        let after = crash(&directory);
        let (_, recovered) = small(after.path(), batch.upto);
        let mut ids = settled_ids(&recovered);
        // `a` is in the database, and may come again.
        ids.retain(|id| *id != "a");
        assert_eq!(ids, ["b", "c", "d"], "budget {budget}");
        assert_eq!(unfinished_ids(&recovered), ["running", "late"]);
        assert_eq!(recovered.damage.len(), 0, "{:?}", recovered.damage);
    }
}

#[test]
fn a_request_whose_sent_fails_leaves_nothing() {
    for budget in [0, 20, 150] {
        let directory = tempfile::tempdir().unwrap();
        let disk = FailingDisk::new();
        let (journal, _) = with_disk(directory.path(), None, disk.clone());
        journal.sent(&draft("running", 5)).unwrap();
        journal.reserved(&reserved("refused", 4));
        disk.write_at_most(budget);
        let failed = journal.sent(&draft("refused", 4)).unwrap_err();
        assert!(matches!(failed, JournalError::Write(_)), "{failed}");
        disk.write_at_most(u64::MAX);
        turn(&journal);
        journal.voided("refused");
        journal.settled(Arc::new(record("other")));
        let (_, recovered) = small(crash(&directory).path(), None);
        assert_eq!(unfinished_ids(&recovered), ["running"]);
        assert_eq!(settled_ids(&recovered), ["other"]);
        assert_eq!(recovered.voided, 0);

        // What could not be told once can be told later.
        journal.sent(&draft("refused", 4)).unwrap();
        let (_, recovered) = small(crash(&directory).path(), None);
        assert_eq!(unfinished_ids(&recovered), ["running", "refused"]);
        journal.voided("refused");
        turn(&journal);

        // A second attempt that cannot be told leaves the first one told.
        disk.write_at_most(budget);
        journal.sent(&draft("running", 6)).unwrap_err();
        disk.write_at_most(u64::MAX);
        turn(&journal);
        let (_, recovered) = small(crash(&directory).path(), None);
        assert_eq!(unfinished_ids(&recovered), ["running"]);
        assert_eq!(recovered.unfinished[0].draft.reserved, Money(5));
    }
}

#[test]
fn after_a_failed_sync_what_matters_is_written_again() {
    let directory = tempfile::tempdir().unwrap();
    let disk = FailingDisk::new();
    let (journal, _) = with_disk(directory.path(), None, disk.clone());
    journal.settled(Arc::new(record("applied")));
    apply_all(&journal);
    journal.settled(Arc::new(record("a")));
    journal.sent(&draft("running", 5)).unwrap();
    journal.progress("running", progress(77));
    journal.reserved(&reserved("held", 2));
    journal.settled(Arc::new(record("b")));
    disk.set_no_sync(true);
    for _ in 0..20 {
        turn(&journal);
    }
    assert_eq!(journal.admit().unwrap_err(), JournalFull::Failing);
    let state = journal.state();
    assert!(state.failing && state.sync_errors >= 2);
    assert!(state.segments < 6, "attempts are taken away: {state:?}");
    disk.set_no_sync(false);
    turn(&journal);
    journal.admit().unwrap();

    // What was on the device before is gone, as the failed sync may mean.
    let after = crash(&directory);
    let paths = segments(after.path());
    for path in &paths[..paths.len() - 1] {
        std::fs::remove_file(path).unwrap();
    }
    let (_, recovered) = small(after.path(), None);
    assert_eq!(settled_ids(&recovered), ["a", "b"]);
    assert_eq!(unfinished_ids(&recovered), ["running"]);
    assert_eq!(recovered.unfinished[0].progress, Some(progress(77)));
    assert_eq!(recovered.voided, 1);
    // And the watermark goes on from the new places.
    let batch = journal.batch(1);
    let (_, recovered) = small(crash(&directory).path(), batch.upto);
    assert_eq!(settled_ids(&recovered), ["b"]);
}

#[test]
fn failed_syncs_are_over_when_the_disk_is_well_though_nothing_is_open() {
    for full_meanwhile in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let disk = FailingDisk::new();
        let (journal, _) = with_disk(directory.path(), None, disk.clone());
        journal.settled(Arc::new(record("a")));
        apply_all(&journal);
        disk.set_no_sync(true);
        disk.set_full(full_meanwhile);
        for _ in 0..20 {
            turn(&journal);
            assert_eq!(journal.admit().unwrap_err(), JournalFull::Failing);
        }
        let state = journal.state();
        assert!(state.segments < 8, "attempts are taken away: {state:?}");
        disk.set_no_sync(false);
        disk.set_full(false);
        turn(&journal);
        journal.admit().unwrap();
        journal.settled(Arc::new(record("b")));
        let (_, recovered) = small(crash(&directory).path(), None);
        assert!(settled_ids(&recovered).contains(&"b"));
        assert_eq!(recovered.damage, [] as [String; 0]);
    }
}

#[test]
fn no_watermark_while_records_have_old_and_new_places() {
    let directory = tempfile::tempdir().unwrap();
    let disk = FailingDisk::new();
    let (journal, _) = with_disk(directory.path(), None, disk.clone());
    for n in 0..8 {
        journal.settled(Arc::new(record(&format!("req_{n}"))));
    }
    disk.set_no_sync(true);
    journal.shared.make_room();
    // Only some of them can be written again.
    disk.write_at_most(1500);
    journal.shared.sync();
    let batch = journal.batch(1);
    assert_eq!((batch.records.len(), batch.upto), (1, None));
    let (_, recovered) = small(crash(&directory).path(), None);
    assert_eq!(recovered.settled.len(), 8);
    journal.applied(1, None);
    disk.set_no_sync(false);
    disk.write_at_most(u64::MAX);
    for _ in 0..3 {
        turn(&journal);
    }
    assert!(!journal.state().failing);
    let batch = journal.batch(3);
    let (_, recovered) = small(crash(&directory).path(), batch.upto);
    let left: Vec<_> = (4..8).map(|n| format!("req_{n}")).collect();
    assert_eq!(settled_ids(&recovered), left);
}

#[test]
fn what_the_database_has_without_a_watermark_can_be_forgotten() {
    let directory = tempfile::tempdir().unwrap();
    let disk = FailingDisk::new();
    let (journal, _) = with_disk(directory.path(), None, disk.clone());
    for id in ["a", "b"] {
        journal.settled(Arc::new(record(id)));
    }
    for id in ["late", "running"] {
        journal.sent(&draft(id, 5)).unwrap();
    }
    // Written again, and in the database before that has a place.
    disk.set_no_sync(true);
    disk.write_at_most(0);
    journal.shared.sync();
    journal.settled(Arc::new(record("late")));
    let batch = journal.batch(1);
    assert_eq!((batch.records.len(), batch.upto), (1, None));
    let known: HashSet<String> = ["a", "late"].map(str::to_owned).into();

    let after = crash(&directory);
    disk.set_no_sync(false);
    disk.write_at_most(u64::MAX);
    let (journal, mut recovered) = with_disk(after.path(), None, disk.clone());
    assert_eq!(settled_ids(&recovered), ["a", "b"]);
    assert_eq!(unfinished_ids(&recovered), ["late", "running"]);
    let ids: Vec<&str> = recovered.request_ids().collect();
    assert_eq!(ids, ["a", "b", "late", "running"]);
    journal.forget(&mut recovered, &known);
    assert_eq!(settled_ids(&recovered), ["b"]);
    assert_eq!(unfinished_ids(&recovered), ["running"]);
    assert_eq!(recovered.known, 2);
    assert_eq!((journal.len(), journal.state().open_requests), (1, 1));
    journal.settled(Arc::new(record("new")));
    let batch = journal.batch(9);
    let ids: Vec<_> = batch.records.iter().map(|it| &*it.request_id).collect();
    assert_eq!(ids, ["b", "new"]);
    // The places of the others are what they were, also of those that are written again.
    let first = journal.batch(1);
    let (_, again) = small(crash(&after).path(), first.upto);
    assert_eq!(settled_ids(&again), ["new"]);
    assert_eq!(unfinished_ids(&again), ["running"]);
    disk.set_no_sync(true);
    journal.shared.sync();
    disk.set_no_sync(false);
    let first = journal.batch(1);
    let (_, again) = small(crash(&after).path(), first.upto);
    assert_eq!(settled_ids(&again), ["new"]);
    apply_all(&journal);
    turn(&journal);
    assert!(journal.is_empty());
}

#[test]
fn a_journal_opens_on_a_full_disk() {
    let directory = tempfile::tempdir().unwrap();
    let (journal, _) = small(directory.path(), None);
    journal.settled(Arc::new(record("a")));
    let after = crash(&directory);
    let disk = FailingDisk::new();
    disk.set_full(true);
    let (journal, recovered) = with_disk(after.path(), None, disk.clone());
    assert_eq!(settled_ids(&recovered), ["a"]);
    assert_eq!(journal.admit().unwrap_err(), JournalFull::NoRoom);
    apply_all(&journal);
    turn(&journal);
    disk.set_full(false);
    turn(&journal);
    journal.admit().unwrap();
}

#[test]
fn without_its_thread_no_request_begins_and_running_ones_are_written() {
    let directory = tempfile::tempdir().unwrap();
    let disk = FailingDisk::new();
    let (journal, _) = with_disk(directory.path(), None, disk.clone());
    let room = journal.admit().unwrap();
    disk.panics.store(true, Ordering::Relaxed);
    let shared = journal.shared.clone();
    let thread = std::thread::spawn(move || keeper::run(&shared));
    thread.join().unwrap_err();
    disk.panics.store(false, Ordering::Relaxed);
    assert_eq!(journal.admit().unwrap_err(), JournalFull::Failing);
    journal.sent(&draft("a", 1)).unwrap();
    journal.settled(Arc::new(record("a")));
    drop(room);
    assert!(journal.state().failing);
    drop(journal);
    let (_, recovered) = small(directory.path(), None);
    assert_eq!(settled_ids(&recovered), ["a"]);
}
