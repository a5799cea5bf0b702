//! The body of a request: collected within a limit, decoded within the same limit.
//!
//! A body is read whole before anything is sent, because another account may have to get it too.
//! From then on it is one [`Bytes`] that attempts share.

mod decode;

pub use decode::{DecodeError, decode};

use bytes::Bytes;

/// Memory taken in advance for a body that comes in pieces, however long it claims to be: a claim
/// costs a client nothing.
const MAX_PREALLOCATION: usize = 1 << 20;

/// A body is longer than the server takes. Its text is meant for the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", too_large_message(*.limit))]
pub struct TooLarge {
    /// The limit, in bytes.
    pub limit: usize,
}

/// What a client is told whose body is longer than `limit` bytes.
pub fn too_large_message(limit: usize) -> String {
    const MIB: usize = 1 << 20;
    match limit / MIB {
        0 => format!("Request body too large, limit is {limit}B"),
        mib => format!("Request body too large, limit is {mib}MB"),
    }
}

/// Collects the chunks of one body.
///
/// A body of one chunk is never copied. One of many is copied once into memory that grows with what
/// arrived, not with what was announced.
#[derive(Debug)]
pub struct BodyBuffer {
    limit: usize,
    /// The length the client announced, if it did.
    announced: Option<usize>,
    /// The only chunk so far, empty once `joined` is in use.
    first: Bytes,
    joined: Vec<u8>,
}

impl BodyBuffer {
    /// A buffer for at most `limit` bytes; `content_length` is what the client announced, if it did.
    ///
    /// # Errors
    /// [`TooLarge`] when the announcement is already too long: no byte of it needs to be read.
    pub fn new(limit: usize, content_length: Option<u64>) -> Result<Self, TooLarge> {
        let announced = match content_length.map(usize::try_from) {
            None => None,
            Some(Ok(length)) if length <= limit => Some(length),
            Some(_) => return Err(TooLarge { limit }),
        };
        Ok(Self {
            limit,
            announced,
            first: Bytes::new(),
            joined: Vec::new(),
        })
    }

    /// Bytes collected so far.
    pub fn len(&self) -> usize {
        self.first.len() + self.joined.len()
    }

    /// Whether nothing was collected yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds a chunk.
    ///
    /// # Errors
    /// [`TooLarge`] when the body would exceed the limit; the chunk is then not kept.
    pub fn push(&mut self, chunk: Bytes) -> Result<(), TooLarge> {
        let limit = self.limit;
        if chunk.len() > limit - self.len() {
            return Err(TooLarge { limit });
        }
        if chunk.is_empty() {
            return Ok(());
        }
        if self.is_empty() {
            self.first = chunk;
            return Ok(());
        }
        self.make_room(self.len() + chunk.len());
        if self.joined.is_empty() {
            self.joined
                .extend_from_slice(&std::mem::take(&mut self.first));
        }
        self.joined.extend_from_slice(&chunk);
        Ok(())
    }

    /// Makes room for `needed` bytes in all: first as announced within bounds, then by doubling, and
    /// never beyond what was announced unless that was a lie.
    fn make_room(&mut self, needed: usize) {
        if needed <= self.joined.capacity() {
            return;
        }
        let doubled = self.joined.capacity().saturating_mul(2);
        let wanted = match self.announced {
            Some(announced) => announced.min(doubled.max(MAX_PREALLOCATION)),
            None => doubled.min(self.limit),
        };
        let capacity = wanted.max(needed);
        self.joined.reserve_exact(capacity - self.joined.len());
    }

