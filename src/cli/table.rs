//! Objects as a table or as JSON.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::Value;

use super::open::Failure;
use crate::domain::text::OneLine;

/// Writes to standard output; a reader that has enough (`| head`) is no failure.
pub fn write_out(text: &str) -> Result<(), Failure> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Prints `objects`: all their fields as JSON, or `columns` of them as a table.
pub fn list<T: Serialize>(objects: &[T], columns: &[&str], json: bool) -> Result<(), Failure> {
    if json {
        return write_out(&format!("{}\n", serde_json::to_string_pretty(objects)?));
    }
    write_out(&rows(objects.iter(), columns)?)
}

/// A table of `columns` of these objects' fields.
pub fn rows<'a, T: Serialize + 'a>(
    objects: impl Iterator<Item = &'a T>,
    columns: &[&str],
) -> Result<String, Failure> {
    let rows = objects
        .map(|object| {
            let value = serde_json::to_value(object)?;
            Ok(columns
                .iter()
                .map(|column| cell(value.get(*column).unwrap_or(&Value::Null)))
                .collect())
        })
        .collect::<Result<Vec<Vec<String>>, serde_json::Error>>()?;
    Ok(table(columns, &rows))
}

/// Prints one object: all its fields, as JSON or one a line.
pub fn show<T: Serialize>(object: &T, json: bool) -> Result<(), Failure> {
    let value = serde_json::to_value(object)?;
    if json {
        return write_out(&format!("{}\n", serde_json::to_string_pretty(&value)?));
    }
    let fields: Vec<(&String, &Value)> = value.as_object().into_iter().flatten().collect();
    write_out(&lines(&fields))
}

/// One field a line; of a list of objects one object a line.
fn lines(fields: &[(&String, &Value)]) -> String {
    let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let mut out = String::new();
    for (name, value) in fields {
        match value {
            Value::Array(items) if items.iter().any(Value::is_object) => {
                for (index, item) in items.iter().enumerate() {
                    let name = if index == 0 { name.as_str() } else { "" };
                    out.push_str(&format!("{name:width$}  {}\n", inline(item)));
                }
            }
            value => out.push_str(&format!("{name:width$}  {}\n", cell(value))),
        }
    }
    out
}

/// An object's fields on one line, those that are not set left out.
fn inline(object: &Value) -> String {
    let fields = object.as_object().into_iter().flatten();
    let given = fields.filter(|(_, value)| !value.is_null());
    let parts: Vec<String> = given
        .map(|(name, value)| format!("{name}: {}", cell(value)))
        .collect();
    parts.join(", ")
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => OneLine(text).to_string(),
        Value::Array(items) if items.is_empty() => "-".into(),
        Value::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join(","),
        Value::Object(fields) if fields.is_empty() => "-".into(),
        // JSON does not escape all of them.
        other => OneLine(&other.to_string()).to_string(),
    }
}

/// Columns aligned, numbers as they are.
pub fn table(columns: &[&str], rows: &[Vec<String>]) -> String {
    let widths: Vec<usize> = columns
        .iter()
        .enumerate()
        .map(|(i, column)| {
            rows.iter()
                .filter_map(|row| row.get(i))
                .map(|cell| cell.chars().count())
                .chain([column.len()])
                .max()
                .unwrap_or(0)
        })
        .collect();
    let line = |cells: &[String]| {
        let mut line = String::new();
        for (cell, width) in cells.iter().zip(&widths) {
            let padding = width.saturating_sub(cell.chars().count()) + 2;
            line.push_str(cell);
            line.push_str(&" ".repeat(padding));
        }
        format!("{}\n", line.trim_end())
    };
    let head: Vec<String> = columns.iter().map(|c| c.to_uppercase()).collect();
    let mut out = line(&head);
    for row in rows {
        out.push_str(&line(row));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_is_one_line_and_says_nothing_to_the_terminal() {
        for (value, shown) in [
            (serde_json::json!("a\nb\u{1b}[2J"), "a\\nb\\u{1b}[2J"),
            (serde_json::json!(["a", "\u{7f}"]), "a,\\u{7f}"),
            (
                serde_json::json!({"k": "\u{9b}\n"}),
                "{\"k\":\"\\u{9b}\\n\"}",
            ),
            (serde_json::json!("Zoë's \\ \"x\""), "Zoë's \\ \"x\""),
            (serde_json::json!(null), "-"),
        ] {
            assert_eq!(cell(&value), shown);
        }
    }

    #[test]
    fn a_list_of_objects_has_a_line_for_each() {
        let object = serde_json::json!({
            "name": "a",
            "conditions": [
                {"kind": "error", "model": null, "reason": "no\nmore"},
                {"kind": "failing", "status": 500},
            ],
            "groups": ["g", "h"],
        });
        let fields: Vec<_> = object.as_object().unwrap().iter().collect();
        let mut shown: Vec<String> = lines(&fields).lines().map(str::to_owned).collect();
        shown.sort();
        assert_eq!(
            shown,
            [
                "            kind: failing, status: 500",
                "conditions  kind: error, reason: no\\nmore",
                "groups      g,h",
                "name        a",
            ]
        );
    }

    #[test]
    fn columns_line_up() {
        let rows = vec![
            vec!["a".to_owned(), "10".to_owned()],
            vec!["longer".to_owned(), "2".to_owned()],
        ];
        assert_eq!(
            table(&["name", "n"], &rows),
            "NAME    N\na       10\nlonger  2\n"
        );
    }
}
