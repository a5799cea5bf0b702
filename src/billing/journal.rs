//! The crash-safe journal: what was used is written here before anything else.
//!
//! A request tells the journal what is held for it ([`Journal::reserved`]), that it goes upstream
//! ([`Journal::sent`]), now and then how far its answer is ([`Journal::progress`]), and how it ended
//! ([`Journal::settled`], [`Journal::voided`]). After a crash [`Journal::open`] gives back every record
//! that the database does not have, and every request that was sent and has no end. The writer takes
//! records in batches ([`Journal::batch`]) and says when they are committed ([`Journal::applied`]); then
//! the segments they stand in go.
//!
//! **What lasts.** `sent` and `settled` have been given to the operating system when they return: a
//! crash of the program loses nothing. A thread brings them to the device, at the latest
//! `sync_interval` after the first that is not: a power cut loses at most that.
//!
//! **On the request path** there is one lock, and under it one positional write of a few hundred bytes
//! into pages whose place on the disk is set aside already: a copy into the page cache, a microsecond
//! or two. Entries are encoded before the lock is taken, and syncs happen on the thread without it.
//!
//! **When the disk is full** [`Journal::admit`] says no, early enough that every request it said yes to
//! can still write what it has to. **When the disk fails** it says no as well; what is finished waits in
//! memory, goes to the database all the same, and is written as soon as that is possible. After a sync
//! that failed everything that still matters is written anew into another segment, because nobody can
//! know what the device has.
//!
//! Files: `apart` what another database's journal left, [`entry`] what is said, [`codec`] as bytes, [`frame`] as they stand in a segment, `log` the
//! segments being written, `queue` what the database gets, `open_requests` what has to be carried
//! forward, `keeper` the thread, `reader`, `scan` and `replay` reading, `disk` the file system.

mod apart;
pub mod codec;
mod core;
mod disk;
mod entry;
mod frame;
mod keeper;
mod log;
mod open_requests;
mod queue;
mod reader;
pub mod replay;
pub mod scan;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use ring::rand::{SecureRandom, SystemRandom};

use self::core::{Core, Shared, Tuning};
use self::disk::{Disk, RealDisk};
use self::entry::Encoded;
pub use self::entry::{Draft, Entry, Progress, Reserved, Unfinished};
use self::log::Log;
use self::open_requests::Open;
pub use self::queue::Batch;
pub use self::scan::{Scan, open_reservations};
use crate::domain::{JournalPosition, Money, UsageRecord};

/// The folder of the journal, inside the data directory.
pub const DIRECTORY: &str = "journal";
/// Records that the database does not have, held at most before new requests are refused. At about
/// 1 KiB each: some 100 MiB. Only reached when the database cannot be written for a long time.
pub const UNAPPLIED_LIMIT: usize = 100_000;

/// Where a journal is and how it is kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// Its folder; made if it is not there.
    pub directory: PathBuf,
    /// Size of a segment; at least two are set aside at any time.
    pub segment_bytes: u64,
    /// Longest time until what was written is on the device.
    pub sync_interval: Duration,
    /// Id of the database that the records go to, kept in it; 0 when it is not known. What a journal has
    /// for one database is never given to another.
    pub database: u64,
}

/// Why a journal cannot be opened or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The folder or a segment.
    #[error("the journal {} {what}: {source}", path.display())]
    Io {
        /// What cannot be done.
        what: &'static str,
        /// With which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A segment of a later program. It has records, so it is not passed over.
    #[error(
        "the journal's segment {} has the format {version}, which this version does not read; start \
         the version that wrote it, let it write its records, and stop it",
        path.display()
    )]
    Version {
        /// Which.
        path: PathBuf,
        /// Its format.
        version: u32,
    },
    /// The system has no random numbers or no thread for it.
    #[error("the journal cannot be started: {0}")]
    Start(String),
    /// `sent` could not be written: the request must not go upstream.
    #[error("the journal cannot be written: {0}")]
    Write(#[source] io::Error),
    /// Likewise, for a reason that was logged before.
    #[error("the journal cannot be written at the moment")]
    Failing,
}

