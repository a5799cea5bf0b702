//! A journal is of one database, and says so.

use super::*;
use crate::billing::journal::frame::{HEADER_BYTES_BEFORE, Pending};
use crate::billing::journal::scan::Scan;
use crate::billing::journal::{Encoded, open_reservations};

fn of(directory: &Path, database: u64) -> (Journal, Recovered) {
    let options = Options {
        database,
        ..options(directory, 0)
    };
    Journal::prepare(options, None, SMALL, Arc::new(RealDisk)).unwrap()
}

fn folders(directory: &Path) -> Vec<PathBuf> {
    let mut files = files(directory);
    files.retain(|path| path.is_dir());
    files
}

/// The journal of a folder that was set apart, put where its database is.
fn back(folder: &Path) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let journal = directory.path().join("journal");
    std::fs::create_dir(&journal).unwrap();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, journal.join(path.file_name().unwrap())).unwrap();
    }
    directory
}

#[test]
fn another_databases_records_are_kept_and_not_given_to_this_one() {
    let directory = tempfile::tempdir().unwrap();
    for (round, last) in ["first", "second"].into_iter().enumerate() {
        let (journal, _) = of(directory.path(), 0xa);
        let id = journal.shared.core.lock().log.journal();
        for n in 0..40 {
            journal.settled(Arc::new(record(&format!("req_{n}"))));
        }
        journal.sent(&draft("running", 5)).unwrap();
        journal.settled(Arc::new(record(last)));
        drop(journal);
        let before = segments(directory.path());
        assert!(before.len() > 2);
        // What cannot be read goes with the rest.
        std::fs::write(&before[1], [0; 10]).unwrap();

        let (journal, recovered) = of(directory.path(), 0xb);
        assert_eq!(settled_ids(&recovered), [] as [&str; 0]);
        assert_eq!(unfinished_ids(&recovered), [] as [&str; 0]);
        assert_eq!(recovered.damage.len(), 1, "{:?}", recovered.damage);
        let line = &recovered.damage[0];
        assert!(line.contains("of the database 000000000000000a"), "{line}");
        assert!(line.contains("this one is 000000000000000b"), "{line}");
        let folders = folders(directory.path());
        assert_eq!(folders.len(), round + 1);
        let folder = &folders[round];
        assert!(line.contains(folder.to_str().unwrap()), "{line}");
        assert_eq!(std::fs::read_dir(folder).unwrap().count(), before.len());
        assert_ne!(journal.shared.core.lock().log.journal(), id);
        assert_eq!(segments(directory.path()).len(), 1);

        // Nothing is lost: with its own database it is what it was.
        let (_, recovered) = of(back(folder).path(), 0xa);
        assert_eq!(settled_ids(&recovered).last(), Some(&last));
        assert_eq!(unfinished_ids(&recovered), ["running"]);

        journal.settled(Arc::new(record("ours")));
        drop(journal);
        let scan = Scan::new(&directory.path().join("journal")).unwrap();
        assert_eq!(scan.database(), Some(0xb));
        let (_, recovered) = of(directory.path(), 0xb);
        assert_eq!(settled_ids(&recovered), ["ours"]);
        assert_eq!(recovered.damage, [] as [String; 0]);
        for path in segments(directory.path()) {
            std::fs::remove_file(path).unwrap();
        }
    }
}

#[test]
fn segments_of_another_journal_among_ours_go_alone() {
    let (theirs, ours) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for n in 0..40 {
        let (journal, _) = of(theirs.path(), 0xa);
        journal.settled(Arc::new(record(&format!("theirs_{n}"))));
    }
    of(ours.path(), 0xb).0.settled(Arc::new(record("ours")));
    let foreign = segments(theirs.path()).pop().unwrap();
    let name = foreign.file_name().unwrap();
    std::fs::copy(&foreign, ours.path().join("journal").join(name)).unwrap();
    let (_, recovered) = of(ours.path(), 0xb);
    assert_eq!(settled_ids(&recovered), ["ours"]);
    assert_eq!(recovered.damage.len(), 1, "{:?}", recovered.damage);
    let folder = folders(ours.path()).pop().unwrap();
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
    assert!(folder.join(name).exists());
}

#[test]
fn what_does_not_say_its_database_is_read() {
    let directory = tempfile::tempdir().unwrap();
    for (database, id) in [(0, "a"), (0xa, "b"), (0, "c"), (0xa, "d")] {
        let (journal, recovered) = of(directory.path(), database);
        assert_eq!(recovered.damage, [] as [String; 0]);
        journal.settled(Arc::new(record(id)));
    }
    let (_, recovered) = of(directory.path(), 0xa);
    assert_eq!(settled_ids(&recovered), ["a", "b", "c", "d"]);
    // But it is of the database that the rest of its journal is of.
    let (_, recovered) = of(directory.path(), 0xb);
    assert_eq!(settled_ids(&recovered), [] as [&str; 0]);
    let folder = folders(directory.path()).pop().unwrap();
    assert!(std::fs::read_dir(folder).unwrap().count() >= 4);
}

/// A segment as the version before wrote it.
fn version_one(directory: &Path) -> PathBuf {
    let at = JournalPosition {
        journal: 0x1234,
        segment: 1,
        offset: HEADER_BYTES_BEFORE,
    };
    let mut bytes = b"TOLLJRNL\x01\0\0\0".to_vec();
    bytes.extend(at.journal.to_le_bytes());
    bytes.extend(at.segment.to_le_bytes());
    bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
    let mut pending = Pending::default();
    pending.push(&Encoded::reserved(&reserved("held", 3)), None);
    pending.push(&Encoded::sent(&draft("running", 5)), None);
    pending.push(&Encoded::settled(&record("a")), None);
    let run = pending.place(at, 1 << 16);
    bytes.extend(pending.bytes(run));
    bytes.resize(1 << 16, 0);
    std::fs::create_dir(directory.join("journal")).unwrap();
    let path = directory.join("journal/00000001.journal");
    std::fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn segments_of_the_version_before_are_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = version_one(directory.path());
    let held = open_reservations(&directory.path().join("journal")).unwrap();
    assert_eq!(held, [(UserId(7), Money(8))].into());
    let (journal, recovered) = of(directory.path(), 0xa);
    assert_eq!(settled_ids(&recovered), ["a"]);
    assert_eq!(unfinished_ids(&recovered), ["running"]);
    assert_eq!((recovered.voided, recovered.torn_bytes), (1, 0));
    assert_eq!(recovered.damage, [] as [String; 0]);
    journal.settled(Arc::new(record("b")));
    // Also when their header cannot be read any more.
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[20] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let (_, recovered) = of(directory.path(), 0xa);
    assert_eq!(settled_ids(&recovered), ["a", "b"]);
    assert_eq!(recovered.damage.len(), 1, "{:?}", recovered.damage);
}
