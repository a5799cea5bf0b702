//! What is kept and what goes, when nothing fails.

use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::billing::journal::open_reservations;

#[test]
fn only_the_owner_reads_it() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("journal")).unwrap();
    let (journal, _) = small(directory.path(), None);
    journal.settled(Arc::new(record("a")));
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&directory.path().join("journal")), 0o700);
    for file in files(directory.path()) {
        assert_eq!(mode(&file), 0o600, "{file:?}");
    }
}

#[test]
fn what_was_told_comes_back_after_a_crash() {
    let directory = tempfile::tempdir().unwrap();
    let (journal, recovered) = small(directory.path(), None);
    assert_eq!(recovered, Recovered::default());
    for id in ["done", "running", "held", "given-up", "second-try"] {
        journal.reserved(&reserved(id, 5));
    }
    journal.sent(&draft("done", 5)).unwrap();
    journal.sent(&draft("running", 5)).unwrap();
    journal.progress("running", progress(10));
    journal.progress("running", progress(20));
    journal.sent(&draft("second-try", 5)).unwrap();
    journal.progress("second-try", progress(1));
    journal.sent(&draft("second-try", 6)).unwrap();
    journal.voided("given-up");
    journal.voided("never-told");
    journal.settled(Arc::new(record("done")));

    let after = crash(&directory);
    let held = open_reservations(&after.path().join("journal")).unwrap();
    assert_eq!(held, [(UserId(7), Money(5 + 5 + 6))].into());
    let (again, recovered) = small(after.path(), None);
    assert_eq!(settled_ids(&recovered), ["done"]);
    assert_eq!(*recovered.settled[0], record("done"));
    assert_eq!(unfinished_ids(&recovered), ["running", "second-try"]);
    assert_eq!(recovered.unfinished[0].progress, Some(progress(20)));
    assert_eq!(recovered.unfinished[1].progress, None);
    assert_eq!(recovered.unfinished[1].draft, draft("second-try", 6));
    assert_eq!(recovered.voided, 1, "held");
    assert_eq!(again.len(), 1);
    assert_eq!(again.state().open_requests, 2);
    // The requests that were never sent hold nothing any more.
    let held = open_reservations(&after.path().join("journal")).unwrap();
    assert_eq!(held, [(UserId(7), Money(5 + 6))].into());
}

#[test]
fn what_the_database_has_is_not_given_again() {
    let directory = tempfile::tempdir().unwrap();
    let (journal, _) = small(directory.path(), None);
    for id in ["a", "b", "c"] {
        journal.settled(Arc::new(record(id)));
    }
    let batch = journal.batch(2);
    assert_eq!(batch.records.len(), 2);
    let upto = batch.upto.unwrap();
    // The transaction failed: the same records again, and their place.
    assert_eq!(journal.batch(2), batch);
    // It went well, and the program crashes before or after it tells the journal so.
    for _ in 0..2 {
        let after = crash(&directory);
        let (_, recovered) = small(after.path(), Some(upto));
        assert_eq!(settled_ids(&recovered), ["c"]);
        journal.applied(2, Some(upto));
    }
    // A place in another journal says nothing about this one.
    let other = JournalPosition {
        journal: upto.journal.wrapping_add(1),
        ..upto
    };
    let after = crash(&directory);
    let (_, recovered) = small(after.path(), Some(other));
    assert_eq!(settled_ids(&recovered), ["a", "b", "c"]);
}

#[test]
fn segments_go_when_they_are_applied_whatever_is_open() {
    let directory = tempfile::tempdir().unwrap();
    let (journal, _) = small(directory.path(), None);
    journal.reserved(&reserved("waits", 3));
    journal.sent(&draft("stream", 9)).unwrap();
    let mut upto = None;
    for n in 0..200 {
        journal.progress("stream", progress(n));
        journal.settled(Arc::new(record(&format!("req_{n}"))));
        if n % 3 == 0 {
            upto = apply_all(&journal);
            turn(&journal);
            assert!(segments(directory.path()).len() < 10, "after {n}");
        }
    }
    turn(&journal);
    let (_, recovered) = small(crash(&directory).path(), upto);
    assert_eq!(unfinished_ids(&recovered), ["stream"]);
    assert_eq!(recovered.unfinished[0].progress, Some(progress(199)));
    assert_eq!(recovered.voided, 1);
    assert_eq!(settled_ids(&recovered), ["req_199"]);

    journal.settled(Arc::new(record("stream")));
    journal.voided("waits");
    let upto = apply_all(&journal);
    turn(&journal);
    assert_eq!(journal.state().open_requests, 0);
    assert!(segments(directory.path()).len() <= 2);
    let (_, recovered) = small(crash(&directory).path(), upto);
    assert_eq!(recovered, Recovered::default());
}