/// Why no new request may begin.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum JournalFull {
    /// The disk has no room, and what was set aside is promised to running requests.
    #[error("the journal has no room: the disk is full")]
    NoRoom,
    /// What is written at the moment may not last.
    #[error("the journal cannot be written")]
    Failing,
}

/// What a journal says when it is opened.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Recovered {
    /// Records that the database does not have, in order. They are in the queue already.
    pub settled: Vec<Arc<UsageRecord>>,
    /// Requests that were sent and have no end, in order. The caller settles them.
    pub unfinished: Vec<Unfinished>,
    /// Requests for which money was held and that were never sent: nothing is owed for them.
    pub voided: usize,
    /// Requests that the database had already, settled or not: see [`Journal::forget`].
    pub known: usize,
    /// What could not be read although something follows it, and what belongs to another database, for
    /// people.
    pub damage: Vec<String>,
    /// Bytes of an entry that was being written at the crash.
    pub torn_bytes: u64,
    /// Where they are, if there are any.
    pub torn_at: Option<JournalPosition>,
}

impl Recovered {
    /// The requests of which the database is to be asked whether it has them: a watermark does not pass
    /// a record that was written to it while the journal could not be, nor one that was written to the
    /// journal twice.
    pub fn request_ids(&self) -> impl Iterator<Item = &str> {
        let settled = self.settled.iter().map(|record| &record.request_id);
        let unfinished = self.unfinished.iter();
        let unfinished = unfinished.map(|unfinished| &unfinished.draft.record.request_id);
        settled.chain(unfinished).map(String::as_str)
    }
}

/// How the journal is, for metrics.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct JournalState {
    /// Bytes of its files, with those set aside.
    pub disk_bytes: u64,
    /// Files.
    pub segments: usize,
    /// Requests without an end.
    pub open_requests: usize,
    /// What they hold.
    pub reserved: Money,
    /// Records that the database does not have.
    pub unapplied: usize,
    /// Bytes that new requests can be promised.
    pub free_bytes: u64,
    /// Whether new requests are refused because what is written may not last.
    pub failing: bool,
    /// Writes, and attempts to set room aside, that failed.
    pub write_errors: u64,
    /// Syncs that failed.
    pub sync_errors: u64,
    /// Syncs.
    pub syncs: u64,
}

/// Room for the entries of one request, given back when dropped.
#[derive(Debug)]
pub struct Room(Arc<Shared>);

impl Drop for Room {
    fn drop(&mut self) {
        self.0.take_back();
    }
}

/// The journal of a data directory. One at a time: the directory is locked by whoever opens it.
#[derive(Debug)]
pub struct Journal {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Journal {
    /// Opens the journal or makes it, and reads what the database has not `applied`. No record is
    /// removed by this. A full or failing disk is no error: no request is admitted until it is better.
    pub fn open(
        options: Options,
        applied: Option<JournalPosition>,
    ) -> Result<(Arc<Journal>, Recovered), JournalError> {
        let (journal, recovered) =
            Journal::prepare(options, applied, Tuning::USUAL, Arc::new(RealDisk))?;
        let shared = journal.shared.clone();
        let thread = std::thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || keeper::run(&shared))
            .map_err(|error| JournalError::Start(error.to_string()))?;
        *journal.thread.lock() = Some(thread);
        Ok((Arc::new(journal), recovered))
    }

