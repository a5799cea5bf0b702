//! What is behind the journal's one lock, and the few counters that are read without it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};
use tokio::sync::Notify;

use super::disk::Disk;
use super::entry::Encoded;
use super::log::Log;
use super::open_requests::OpenRequests;
use super::queue::Queue;
use super::{JournalFull, Options};

/// Sizes that tests make smaller.
#[derive(Clone, Copy, Debug)]
pub struct Tuning {
    /// Room set aside for the entries of one request. `sent` with the usual names has half a KiB,
    /// `settled` as much and a little for every attempt on its trail: enough for five attempts. Larger
    /// entries take from what is set aside beyond that ([`Tuning::headroom_bytes`]).
    pub room_bytes: u64,
    /// Room kept ready beyond what is promised to running requests. When there is less, the journal's
    /// thread makes more.
    pub headroom_bytes: u64,
}

impl Tuning {
    /// As in earnest.
    pub const USUAL: Tuning = Tuning {
        room_bytes: 4 << 10,
        headroom_bytes: 256 << 10,
    };
}

/// The journal, as its callers and its thread share it.
#[derive(Debug)]
pub struct Shared {
    pub(super) options: Options,
    pub(super) tuning: Tuning,
    pub(super) disk: Arc<dyn Disk>,
    pub(super) core: Mutex<Core>,
    /// Wakes the journal's thread.
    pub(super) wake: Condvar,
    /// Held while a file is made, so that it is made once.
    pub(super) making: Mutex<()>,
    /// Wakes the writer to the database.
    pub(super) filled: Notify,
    /// Bytes that can be written, and of those the ones promised to running requests.
    free: AtomicU64,
    promised: AtomicU64,
    /// Whether no new request may begin.
    refusing: AtomicBool,
    /// Whether the thread was asked for room already.
    pub(super) asked: AtomicBool,
    /// Whether the thread has ended by a fault.
    dead: AtomicBool,
    unapplied: AtomicUsize,
}

/// What is behind the lock.
#[derive(Debug)]
pub struct Core {
    pub log: Log,
    pub queue: Queue,
    pub open: OpenRequests,
    /// Since when something is not on the device.
    pub dirty_since: Option<Instant>,
    /// Whether the thread has something to do before that.
    pub work: bool,
    pub closing: bool,
    /// Entries cannot be written and wait in memory.
    pub write_failing: bool,
    /// What was written could not be brought to the device.
    pub sync_failing: bool,
    /// No room can be set aside.
    pub room_failing: bool,
    /// The first segment of those into which everything was written again after a failed sync.
    pub rewritten_from: Option<u64>,
    /// Requests that ended while syncs failed. Their end is written again with everything else, or
    /// an older segment would still have them open.
    pub ended: Vec<String>,
    pub spares_made: u64,
    pub write_errors: u64,
    pub sync_errors: u64,
    pub syncs: u64,
}

impl Core {
    pub fn new(log: Log, queue: Queue, open: OpenRequests) -> Core {
        Core {
            log,
            queue,
            open,
            dirty_since: None,
            work: false,
            closing: false,
            write_failing: false,
            sync_failing: false,
            room_failing: false,
            rewritten_from: None,
            ended: Vec::new(),
            spares_made: 0,
            write_errors: 0,
            sync_errors: 0,
            syncs: 0,
        }
    }

    /// Writes what is pending. What cannot be written stays, in order.
    pub fn flush(&mut self) -> io::Result<()> {
        let queue = &mut self.queue;
        let flushed = self.log.flush(|number, end| queue.placed(number, end));
        match &flushed {
            Ok(()) => {
                self.queue.release();
                if self.write_failing {
                    log::info!("the journal is written again; what waited in memory is in it");
                }
                self.write_failing = false;
            }
            Err(error) => {
                self.write_errors += 1;
                if !self.write_failing {
                    log::error!(
                        "the journal cannot be written: {error}. New requests are refused; what is \
                         finished is kept in memory and tried again"
                    );
                }
                self.write_failing = true;
            }
        }
        flushed
    }

