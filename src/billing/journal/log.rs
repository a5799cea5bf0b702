//! The segments that are being written: where the next entry goes, and what room there is.
//!
//! Everything here is called under the journal's lock. Entries get their place when they are written,
//! not before: what could not be written simply waits, and is placed anew, elsewhere if need be.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::Options;
use super::disk::Disk;
use super::entry::Encoded;
use super::frame::{self, FRAME_BYTES, HEADER_BYTES, Pending};
use crate::domain::JournalPosition;

/// Names of segments end in this.
pub const SEGMENT_SUFFIX: &str = "journal";
/// Names of files that are set aside to become segments.
pub const SPARE_SUFFIX: &str = "spare";
/// What becomes of a segment in which something could not be read, instead of its removal.
pub const DAMAGED_SUFFIX: &str = "damaged";

/// The name of a segment.
pub fn segment_name(number: u64) -> String {
    format!("{number:08}.{SEGMENT_SUFFIX}")
}

/// The number of the segment of that name.
pub fn segment_number(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(SEGMENT_SUFFIX)?.strip_suffix('.')?;
    let number = digits.parse().ok()?;
    (segment_name(number) == name).then_some(number)
}

/// Room that is set aside and has no number yet.
#[derive(Debug)]
pub struct Spare {
    /// Its file.
    pub file: File,
    /// Where it is.
    pub path: PathBuf,
    /// How large it is, bytes.
    pub bytes: u64,
}

/// The segment that is written.
#[derive(Debug)]
struct Current {
    file: Arc<File>,
    number: u64,
    bytes: u64,
    offset: u64,
}

/// A segment before the current one.
#[derive(Clone, Copy, Debug)]
pub struct Old {
    /// Its number.
    pub number: u64,
    /// How large it is, bytes.
    pub bytes: u64,
    /// Whether something in it could not be read.
    pub damaged: bool,
}

/// The segments of a journal that is open.
#[derive(Debug)]
pub struct Log {
    disk: Arc<dyn Disk>,
    directory: PathBuf,
    segment_bytes: u64,
    journal: u64,
    database: u64,
    current: Option<Current>,
    next_number: u64,
    pending: Pending,
    /// Where old segments end whose end mark could not be written.
    unmarked: Vec<(Arc<File>, JournalPosition)>,
    /// Files of old segments with bytes that may not be on the device.
    unsynced: Vec<Arc<File>>,
    /// Whether the current segment has such bytes, or a name was given.
    dirty: bool,
    renamed: bool,
    /// Room set aside for what follows.
    pub spares: Vec<Spare>,
    /// The segments before the current one, oldest first.
    pub old: VecDeque<Old>,
}

/// What has to reach the device, taken from the log so that it need not be locked meanwhile.
#[derive(Debug)]
pub struct Unsynced {
    /// Bytes of these.
    pub files: Vec<Arc<File>>,
    /// And the names in the folder.
    pub directory: bool,
}

impl Log {
    /// A log that goes on after `old`.
    pub fn new(
        disk: Arc<dyn Disk>,
        options: &Options,
        journal: u64,
        next_number: u64,
        old: VecDeque<Old>,
    ) -> Log {
        Log {
            disk,
            directory: options.directory.clone(),
            segment_bytes: options.segment_bytes,
            journal,
            database: options.database,
            current: None,
            next_number,
            pending: Pending::default(),
            unmarked: Vec::new(),
            unsynced: Vec::new(),
            dirty: false,
            renamed: false,
            spares: Vec::new(),
            old,
        }
    }

    /// The number of the segment in which the next entry will be, or an earlier one.
    pub fn number(&self) -> u64 {
        match &self.current {
            Some(current) => current.number,
            None => self.next_number,
        }
    }

    /// The journal's id.
    pub fn journal(&self) -> u64 {
        self.journal
    }

    /// Puts an entry behind the others, to be written.
    pub(super) fn push(&mut self, entry: &Encoded, record: Option<u64>) {
        self.pending.push(entry, record);
    }

    /// Takes back what was put last and is not written.
    pub fn withdraw(&mut self) {
        self.pending.withdraw();
    }

    /// Takes everything that is not written, to put something before it.
    pub fn take_pending(&mut self) -> Pending {
        std::mem::take(&mut self.pending)
    }

    /// Puts it back.
    pub fn append(&mut self, later: Pending) {
        self.pending.append(later);
    }

    /// Writes what is pending. Tells of every record in it where it ends. After an error what is left
    /// is still pending, and the next try is made in another segment if there is one.
    pub fn flush(&mut self, mut placed: impl FnMut(u64, JournalPosition)) -> io::Result<()> {
        while !self.pending.is_empty() {
            if self.current.is_none() {
                self.begin_segment(self.pending.first())?;
            }
            let Some(current) = &mut self.current else {
                continue;
            };
            let at = JournalPosition {
                journal: self.journal,
                segment: current.number,
                offset: current.offset,
            };
            let run = self.pending.place(at, current.bytes - FRAME_BYTES);
            if run.bytes == 0 {
                self.end_segment();
                continue;
            }
            let written = self
                .disk
                .write(&current.file, self.pending.bytes(run), current.offset);
            if let Err(error) = written {
                // Other blocks may do better; but an untouched segment is kept, or a disk that
                // takes nothing would use up one after the other.
                if current.offset > HEADER_BYTES {
                    self.end_segment();
                }
                return Err(error);
            }
            current.offset += run.bytes as u64;
            self.dirty = true;
            self.pending.written(run, at, &mut placed);
        }
        Ok(())
    }

