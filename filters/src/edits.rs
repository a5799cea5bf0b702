//! Changes to a request body as a list of edits on its bytes, so that everything else is sent as the client
//! wrote it, without a copy. One file per dialect says what is to be changed.

pub mod anthropic;

use std::ops::Range;

use bytes::{Bytes, BytesMut};

/// Most edits that are looked for in one body: each costs memory, more than the bytes it is about. No client
/// writes a request that needs as many.
pub(crate) const MOST_EDITS: usize = 65_536;

/// These bytes give way to others, or to nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edit {
    /// Where in the body they stand.
    pub span: Range<usize>,
    /// What stands there instead.
    pub text: Bytes,
}

/// Edits of one body: in order, none touching bytes of another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Edits(Vec<Edit>);

impl Edits {
    /// Whether the body stays as it is.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Forgets all but the first ones.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.0.truncate(len);
    }

    /// The edits, in the order of the body.
    pub fn iter(&self) -> impl Iterator<Item = &Edit> {
        self.0.iter()
    }

    /// Adds one, wherever in the body. One that would change bytes that another changes already is not taken.
    pub fn replace(&mut self, span: Range<usize>, text: impl Into<Bytes>) {
        let edit = Edit {
            span,
            text: text.into(),
        };
        if edit.span.is_empty() {
            return;
        }
        let at = match self.0.last() {
            Some(last) if last.span.end > edit.span.start => self
                .0
                .partition_point(|other| other.span.end <= edit.span.start),
            _ => self.0.len(),
        };
        let meets = |next: &Edit| next.span.start < edit.span.end;
        if !self.0.get(at).is_some_and(meets) {
            self.0.insert(at, edit);
        }
    }

    /// Adds the removal of these bytes.
    pub fn remove(&mut self, span: Range<usize>) {
        self.replace(span, Bytes::new());
    }

    /// Adds a plain text, quoted and escaped here, in place of each of these values, such as the model's name at
    /// [`crate::peek::Peek::model_spans`].
    pub fn string(&mut self, spans: &[Range<usize>], text: &str) {
        let quoted = Bytes::from(serde_json::Value::from(text).to_string());
        for span in spans {
            self.replace(span.clone(), quoted.clone());
        }
    }

    /// Adds a number in place of each of these values.
    pub fn number(&mut self, spans: &[Range<usize>], value: u64) {
        let digits = Bytes::from(value.to_string());
        for span in spans {
            self.replace(span.clone(), digits.clone());
        }
    }

    /// Adds all of another list, as far as the edits here leave room for it.
    pub fn extend(&mut self, other: &Edits) {
        for edit in other.iter() {
            self.replace(edit.span.clone(), edit.text.clone());
        }
    }

    /// The changed body, as pieces to be sent one after another; what is not changed is shared with `body`. An edit
    /// that leaves the body is ignored.
    pub fn pieces(&self, body: &Bytes) -> Vec<Bytes> {
        let mut pieces = Vec::with_capacity(self.0.len() * 2 + 1);
        let mut at = 0;
        for edit in &self.0 {
            if edit.span.end > body.len() {
                break;
            }
            if edit.span.start > at {
                pieces.push(body.slice(at..edit.span.start));
            }
            if !edit.text.is_empty() {
                pieces.push(edit.text.clone());
            }
            at = edit.span.end;
        }
        if at < body.len() {
            pieces.push(body.slice(at..));
        }
        pieces
    }

    /// The changed body in one piece: a copy, unless nothing is changed.
    pub fn joined(&self, body: &Bytes) -> Bytes {
        if self.is_empty() {
            return body.clone();
        }
        let pieces = self.pieces(body);
        let mut joined = BytesMut::with_capacity(pieces.iter().map(Bytes::len).sum());
        for piece in &pieces {
            joined.extend_from_slice(piece);
        }
        joined.freeze()
    }
}

/// Which bytes go when members of one JSON object or array do, their commas included: told every member in
/// order, it gives the ranges to be removed, in order too.
#[derive(Debug, Default)]
pub(crate) struct Members {
    /// One that stays has been seen.
    kept: bool,
    /// Where the member before ended.
    end: usize,
    /// Where the first of the removed members began, while none before them stays.
    pending: Option<usize>,
}

impl Members {
    /// The next member begins here. What is in it comes behind the range that is given.
    pub fn begin(&mut self, start: usize) -> Option<Range<usize>> {
        self.pending.take().map(|from| from..start)
    }

    /// The member that has begun ends here, and stays or not.
    pub fn end(&mut self, span: Range<usize>, keep: bool) -> Option<Range<usize>> {
        let before = std::mem::replace(&mut self.end, span.end);
        if keep {
            self.kept = true;
            return None;
        }
        if self.kept {
            return Some(before..span.end);
        }
        self.pending = Some(span.start);
        None
    }

