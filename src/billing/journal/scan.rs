//! Reading a journal from its folder, also while a server writes it.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::codec::DecodeError;
use super::entry::Entry;
use super::frame::{FORMAT_VERSION, HEADER_BYTES, HEADER_BYTES_BEFORE, Header, read_header};
use super::log::{segment_name, segment_number};
use super::reader::{Reader, Step};
use crate::domain::{JournalPosition, Money, UserId};

/// Something in a journal that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    /// Something that can be read stands behind something that cannot.
    #[error("{0} bytes cannot be read; what follows them can")]
    Gap(u64),
    /// A segment that others follow ends in the middle of something.
    #[error("the rest of the segment, {0} bytes, cannot be read")]
    Torn(u64),
    /// The header is not one. The entries are read all the same where they can be.
    #[error("the header of the segment cannot be read")]
    Header,
    /// A segment of another journal lies among these.
    #[error("the segment belongs to the journal {0:016x}")]
    Foreign(u64),
    /// Of a program of another version. Never skipped in silence.
    #[error("the segment has the format {0}, this version reads up to {FORMAT_VERSION}")]
    Version(u32),
    /// An entry that is whole, but not understood.
    #[error("an entry cannot be read: {0}")]
    Entry(#[from] DecodeError),
    /// The file system fails.
    #[error("the segment cannot be read: {0}")]
    Io(#[from] io::Error),
}

/// One thing found.
#[derive(Debug)]
pub struct Scanned {
    /// Where it begins.
    pub at: JournalPosition,
    /// Where it ends, bytes from the beginning of the segment.
    pub end: u64,
    /// What it is.
    pub entry: Result<Entry, Damage>,
}

/// Where reading has come to at the end of all segments.
#[derive(Clone, Copy, Debug)]
pub struct Tail {
    /// Behind the last entry.
    pub at: JournalPosition,
    /// Bytes behind it that are no entry: one that was being written at a crash.
    pub torn_bytes: u64,
    /// Whether the segment has its end mark.
    pub marked: bool,
}

/// All entries of a journal, in the order in which they were written. Segments that go away meanwhile
/// are passed over: what mattered in them stands in later ones. Those that come meanwhile are read.
#[derive(Debug)]
pub struct Scan {
    directory: PathBuf,
    journal: Option<u64>,
    database: Option<u64>,
    segments: VecDeque<u64>,
    last_listed: u64,
    reader: Option<Reader>,
    /// The end of a segment without its mark, as long as nothing is known to follow.
    unmarked: Option<(u64, u64)>,
    tail: Option<Tail>,
    ready: VecDeque<Scanned>,
    opened: usize,
    blank: Vec<Blank>,
}

/// A segment without a header and without anything else. A power cut can leave one, as the last; so
/// can somebody who empties a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Blank {
    /// Which.
    pub segment: u64,
    /// Its length, all of it zeros.
    pub bytes: u64,
}

impl Scan {
    /// Of this folder. One that is not there is an empty journal.
    pub fn new(directory: &Path) -> io::Result<Scan> {
        let segments = list(directory, 0)?;
        // The newest that can be read says which journal it is, and of which database.
        let ids = |number: &u64| match header_of(&directory.join(segment_name(*number))) {
            Ok(Header::Good {
                journal, database, ..
            }) => Some((journal, database)),
            _ => None,
        };
        let newest = segments.iter().rev().find_map(ids);
        Ok(Scan {
            directory: directory.to_owned(),
            journal: newest.map(|(journal, _)| journal),
            database: newest.map(|(_, id)| id).filter(|id| *id != 0),
            last_listed: segments.back().copied().unwrap_or(0),
            segments,
            reader: None,
            unmarked: None,
            tail: None,
            ready: VecDeque::new(),
            opened: 0,
            blank: Vec::new(),
        })
    }

    /// The journal's id, where a segment says it.
    pub fn journal(&self) -> Option<u64> {
        self.journal
    }

    /// The database that it goes to, where a segment says it.
    pub fn database(&self) -> Option<u64> {
        self.database
    }

    /// Segments that were read, or could not be.
    pub fn segments(&self) -> usize {
        self.opened
    }

    /// Segments so far that have nothing, not even a header.
    pub fn blank(&self) -> &[Blank] {
        &self.blank
    }

    /// After the last item: the end of the last segment that has anything.
    pub fn tail(&self) -> Option<Tail> {
        self.tail
    }

    fn damage(&mut self, segment: u64, offset: u64, damage: Damage) {
        let journal = self.journal.unwrap_or(0);
        self.ready.push_back(Scanned {
            at: JournalPosition {
                journal,
                segment,
                offset,
            },
            end: offset,
            entry: Err(damage),
        });
    }