    /// A request has ended; whether it was open.
    pub fn end(&mut self, request_id: &str) -> bool {
        if self.sync_failing {
            self.ended.push(request_id.to_owned());
        }
        self.open.remove(request_id)
    }

    /// Whether what is written now may not last.
    pub fn failing(&self) -> bool {
        self.write_failing || self.sync_failing
    }
}

impl Shared {
    pub fn new(options: Options, tuning: Tuning, disk: Arc<dyn Disk>, core: Core) -> Shared {
        let shared = Shared {
            options,
            tuning,
            disk,
            core: Mutex::new(core),
            wake: Condvar::new(),
            making: Mutex::default(),
            filled: Notify::new(),
            free: AtomicU64::new(0),
            promised: AtomicU64::new(0),
            refusing: AtomicBool::new(false),
            asked: AtomicBool::new(false),
            dead: AtomicBool::new(false),
            unapplied: AtomicUsize::new(0),
        };
        shared.publish(&shared.core.lock());
        shared
    }

    /// Makes what changed under the lock known outside.
    pub fn publish(&self, core: &Core) {
        let free = core.log.free_bytes(self.tuning.room_bytes);
        self.free.store(free, Ordering::Relaxed);
        self.unapplied.store(core.queue.len(), Ordering::Relaxed);
        let refusing = core.failing() || self.dead.load(Ordering::Relaxed);
        self.refusing.store(refusing, Ordering::Relaxed);
    }

    /// Something is not on the device: the thread is told once, for everything until its next sync.
    pub fn soil(&self, core: &mut Core) {
        if core.dirty_since.is_none() {
            core.dirty_since = Some(Instant::now());
            self.wake.notify_one();
        }
    }

    /// Puts an entry that need not be written at once.
    pub fn buffer(&self, core: &mut Core, entry: &Encoded) {
        core.log.push(entry, None);
        self.soil(core);
    }

    /// Has the thread look after rooms and old segments.
    pub fn call_thread(&self, core: &mut Core) {
        core.work = true;
        self.wake.notify_one();
    }

    /// The thread is gone, and with it all syncs.
    pub fn mourn(&self) {
        self.dead.store(true, Ordering::Relaxed);
        self.refusing.store(true, Ordering::Relaxed);
    }

    /// Whether the thread has ended by a fault.
    pub fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }

    /// Records that the database does not have.
    pub fn unapplied(&self) -> usize {
        self.unapplied.load(Ordering::Relaxed)
    }

    /// Bytes that are there and nobody's.
    pub fn unpromised(&self) -> u64 {
        let free = self.free.load(Ordering::Relaxed);
        free.saturating_sub(self.promised.load(Ordering::Relaxed))
    }

    /// Promises room to a request.
    pub fn promise(&self) -> Result<(), JournalFull> {
        if self.refusing.load(Ordering::Relaxed) {
            return Err(JournalFull::Failing);
        }
        let room = self.tuning.room_bytes;
        let promised = self.promised.fetch_add(room, Ordering::Relaxed) + room;
        let free = self.free.load(Ordering::Relaxed);
        if promised + self.tuning.headroom_bytes <= free {
            return Ok(());
        }
        // With the disk full the thread tries by itself, and in its own time.
        let hopeful = {
            let mut core = self.core.lock();
            if !core.room_failing && !self.asked.swap(true, Ordering::Relaxed) {
                self.call_thread(&mut core);
            }
            !core.room_failing
        };
        if promised <= free {
            return Ok(());
        }
        // More requests came at once than the thread could make room for: make it here. A file is
        // set aside in a fraction of a millisecond; to refuse the request would be worse.
        if hopeful {
            self.make_room();
        }
        if self.promised.load(Ordering::Relaxed) <= self.free.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.take_back();
        Err(JournalFull::NoRoom)
    }

    /// Takes a promise back.
    pub fn take_back(&self) {
        let room = self.tuning.room_bytes;
        self.promised.fetch_sub(room, Ordering::Relaxed);
    }
}
