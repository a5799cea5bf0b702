//! Configuration as written: files read into trees, and the environment laid over them.

use std::io::Read;
use std::path::{Path, PathBuf};

use super::mistakes::Mistake;
use super::node::Node;

/// One file as written.
#[derive(Debug)]
pub(super) struct Input {
    /// As the operator called it.
    pub(super) name: String,
    /// Its folder, absolute; the working directory for standard input.
    pub(super) base: PathBuf,
    /// Its text, to find lines again.
    pub(super) text: String,
    /// Its documents, up to the first syntax error.
    pub(super) documents: Vec<Node>,
}

impl Input {
    /// Reads a YAML file. `None` = it could not be read at all; a syntax error leaves the
    /// documents before it.
    pub(super) fn read(path: &Path, mistakes: &mut Vec<Mistake>) -> Option<Input> {
        let name = path.display().to_string();
        let text = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) => {
                mistakes.push(unreadable(name, &error));
                return None;
            }
        };
        let base = std::path::absolute(path)
            .ok()
            .and_then(|p| p.parent().map(Path::to_path_buf))
            .unwrap_or_default();
        Input::parse(name, base, text, mistakes)
    }

    /// Reads standard input to its end.
    pub(super) fn read_stdin(base: PathBuf, mistakes: &mut Vec<Mistake>) -> Option<Input> {
        let name = "standard input".to_string();
        let mut bytes = Vec::new();
        if let Err(error) = std::io::stdin().lock().read_to_end(&mut bytes) {
            mistakes.push(unreadable(name, &error));
            return None;
        }
        Input::parse(name, base, bytes, mistakes)
    }

    /// Makes an input of the bytes of a file.
    pub(super) fn parse(
        name: String,
        base: PathBuf,
        bytes: Vec<u8>,
        mistakes: &mut Vec<Mistake>,
    ) -> Option<Input> {
        let text = match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => {
                let good = error.utf8_error().valid_up_to();
                let line = error.as_bytes()[..good]
                    .iter()
                    .filter(|b| **b == b'\n')
                    .count()
                    + 1;
                mistakes.push(Mistake {
                    place: format!("{name}:{line}"),
                    value: None,
                    problem: "not a text in UTF-8".into(),
                    expected: "a YAML file".into(),
                });
                return None;
            }
        };
        let (documents, error) = Node::from_yaml(&text);
        if let Some(error) = error {
            let place = match error.line_and_column {
                Some((line, column)) => format!("{name}:{line}:{column}"),
                None => name.clone(),
            };
            mistakes.push(Mistake {
                place,
                value: None,
                problem: format!("not valid YAML: {}", error.message),
                expected: String::new(),
            });
        }
        Some(Input {
            name,
            base,
            text,
            documents,
        })
    }
}

fn unreadable(name: String, error: &std::io::Error) -> Mistake {
    Mistake {
        place: name,
        value: None,
        problem: format!("cannot be read: {error}"),
        expected: "a readable YAML file".into(),
    }
}

/// Puts a value at a key path, in place of what the file says there. Sections on the way are made;
/// where the file has something else than a section nothing is put: that is a mistake already.
pub(super) fn put(root: &mut Node, path: &str, value: Node) {
    let mut node = root;
    let mut rest = path;
    loop {
        if *node == Node::Null {
            *node = Node::Map(Vec::new());
        }
        let Node::Map(entries) = node else { return };
        let (name, deeper) = match rest.split_once('.') {
            Some((name, deeper)) => (name, Some(deeper)),
            None => (rest, None),
        };
        match deeper {
            None => {
                entries.retain(|(key, _)| key != name);
                entries.push((name.to_string(), value));
                return;
            }
            Some(deeper) => {
                let index = entries.iter().position(|(key, _)| key == name);
                let index = index.unwrap_or_else(|| {
                    entries.push((name.to_string(), Node::Null));
                    entries.len() - 1
                });
                node = &mut entries[index].1;
                rest = deeper;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_put_where_its_path_says() {
        let (mut documents, _) = Node::from_yaml("a: 1\nb: {c: 2, c: 3, d: 4}\ne: [1]\nf:\n");
        let root = &mut documents[0];
        for path in ["a", "b.c", "e.x", "f.g.h", "new.key"] {
            put(root, path, Node::Text(path.into()));
        }
        assert_eq!(
            root.to_json(),
            serde_json::json!({
                "a": "a", "b": {"c": "b.c", "d": 4}, "e": [1],
                "f": {"g": {"h": "f.g.h"}}, "new": {"key": "new.key"},
            })
        );
    }

    #[test]
    fn files_that_cannot_be_read_say_why() {
        let mut mistakes = Vec::new();
        assert!(Input::read(Path::new("/nowhere/x.yaml"), &mut mistakes).is_none());
        assert!(
            Input::parse(
                "f".into(),
                "/".into(),
                b"a: 1\nb: \xff".to_vec(),
                &mut mistakes
            )
            .is_none()
        );
        let input = Input::parse(
            "f".into(),
            "/".into(),
            b"a: 1\n b: 2\n".to_vec(),
            &mut mistakes,
        );
        assert!(input.unwrap().documents.is_empty());
        assert!(
            mistakes[0].problem.contains("No such file"),
            "{}",
            mistakes[0]
        );
        assert_eq!(mistakes[1].place, "f:2");
        assert!(
            mistakes[2]
                .to_string()
                .starts_with("f:2:3: not valid YAML: "),
            "{}",
            mistakes[2]
        );
    }
}