    /// Begins a segment if there is none, so that the folder says which journal it is.
    pub fn begin(&mut self) -> io::Result<()> {
        match self.current {
            Some(_) => Ok(()),
            None => self.begin_segment(0),
        }
    }

    /// The oldest segments before `number`, which are not needed any more. One always stays: the
    /// journal's id stands in it.
    pub fn forget_before(&mut self, number: u64) -> Vec<Old> {
        let count = self.old.partition_point(|old| old.number < number);
        let most = self.old.len() - usize::from(self.current.is_none() && !self.old.is_empty());
        self.old.drain(..count.min(most)).collect()
    }

    /// Gives a spare file its number. `first` is the length of the frame it is for.
    fn begin_segment(&mut self, first: u64) -> io::Result<()> {
        self.mark_ends();
        let mut spare = match self.spares.pop() {
            Some(spare) => spare,
            // Entries were larger than what was promised for them, or came faster than the thread
            // could follow.
            None => self.make_spare()?,
        };
        match self.name_spare(&mut spare, first) {
            Ok(()) => {
                self.current = Some(Current {
                    file: Arc::new(spare.file),
                    number: self.next_number,
                    bytes: spare.bytes,
                    offset: HEADER_BYTES,
                });
                self.next_number += 1;
                self.dirty = true;
                self.renamed = true;
                Ok(())
            }
            Err(error) => {
                self.spares.push(spare);
                Err(error)
            }
        }
    }

    fn make_spare(&self) -> io::Result<Spare> {
        let name = format!("next-{:08}.{SPARE_SUFFIX}", self.next_number);
        let (path, bytes) = (self.directory.join(name), self.segment_bytes);
        let file = self.disk.create(&path, bytes)?;
        Ok(Spare { file, path, bytes })
    }

    fn name_spare(&self, spare: &mut Spare, first: u64) -> io::Result<()> {
        let least = HEADER_BYTES + first + FRAME_BYTES;
        if spare.bytes < least {
            self.disk.extend(&spare.file, spare.bytes, least)?;
            spare.bytes = least;
        }
        let header = frame::header(self.journal, self.next_number, self.database);
        self.disk.write(&spare.file, &header, 0)?;
        let path = self.directory.join(segment_name(self.next_number));
        self.disk.rename(&spare.path, &path)
    }

    /// Nothing more goes into the current segment.
    pub fn end_segment(&mut self) {
        let Some(current) = self.current.take() else {
            return;
        };
        let at = JournalPosition {
            journal: self.journal,
            segment: current.number,
            offset: current.offset,
        };
        self.unmarked.push((current.file.clone(), at));
        self.mark_ends();
        self.unsynced.push(current.file);
        self.old.push_back(Old {
            number: current.number,
            bytes: current.bytes,
            damaged: false,
        });
    }

    /// Puts end marks. One that fails is tried again before the next segment begins; without it a
    /// segment is reported as damaged after a crash, which it then is.
    fn mark_ends(&mut self) {
        let disk = &self.disk;
        self.unmarked.retain(|(file, at)| {
            let mark = frame::end_mark(*at);
            disk.write(file, &mark, at.offset).is_err()
        });
    }

    /// What has to reach the device; from now on it counts as if it had.
    pub fn take_unsynced(&mut self) -> Unsynced {
        let mut files = std::mem::take(&mut self.unsynced);
        if std::mem::take(&mut self.dirty)
            && let Some(current) = &self.current
        {
            files.push(current.file.clone());
        }
        Unsynced {
            files,
            directory: std::mem::take(&mut self.renamed),
        }
    }

    /// Bytes that can still be written, when no entry is longer than `longest` (the end of a segment
    /// is lost to an entry that does not fit in it), without what waits to be written.
    pub fn free_bytes(&self, longest: u64) -> u64 {
        let current = self.current.as_ref().map_or(0, |c| {
            (c.bytes - c.offset).saturating_sub(longest + FRAME_BYTES)
        });
        let spares: u64 = self.spares.iter().map(|s| usable(s.bytes, longest)).sum();
        (current + spares).saturating_sub(self.pending.len())
    }

    /// Files and bytes on disk.
    pub fn size(&self) -> (usize, u64) {
        let current = self.current.as_ref().map(|c| c.bytes);
        let all = self
            .old
            .iter()
            .map(|old| old.bytes)
            .chain(self.spares.iter().map(|spare| spare.bytes))
            .chain(current);
        all.fold((0, 0), |(files, bytes), more| (files + 1, bytes + more))
    }
}

/// What of a new segment can be counted on, when no entry is longer than `longest`.
pub fn usable(bytes: u64, longest: u64) -> u64 {
    bytes.saturating_sub(HEADER_BYTES + FRAME_BYTES + longest)
}
