//! HTTP/1.1 on the wire, shared by the fake upstream and the raw client: a buffered link, message
//! heads with order and spelling kept, and bodies in each framing.

use std::io;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::link::Link;

/// Room made before each read; bodies of many MiB want few system calls.
const READ_SIZE: usize = 64 * 1024;

/// A link and the bytes read from it but not yet used.
pub(crate) struct Wire {
    pub(crate) link: Link,
    pub(crate) buffer: BytesMut,
}

/// A message head: its first line and its fields in order, spelled as they came.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    pub(crate) raw: Bytes,
    pub(crate) first_line: String,
    pub(crate) fields: Vec<(String, String)>,
}

impl Head {
    fn parse(raw: Bytes) -> Self {
        let text = String::from_utf8_lossy(&raw);
        let mut lines = text.split('\n').map(|line| line.trim_end_matches('\r'));
        let first_line = lines.next().unwrap_or_default().to_owned();
        let fields = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
            .collect();
        drop(text);
        Self {
            raw,
            first_line,
            fields,
        }
    }

    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        find(&self.fields, name)
    }

    pub(crate) fn is_chunked(&self) -> bool {
        self.field("transfer-encoding")
            .is_some_and(|value| value.to_ascii_lowercase().ends_with("chunked"))
    }

    pub(crate) fn length(&self) -> Option<u64> {
        self.field("content-length")?.parse().ok()
    }

    pub(crate) fn says_close(&self) -> bool {
        self.field("connection")
            .is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }
}

/// The first field of that name, compared without case.
pub(crate) fn find<'f>(fields: &'f [(String, String)], name: &str) -> Option<&'f str> {
    fields
        .iter()
        .find(|(field, _)| field.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.as_str())
}

/// What is left to read of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Body {
    /// So many more bytes.
    Length(u64),
    /// So many more bytes of the chunk at hand; `None` before the first.
    Chunked(Option<u64>),
    /// Whatever comes until the peer closes.
    UntilClose,
    /// Nothing any more.
    Done,
}

impl Wire {
    pub(crate) fn new(link: Link) -> Self {
        Self {
            link,
            buffer: BytesMut::new(),
        }
    }

    /// Reads what there is; `0` = the peer closed its side. Safe to cancel.
    pub(crate) async fn fill(&mut self) -> io::Result<usize> {
        self.buffer.reserve(READ_SIZE);
        self.link.read_buf(&mut self.buffer).await
    }

    /// Ends when the peer has closed or reset the connection; keeps what it still sends.
    /// Safe to cancel.
    pub(crate) async fn closed(&mut self) {
        while matches!(self.fill().await, Ok(count) if count > 0) {}
    }

    /// The next message head, `None` when the peer closed before its first byte.
    pub(crate) async fn head(&mut self) -> io::Result<Option<Head>> {
        let mut searched = 0usize;
        loop {
            if let Some(end) = end_of_head(&self.buffer, searched) {
                return Ok(Some(Head::parse(self.buffer.split_to(end).freeze())));
            }
            searched = self.buffer.len().saturating_sub(3);
            if self.fill().await? == 0 {
                return match self.buffer.is_empty() {
                    true => Ok(None),
                    false => Err(cut("in the head")),
                };
            }
        }
    }

    /// The next piece of a body as it came (a piece never spans two chunks), `None` at its end.
    pub(crate) async fn piece(&mut self, body: &mut Body) -> io::Result<Option<Bytes>> {
        loop {
            match *body {
                Body::Done => return Ok(None),
                Body::Length(0) => *body = Body::Done,
                Body::Length(left) => {
                    let piece = self.take(left).await?;
                    *body = Body::Length(left - piece.len() as u64);
                    return Ok(Some(piece));
                }
                Body::UntilClose => {
                    if self.buffer.is_empty() && self.fill().await? == 0 {
                        *body = Body::Done;
                        continue;
                    }
                    return Ok(Some(self.buffer.split().freeze()));
                }
                Body::Chunked(Some(left)) if left > 0 => {
                    let piece = self.take(left).await?;
                    *body = Body::Chunked(Some(left - piece.len() as u64));
                    return Ok(Some(piece));
                }
                Body::Chunked(at) => {
                    // The line end of the chunk before comes first.
                    let skip = if at.is_some() { 2 } else { 0 };
                    let size = self.chunk_size(skip).await?;
                    *body = Body::Chunked(Some(size));
                    if size == 0 {
                        self.trailers().await?;
                        *body = Body::Done;
                    }
                }
            }
        }
    }

    async fn take(&mut self, most: u64) -> io::Result<Bytes> {
        if self.buffer.is_empty() && self.fill().await? == 0 {
            return Err(cut("in the body"));
        }
        let count = usize::try_from(most).map_or(self.buffer.len(), |m| m.min(self.buffer.len()));
        Ok(self.buffer.split_to(count).freeze())
    }

    async fn chunk_size(&mut self, skip: usize) -> io::Result<u64> {
        loop {
            let line = self.buffer.get(skip..).unwrap_or_default();
            if let Some(end) = line.iter().position(|byte| *byte == b'\n') {
                let text = String::from_utf8_lossy(&line[..end]);
                let digits = text.split(';').next().unwrap_or_default().trim();
                let size = u64::from_str_radix(digits, 16).map_err(|_| {
                    io::Error::new(io::ErrorKind::InvalidData, format!("chunk size {text:?}"))
                })?;
                drop(text);
                let _ = self.buffer.split_to(skip + end + 1);
                return Ok(size);
            }
            if self.fill().await? == 0 {
                return Err(cut("between chunks"));
            }
        }
    }

    async fn trailers(&mut self) -> io::Result<()> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(end + 1);
                if line.as_ref() == b"\r\n" || line.as_ref() == b"\n" {
                    return Ok(());
                }
            } else if self.fill().await? == 0 {
                return Err(cut("in the trailers"));
            }
        }
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.link.write_all(bytes).await?;
        self.link.flush().await
    }
}

/// Where a head ends, counting its blank line; accepts bare line feeds, the fake is not a judge.
fn end_of_head(buffer: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    while let Some(next) = buffer[at..].iter().position(|byte| *byte == b'\n') {
        let end = at + next + 1;
        let line = &buffer[..end - 1];
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() || line.ends_with(b"\n") {
            return Some(end);
        }
        at = end;
    }
    None
}

fn cut(place: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        format!("the peer closed {place}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_end_of_a_head() {
        for (text, end) in [
            ("GET / HTTP/1.1\r\na: b\r\n\r\nrest", Some(24)),
            ("GET / HTTP/1.1\na: b\n\nrest", Some(21)),
            ("GET / HTTP/1.1\r\na: b\r\n", None),
            ("", None),
        ] {
            assert_eq!(end_of_head(text.as_bytes(), 0), end, "{text:?}");
        }
    }

    #[test]
    fn keeps_order_and_spelling() {
        let head = Head::parse(Bytes::from_static(
            b"POST /x HTTP/1.1\r\nB: 2\r\na:1 \r\n\r\n",
        ));
        assert_eq!(head.first_line, "POST /x HTTP/1.1");
        assert_eq!(
            head.fields,
            [
                ("B".to_owned(), "2".to_owned()),
                ("a".to_owned(), "1".to_owned())
            ]
        );
        assert_eq!(head.field("A"), Some("1"));
    }
}