    /// There is no other member.
    pub fn close(&mut self) -> Option<Range<usize>> {
        let end = self.end;
        self.pending.take().map(|from| from..end)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::json::Cursor;

    type List = &'static [(Range<usize>, &'static str)];

    fn edits(list: List) -> Edits {
        let mut edits = Edits::default();
        for (span, text) in list {
            edits.replace(span.clone(), *text);
        }
        edits
    }

    #[test]
    fn edits_in_any_order() {
        let body = Bytes::from_static(b"0123456789");
        #[rustfmt::skip]
        let rows: &[(List, &str)] = &[
            (&[], "0123456789"),
            (&[(0..1, "a")], "a123456789"),
            (&[(8..10, ""), (0..2, "")], "234567"),
            (&[(4..6, "x"), (2..4, "y"), (6..7, "z")], "01yxz789"),
            (&[(0..10, "")], ""),
            // What is changed already stays so, and nothing is inserted.
            (&[(2..6, "x"), (5..7, "y"), (0..3, "z"), (3..4, "w")], "01x6789"),
            (&[(3..3, "x")], "0123456789"),
            (&[(9..11, "x")], "0123456789"),
        ];
        for (list, expected) in rows {
            let edits = edits(list);
            assert_eq!(
                edits.pieces(&body).concat(),
                expected.as_bytes(),
                "{list:?}"
            );
            assert_eq!(edits.joined(&body), expected.as_bytes(), "{list:?}");
        }
    }

    #[test]
    fn lists_are_joined_and_values_written_as_json() {
        let body = Bytes::from_static(br#"{"model":"a","max_tokens":9,"model":"b"}"#);
        let mut all = Edits::default();
        all.number(std::slice::from_ref(&(26..27)), 4_096);
        let mut model = Edits::default();
        model.string(&[9..12, 36..39], "q\"");
        all.extend(&model);
        all.extend(&model);
        let expected = br#"{"model":"q\"","max_tokens":4096,"model":"q\""}"#;
        assert_eq!(all.joined(&body), expected.as_slice());
        assert_eq!(all.iter().count(), 3);
        assert!(!all.is_empty());
    }

    #[test]
    fn what_is_not_changed_is_not_copied() {
        let body = Bytes::from(vec![b'x'; 100]);
        let pieces = edits(&[(10..20, "")]).pieces(&body);
        assert_eq!(pieces[0].as_ptr(), body.as_ptr());
        assert_eq!(pieces[1].as_ptr(), body[20..].as_ptr());
        assert_eq!(Edits::default().joined(&body).as_ptr(), body.as_ptr());
    }

    proptest! {
        #[test]
        fn any_spans_are_survived(
            spans in prop::collection::vec((0usize..30, 0usize..30), 0..8), length in 0usize..25,
        ) {
            let body = Bytes::from(vec![b'x'; length]);
            let mut edits = Edits::default();
            for (a, b) in &spans {
                edits.replace(*a..*b, "y");
            }
            let mut end = 0;
            for edit in edits.iter() {
                prop_assert!(edit.span.start >= end && !edit.span.is_empty());
                end = edit.span.end;
            }
            let removed: usize = edits.iter().filter(|e| e.span.end <= length).map(|e| e.span.len()).sum();
            let added = edits.iter().filter(|e| e.span.end <= length).count();
            prop_assert_eq!(edits.joined(&body).len(), length - removed + added);
        }

        /// Whichever members go, the rest is what a tree without them is.
        #[test]
        fn members_leave_json_behind(keep in prop::collection::vec(any::<bool>(), 0..8), spaces: bool) {
            let comma = if spaces { " ,\n" } else { "," };
            let elements: Vec<_> = (0..keep.len()).map(|n| n.to_string()).collect();
            let body = Bytes::from(format!("[ {} ]", elements.join(comma)));
            let mut edits = Edits::default();
            let mut members = Members::default();
            let mut cursor = Cursor::new(&body);
            prop_assert_eq!(cursor.array(), Ok(true));
            let mut ranges = Vec::new();
            for keep in &keep {
                prop_assert_eq!(cursor.element(), Ok(true));
                let start = cursor.start();
                ranges.extend(members.begin(start));
                cursor.value().unwrap();
                ranges.extend(members.end(start..cursor.at(), *keep));
            }
            ranges.extend(members.close());
            prop_assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start));
            ranges.into_iter().for_each(|range| edits.remove(range));
            let left: Vec<usize> = serde_json::from_slice(&edits.joined(&body)).unwrap();
            let expected: Vec<usize> = (0..keep.len()).filter(|n| keep[*n]).collect();
            prop_assert_eq!(left, expected);
        }
    }
}
