//! Server-sent events: bytes to events, whatever the chunk boundaries. Use [`SseScanner`] to look into a stream that
//! passes by untouched, [`SseFramer`] where frames are held back or rewritten.
//!
//! Lines end with LF, CRLF or CR; an event ends with an empty line. Neither type copies what lies whole in one chunk.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use memchr::memchr2;

const BOM: &[u8] = b"\xef\xbb\xbf";

/// One event. Its parts are not checked to be UTF-8.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Event<'a> {
    /// The last `event` field, if it says anything.
    pub name: Option<&'a [u8]>,
    /// The `data` fields, joined with LF.
    pub data: &'a [u8],
}

/// An event is longer than the limit. The scanner says so from then on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("an event of the stream is longer than the limit")]
pub struct TooLong;

/// Finds the events in a stream of chunks.
#[derive(Debug)]
pub struct SseScanner {
    /// Longest event in bytes, line ends included.
    limit: usize,
    /// The bytes of an event that has not ended yet; empty when there is none.
    held: Vec<u8>,
    /// Where in `held` the unfinished line begins.
    line: usize,
    fields: Fields,
    after_cr: bool,
    /// How many bytes of a byte order mark have been seen; `None` once the stream has begun.
    bom: Option<usize>,
    too_long: bool,
}

impl SseScanner {
    /// A scanner that holds at most `limit` bytes of an event.
    pub fn new(limit: usize) -> Self {
        SseScanner {
            limit,
            held: Vec::new(),
            line: 0,
            fields: Fields::default(),
            after_cr: false,
            bom: Some(0),
            too_long: false,
        }
    }

    /// Reports every event that ends in `chunk`.
    ///
    /// # Errors
    /// [`TooLong`] for an event beyond the limit; those before it have been reported.
    pub fn feed(
        &mut self,
        chunk: &[u8],
        mut on_event: impl FnMut(Event<'_>),
    ) -> Result<(), TooLong> {
        if self.too_long {
            return Err(TooLong);
        }
        let mut rest = self.without_bom(chunk);
        if self.after_cr && !rest.is_empty() {
            self.after_cr = false;
            if rest[0] == b'\n' {
                if !self.held.is_empty() {
                    self.held.push(b'\n');
                    self.line = self.held.len();
                }
                rest = &rest[1..];
            }
        }
        if !self.held.is_empty() {
            rest = self.complete_held(rest, &mut on_event)?;
        }
        self.whole_events(rest, &mut on_event)
    }

    /// Whether nothing is pending: bytes put into the stream here would neither split nor change an event.
    pub fn at_boundary(&self) -> bool {
        self.held.is_empty() && matches!(self.bom, None | Some(0))
    }

    /// The stream is over: reports a last event that no empty line ended.
    pub fn finish(&mut self, mut on_event: impl FnMut(Event<'_>)) {
        if self.too_long {
            return;
        }
        if self.line < self.held.len() {
            self.fields.line(&self.held, self.line..self.held.len());
        }
        self.fields.dispatch(&self.held, &mut on_event);
        self.forget();
    }

    fn without_bom<'c>(&mut self, chunk: &'c [u8]) -> &'c [u8] {
        let Some(seen) = self.bom else { return chunk };
        let missing = &BOM[seen..];
        let same = missing
            .iter()
            .zip(chunk)
            .take_while(|(a, b)| a == b)
            .count();
        if same == missing.len() {
            self.bom = None;
        } else if same == chunk.len() {
            self.bom = Some(seen + same);
        } else {
            // Not a mark after all: the first line begins like one.
            self.bom = None;
            self.held.extend_from_slice(&BOM[..seen]);
            return chunk;
        }
        &chunk[same..]
    }

