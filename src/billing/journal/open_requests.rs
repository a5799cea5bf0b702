//! Requests whose end is not in the journal: what was written of them, kept so that it can be written
//! again when the segment it stands in is to go.

use std::collections::HashMap;

use super::entry::{Encoded, Progress};
use super::frame::FRAME_BYTES;
use crate::domain::Money;

/// One request.
#[derive(Debug)]
pub struct Open {
    /// Its `reserved`, or its last `sent`, which says as much and more.
    pub(super) entry: Encoded,
    /// Whether it is the latter.
    pub sent: bool,
    /// What was noted of its answer.
    pub progress: Option<Progress>,
    /// What it holds.
    pub amount: Money,
    /// The first segment that may have the entry, or something written later.
    pub segment: u64,
}

/// All of them, by request id.
#[derive(Debug, Default)]
pub struct OpenRequests {
    requests: HashMap<String, Open>,
    bytes: u64,
}

impl OpenRequests {
    /// A request is open, or says more of itself. Its entry is [trimmed](Encoded::trimmed) already:
    /// this happens under the journal's lock.
    pub fn insert(&mut self, request_id: String, open: Open) {
        self.bytes += open.entry.payload.len() as u64;
        if let Some(before) = self.requests.insert(request_id, open) {
            self.bytes -= before.entry.payload.len() as u64;
        }
    }

    /// A request is over; whether it was open.
    pub fn remove(&mut self, request_id: &str) -> bool {
        let removed = self.requests.remove(request_id);
        if let Some(open) = &removed {
            self.bytes -= open.entry.payload.len() as u64;
        }
        removed.is_some()
    }

    /// One of them.
    pub fn get_mut(&mut self, request_id: &str) -> Option<&mut Open> {
        self.requests.get_mut(request_id)
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.requests.len()
    }

    /// Bytes of their entries, about.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What they hold.
    pub fn amount(&self) -> Money {
        self.requests.values().map(|open| open.amount).sum()
    }

    /// The first segment that is needed for one of them.
    pub fn first_segment(&self) -> Option<u64> {
        self.requests.values().map(|open| open.segment).min()
    }

    /// Up to `most` that need a segment before `segment`.
    pub fn before(&mut self, segment: u64, most: usize) -> Vec<(String, &mut Open)> {
        self.requests
            .iter_mut()
            .filter(|(_, open)| open.segment < segment)
            .take(most)
            .map(|(request_id, open)| (request_id.clone(), open))
            .collect()
    }
}

/// What `progress` has at most, with a request id of any sane length.
const PROGRESS_BYTES: u64 = 256;

impl Open {
    /// What [`Open::entries`] take in a segment, at most.
    pub fn bytes(&self) -> u64 {
        let entry = self.entry.payload.len() as u64 + FRAME_BYTES;
        entry + self.progress.map_or(0, |_| PROGRESS_BYTES)
    }

    /// What has to be written so that the segments before do not matter for this request.
    pub(super) fn entries(&self, request_id: &str) -> (&Encoded, Option<Encoded>) {
        let progress = self.progress.as_ref();
        let progress = progress.map(|progress| Encoded::progress(request_id, progress));
        (&self.entry, progress)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_not_moved_in_memory_when_its_request_begins() {
        let mut payload = Vec::with_capacity(500);
        payload.extend([7; 100]);
        let (kind, crc) = (1, 0);
        let entry = Encoded { kind, payload, crc };
        let mut requests = OpenRequests::default();
        let open = Open {
            entry,
            sent: false,
            progress: None,
            amount: Money::ZERO,
            segment: 1,
        };
        requests.insert("a".to_owned(), open);
        let open = requests.get_mut("a").unwrap();
        assert_eq!(open.entry.payload.capacity(), 500);
        assert_eq!(open.entry.clone().trimmed().payload.capacity(), 100);
    }
}