    /// The collected body.
    pub fn into_bytes(self) -> Bytes {
        match self.joined.is_empty() {
            true => self.first,
            false => Bytes::from(self.joined),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_limit_is_told_in_whole_units() {
        let rows = [
            (0, "0B"),
            (1, "1B"),
            (1_048_575, "1048575B"),
            (1_048_576, "1MB"),
            (1_048_577, "1MB"),
            (2_097_151, "1MB"),
            (2_097_152, "2MB"),
            (268_435_456, "256MB"),
        ];
        for (limit, told) in rows {
            let message = format!("Request body too large, limit is {told}");
            assert_eq!(too_large_message(limit), message);
            assert_eq!(TooLarge { limit }.to_string(), message);
        }
    }

    #[test]
    fn an_announcement_is_held_against_the_limit() {
        #[rustfmt::skip]
        let rows = [
            (10, None, true),
            (10, Some(0), true),
            (10, Some(10), true),
            (10, Some(11), false),
            (10, Some(u64::MAX), false),
            (0, Some(0), true),
            (0, Some(1), false),
        ];
        for (limit, announced, fits) in rows {
            let buffer = BodyBuffer::new(limit, announced);
            assert_eq!(buffer.is_ok(), fits, "{limit} {announced:?}");
        }
    }

    #[test]
    fn the_limit_itself_still_fits() {
        for announced in [None, Some(1), Some(10)] {
            let mut buffer = BodyBuffer::new(10, announced).unwrap();
            buffer.push(Bytes::from_static(b"12345678")).unwrap();
            let refused = buffer.push(Bytes::from_static(b"9ab"));
            assert_eq!(refused, Err(TooLarge { limit: 10 }));
            assert_eq!(buffer.len(), 8);
            buffer.push(Bytes::from_static(b"9a")).unwrap();
            assert_eq!(
                buffer.push(Bytes::from_static(b"b")),
                Err(TooLarge { limit: 10 })
            );
            assert_eq!(buffer.into_bytes(), "123456789a");
        }
    }

    #[test]
    fn one_chunk_is_not_copied() {
        let chunk = Bytes::from(vec![7; 100]);
        let mut buffer = BodyBuffer::new(1000, Some(100)).unwrap();
        buffer.push(Bytes::new()).unwrap();
        buffer.push(chunk.clone()).unwrap();
        buffer.push(Bytes::new()).unwrap();
        assert_eq!(buffer.into_bytes().as_ptr(), chunk.as_ptr());
    }

    #[test]
    fn memory_follows_what_arrived() {
        const MIB: usize = 1 << 20;
        let chunk = Bytes::from(vec![7; 1000]);

        // A claim of 200 MiB behind which two chunks arrive.
        let mut buffer = BodyBuffer::new(256 * MIB, Some(200 * MIB as u64)).unwrap();
        buffer.push(chunk.clone()).unwrap();
        assert_eq!(buffer.joined.capacity(), 0);
        buffer.push(chunk.clone()).unwrap();
        assert_eq!(buffer.joined.capacity(), MAX_PREALLOCATION);

        // A true claim ends in exactly as much memory as it needs.
        let mut buffer = BodyBuffer::new(256 * MIB, Some(3_000_000)).unwrap();
        for _ in 0..3000 {
            buffer.push(chunk.clone()).unwrap();
        }
        assert_eq!(buffer.joined.capacity(), 3_000_000);
        // And a body may still be longer than it claimed.
        buffer.push(chunk.clone()).unwrap();
        assert_eq!(buffer.into_bytes().len(), 3_001_000);
    }

    #[test]
    fn nothing_is_an_empty_body() {
        let buffer = BodyBuffer::new(0, None).unwrap();
        assert!(buffer.is_empty());
        assert!(buffer.into_bytes().is_empty());
    }

    proptest! {
        #[test]
        fn chunks_come_out_joined_and_within_the_limit(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..50), 0..12),
            limit in 0usize..300,
            announced in proptest::option::of(0u64..300),
        ) {
            let Ok(mut buffer) = BodyBuffer::new(limit, announced) else { return Ok(()) };
            let mut expected = Vec::new();
            for chunk in chunks {
                let fits = expected.len() + chunk.len() <= limit;
                prop_assert_eq!(buffer.push(Bytes::from(chunk.clone())).is_ok(), fits);
                if fits {
                    expected.extend(chunk);
                }
                prop_assert_eq!(buffer.len(), expected.len());
            }
            prop_assert_eq!(buffer.into_bytes(), expected);
        }
    }
}