#[test]
fn what_the_database_lacks_keeps_its_segment() {
    let directory = tempfile::tempdir().unwrap();
    let (journal, _) = small(directory.path(), None);
    let all: Vec<String> = (0..100).map(|n| format!("req_{n}")).collect();
    for id in &all {
        journal.settled(Arc::new(record(id)));
        turn(&journal);
    }
    let batch = journal.batch(30);
    journal.applied(30, batch.upto);
    turn(&journal);
    let (_, recovered) = small(crash(&directory).path(), batch.upto);
    assert_eq!(settled_ids(&recovered), all[30..]);
}

#[test]
fn an_entry_larger_than_a_segment_has_one_of_its_own() {
    let directory = tempfile::tempdir().unwrap();
    let (journal, _) = small(directory.path(), None);
    let large = UsageRecord {
        requested_model: "m".repeat(100_000),
        ..record("large")
    };
    journal.settled(Arc::new(record("before")));
    journal.settled(Arc::new(large.clone()));
    journal.settled(Arc::new(record("after")));
    let (_, recovered) = small(crash(&directory).path(), None);
    assert_eq!(settled_ids(&recovered), ["before", "large", "after"]);
    assert_eq!(*recovered.settled[1], large);
}

#[test]
fn a_number_is_never_used_twice_even_if_segments_are_lost() {
    let directory = tempfile::tempdir().unwrap();
    let (journal, _) = small(directory.path(), None);
    for n in 0..20 {
        journal.settled(Arc::new(record(&format!("req_{n}"))));
    }
    let upto = apply_all(&journal);
    drop(journal);
    let paths = segments(directory.path());
    for path in &paths[1..] {
        std::fs::remove_file(path).unwrap();
    }
    let (journal, recovered) = small(directory.path(), upto);
    assert_eq!(settled_ids(&recovered), [] as [&str; 0]);
    assert_eq!(recovered.damage.len(), 1, "{:?}", recovered.damage);
    journal.settled(Arc::new(record("new")));
    let (_, recovered) = small(crash(&directory).path(), upto);
    assert_eq!(settled_ids(&recovered), ["new"]);
}

#[test]
fn damage_is_told_and_the_rest_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let (journal, _) = small(directory.path(), None);
    for n in 0..40 {
        journal.settled(Arc::new(record(&format!("req_{n}"))));
    }
    let after = crash(&directory);
    let path = segments(after.path())[1].clone();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[48] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let (journal, recovered) = small(after.path(), None);
    assert_eq!(recovered.damage.len(), 1, "{:?}", recovered.damage);
    assert!(recovered.damage[0].contains(":2:40: "));
    assert!(recovered.damage[0].contains(" bytes cannot be read; what follows them can"));
    // One is lost.
    let ids = settled_ids(&recovered);
    assert!(ids.len() == 39 && ids.contains(&"req_0") && ids.contains(&"req_39"));
    // It is kept for people when its turn to go has come.
    apply_all(&journal);
    turn(&journal);
    assert!(path.with_extension("damaged").exists() && !path.exists());
    let (_, recovered) = small(after.path(), None);
    assert_eq!(recovered.damage, [] as [String; 0]);
}

/// A journal of six records in one segment, and where each of them ends.
fn six() -> (TempDir, Vec<JournalPosition>) {
    let directory = tempfile::tempdir().unwrap();
    let (journal, _) = small(directory.path(), None);
    let mut ends = Vec::new();
    for n in 0..6 {
        journal.settled(Arc::new(record(&format!("req_{n}"))));
        ends.push(journal.batch(usize::MAX).upto.unwrap());
    }
    assert_eq!(segments(directory.path()).len(), 1);
    (crash(&directory), ends)
}