    /// Everything but the thread.
    fn prepare(
        mut options: Options,
        applied: Option<JournalPosition>,
        tuning: Tuning,
        disk: Arc<dyn Disk>,
    ) -> Result<(Journal, Recovered), JournalError> {
        let failed = |what, source| JournalError::Io {
            what,
            path: options.directory.clone(),
            source,
        };
        disk::make_directory(&options.directory).map_err(|e| failed("cannot be made", e))?;
        keeper::remove_spares(&options.directory).map_err(|e| failed("cannot be changed", e))?;
        let apart = apart::set_apart(&options.directory, disk.as_ref(), options.database)
            .map_err(|e| failed("cannot be changed", e))?;
        let mut replayed = replay::replay(&options.directory, disk.as_ref(), applied)?;
        replayed.recovered.damage.splice(..0, apart);
        let journal = match replayed.journal {
            Some(journal) => journal,
            None => new_id()?,
        };
        // Never a number that the database may know as applied, even if the segments are gone.
        let known = applied.filter(|applied| applied.journal == journal);
        let last = replayed.old.back().map_or(0, |old| old.number);
        let next = last.max(known.map_or(0, |applied| applied.segment)) + 1;
        // A segment takes two requests at least.
        options.segment_bytes = options
            .segment_bytes
            .max(4 * tuning.room_bytes + frame::HEADER_BYTES);
        let log = Log::new(disk.clone(), &options, journal, next, replayed.old);
        let core = Core::new(log, replayed.queue, replayed.open);
        let shared = Arc::new(Shared::new(options, tuning, disk, core));
        shared.make_room();
        {
            let mut core = shared.core.lock();
            for request_id in &replayed.never_sent {
                shared.buffer(&mut core, &Encoded::voided(request_id));
            }
            // An error is told where it is noticed; the thread tries again.
            let _ = core.log.begin();
            let _ = core.flush();
            shared.soil(&mut core);
            shared.call_thread(&mut core);
            shared.publish(&core);
        }
        let thread = Mutex::default();
        Ok((Journal { shared, thread }, replayed.recovered))
    }

    /// Takes the requests out that the database has, of those that were [recovered](Recovered::request_ids):
    /// they count as applied, or as ended. To be told before anything else, or memory would count twice
    /// what the database had counted.
    pub fn forget(&self, recovered: &mut Recovered, known: &HashSet<String>) {
        let mut guard = self.shared.core.lock();
        let core = &mut *guard;
        core.queue.forget(known);
        let before = recovered.settled.len() + recovered.unfinished.len();
        recovered
            .settled
            .retain(|record| !known.contains(&record.request_id));
        recovered.unfinished.retain(|unfinished| {
            let request_id = &unfinished.draft.record.request_id;
            let has = known.contains(request_id);
            if has && core.end(request_id) {
                self.shared.buffer(core, &Encoded::voided(request_id));
            }
            !has
        });
        recovered.known += before - recovered.settled.len() - recovered.unfinished.len();
        if !core.log.old.is_empty() {
            self.shared.call_thread(core);
        }
        self.shared.publish(core);
    }

    /// Sets room for one request's entries aside. An error is answered with 503.
    pub fn admit(&self) -> Result<Room, JournalFull> {
        self.shared.promise()?;
        Ok(Room(self.shared.clone()))
    }

    /// Money is held for a request. Written with whatever is written next.
    pub fn reserved(&self, reserved: &Reserved) {
        let entry = Encoded::reserved(reserved).trimmed();
        let request_id = reserved.request_id.clone();
        let mut core = self.shared.core.lock();
        self.shared.buffer(&mut core, &entry);
        let open = Open {
            entry,
            sent: false,
            progress: None,
            amount: reserved.amount,
            segment: core.log.number(),
        };
        core.open.insert(request_id, open);
    }

    /// A request goes upstream: told before every attempt, and written when this returns. After an
    /// error the request must not go; it may be told again later.
    pub fn sent(&self, draft: &Draft) -> Result<(), JournalError> {
        let entry = Encoded::sent(draft).trimmed();
        let request_id = draft.record.request_id.as_str();
        let mut guard = self.shared.core.lock();
        let core = &mut *guard;
        if core.write_failing {
            return Err(JournalError::Failing);
        }
        let segment = core.log.number();
        core.log.push(&entry, None);
        let written = core.flush();
        if written.is_err() {
            // What stands in the journal of this request afterwards is what is so: that it was not
            // sent, or not again. It also is what the next try has to write.
            core.log.withdraw();
            match core.open.get_mut(request_id) {
                Some(open) if open.sent => core.log.push(&open.entry, None),
                _ => {
                    core.open.remove(request_id);
                    core.log.push(&Encoded::voided(request_id), None);
                }
            }
        } else {
            let open = Open {
                entry,
                sent: true,
                progress: None,
                amount: draft.reserved,
                segment,
            };
            core.open.insert(request_id.to_owned(), open);
        }
        self.shared.soil(core);
        self.shared.publish(core);
        written.map_err(JournalError::Write)
    }

