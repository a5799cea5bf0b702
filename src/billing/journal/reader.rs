//! Reading one segment, frame by frame, and what to do where no frame stands.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::codec::DecodeError;
use super::entry::Entry;
use super::frame::{END, FRAME_BYTES, Lead};
use crate::domain::JournalPosition;

/// Read at once from a segment.
const READ_BYTES: usize = 256 << 10;
/// Behind something that cannot be read, frames up to this length are looked for: far more than any
/// entry has, and so short that bytes which only look like a length do not make much work.
const SOUGHT_BYTES: u64 = 1 << 20;
/// Bytes of a segment whose checksums are tried, one place after the other, before the search for
/// frames is given up: less than a second.
const SEARCH_BYTES: u64 = 1 << 30;

/// Reads one segment.
#[derive(Debug)]
pub struct Reader {
    file: BufReader<File>,
    /// Where the first frame is.
    begin: u64,
    /// Behind what was read.
    at: JournalPosition,
    /// Length of the file.
    bytes: u64,
    /// Behind the last byte that was not zero, when that was looked at last.
    used: u64,
    /// What is left of [`SEARCH_BYTES`].
    search: u64,
    done: bool,
}

/// What stands next in a segment.
#[derive(Debug)]
pub enum Step {
    /// An entry, perhaps one that is not understood.
    Entry {
        /// Where it begins.
        at: JournalPosition,
        /// Where it ends, bytes from the beginning of the segment.
        end: u64,
        /// What it is.
        entry: Result<Entry, DecodeError>,
    },
    /// Something that is no frame, although frames follow. Reading goes on behind it.
    Gap {
        /// Where it begins.
        at: JournalPosition,
        /// How long it is.
        bytes: u64,
    },
    /// The end mark. Nothing comes after it.
    Marked,
    /// No frame follows; so many bytes that are not all zero do.
    Open {
        /// Up to the last that is not zero.
        torn_bytes: u64,
    },
}

impl Reader {
    /// Of the segment in this file, from `at` on.
    pub fn open(path: &Path, at: JournalPosition) -> io::Result<Reader> {
        let mut file = File::open(path)?;
        let bytes = file.metadata()?.len();
        file.seek(SeekFrom::Start(at.offset))?;
        Ok(Reader {
            file: BufReader::with_capacity(READ_BYTES, file),
            begin: at.offset,
            at,
            bytes,
            used: 0,
            search: SEARCH_BYTES,
            done: false,
        })
    }

    /// Where reading began, bytes from the beginning of the segment.
    pub fn begin(&self) -> u64 {
        self.begin
    }

    /// Behind what was read.
    pub fn at(&self) -> JournalPosition {
        self.at
    }

    /// Length of the file.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether [`Step::Marked`] or [`Step::Open`] was given.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// What stands next.
    pub fn next(&mut self) -> Step {
        match self.frame() {
            Some((kind, payload)) => self.step(kind, &payload),
            None => self.go_on(),
        }
    }

    fn step(&mut self, kind: u8, payload: &[u8]) -> Step {
        if kind == END && payload.is_empty() {
            self.done = true;
            return Step::Marked;
        }
        let at = self.at;
        self.at.offset += FRAME_BYTES + payload.len() as u64;
        Step::Entry {
            at,
            end: self.at.offset,
            entry: Entry::decode(kind, payload),
        }
    }

    /// The frame that stands here, if one does.
    fn frame(&mut self) -> Option<(u8, Vec<u8>)> {
        let rest = self.bytes.checked_sub(self.at.offset)?;
        if rest < FRAME_BYTES {
            return None;
        }
        let mut lead = [0; FRAME_BYTES as usize];
        self.file.read_exact(&mut lead).ok()?;
        let lead = Lead::of(lead);
        let payload_bytes = lead
            .payload_bytes()
            .filter(|it| *it <= rest - FRAME_BYTES)?;
        let mut payload = vec![0; usize::try_from(payload_bytes).ok()?];
        self.file.read_exact(&mut payload).ok()?;
        lead.is_of(&payload, self.at)
            .then_some((lead.kind, payload))
    }

    /// No frame stands here. Either this is the end, perhaps with an entry that was being written at a
    /// crash, or something is damaged: then frames follow. What only looks like one is none, as every
    /// checksum is of its place, too.
    fn go_on(&mut self) -> Step {
        if self.used <= self.at.offset {
            self.used = self.used_bytes();
        }
        let from = self.at;
        let torn_bytes = self.used.saturating_sub(from.offset);
        let next = match self.search(torn_bytes) {
            Search::Found(offset) => offset,
            Search::Nothing => {
                self.done = true;
                return Step::Open { torn_bytes };
            }
            // Nobody knows what is in there: it is kept.
            Search::GivenUp => self.used,
        };
        // A server that is running may have been faster than the buffer. What stands before a frame was
        // written before it, so by now it is there, unless it is damaged.
        let next = match self.stands_at(from.offset) {
            true => from.offset,
            false => next,
        };
        if self.file.seek(SeekFrom::Start(next)).is_err() {
            self.done = true;
            return Step::Open { torn_bytes };
        }
        self.at.offset = next;
        match next - from.offset {
            0 => match self.frame() {
                Some((kind, payload)) => self.step(kind, &payload),
                None => {
                    self.done = true;
                    Step::Open { torn_bytes }
                }
            },
            bytes => Step::Gap { at: from, bytes },
        }
    }