    /// Takes what belongs to the held event and returns the rest.
    fn complete_held<'c>(
        &mut self,
        mut rest: &'c [u8],
        on_event: &mut impl FnMut(Event<'_>),
    ) -> Result<&'c [u8], TooLong> {
        while let Some(end) = memchr2(b'\n', b'\r', rest) {
            let line = self.line..self.held.len() + end;
            let next = self.after_line_end(rest, end);
            if line.is_empty() {
                self.fields.dispatch(&self.held, on_event);
                self.forget();
                return Ok(&rest[next..]);
            }
            self.held.extend_from_slice(&rest[..next]);
            self.check(line.end)?;
            self.fields.line(&self.held, line);
            self.line = self.held.len();
            rest = &rest[next..];
            if self.fields.is_empty() {
                self.forget();
                return Ok(rest);
            }
        }
        if !rest.is_empty() {
            self.held.extend_from_slice(rest);
            self.check(self.held.len())?;
        }
        Ok(&[])
    }

    /// Reports the events that lie whole in `chunk` and holds what remains.
    fn whole_events(
        &mut self,
        chunk: &[u8],
        on_event: &mut impl FnMut(Event<'_>),
    ) -> Result<(), TooLong> {
        let mut frame = 0;
        let mut line = 0;
        while let Some(length) = memchr2(b'\n', b'\r', &chunk[line..]) {
            let end = line + length;
            let next = self.after_line_end(chunk, end);
            if length == 0 {
                self.fields.dispatch(&chunk[frame..], on_event);
                self.fields.clear();
                frame = next;
            } else {
                self.check(end - frame)?;
                self.fields.line(&chunk[frame..], line - frame..end - frame);
                if self.fields.is_empty() {
                    frame = next;
                }
            }
            line = next;
        }
        if frame < chunk.len() {
            self.held.extend_from_slice(&chunk[frame..]);
            self.line = line - frame;
            if line < chunk.len() {
                self.check(self.held.len())?;
            }
        }
        Ok(())
    }

    /// Where the line begins that follows the one ending at `end`.
    fn after_line_end(&mut self, chunk: &[u8], end: usize) -> usize {
        if chunk[end] == b'\r' {
            match chunk.get(end + 1) {
                Some(b'\n') => return end + 2,
                Some(_) => {}
                None => self.after_cr = true,
            }
        }
        end + 1
    }

    fn check(&mut self, length: usize) -> Result<(), TooLong> {
        if length > self.limit {
            self.too_long = true;
            self.forget();
            return Err(TooLong);
        }
        Ok(())
    }

    fn forget(&mut self) {
        self.fields.clear();
        self.held.clear();
        self.line = 0;
    }
}

/// What the lines of an event have said so far, as places in its bytes.
#[derive(Debug, Default)]
struct Fields {
    /// There was a line other than a comment.
    any: bool,
    name: Option<Range<usize>>,
    data: Option<Range<usize>>,
    /// All data, once there is more than one line of it.
    joined: Vec<u8>,
    is_joined: bool,
}

impl Fields {
    fn is_empty(&self) -> bool {
        !self.any
    }

    /// Takes the line at `line` of the event `bytes`; not an empty one.
    fn line(&mut self, bytes: &[u8], line: Range<usize>) {
        match &bytes[line.clone()] {
            [b':', ..] => return,
            [b'd', b'a', b't', b'a', rest @ ..] => {
                if let Some(value) = value(rest, line.end) {
                    self.data_line(bytes, value);
                }
            }
            [b'e', b'v', b'e', b'n', b't', rest @ ..] => {
                if let Some(value) = value(rest, line.end) {
                    self.name = Some(value);
                }
            }
            _ => {}
        }
        self.any = true;
    }

    fn data_line(&mut self, bytes: &[u8], value: Range<usize>) {
        let Some(first) = self.data.clone() else {
            self.data = Some(value);
            return;
        };
        if !self.is_joined {
            self.is_joined = true;
            self.joined.extend_from_slice(&bytes[first]);
        }
        self.joined.push(b'\n');
        self.joined.extend_from_slice(&bytes[value]);
    }