/// Changes one byte of the only segment.
fn flip(directory: &TempDir, at: u64) {
    let path = &segments(directory.path())[0];
    let mut bytes = std::fs::read(path).unwrap();
    bytes[usize::try_from(at).unwrap()] ^= 0x10;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn one_damaged_record_of_the_last_segment_takes_no_other_with_it() {
    let (_, ends) = six();
    // Length, checksum, kind, payload of the third.
    for at in [0, 1, 3, 4, 8, 9, 100] {
        let (directory, _) = six();
        let begin = ends[1].offset;
        flip(&directory, begin + at);
        let path = segments(directory.path())[0].clone();
        let (journal, recovered) = small(directory.path(), None);
        let expected = ["req_0", "req_1", "req_3", "req_4", "req_5"];
        assert_eq!(settled_ids(&recovered), expected, "byte {at}");
        assert_eq!(recovered.damage.len(), 1, "{:?}", recovered.damage);
        let gap = ends[2].offset - begin;
        let place = format!(":1:{begin}: {gap} bytes cannot be read");
        assert!(
            recovered.damage[0].contains(&place),
            "{place} {recovered:?}"
        );
        assert_eq!((recovered.torn_bytes, recovered.torn_at), (0, None));
        // What comes later is written behind it and read again, and the segment is kept.
        journal.settled(Arc::new(record("later")));
        let (_, again) = small(crash(&directory).path(), None);
        assert_eq!(settled_ids(&again).last(), Some(&"later"));
        assert_eq!(again.damage, recovered.damage);
        apply_all(&journal);
        turn(&journal);
        assert!(path.with_extension("damaged").exists() && !path.exists());
    }
}

#[test]
fn a_last_record_that_is_damaged_is_a_torn_one_until_the_database_has_it() {
    let (directory, ends) = six();
    flip(&directory, ends[5].offset - 20);
    let torn = crash(&directory);
    let (_, recovered) = small(torn.path(), Some(ends[2]));
    assert_eq!(settled_ids(&recovered), ["req_3", "req_4"]);
    assert_eq!(recovered.damage, [] as [String; 0]);
    assert_eq!(recovered.torn_at, Some(ends[4]));
    // Zeros at the end do not count.
    let frame = ends[5].offset - ends[4].offset;
    assert!((frame - 4..=frame).contains(&recovered.torn_bytes));

    let path = segments(directory.path())[0].clone();
    let (_, recovered) = small(directory.path(), Some(ends[5]));
    assert_eq!(settled_ids(&recovered), [] as [&str; 0]);
    assert_eq!((recovered.torn_bytes, recovered.torn_at), (0, None));
    assert_eq!(recovered.damage.len(), 1, "{:?}", recovered.damage);
    assert!(recovered.damage[0].contains(":1:") && recovered.damage[0].contains("ends here"));
    // It is not forgotten by another start.
    let (journal, recovered) = small(directory.path(), Some(ends[5]));
    assert_eq!(recovered.damage.len(), 1, "{:?}", recovered.damage);
    journal.settled(Arc::new(record("later")));
    apply_all(&journal);
    turn(&journal);
    assert!(path.with_extension("damaged").exists() && !path.exists());
}

#[test]
fn nobody_waits_while_files_are_removed() {
    let directory = tempfile::tempdir().unwrap();
    let disk = FailingDisk::new();
    let (journal, _) = with_disk(directory.path(), None, disk.clone());
    disk.unlocked.set(Arc::downgrade(&journal.shared)).unwrap();
    let removed = || disk.removed.swap(0, Ordering::Relaxed);
    // More room than anybody needs.
    let rooms: Vec<_> = (0..100).map(|_| journal.admit().unwrap()).collect();
    drop(rooms);
    turn(&journal);
    assert!(removed() > 5, "spare files");
    for n in 0..100 {
        journal.settled(Arc::new(record(&format!("req_{n}"))));
    }
    apply_all(&journal);
    turn(&journal);
    assert!(removed() > 5, "segments that are applied");
    disk.set_no_sync(true);
    journal.settled(Arc::new(record("again")));
    for _ in 0..5 {
        journal.shared.sync();
    }
    assert!(removed() > 2, "segments written in vain");
}

#[test]
fn the_thread_syncs_keeps_room_and_lets_go() {
    let directory = tempfile::tempdir().unwrap();
    let wait = |what: &str, done: &dyn Fn() -> bool| {
        let began = std::time::Instant::now();
        while !done() {
            assert!(began.elapsed() < Duration::from_secs(30), "{what}");
            std::thread::yield_now();
        }
    };
    let (journal, _) = Journal::open(options(directory.path(), 1 << 16), None).unwrap();
    let room = journal.admit().unwrap();
    for n in 0..1000 {
        journal.settled(Arc::new(record(&format!("req_{n}"))));
    }
    wait("a sync", &|| journal.state().syncs > 0);
    assert!(journal.state().segments > 4);
    apply_all(&journal);
    wait("old segments gone", &|| {
        journal.state().disk_bytes < 12 << 16
    });
    drop(room);
    journal.settled(Arc::new(record("last")));
    journal.close();
    journal.close();
    let syncs = journal.state().syncs;
    drop(journal);
    assert!(syncs > 1);
    let (_, recovered) = small(directory.path(), None);
    assert_eq!(settled_ids(&recovered).last(), Some(&"last"));
}
