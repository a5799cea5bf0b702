//! How entries stand in a segment: its header, and the frame around each entry.
//!
//! A frame is length (u32, of kind and payload), checksum (u32), kind (u8), payload; numbers are little
//! endian. The checksum is over kind, payload, length, and *where the entry stands* (journal, segment,
//! offset): bytes that were left in a file, or came from another, are never taken for an entry.

use std::collections::VecDeque;

use super::entry::Encoded;
use crate::domain::JournalPosition;

/// The first bytes of every segment.
const MAGIC: [u8; 8] = *b"TOLLJRNL";
/// Version of everything in this file and of the kinds of entries. Later versions keep the length of the
/// header and the places of magic, version and checksum in it.
pub const FORMAT_VERSION: u32 = 2;
/// The version before: its header does not name the database.
const VERSION_WITHOUT_DATABASE: u32 = 1;
/// Magic, version, journal, segment, database, checksum.
pub const HEADER_BYTES: u64 = 40;
/// The same without the database.
pub const HEADER_BYTES_BEFORE: u64 = 32;
/// Length and checksum.
const LEAD_BYTES: usize = 8;
/// Length, checksum and kind: the least that a frame has.
pub const FRAME_BYTES: u64 = 9;
/// Kind of the mark that ends a segment. It has no payload.
pub const END: u8 = 0xff;
/// A buffer that grew beyond this in an outage is given back afterwards.
const BUFFER_KEPT_BYTES: usize = 1 << 20;

/// The header of a segment. `database` is 0 when it is not known.
pub fn header(journal: u64, segment: u64, database: u64) -> [u8; HEADER_BYTES as usize] {
    let mut bytes = [0; HEADER_BYTES as usize];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    bytes[12..20].copy_from_slice(&journal.to_le_bytes());
    bytes[20..28].copy_from_slice(&segment.to_le_bytes());
    bytes[28..36].copy_from_slice(&database.to_le_bytes());
    let crc = crc32fast::hash(&bytes[..36]);
    bytes[36..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// What a segment's first bytes say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Header {
    /// It is the segment `segment` of the journal `journal`.
    Good {
        /// Whose.
        journal: u64,
        /// Which.
        segment: u64,
        /// The database that it goes to; 0 where that is not known.
        database: u64,
        /// Its length.
        bytes: u64,
    },
    /// Written by a program of another version.
    Version(u32),
    /// Not a header.
    Bad,
}

/// Reads a header from the first bytes of a segment, [`HEADER_BYTES`] where it has so many.
pub fn read_header(bytes: &[u8]) -> Header {
    if bytes.get(..8) != Some(&MAGIC) {
        return Header::Bad;
    }
    let Some(version) = number(bytes, 8).map(u32::from_le_bytes) else {
        return Header::Bad;
    };
    let length = match version {
        VERSION_WITHOUT_DATABASE => HEADER_BYTES_BEFORE,
        _ => HEADER_BYTES,
    };
    let sum_at = length as usize - 4;
    let checked = bytes.get(..sum_at).map(crc32fast::hash);
    if checked.is_none() || number(bytes, sum_at).map(u32::from_le_bytes) != checked {
        return Header::Bad;
    }
    let id = |at| number(bytes, at).map_or(0, u64::from_le_bytes);
    match version {
        VERSION_WITHOUT_DATABASE | FORMAT_VERSION => Header::Good {
            journal: id(12),
            segment: id(20),
            database: match version {
                FORMAT_VERSION => id(28),
                _ => 0,
            },
            bytes: length,
        },
        other => Header::Version(other),
    }
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

/// The checksum of an entry at its place; `crc` is that of kind and payload.
pub fn checksum(crc: u32, length: u32, at: JournalPosition) -> u32 {
    let mut place = [0; 28];
    place[..4].copy_from_slice(&length.to_le_bytes());
    place[4..12].copy_from_slice(&at.journal.to_le_bytes());
    place[12..20].copy_from_slice(&at.segment.to_le_bytes());
    place[20..].copy_from_slice(&at.offset.to_le_bytes());
    let mut hasher = crc32fast::Hasher::new_with_initial(crc);
    hasher.update(&place);
    hasher.finalize()
}

/// What a frame begins with. Not checked yet.
#[derive(Clone, Copy, Debug)]
pub struct Lead {
    length: u32,
    checksum: u32,
    /// Kind of the entry.
    pub kind: u8,
}

impl Lead {
    /// As it stands in a segment.
    pub fn of(bytes: [u8; FRAME_BYTES as usize]) -> Lead {
        let [a, b, c, d, e, f, g, h, kind] = bytes;
        Lead {
            length: u32::from_le_bytes([a, b, c, d]),
            checksum: u32::from_le_bytes([e, f, g, h]),
            kind,
        }
    }

    /// Length of the payload that follows; `None` where no frame is.
    pub fn payload_bytes(&self) -> Option<u64> {
        self.length.checked_sub(1).map(u64::from)
    }

    /// Whether the payload belongs to it, at this place.
    pub fn is_of(&self, payload: &[u8], at: JournalPosition) -> bool {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&[self.kind]);
        hasher.update(payload);
        checksum(hasher.finalize(), self.length, at) == self.checksum
    }
}

/// The mark that says: nothing follows in this segment.
pub fn end_mark(at: JournalPosition) -> [u8; FRAME_BYTES as usize] {
    let crc = checksum(crc32fast::hash(&[END]), 1, at).to_le_bytes();
    [1, 0, 0, 0, crc[0], crc[1], crc[2], crc[3], END]
}

/// Entries waiting to be written, in order.
#[derive(Debug, Default)]
pub struct Pending {
    bytes: Vec<u8>,
    frames: VecDeque<Frame>,
}

#[derive(Clone, Copy, Debug)]
struct Frame {
    /// With its lead.
    bytes: u32,
    /// Of kind and payload.
    crc: u32,
    /// The queued record that it is of.
    record: Option<u64>,
}

/// Frames from the front of [`Pending`] that go into one segment.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    frames: usize,
    /// Their length together.
    pub bytes: usize,
}