    /// How far an answer is. Written with whatever is written next; only remembered when the room is
    /// needed for more important things.
    pub fn progress(&self, request_id: &str, progress: Progress) {
        let entry = Encoded::progress(request_id, &progress);
        let mut guard = self.shared.core.lock();
        let core = &mut *guard;
        let Some(open) = core.open.get_mut(request_id) else {
            return;
        };
        open.progress = Some(progress);
        let bytes = entry.payload.len() as u64 + frame::FRAME_BYTES;
        if !core.failing() && bytes <= self.shared.unpromised() {
            self.shared.buffer(core, &entry);
        }
    }

    /// A request is over. The record is written when this returns, and in the queue for the database.
    /// If it cannot be written, it is in the queue all the same, and written as soon as possible.
    pub fn settled(&self, record: Arc<UsageRecord>) {
        let entry = Encoded::settled(&record);
        {
            let mut guard = self.shared.core.lock();
            let core = &mut *guard;
            core.end(&record.request_id);
            let number = core.queue.push(record, None);
            core.log.push(&entry, Some(number));
            // While writing fails only the thread tries, or every request would wait for the disk.
            if !core.write_failing {
                let _ = core.flush();
            }
            self.shared.soil(core);
            self.shared.publish(core);
        }
        self.shared.filled.notify_one();
    }

    /// A request is over and costs nothing. Written with whatever is written next.
    pub fn voided(&self, request_id: &str) {
        let entry = Encoded::voided(request_id);
        let mut core = self.shared.core.lock();
        if core.end(request_id) {
            self.shared.buffer(&mut core, &entry);
        }
    }

    /// Returns when there is something for the database.
    pub async fn filled(&self) {
        while self.is_empty() {
            self.shared.filled.notified().await;
        }
    }

    /// Records that the database does not have.
    pub fn len(&self) -> usize {
        self.shared.unapplied()
    }

    /// Whether the database has everything.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the database lacks so much that no new request should be taken.
    pub fn is_full(&self) -> bool {
        self.len() >= UNAPPLIED_LIMIT
    }

    /// The oldest records; they stay here until [`Journal::applied`].
    pub fn batch(&self, most: usize) -> Batch {
        self.shared.core.lock().queue.batch(most)
    }

    /// The oldest `count` records are committed, durably, together with the batch's watermark `upto`.
    pub fn applied(&self, count: usize, upto: Option<JournalPosition>) {
        let mut core = self.shared.core.lock();
        core.queue.applied(count);
        debug_assert!(upto.is_none_or(|upto| upto.journal == core.log.journal()));
        // Only then may something be let go.
        if !core.log.old.is_empty() {
            self.shared.call_thread(&mut core);
        }
        self.shared.publish(&core);
    }

    /// How the journal is.
    pub fn state(&self) -> JournalState {
        let core = self.shared.core.lock();
        let (segments, disk_bytes) = core.log.size();
        JournalState {
            disk_bytes,
            segments,
            open_requests: core.open.len(),
            reserved: core.open.amount(),
            unapplied: core.queue.len(),
            free_bytes: self.shared.unpromised(),
            failing: core.failing() || self.shared.is_dead(),
            write_errors: core.write_errors,
            sync_errors: core.sync_errors,
            syncs: core.syncs,
        }
    }

    /// Brings everything to the device and ends the thread. May be called more than once; waits for
    /// the disk. What is told to the journal afterwards is written, but brought to the device only by
    /// the operating system.
    pub fn close(&self) {
        {
            let mut core = self.shared.core.lock();
            core.closing = true;
            self.shared.wake.notify_all();
        }
        if let Some(thread) = self.thread.lock().take() {
            // If it has failed, that was told and the rest is done here.
            let _ = thread.join();
        }
        self.shared.sync();
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.close();
    }
}

fn new_id() -> Result<u64, JournalError> {
    let mut id = [0; 8];
    SystemRandom::new()
        .fill(&mut id)
        .map_err(|_| JournalError::Start("the system gives no random numbers".to_owned()))?;
    Ok(u64::from_le_bytes(id))
}
