//! Places in the journal of `billing::journal`, as the database remembers them.

/// A place in a journal: everything before it has been applied to the database. Places of one journal
/// are ordered; those of different journals have nothing to do with each other.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct JournalPosition {
    /// Which journal: a random number given when its folder was made.
    pub journal: u64,
    /// Number of the segment, from 1.
    pub segment: u64,
    /// Bytes from the beginning of the segment.
    pub offset: u64,
}

impl std::fmt::Display for JournalPosition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}:{}:{}", self.journal, self.segment, self.offset)
    }
}