    /// Goes on with the next segment; false when there is none.
    fn open_next(&mut self) -> io::Result<bool> {
        if self.segments.is_empty() {
            self.segments = list(&self.directory, self.last_listed)?;
            self.last_listed = self.segments.back().copied().unwrap_or(self.last_listed);
        }
        let Some(number) = self.segments.pop_front() else {
            return Ok(false);
        };
        let path = self.directory.join(segment_name(number));
        let header = match header_of(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
            header => header,
        };
        self.opened += 1;
        match header {
            Err(error) => {
                self.damage(number, 0, error.into());
                return Ok(true);
            }
            Ok(Header::Version(version)) => {
                self.damage(number, 0, Damage::Version(version));
                return Ok(true);
            }
            Ok(Header::Good { journal, .. }) if Some(journal) != self.journal => {
                self.journal.get_or_insert(journal);
                if self.journal != Some(journal) {
                    self.damage(number, 0, Damage::Foreign(journal));
                    return Ok(true);
                }
            }
            Ok(Header::Good { segment, .. }) if segment != number => {
                self.damage(number, 0, Damage::Header);
            }
            Ok(Header::Good { .. }) => {}
            // A header that never reached the device is none, as long as nothing follows it.
            Ok(Header::Bad) => {}
        }
        let bad = matches!(header, Ok(Header::Bad));
        let begin = match header {
            Ok(Header::Good { bytes, .. }) => bytes,
            _ => HEADER_BYTES,
        };
        let mut at = JournalPosition {
            // Without any header nothing can be read; whether there is anything is seen.
            journal: self.journal.unwrap_or(0),
            segment: number,
            offset: begin,
        };
        let opened = Reader::open(&path, at).and_then(|reader| {
            // A header that cannot be read may be one of the version before.
            at.offset = HEADER_BYTES_BEFORE;
            match bad && reader.stands_at(HEADER_BYTES_BEFORE) {
                true => Reader::open(&path, at),
                false => Ok(reader),
            }
        });
        let mut reader = match opened {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
            Err(error) => {
                self.damage(number, 0, error.into());
                return Ok(true);
            }
            Ok(reader) => reader,
        };
        let first = reader.next();
        let used = match first {
            Step::Entry { .. } | Step::Gap { .. } | Step::Marked => true,
            Step::Open { torn_bytes } => torn_bytes > 0,
        };
        if used {
            self.settle_unmarked();
        }
        match (bad, used) {
            (true, true) => self.damage(number, 0, Damage::Header),
            (true, false) => self.blank.push(Blank {
                segment: number,
                bytes: reader.bytes(),
            }),
            (false, _) => {}
        }
        if self.journal.is_none() {
            return Ok(true);
        }
        self.take(&reader, first);
        self.reader = Some(reader);
        Ok(true)
    }

    /// Something follows the segment that ended without its mark. A writer puts the mark before it
    /// goes on: if it is still not there, something is lost.
    fn settle_unmarked(&mut self) {
        let Some((segment, offset)) = self.unmarked.take() else {
            return;
        };
        let Some(journal) = self.journal else { return };
        let at = JournalPosition {
            journal,
            segment,
            offset,
        };
        let path = self.directory.join(segment_name(segment));
        let Ok(mut reader) = Reader::open(&path, at) else {
            return;
        };
        loop {
            match reader.next() {
                Step::Marked => return,
                Step::Open { torn_bytes } => {
                    let offset = reader.at().offset;
                    self.damage(segment, offset, Damage::Torn(torn_bytes));
                    return;
                }
                step => self.found(step),
            }
        }
    }

    fn found(&mut self, step: Step) {
        match step {
            Step::Entry { at, end, entry } => {
                let entry = entry.map_err(Damage::from);
                self.ready.push_back(Scanned { at, end, entry });
            }
            Step::Gap { at, bytes } => self.damage(at.segment, at.offset, Damage::Gap(bytes)),
            Step::Marked | Step::Open { .. } => {}
        }
    }

    fn take(&mut self, reader: &Reader, step: Step) {
        let at = reader.at();
        match step {
            Step::Marked => {
                self.unmarked = None;
                self.tail = Some(Tail {
                    at,
                    torn_bytes: 0,
                    marked: true,
                });
            }
            Step::Open { torn_bytes } => {
                // An empty segment behind the last one says nothing about the end.
                let empty = at.offset == reader.begin() && torn_bytes == 0;
                if !empty {
                    self.unmarked = Some((at.segment, at.offset));
                }
                if !empty || self.tail.is_none() {
                    self.tail = Some(Tail {
                        at,
                        torn_bytes,
                        marked: false,
                    });
                }
            }
            step => self.found(step),
        }
    }
}

impl Iterator for Scan {
    type Item = Scanned;

    fn next(&mut self) -> Option<Scanned> {
        loop {
            if let Some(ready) = self.ready.pop_front() {
                return Some(ready);
            }
            match self.reader.take() {
                Some(mut reader) if !reader.is_done() => {
                    let step = reader.next();
                    self.take(&reader, step);
                    self.reader = Some(reader);
                }
                _ => match self.open_next() {
                    Ok(true) => {}
                    Ok(false) => return None,
                    Err(error) => {
                        let last = self.last_listed;
                        self.segments.clear();
                        self.last_listed = u64::MAX;
                        self.damage(last, 0, error.into());
                    }
                },
            }
        }
    }
}

/// The segments after `after`, oldest first.
pub fn list(directory: &Path, after: u64) -> io::Result<VecDeque<u64>> {
    let mut numbers = Vec::new();
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(VecDeque::new()),
        entries => entries?,
    };
    for entry in entries {
        let name = entry?.file_name();
        numbers.extend(name.to_str().and_then(segment_number));
    }
    numbers.retain(|number| *number > after);
    numbers.sort_unstable();
    Ok(numbers.into())
}

/// What the header of a segment says.
pub fn header_of(path: &Path) -> io::Result<Header> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES as usize);
    File::open(path)?
        .take(HEADER_BYTES)
        .read_to_end(&mut bytes)?;
    Ok(read_header(&bytes))
}

/// What the requests of each user hold whose end is not in the journal of this folder.
pub fn open_reservations(directory: &Path) -> io::Result<HashMap<UserId, Money>> {
    let mut open = super::replay::Requests::default();
    for scanned in Scan::new(directory)? {
        match scanned.entry {
            Ok(entry) => open.take(entry),
            Err(Damage::Io(error)) => return Err(error),
            Err(_) => {}
        }
    }
    let mut sums: HashMap<UserId, Money> = HashMap::new();
    for (user, amount) in open.held() {
        *sums.entry(user).or_default() += amount;
    }
    Ok(sums)
}
