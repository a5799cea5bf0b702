//! What the journal's own thread does: brings writes to the device, keeps room ready, lets old
//! segments go.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use super::core::{Core, Shared};
use super::entry::Encoded;
use super::log::{DAMAGED_SUFFIX, Old, SPARE_SUFFIX, Spare, Unsynced, segment_name, usable};

/// After a failure the next try waits this long, doubling up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Open requests that are carried forward under one lock: some 100 KiB.
const CARRIED_AT_ONCE: usize = 256;
/// Segments before the current one that may stay only because open requests need them. Beyond that,
/// and beyond twice what the open requests themselves take, they are carried forward.
const OLD_SEGMENTS_KEPT: u64 = 1;

/// The thread. Returns when the journal closes.
pub fn run(shared: &Shared) {
    let _watch = Watch(shared);
    let mut pause = FIRST_PAUSE;
    loop {
        let turn = shared.wait(pause);
        shared.make_room();
        if turn.sync {
            shared.sync();
        }
        if turn.closing {
            return;
        }
        shared.let_go();
        let core = shared.core.lock();
        pause = match core.failing() || core.room_failing {
            true => (pause * 2).min(LONGEST_PAUSE),
            false => FIRST_PAUSE,
        };
    }
}

/// Notices that the thread ends without having been asked to.
struct Watch<'a>(&'a Shared);

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.mourn();
            log::error!(
                "the journal's thread has failed: nothing is flushed to disk any more and new \
                 requests are refused; restart the server"
            );
        }
    }
}

struct Turn {
    sync: bool,
    closing: bool,
}

impl Shared {
    /// Until there is something to do. When something fails, `pause` goes by first.
    fn wait(&self, pause: Duration) -> Turn {
        let retry = Instant::now() + pause;
        let mut core = self.core.lock();
        loop {
            let due = core.dirty_since.map(|at| at + self.options.sync_interval);
            let until = match (core.failing(), core.room_failing) {
                (true, _) => Some(retry),
                (false, true) => Some(due.map_or(retry, |due| due.min(retry))),
                (false, false) => due,
            };
            let now = Instant::now();
            let sync = core.closing || until.is_some_and(|until| until <= now);
            if sync || (core.work && !core.failing()) {
                core.work = false;
                let closing = core.closing;
                return Turn { sync, closing };
            }
            match until {
                Some(until) => drop(self.wake.wait_until(&mut core, until)),
                None => self.wake.wait(&mut core),
            }
        }
    }

    /// Sets room aside until there is enough; takes away what is far more than that.
    pub(super) fn make_room(&self) {
        let _making = self.making.lock();
        self.asked
            .store(false, std::sync::atomic::Ordering::Relaxed);
        loop {
            let number = {
                let mut core = self.core.lock();
                self.publish(&core);
                let enough = self.unpromised() >= self.tuning.headroom_bytes;
                if enough && !core.log.spares.is_empty() {
                    if std::mem::take(&mut core.room_failing) {
                        log::info!("there is room for the journal again");
                    }
                    let surplus = self.surplus(&mut core);
                    drop(core);
                    for spare in surplus {
                        let _ = self.disk.remove(&spare.path);
                    }
                    return;
                }
                core.spares_made += 1;
                core.spares_made
            };
            let bytes = self.options.segment_bytes;
            let path = self.options.directory.join(spare_name(number));
            let made = self.disk.create(&path, bytes);
            let mut core = self.core.lock();
            match made {
                Ok(file) => core.log.spares.push(Spare { file, path, bytes }),
                Err(error) => {
                    if !core.room_failing {
                        log::error!(
                            "no room can be set aside for the journal in {}: {error}. New requests \
                             are refused when what is left is promised to running ones",
                            self.options.directory.display()
                        );
                    }
                    core.room_failing = true;
                    core.write_errors += 1;
                    return;
                }
            }
        }
    }

    /// Takes spare files out that are far more than enough. They are removed and closed without the
    /// lock: to give 16 MiB back takes a file system some time.
    fn surplus(&self, core: &mut Core) -> Vec<Spare> {
        let one = usable(self.options.segment_bytes, self.tuning.room_bytes);
        let mut surplus = Vec::new();
        while core.log.spares.len() > 1 {
            let left = self.unpromised().saturating_sub(one);
            if left < 2 * (self.tuning.headroom_bytes + one) {
                break;
            }
            // The first is the one that would be used last.
            surplus.push(core.log.spares.remove(0));
            self.publish(core);
        }
        surplus
    }

    /// Writes what is pending and brings everything to the device.
    pub(super) fn sync(&self) {
        let unsynced = {
            let mut core = self.core.lock();
            core.dirty_since = None;
            // An error is told and counted there.
            let _ = core.flush();
            if core.sync_failing {
                // Only a sync tells that the disk is well again, so there must be something to sync.
                let _ = core.log.begin();
            }
            self.publish(&core);
            core.log.take_unsynced()
        };
        if unsynced.files.is_empty() && !unsynced.directory {
            return;
        }
        let synced = self.bring_to_device(&unsynced);
        let useless = {
            let mut core = self.core.lock();
            core.syncs += 1;
            let useless = match synced {
                Ok(()) => {
                    if std::mem::take(&mut core.sync_failing) {
                        log::info!("the journal reaches the disk again");
                    }
                    core.rewritten_from = None;
                    core.ended = Vec::new();
                    Vec::new()
                }
                Err(error) => self.write_again(&mut core, &error),
            };
            self.publish(&core);
            useless
        };
        for old in useless {
            self.remove(old);
        }
    }

