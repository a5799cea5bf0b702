//! Objects as comma-separated values (RFC 4180, with plain line feeds): all their fields.

use serde::Serialize;
use serde_json::Value;

use super::open::Failure;
use super::table::write_out;
use crate::domain::Money;

/// The line with the names of the fields.
pub fn header(columns: &[&str]) -> Result<(), Failure> {
    write_out(&line(columns.iter().map(|name| (*name).to_owned())))
}

/// A line for each object, with the values of `columns`.
pub fn rows<T: Serialize>(objects: &[T], columns: &[&str]) -> Result<(), Failure> {
    let mut out = String::new();
    for object in objects {
        let object = serde_json::to_value(object)?;
        out.push_str(&line(columns.iter().map(|name| cell(object.get(*name)))));
    }
    write_out(&out)
}

fn line(cells: impl Iterator<Item = String>) -> String {
    let mut line = cells.collect::<Vec<_>>().join(",");
    line.push('\n');
    line
}

/// What is not there is empty; lists and objects are JSON.
fn cell(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => quoted(&harmless(text)),
        Some(Value::Array(items)) if items.is_empty() => String::new(),
        Some(other) => quoted(&other.to_string()),
    }
}

/// Spreadsheets calculate what begins like a formula, and clients choose names of models and more: an
/// apostrophe makes it a text. Amounts stay numbers.
fn harmless(text: &str) -> String {
    let formula = text.starts_with(['=', '+', '-', '@', '\t', '\r']);
    if formula && text.parse::<Money>().is_err() {
        return format!("'{text}");
    }
    text.to_owned()
}

fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) {
        return format!("\"{}\"", text.replace('"', "\"\""));
    }
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn cells_are_quoted_where_they_must_be_and_calculate_nothing() {
        for (value, expected) in [
            (json!("plain text"), "plain text"),
            (json!("a,b"), "\"a,b\""),
            (json!("say \"hi\""), "\"say \"\"hi\"\"\""),
            (json!("two\nlines"), "\"two\nlines\""),
            (json!("cr\r"), "\"cr\r\""),
            (json!("0.0000855"), "0.0000855"),
            (json!("-0.5"), "-0.5"),
            (json!("=1+1"), "'=1+1"),
            (
                json!("=HYPERLINK(\"x\",\"y\")"),
                "\"'=HYPERLINK(\"\"x\"\",\"\"y\"\")\"",
            ),
            (json!("@a"), "'@a"),
            (json!("-x"), "'-x"),
            (json!(12), "12"),
            (json!(true), "true"),
            (json!(null), ""),
            (json!([]), ""),
            (
                json!([{"a": 1, "b": "c"}]),
                "\"[{\"\"a\"\":1,\"\"b\"\":\"\"c\"\"}]\"",
            ),
        ] {
            assert_eq!(cell(Some(&value)), expected, "{value}");
        }
        assert_eq!(cell(None), "");
    }

    #[test]
    fn cells_make_a_line() {
        assert_eq!(line(["a".to_owned(), String::new()].into_iter()), "a,\n");
    }
}