    /// Reports the event, if it has data.
    fn dispatch(&self, bytes: &[u8], on_event: &mut impl FnMut(Event<'_>)) {
        let Some(data) = self.data.clone() else {
            return;
        };
        let name = self.name.clone().filter(|name| !name.is_empty());
        on_event(Event {
            name: name.map(|name| &bytes[name]),
            data: if self.is_joined {
                &self.joined
            } else {
                &bytes[data]
            },
        });
    }

    fn clear(&mut self) {
        self.any = false;
        self.name = None;
        self.data = None;
        self.joined.clear();
        self.is_joined = false;
    }
}

/// The value of a field, given what follows its name up to the end of the line at `end`; `None` when the name goes on.
fn value(rest: &[u8], end: usize) -> Option<Range<usize>> {
    match rest {
        [] => Some(end..end),
        [b':', b' ', value @ ..] | [b':', value @ ..] => Some(end - value.len()..end),
        _ => None,
    }
}

/// Cuts a stream of chunks into frames: the raw bytes of each event or comment with the empty line that ends it.
///
/// The frames put together are the stream, byte for byte. A frame is given out as soon as its empty line has begun;
/// of a CRLF cut in two the LF then begins the next frame.
#[derive(Debug)]
pub struct SseFramer {
    limit: usize,
    held: BytesMut,
    line_begun: bool,
    after_cr: bool,
}

impl SseFramer {
    /// A framer that holds at most about `limit` bytes; longer frames are given out in pieces.
    pub fn new(limit: usize) -> Self {
        SseFramer {
            limit,
            held: BytesMut::new(),
            line_begun: false,
            after_cr: false,
        }
    }

    /// Gives out every frame that ends in `chunk`.
    pub fn feed(&mut self, chunk: Bytes, mut on_frame: impl FnMut(Bytes)) {
        let mut frame = 0;
        let mut at = 0;
        if self.after_cr && !chunk.is_empty() {
            self.after_cr = false;
            at = usize::from(chunk[0] == b'\n');
        }
        while let Some(length) = memchr2(b'\n', b'\r', &chunk[at..]) {
            let is_empty = length == 0 && !self.line_begun;
            self.line_begun = false;
            at += length + 1;
            if chunk[at - 1] == b'\r' {
                match chunk.get(at) {
                    Some(b'\n') => at += 1,
                    Some(_) => {}
                    None => self.after_cr = true,
                }
            }
            if is_empty {
                on_frame(self.complete(chunk.slice(frame..at)));
                frame = at;
            }
        }
        self.line_begun |= at < chunk.len();
        self.held.extend_from_slice(&chunk[frame..]);
        if self.held.len() > self.limit {
            on_frame(self.held.split().freeze());
        }
    }

    /// The stream is over: what no empty line ended.
    pub fn finish(&mut self) -> Option<Bytes> {
        self.line_begun = false;
        self.after_cr = false;
        (!self.held.is_empty()).then(|| self.held.split().freeze())
    }