impl Pending {
    /// Puts an entry at the end. `record` is the number of the queued record that it is of.
    pub(super) fn push(&mut self, entry: &Encoded, record: Option<u64>) {
        let length = entry.payload.len() + 1;
        self.bytes.reserve(LEAD_BYTES + length);
        // The rest of the program bounds bodies, and with them texts, far below 4 GiB.
        self.bytes.extend_from_slice(&(length as u32).to_le_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.push(entry.kind);
        self.bytes.extend_from_slice(&entry.payload);
        self.frames.push_back(Frame {
            bytes: (LEAD_BYTES + length) as u32,
            crc: entry.crc,
            record,
        });
    }

    /// Takes the entry that was put last back, as long as it is not written.
    pub fn withdraw(&mut self) {
        if let Some(frame) = self.frames.pop_back() {
            let left = self.bytes.len() - frame.bytes as usize;
            self.bytes.truncate(left);
        }
    }

    /// Whether everything is written.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Bytes to be written.
    pub fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Length of the first frame.
    pub fn first(&self) -> u64 {
        self.frames.front().map_or(0, |f| u64::from(f.bytes))
    }

    /// The frames that fit between `at` and the offset `limit`, with their checksums for there.
    pub fn place(&mut self, at: JournalPosition, limit: u64) -> Run {
        let mut run = Run {
            frames: 0,
            bytes: 0,
        };
        for frame in &self.frames {
            let offset = at.offset + run.bytes as u64;
            if offset + u64::from(frame.bytes) > limit {
                break;
            }
            let length = frame.bytes - LEAD_BYTES as u32;
            let crc = checksum(frame.crc, length, JournalPosition { offset, ..at });
            self.bytes[run.bytes + 4..run.bytes + LEAD_BYTES].copy_from_slice(&crc.to_le_bytes());
            run.frames += 1;
            run.bytes += frame.bytes as usize;
        }
        run
    }

    /// The bytes of a run.
    pub fn bytes(&self, run: Run) -> &[u8] {
        &self.bytes[..run.bytes]
    }

    /// The run is written at `at`: forgets it, and tells of every record in it where it ends.
    pub fn written(
        &mut self,
        run: Run,
        at: JournalPosition,
        mut placed: impl FnMut(u64, JournalPosition),
    ) {
        let mut offset = at.offset;
        for frame in self.frames.drain(..run.frames) {
            offset += u64::from(frame.bytes);
            if let Some(record) = frame.record {
                placed(record, JournalPosition { offset, ..at });
            }
        }
        self.bytes.drain(..run.bytes);
        if self.bytes.is_empty() && self.bytes.capacity() > BUFFER_KEPT_BYTES {
            self.bytes = Vec::new();
            self.frames = VecDeque::new();
        }
    }

    /// Everything that was put after this one.
    pub fn append(&mut self, mut later: Pending) {
        self.bytes.append(&mut later.bytes);
        self.frames.append(&mut later.frames);
    }
}
