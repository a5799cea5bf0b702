//! How often the same complaint is worth a line in the log. An account that fails a thousand requests
//! a second would otherwise write a thousand lines a second, and hide everything else.
//!
//! An estimate is enough here, and one of bounded size whatever there is to complain about is just
//! right: the counts come from `pingora_limits`, which shares its cells among keys and so may, rarely,
//! find one account loud that shares them with another.

use std::hash::Hash;
use std::time::Duration;

use parking_lot::Mutex;
use pingora_limits::rate::Rate;

/// Counted anew after this long.
const INTERVAL: Duration = Duration::from_secs(10);
/// Lines about one thing within the interval that are written at their own level.
const LINES: isize = 20;

/// Counts complaints.
pub struct Noise {
    /// Alone: two threads at once can bring its clock into disorder.
    lines: Mutex<Rate>,
}

impl Default for Noise {
    fn default() -> Noise {
        Noise {
            lines: Mutex::new(Rate::new(INTERVAL)),
        }
    }
}

impl Noise {
    /// The level of one more line about `about` that would be written at `level`: the same for the
    /// first twenty within ten seconds, then `debug`.
    pub fn level(&self, about: impl Hash, level: log::Level) -> log::Level {
        match self.lines.lock().observe(&about, 1) <= LINES {
            true => level,
            false => log::Level::Debug,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_lines_are_written_and_others_have_their_own_count() {
        let noise = Noise::default();
        let levels: Vec<_> = (0..=LINES)
            .map(|_| noise.level(("a", 1), log::Level::Info))
            .collect();
        let loud = levels.iter().filter(|l| **l == log::Level::Info).count();
        // The interval may have ended in between: then there are more, never fewer.
        assert!(loud >= LINES as usize, "{loud}");
        assert!(levels.iter().all(|l| *l >= log::Level::Info));
        assert_eq!(noise.level(("b", 1), log::Level::Warn), log::Level::Warn);
    }
}