    fn complete(&mut self, end: Bytes) -> Bytes {
        if self.held.is_empty() {
            return end;
        }
        self.held.extend_from_slice(&end);
        self.held.split().freeze()
    }
}

/// Where in a raw frame its data stands, when that is one line; `None` when there is no data or more than one line.
/// For replacing part of it.
pub fn single_data(frame: &[u8]) -> Option<Range<usize>> {
    let mut found = None;
    let mut at = 0;
    while at < frame.len() {
        let end = memchr2(b'\n', b'\r', &frame[at..]).map_or(frame.len(), |length| at + length);
        if let Some(value) = frame[at..end]
            .strip_prefix(b"data")
            .and_then(|rest| value(rest, end))
            && found.replace(value).is_some()
        {
            return None;
        }
        at = end + 1;
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Owned = (Option<Vec<u8>>, Vec<u8>);

    fn own(event: Event<'_>) -> Owned {
        (event.name.map(<[u8]>::to_vec), event.data.to_vec())
    }

    fn scan<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> Vec<Owned> {
        let mut scanner = SseScanner::new(usize::MAX);
        let mut events = Vec::new();
        for chunk in chunks {
            scanner
                .feed(chunk, |event| events.push(own(event)))
                .unwrap();
        }
        scanner.finish(|event| events.push(own(event)));
        events
    }

    /// The standard's algorithm, line by line over the whole stream; a last event needs no empty line.
    fn reference(stream: &[u8]) -> Vec<Owned> {
        let text = stream.strip_prefix(BOM).unwrap_or(stream);
        let text: Vec<u8> = String::from_utf8(text.to_vec())
            .unwrap()
            .replace("\r\n", "\n")
            .replace('\r', "\n")
            .into();
        let mut events = Vec::new();
        let (mut name, mut data) = (Vec::new(), None::<Vec<u8>>);
        for line in text.split(|&byte| byte == b'\n').chain([&b""[..]]) {
            if line.is_empty() {
                let name = std::mem::take(&mut name);
                if let Some(data) = data.take() {
                    events.push(((!name.is_empty()).then_some(name), data));
                }
                continue;
            }
            let mut parts = line.splitn(2, |&byte| byte == b':');
            let field = parts.next().unwrap();
            let value = parts.next().unwrap_or_default();
            let value = value.strip_prefix(b" ").unwrap_or(value);
            match field {
                b"event" => name = value.to_vec(),
                b"data" => match &mut data {
                    Some(data) => {
                        data.push(b'\n');
                        data.extend_from_slice(value);
                    }
                    None => data = Some(value.to_vec()),
                },
                _ => {}
            }
        }
        events
    }

    #[test]
    fn reads_fields_as_the_standard_says() {
        for (stream, expected) in [
            ("", vec![]),
            ("data: a\n\n", vec![(None, "a")]),
            (
                "data:a\r\rdata:  b\r\n\r\n",
                vec![(None, "a"), (None, " b")],
            ),
            (
                "event: x\ndata: a\n\ndata: b\n\n",
                vec![(Some("x"), "a"), (None, "b")],
            ),
            ("data: a\nevent: x\nevent: y\n\n", vec![(Some("y"), "a")]),
            ("event:\ndata: a\n\n", vec![(None, "a")]),
            ("event: x\n\ndata: a\n\n", vec![(None, "a")]),
            ("data: a\ndata\ndata: b\n\n", vec![(None, "a\n\nb")]),
            ("data\n\ndata:\n\n", vec![(None, ""), (None, "")]),
            (
                ": ping\n\n:data: a\n\ndatax: a\n\n data: a\n\nid: 1\n\n",
                vec![],
            ),
            ("id: 1\nretry: 5\n: c\ndata: a\n\n", vec![(None, "a")]),
            ("\u{feff}data: a\n\n\u{feff}data: b\n\n", vec![(None, "a")]),
            ("data: a", vec![(None, "a")]),
            ("data: a\r", vec![(None, "a")]),
            ("\n\n\r\r\n\ndata: a\n\n\n\n", vec![(None, "a")]),
        ] {
            let expected: Vec<Owned> = expected
                .into_iter()
                .map(|(name, data): (Option<&str>, &str)| (name.map(|n| n.into()), data.into()))
                .collect();
            assert_eq!(scan([stream.as_bytes()]), expected, "{stream:?}");
            assert_eq!(
                scan(stream.as_bytes().chunks(1)),
                expected,
                "{stream:?}, byte by byte"
            );
            assert_eq!(
                reference(stream.as_bytes()),
                expected,
                "{stream:?}, reference"
            );
        }
    }

    #[test]
    fn what_lies_whole_in_a_chunk_is_not_copied() {
        let chunk = b"event: x\ndata: abc\n\ndata: d\n\ndata: e";
        let mut scanner = SseScanner::new(100);
        let mut borrowed = Vec::new();
        scanner
            .feed(chunk, |event| {
                borrowed.push(chunk.as_ptr_range().contains(&event.data.as_ptr()))
            })
            .unwrap();
        assert_eq!(borrowed, [true, true]);
    }

    #[test]
    fn an_event_is_reported_with_the_first_byte_of_its_empty_line() {
        let mut scanner = SseScanner::new(100);
        let mut events = 0;
        scanner.feed(b"data: a\r\n\r", |_| events += 1).unwrap();
        assert_eq!(events, 1);
        assert!(scanner.at_boundary());
        scanner
            .feed(b"\ndata: b\r\n\r\n", |event| assert_eq!(event.data, b"b"))
            .unwrap();
    }

    #[test]
    fn knows_where_something_may_be_put_in() {
        for (stream, expected) in [
            ("", true),
            ("\u{feff}", true),
            ("d", false),
            ("data: a\n", false),
            ("data: a\n\n", true),
            ("data: a\r\n\r\n", true),
            ("data: a\n\nid: 1\n", false),
            (": ping", false),
            (": ping\n", true),
            (": ping\n\n", true),
            ("data: a\n: ping\n", false),
        ] {
            for size in [1, 100] {
                let mut scanner = SseScanner::new(100);
                for chunk in stream.as_bytes().chunks(size) {
                    scanner.feed(chunk, |_| {}).unwrap();
                }
                assert_eq!(
                    scanner.at_boundary(),
                    expected,
                    "{stream:?} in chunks of {size}"
                );
            }
        }
        let mut scanner = SseScanner::new(100);
        scanner.feed(&BOM[..1], |_| {}).unwrap();
        assert!(!scanner.at_boundary());
    }

    #[test]
    fn the_limit_is_the_same_for_every_split() {
        // 4 + 1 + 9 bytes up to the empty line.
        for stream in [
            "id:1\ndata: abc\n\n",
            "id:1\rdata: abc\r\r",
            ": comment that is long\nid:1\ndata: abc",
        ] {
            for (limit, fits) in [(13, false), (22, true)] {
                for size in 1..=stream.len() {
                    let mut scanner = SseScanner::new(limit);
                    let mut result = Ok(());
                    for chunk in stream.as_bytes().chunks(size) {
                        result = scanner.feed(chunk, |_| {});
                    }
                    assert_eq!(
                        result.is_ok(),
                        fits,
                        "{stream:?}, {limit}, in chunks of {size}"
                    );
                    if !fits {
                        assert_eq!(scanner.feed(b"data: x\n\n", |_| panic!()), Err(TooLong));
                        scanner.finish(|_| panic!());
                    }
                }
            }
        }
    }

    #[test]
    fn the_limit_is_exact() {
        for (limit, fits) in [(13, false), (14, true)] {
            for size in 1..=16 {
                let mut scanner = SseScanner::new(limit);
                let mut chunks = b"id:1\ndata: abc\n\n".chunks(size);
                let fitted = chunks.all(|chunk| scanner.feed(chunk, |_| {}).is_ok());
                assert_eq!(fitted, fits, "{limit}, in chunks of {size}");
            }
        }
    }

    #[test]
    fn comments_do_not_pile_up() {
        let mut scanner = SseScanner::new(16);
        for _ in 0..100 {
            scanner.feed(b": keep-ali", |_| panic!()).unwrap();
            scanner.feed(b"ve\n", |_| panic!()).unwrap();
        }
        assert!(scanner.at_boundary());
    }

    fn frames<'a>(limit: usize, chunks: impl IntoIterator<Item = &'a [u8]>) -> Vec<Bytes> {
        let mut framer = SseFramer::new(limit);
        let mut frames = Vec::new();
        for chunk in chunks {
            framer.feed(Bytes::copy_from_slice(chunk), |frame| frames.push(frame));
        }
        frames.extend(framer.finish());
        frames
    }

    #[test]
    fn frames_end_with_their_empty_line() {
        let stream = &b"event: x\ndata: a\n\n: ping\r\n\r\ndata: b\r\rdata: c"[..];
        let expected = [
            "event: x\ndata: a\n\n",
            ": ping\r\n\r\n",
            "data: b\r\r",
            "data: c",
        ];
        assert_eq!(frames(100, [stream]), expected);
        let cut = [&b"data: a\r\n\r"[..], b"\n", b"data: b\n\n"];
        assert_eq!(frames(100, cut), ["data: a\r\n\r", "\ndata: b\n\n"]);
        assert_eq!(
            frames(4, [&b"data: long"[..], b"er\n\n"]),
            ["data: long", "er\n\n"]
        );
    }

    #[test]
    fn a_frame_whole_in_one_chunk_is_shared() {
        let chunk = Bytes::from_static(b"data: a\n\ndata: b\n\n");
        let mut at = Vec::new();
        SseFramer::new(100).feed(chunk.clone(), |frame| at.push(frame.as_ptr()));
        assert_eq!(at, [chunk.as_ptr(), chunk[9..].as_ptr()]);
    }

    #[test]
    fn finds_the_data_of_a_frame() {
        for (frame, expected) in [
            ("event: data: x\ndata: abc\n\n", Some("abc")),
            ("\ndata:abc\r\n\r\n", Some("abc")),
            ("data: a\ndata: b\n\n", None),
            (": ping\n\n", None),
            ("datax: a\n\n", None),
            ("data", Some("")),
        ] {
            let found = single_data(frame.as_bytes()).map(|span| &frame[span]);
            assert_eq!(found, expected, "{frame:?}");
        }
    }

    fn stream() -> impl Strategy<Value = Vec<u8>> {
        let line = prop_oneof![
            4 => "data:? ?[a-z:é]{0,9}",
            2 => "event:? ?[a-z]{0,5}",
            1 => "(id|retry|dat|events|:)[: a-z]{0,5}",
            3 => Just(String::new()),
        ];
        let line_end = prop::sample::select(vec!["\n", "\r", "\r\n"]);
        let lines = prop::collection::vec((line, line_end), 0..24);
        (any::<bool>(), lines, any::<bool>()).prop_map(|(bom, lines, cut)| {
            let mut stream = if bom { BOM.to_vec() } else { Vec::new() };
            for (line, end) in lines {
                stream.extend_from_slice(line.as_bytes());
                stream.extend_from_slice(end.as_bytes());
            }
            if cut {
                // Also half a line, but not half a character.
                while stream.pop().is_some_and(|byte| !byte.is_ascii()) {}
            }
            stream
        })
    }

    /// The stream in chunks whose lengths follow `sizes`, round and round.
    fn split<'a>(mut stream: &'a [u8], sizes: &[usize]) -> Vec<&'a [u8]> {
        let mut chunks = Vec::new();
        for size in sizes.iter().cycle() {
            if stream.is_empty() {
                break;
            }
            let (chunk, rest) = stream.split_at((*size).min(stream.len()));
            chunks.push(chunk);
            stream = rest;
        }
        chunks
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_events(stream in stream(), sizes in prop::collection::vec(1..9usize, 1..6)) {
            prop_assume!(std::str::from_utf8(&stream).is_ok());
            let expected = reference(&stream);
            prop_assert_eq!(&scan([&stream[..]]), &expected);
            prop_assert_eq!(&scan(split(&stream, &sizes)), &expected);
            for at in 0..=stream.len() {
                let (head, tail) = stream.split_at(at);
                prop_assert_eq!(&scan([head, tail]), &expected, "split at {}", at);
            }
        }

        #[test]
        fn frames_put_together_are_the_stream(stream in stream(), sizes in prop::collection::vec(1..9usize, 1..6)) {
            let frames = frames(usize::MAX, split(&stream, &sizes));
            prop_assert_eq!(frames.concat(), &stream[..]);
            // And each holds whole events.
            let stream = stream.strip_prefix(BOM).unwrap_or(&stream);
            let events: Vec<Owned> = frames.iter().flat_map(|frame| scan([&frame[..]])).collect();
            prop_assert_eq!(events, scan([stream]));
        }
    }
}
