//! Numbers for tests that draw what happens: the same seed draws the same again.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::time::Duration;

/// Numbers drawn from a seed and whatever else tells this draw from others.
pub struct Chance(u64);

impl Chance {
    /// A draw of its own for each `what`.
    pub fn of(what: impl Hash) -> Chance {
        let mut hasher = DefaultHasher::new();
        what.hash(&mut hasher);
        Chance(hasher.finish())
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        // Splitmix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }

    /// One of these.
    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }

    /// So many milliseconds, `to` not among them.
    pub fn ms(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from))
    }
}