    fn bring_to_device(&self, unsynced: &Unsynced) -> io::Result<()> {
        for file in &unsynced.files {
            self.disk.sync(file)?;
        }
        if unsynced.directory {
            self.disk.sync_directory(&self.options.directory)?;
        }
        Ok(())
    }

    /// After a failed sync nobody knows what is on the device, and the next sync may say that all is
    /// well although it is not. So everything that still matters is written once more, elsewhere.
    /// Returns the segments that are worth nothing after it, to be removed.
    fn write_again(&self, core: &mut Core, error: &io::Error) -> Vec<Old> {
        core.sync_errors += 1;
        if !core.sync_failing {
            log::error!(
                "the journal cannot be flushed to disk: {error}. New requests are refused; what is \
                 not in the database yet is written to another file"
            );
        }
        core.sync_failing = true;
        core.log.end_segment();
        let before = core.rewritten_from;
        let number = core.log.number();
        let later = core.log.take_pending();
        for request_id in &core.ended {
            core.log.push(&Encoded::voided(request_id), None);
        }
        for (request_id, open) in core.open.before(u64::MAX, usize::MAX) {
            let (entry, progress) = open.entries(&request_id);
            core.log.push(entry, None);
            if let Some(progress) = progress {
                core.log.push(&progress, None);
            }
            open.segment = number;
        }
        for (record, settled) in core.queue.hold() {
            core.log.push(&Encoded::settled(settled), Some(record));
        }
        core.log.append(later);
        core.rewritten_from = Some(number);
        let written = core.flush().is_ok();
        self.soil(core);
        // The last attempt at this is worth nothing now, and would fill the disk one by one.
        let useless = match before.filter(|_| written) {
            Some(before) => before..number,
            None => return Vec::new(),
        };
        let is_useless = |old: &Old| useless.contains(&old.number);
        let removed = core.log.old.iter().copied().filter(is_useless).collect();
        core.log.old.retain(|old| !is_useless(old));
        removed
    }

    /// Removes the segments that are applied. Open requests in the oldest are carried forward when
    /// there are many such segments.
    pub(super) fn let_go(&self) {
        let (needed, carry) = {
            let mut core = self.core.lock();
            // A settled entry that waits to be written needs the older entries of its request.
            let written = core.flush().is_ok();
            self.publish(&core);
            if !written || core.failing() {
                return;
            }
            let needed = core.queue.first_segment();
            let needed = needed.unwrap_or(u64::MAX).min(core.log.number());
            (needed, self.to_carry(&core, needed))
        };
        if let Some(before) = carry {
            self.carry(before);
        }
        let first = {
            let core = self.core.lock();
            let first = core.open.first_segment().unwrap_or(u64::MAX).min(needed);
            if core.log.old.front().is_none_or(|old| old.number >= first) {
                return;
            }
            first
        };
        // What stands further on instead has to be on the device before anything is removed.
        self.sync();
        let gone = {
            let mut core = self.core.lock();
            if core.failing() {
                return;
            }
            core.log.forget_before(first)
        };
        for old in &gone {
            self.remove(*old);
        }
        if !gone.is_empty()
            && let Err(error) = self.disk.sync_directory(&self.options.directory)
        {
            // They may come back after a power cut, and are let go again then.
            log::warn!("the removal of old segments of the journal may not last: {error}");
        }
    }

    /// The segment before which open requests are to be carried forward.
    fn to_carry(&self, core: &Core, needed: u64) -> Option<u64> {
        let applied = core.log.old.partition_point(|old| old.number < needed);
        let open = core.open.bytes().div_ceil(self.options.segment_bytes);
        let kept = usize::try_from(OLD_SEGMENTS_KEPT + 2 * open).unwrap_or(usize::MAX);
        let (last, rest) = (applied.checked_sub(kept + 1)?, core.open.first_segment()?);
        let last = core.log.old.get(last)?.number;
        (rest <= last).then_some(last + 1)
    }

    /// Writes what is open before `before` again, as far as there is room.
    fn carry(&self, before: u64) {
        loop {
            let mut guard = self.core.lock();
            let core = &mut *guard;
            let some = core.open.before(before, CARRIED_AT_ONCE);
            if some.is_empty() {
                return;
            }
            let bytes: u64 = some.iter().map(|(_, open)| open.bytes()).sum();
            // What is promised to running requests is not touched for this.
            if bytes > self.unpromised() {
                return;
            }
            let number = core.log.number();
            let mut carried = Vec::with_capacity(some.len());
            for (request_id, open) in some {
                let (entry, progress) = open.entries(&request_id);
                core.log.push(entry, None);
                if let Some(progress) = progress {
                    core.log.push(&progress, None);
                }
                carried.push(request_id);
            }
            let flushed = core.flush();
            self.soil(core);
            self.publish(core);
            if flushed.is_err() {
                return;
            }
            for request_id in carried {
                if let Some(open) = core.open.get_mut(&request_id) {
                    open.segment = number;
                }
            }
        }
    }

    fn remove(&self, old: Old) {
        let path = self.options.directory.join(segment_name(old.number));
        let removed = if old.damaged {
            let kept = path.with_extension(DAMAGED_SUFFIX);
            log::warn!(
                "a segment of the journal that could not be read to its end is kept as {}",
                kept.display()
            );
            self.disk.rename(&path, &kept)
        } else {
            self.disk.remove(&path)
        };
        if let Err(error) = removed {
            log::warn!(
                "the journal's old segment {} cannot be removed: {error}",
                path.display()
            );
        }
    }
}

/// Removes the room that an earlier program had set aside.
pub fn remove_spares(directory: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path
            .extension()
            .is_some_and(|suffix| suffix == SPARE_SUFFIX)
        {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}

fn spare_name(number: u64) -> String {
    format!("{number:08}.{SPARE_SUFFIX}")
}