    /// The next frame in the `bytes` from here on.
    fn search(&mut self, bytes: u64) -> Search {
        let end = self.at.offset + bytes;
        let mut piece = vec![0; READ_BYTES];
        let mut from = self.at.offset;
        while from < end {
            let Ok(read) = read_at_most(self.file.get_ref(), &mut piece, from) else {
                return Search::GivenUp;
            };
            let leads = piece[..read].windows(FRAME_BYTES as usize);
            let mut looked_at = 0;
            for (offset, lead) in (from..end).zip(leads) {
                looked_at += 1;
                let Ok(lead) = lead.try_into() else { continue };
                let lead = Lead::of(lead);
                let sought = Entry::is_kind(lead.kind) || lead.kind == END;
                let Some(payload_bytes) = lead.payload_bytes().filter(|_| sought) else {
                    continue;
                };
                let rest = self.bytes.saturating_sub(offset + FRAME_BYTES);
                if payload_bytes > SOUGHT_BYTES.min(rest) {
                    continue;
                }
                let Some(left) = self.search.checked_sub(payload_bytes) else {
                    return Search::GivenUp;
                };
                self.search = left;
                if self.stands_at(offset) {
                    return Search::Found(offset);
                }
            }
            if looked_at == 0 {
                break;
            }
            from += looked_at;
        }
        Search::Nothing
    }

    /// Whether a frame stands at this place, past the buffer.
    pub fn stands_at(&self, offset: u64) -> bool {
        let at = JournalPosition { offset, ..self.at };
        let file = self.file.get_ref();
        let mut lead = [0; FRAME_BYTES as usize];
        if file.read_exact_at(&mut lead, offset).is_err() {
            return false;
        }
        let lead = Lead::of(lead);
        let rest = self.bytes.saturating_sub(offset + FRAME_BYTES);
        let payload_bytes = lead.payload_bytes().filter(|bytes| *bytes <= rest);
        let Some(Ok(payload_bytes)) = payload_bytes.map(usize::try_from) else {
            return false;
        };
        let mut payload = vec![0; payload_bytes];
        let read = file.read_exact_at(&mut payload, offset + FRAME_BYTES);
        read.is_ok() && lead.is_of(&payload, at)
    }

    /// Behind the last byte of the file that is not zero, if there is one from here on.
    fn used_bytes(&self) -> u64 {
        let mut used = 0;
        let mut piece = vec![0; READ_BYTES];
        let mut from = self.at.offset;
        loop {
            match read_at_most(self.file.get_ref(), &mut piece, from) {
                Ok(0) | Err(_) => return used,
                Ok(read) => {
                    if let Some(last) = piece[..read].iter().rposition(|byte| *byte != 0) {
                        used = from + last as u64 + 1;
                    }
                    from += read as u64;
                }
            }
        }
    }
}

enum Search {
    Found(u64),
    Nothing,
    /// There may be one.
    GivenUp,
}

/// Fills `piece` from there as far as the file goes.
fn read_at_most(file: &File, piece: &mut [u8], from: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < piece.len() {
        match file.read_at(&mut piece[filled..], from + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search_that_takes_too_long_is_given_up_and_nothing_counts_as_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("segment");
        // It looks like an entry of 1000 bytes, everywhere.
        let mut bytes = [232, 3, 0, 0, 1, 1, 1, 1, 1].repeat(1000);
        bytes.extend([0; 5000]);
        std::fs::write(&path, bytes).unwrap();
        let at = JournalPosition {
            journal: 1,
            segment: 2,
            offset: 90,
        };
        let step = |search: u64| {
            let mut reader = Reader::open(&path, at).unwrap();
            reader.search = search;
            (reader.next(), reader.next())
        };
        let (first, second) = step(100_000);
        assert!(
            matches!(first, Step::Gap { bytes: 8910, .. }),
            "{first:?} {second:?}"
        );
        assert!(matches!(second, Step::Open { torn_bytes: 0 }), "{second:?}");
        let (first, _) = step(SEARCH_BYTES);
        assert!(
            matches!(first, Step::Open { torn_bytes: 8910 }),
            "{first:?}"
        );
    }
}
