//! Server-sent events as text: render a frame, and read a whole body back into events.
//! Deliberately naive and separate from Tollgate's own scanner, so that one can check the other.

use bytes::Bytes;

/// One event of a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The `event:` field, empty when there was none.
    pub name: String,
    /// The `data:` lines, joined by a line feed.
    pub data: String,
}

impl Event {
    /// The data as JSON, `Null` when it is none (`[DONE]`).
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.data).unwrap_or_default()
    }
}

/// `event: NAME`, `data: DATA` and the blank line.
pub fn frame(name: &str, data: &str) -> Bytes {
    Bytes::from(format!("event: {name}\ndata: {data}\n\n"))
}

/// A comment frame, such as a keep-alive.
pub fn comment(text: &str) -> Bytes {
    Bytes::from(format!(": {text}\n\n"))
}

/// Every event of a complete body; comments are left out.
pub fn events(body: &[u8]) -> Vec<Event> {
    let text = String::from_utf8_lossy(body).replace("\r\n", "\n");
    text.split("\n\n").filter_map(event).collect()
}

/// The text of every comment line (`:` keep-alives and pings) of a body.
pub fn comments(body: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(body)
        .lines()
        .filter_map(|line| line.strip_prefix(':'))
        .map(|text| text.trim().to_owned())
        .collect()
}

fn event(block: &str) -> Option<Event> {
    let field = |line: &str, name: &str| {
        let value = line.strip_prefix(name)?.strip_prefix(':')?;
        Some(value.strip_prefix(' ').unwrap_or(value).to_owned())
    };
    let data: Vec<_> = block.lines().filter_map(|l| field(l, "data")).collect();
    if data.is_empty() {
        return None;
    }
    Some(Event {
        name: block
            .lines()
            .filter_map(|line| field(line, "event"))
            .next_back()
            .unwrap_or_default(),
        data: data.join("\n"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_what_it_wrote() {
        let mut body = frame("a", "{\"x\":1}").to_vec();
        body.extend_from_slice(&comment("ping"));
        body.extend_from_slice(b"data: one\r\ndata:two\r\n\r\n");
        let seen = events(&body);
        assert_eq!(seen.len(), 2);
        assert_eq!(
            (seen[0].name.as_str(), &seen[0].json()["x"]),
            ("a", &1.into())
        );
        assert_eq!(seen[1].data, "one\ntwo");
        assert_eq!(comments(&body), ["ping"]);
    }
}
