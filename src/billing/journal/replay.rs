//! What a journal says when it is read from its beginning.

use std::collections::{HashMap, HashSet, VecDeque};
use std::path::Path;

use super::entry::{Draft, Encoded, Entry, Progress, Reserved, Unfinished};
use super::frame::{FRAME_BYTES, end_mark};
use super::log::{Old, segment_name};
use super::open_requests::{Open, OpenRequests};
use super::queue::Queue;
use super::scan::{Damage, Scan, Tail};
use super::{JournalError, Recovered, disk::Disk};
use crate::domain::{JournalPosition, Money, UserId};

/// The requests of a journal. Entries may be told more than once, as copies of them are written when
/// old segments go; what comes after the end of a request is such a copy. Only `sent` after `voided` is
/// more: the first try to tell it failed, and a second did not.
#[derive(Debug, Default)]
pub struct Requests {
    open: HashMap<String, Request>,
    settled: HashSet<String>,
    voided: HashSet<String>,
    seen: u64,
}

/// A request that has not ended.
#[derive(Debug)]
pub struct Request {
    /// Requests of which less was seen before it.
    order: u64,
    segment: u64,
    state: State,
    progress: Option<Progress>,
}

#[derive(Debug)]
enum State {
    Reserved(Reserved),
    Sent(Box<Draft>),
}

impl Requests {
    /// The next entry.
    pub fn take(&mut self, entry: Entry) {
        self.take_from(entry, 0);
    }

    fn take_from(&mut self, entry: Entry, segment: u64) {
        let id = entry.request_id();
        if self.settled.contains(id) {
            return;
        }
        if self.voided.contains(id) && !matches!(entry, Entry::Sent(_) | Entry::Settled(_)) {
            return;
        }
        match entry {
            Entry::Reserved(reserved) => {
                if !self.open.contains_key(&reserved.request_id) {
                    let id = reserved.request_id.clone();
                    self.begin(id, segment, State::Reserved(reserved));
                }
            }
            Entry::Sent(draft) => {
                let id = draft.record.request_id.clone();
                self.voided.remove(&id);
                match self.open.get_mut(&id) {
                    // A new attempt: nothing of the one before was released.
                    Some(request) => {
                        request.state = State::Sent(draft);
                        request.progress = None;
                        request.segment = segment;
                    }
                    None => self.begin(id, segment, State::Sent(draft)),
                }
            }
            Entry::Progress {
                request_id,
                progress,
            } => {
                if let Some(request) = self.open.get_mut(&request_id) {
                    request.progress = Some(progress);
                }
            }
            Entry::Settled(record) => {
                self.open.remove(&record.request_id);
                self.settled.insert(record.request_id.clone());
            }
            Entry::Voided { request_id } => {
                self.open.remove(&request_id);
                self.voided.insert(request_id);
            }
        }
    }

    fn begin(&mut self, id: String, segment: u64, state: State) {
        self.seen += 1;
        let request = Request {
            order: self.seen,
            segment,
            state,
            progress: None,
        };
        self.open.insert(id, request);
    }

    /// Those that have not ended, oldest first.
    pub fn into_open(self) -> Vec<Request> {
        let mut open: Vec<Request> = self.open.into_values().collect();
        open.sort_by_key(|request| request.order);
        open
    }

    /// Whose money is held, and how much, request by request.
    pub fn held(&self) -> impl Iterator<Item = (UserId, Money)> {
        self.open.values().map(Request::held)
    }
}

impl Request {
    /// Whose money is held, and how much.
    pub fn held(&self) -> (UserId, Money) {
        match &self.state {
            State::Reserved(reserved) => (reserved.user_id, reserved.amount),
            State::Sent(draft) => (draft.record.user_id, draft.reserved),
        }
    }

    /// What the journal has of it.
    pub fn parts(&self) -> (Option<&Reserved>, Option<&Draft>, Option<&Progress>) {
        let progress = self.progress.as_ref();
        match &self.state {
            State::Reserved(reserved) => (Some(reserved), None, progress),
            State::Sent(draft) => (None, Some(draft), progress),
        }
    }
}

/// Everything that an open journal begins with.
#[derive(Debug)]
pub(super) struct Replayed {
    /// The id, where there is a journal.
    pub journal: Option<u64>,
    /// What segments there are.
    pub old: VecDeque<Old>,
    /// What is to be applied.
    pub queue: Queue,
    /// Requests that were sent and are not settled.
    pub open: OpenRequests,
    /// Requests that were never sent.
    pub never_sent: Vec<String>,
    /// For the caller.
    pub recovered: Recovered,
}

