//! A map from row ids to shared values, read without a lock. Row ids are small and dense (the
//! database counts them up), so a value is found by two indexings. Values are never removed: use it
//! for things of which there is one for each row.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use parking_lot::RwLock;

/// Values in a segment; a segment that is used takes 16 KiB.
const SEGMENT: usize = 1024;
/// Segments: room for a million ids. What lies beyond (or below zero) is kept in a map.
const SEGMENTS: usize = 1024;

type Segment<T> = Box<[OnceLock<Arc<T>>]>;

/// See the module.
pub(crate) struct Dense<T> {
    segments: Box<[OnceLock<Segment<T>>]>,
    far: RwLock<HashMap<i64, Arc<T>>>,
}

impl<T> Dense<T> {
    pub(crate) fn new() -> Dense<T> {
        Dense {
            segments: (0..SEGMENTS).map(|_| OnceLock::new()).collect(),
            far: RwLock::default(),
        }
    }

    /// Looks at a value, if it is there.
    pub(crate) fn read<R>(&self, id: i64, look: impl FnOnce(&Arc<T>) -> R) -> Option<R> {
        match place(id) {
            Some((segment, index)) => self.segments[segment].get()?[index].get().map(look),
            None => self.far.read().get(&id).map(look),
        }
    }

    /// Looks at a value, made first if it is not there.
    pub(crate) fn with<R>(
        &self,
        id: i64,
        make: impl FnOnce() -> Arc<T>,
        look: impl FnOnce(&Arc<T>) -> R,
    ) -> R {
        let Some((segment, index)) = place(id) else {
            let there = self.far.read().get(&id).cloned();
            let value = there.unwrap_or_else(|| {
                let made = make();
                self.far.write().entry(id).or_insert(made).clone()
            });
            return look(&value);
        };
        let segment =
            self.segments[segment].get_or_init(|| (0..SEGMENT).map(|_| OnceLock::new()).collect());
        look(segment[index].get_or_init(make))
    }

    /// Looks at every value.
    pub(crate) fn for_each(&self, mut look: impl FnMut(&Arc<T>)) {
        for segment in self.segments.iter().filter_map(OnceLock::get) {
            segment.iter().filter_map(OnceLock::get).for_each(&mut look);
        }
        self.far.read().values().for_each(look);
    }
}

fn place(id: i64) -> Option<(usize, usize)> {
    let id = usize::try_from(id).ok()?;
    (id < SEGMENT * SEGMENTS).then_some((id / SEGMENT, id % SEGMENT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_id_has_a_place_of_its_own() {
        let dense = Dense::new();
        let last = (SEGMENT * SEGMENTS) as i64 - 1;
        let ids = [0, 1, 1023, 1024, last, last + 1, i64::MAX, -1, i64::MIN];
        for id in ids {
            assert_eq!(dense.read(id, |v| **v), None, "{id}");
            assert_eq!(dense.with(id, || Arc::new(id), |v| **v), id);
        }
        for id in ids {
            assert_eq!(dense.with(id, || Arc::new(7), |v| **v), id, "made once");
            assert_eq!(dense.read(id, |v| **v), Some(id));
        }
        let mut seen = Vec::new();
        dense.for_each(|v| seen.push(**v));
        seen.sort_unstable();
        let mut all = ids.to_vec();
        all.sort_unstable();
        assert_eq!(seen, all);
    }
}
