//! Records on their way from the journal to the database, in the order in which they were settled.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use crate::domain::{JournalPosition, UsageRecord};

/// What the database gets next.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Batch {
    /// The oldest records that are not applied.
    pub records: Vec<Arc<UsageRecord>>,
    /// When they are applied, everything before this place is. `None`: the watermark stays where it
    /// is, because none of them has its place in the journal yet.
    pub upto: Option<JournalPosition>,
}

/// The queue. Records are written in its order: those with a place come before those without.
#[derive(Debug, Default)]
pub struct Queue {
    /// Their numbers ascend; some may be missing.
    records: VecDeque<Queued>,
    /// Number of the next record.
    next: u64,
    /// Set while records are written a second time, some with an old place and some with a new one.
    held: bool,
}

#[derive(Debug)]
struct Queued {
    number: u64,
    record: Arc<UsageRecord>,
    /// Where its entry ends; `None` until it is written.
    end: Option<JournalPosition>,
}

impl Queue {
    /// Takes a record; its number.
    pub fn push(&mut self, record: Arc<UsageRecord>, end: Option<JournalPosition>) -> u64 {
        let number = self.next;
        self.next += 1;
        self.records.push_back(Queued {
            number,
            record,
            end,
        });
        number
    }

    /// The record of that number stands in the journal now, if it still waits here.
    pub fn placed(&mut self, number: u64, end: JournalPosition) {
        let found = self
            .records
            .binary_search_by_key(&number, |queued| queued.number);
        if let Ok(index) = found {
            self.records[index].end = Some(end);
        }
    }

    /// Records not applied.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// The oldest records. They stay here until [`Queue::applied`].
    pub fn batch(&self, most: usize) -> Batch {
        let records = self.records.iter().take(most);
        let written = records.clone().map_while(|queued| queued.end).last();
        Batch {
            records: records.map(|queued| queued.record.clone()).collect(),
            upto: written.filter(|_| !self.held),
        }
    }

    /// The oldest `count` records are applied.
    pub fn applied(&mut self, count: usize) {
        let count = count.min(self.records.len());
        self.records.drain(..count);
    }

    /// Records of these requests are applied already.
    pub fn forget(&mut self, known: &HashSet<String>) {
        self.records
            .retain(|queued| !known.contains(&queued.record.request_id));
    }

    /// The first segment that has a record which is not applied; `None` when no segment has.
    pub fn first_segment(&self) -> Option<u64> {
        let end = self.records.front()?.end?;
        Some(end.segment)
    }

    /// Records that are written and have to be written again, with their numbers. From now on no
    /// watermark is given: the old place of a record may come before the new one of another.
    pub fn hold(&mut self) -> impl Iterator<Item = (u64, &Arc<UsageRecord>)> {
        self.held = true;
        self.records.iter_mut().filter_map(|queued| {
            queued.end.take()?;
            Some((queued.number, &queued.record))
        })
    }

    /// Every record that was written again has its new place.
    pub fn release(&mut self) {
        self.held = false;
    }
}
