//! What keeps a silent stream alive without being part of it.

use bytes::Bytes;

use crate::route::Dialect;

/// A comment: every reader of events passes over it.
const COMMENT: &[u8] = b":\n\n";

/// The event that Anthropic sends; its clients know it and take it for a sign of life.
/// <https://platform.claude.com/docs/en/build-with-claude/streaming#ping-events>
const PING: &[u8] = b"event: ping\ndata: {\"type\": \"ping\"}\n\n";

/// What to write at the end of a frame, or before the first, while there is nothing else to say.
pub fn keep_alive(dialect: Dialect) -> Bytes {
    Bytes::from_static(match dialect {
        Dialect::Anthropic => PING,
        Dialect::OpenAi | Dialect::Google => COMMENT,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sse::SseScanner;
    use crate::usage::anthropic::{MessagesObserver, Seen};

    #[test]
    fn a_comment_is_no_event_and_a_ping_is_one_that_says_nothing() {
        for (dialect, expected) in [
            (Dialect::OpenAi, &[][..]),
            (Dialect::Google, &[]),
            (Dialect::Anthropic, &[Seen::Preamble]),
        ] {
            let mut scanner = SseScanner::new(1024);
            let mut observer = MessagesObserver::new();
            let mut seen = Vec::new();
            let frame = keep_alive(dialect);
            scanner
                .feed(&frame, |event| seen.push(observer.event(&event)))
                .unwrap();
            assert!(scanner.at_boundary(), "{dialect:?}");
            assert_eq!(seen, expected, "{dialect:?}");
        }
        let ping = keep_alive(Dialect::Anthropic);
        assert_eq!(ping, "event: ping\ndata: {\"type\": \"ping\"}\n\n");
    }
}