/// Reads the journal of a folder and puts the end mark where the last program could not.
pub(super) fn replay(
    directory: &Path,
    disk: &dyn Disk,
    applied: Option<JournalPosition>,
) -> Result<Replayed, JournalError> {
    let failed = |source| JournalError::Io {
        what: "cannot be read",
        path: directory.to_owned(),
        source,
    };
    let mut scan = Scan::new(directory).map_err(failed)?;
    let journal = scan.journal();
    let applied = applied.filter(|applied| Some(applied.journal) == journal);
    let mut requests = Requests::default();
    let mut queued = HashSet::new();
    let mut queue = Queue::default();
    let mut recovered = Recovered::default();
    let mut damaged = HashSet::new();
    for scanned in scan.by_ref() {
        let at = scanned.at;
        match scanned.entry {
            Ok(entry) => {
                if let Entry::Settled(record) = &entry
                    && applied.is_none_or(|applied| at >= applied)
                    && queued.insert(record.request_id.clone())
                {
                    let end = JournalPosition {
                        offset: scanned.end,
                        ..at
                    };
                    queue.push(record.clone(), Some(end));
                    recovered.settled.push(record.clone());
                }
                requests.take_from(entry, at.segment);
            }
            Err(Damage::Io(source)) => return Err(failed(source)),
            Err(Damage::Version(version)) => {
                return Err(JournalError::Version {
                    path: directory.join(segment_name(at.segment)),
                    version,
                });
            }
            Err(damage) => {
                damaged.insert(at.segment);
                recovered.damage.push(format!("{at}: {damage}"));
            }
        }
    }
    match (scan.tail(), applied) {
        // Synced to the database, and not here: what was written behind it may be lost with it. The
        // end is not marked, so that the segment keeps counting as damaged.
        (Some(tail), Some(applied)) if applied > tail.at => {
            damaged.insert(applied.segment);
            recovered.damage.push(format!(
                "{}: the journal ends here with {} bytes that cannot be read, although the database has \
                 what was written up to {applied}: what was written after that may be lost",
                tail.at, tail.torn_bytes
            ));
            if applied.segment != tail.at.segment {
                mark_end(directory, disk, tail);
            }
        }
        (Some(tail), _) => {
            recovered.torn_bytes = tail.torn_bytes;
            recovered.torn_at = (tail.torn_bytes > 0).then_some(tail.at);
            mark_end(directory, disk, tail);
        }
        (None, _) => {}
    }
    let (open, never_sent) = unfinished(requests, &mut recovered);
    Ok(Replayed {
        journal,
        old: old_segments(directory, &damaged).map_err(failed)?,
        queue,
        open,
        never_sent,
        recovered,
    })
}

fn unfinished(requests: Requests, recovered: &mut Recovered) -> (OpenRequests, Vec<String>) {
    let mut open = OpenRequests::default();
    let mut never_sent = Vec::new();
    for request in requests.into_open() {
        match request.state {
            State::Reserved(reserved) => {
                recovered.voided += 1;
                never_sent.push(reserved.request_id);
            }
            State::Sent(draft) => {
                open.insert(
                    draft.record.request_id.clone(),
                    Open {
                        entry: Encoded::sent(&draft).trimmed(),
                        sent: true,
                        progress: request.progress,
                        amount: draft.reserved,
                        segment: request.segment,
                    },
                );
                recovered.unfinished.push(Unfinished {
                    draft: *draft,
                    progress: request.progress,
                });
            }
        }
    }
    (open, never_sent)
}

/// Says where a segment that was being written at a crash ends, so that a later start does not take
/// its torn rest for damage. If that fails it will be: nothing is lost by it.
fn mark_end(directory: &Path, disk: &dyn Disk, tail: Tail) {
    if tail.marked {
        return;
    }
    let path = directory.join(segment_name(tail.at.segment));
    let marked = std::fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .and_then(|file| {
            disk.write(&file, &end_mark(tail.at), tail.at.offset)?;
            disk.sync(&file)
        });
    if let Err(error) = marked {
        log::warn!(
            "the end of the journal's segment {} ({FRAME_BYTES} bytes) cannot be marked: {error}",
            path.display()
        );
    }
}

fn old_segments(directory: &Path, damaged: &HashSet<u64>) -> std::io::Result<VecDeque<Old>> {
    let mut old = VecDeque::new();
    for number in super::scan::list(directory, 0)? {
        old.push_back(Old {
            number,
            bytes: std::fs::metadata(directory.join(segment_name(number)))?.len(),
            damaged: damaged.contains(&number),
        });
    }
    Ok(old)
}
