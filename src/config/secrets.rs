//! Secrets as written: the text itself, `${ENV_NAME}` or `file:/path`.

use std::io::Read;

use super::field::Field;
use crate::domain::Secret;

/// Largest file a secret is read from, bytes; a wrong path should not fill the memory.
const MAX_SECRET_FILE_BYTES: u64 = 64 * 1024;
/// Fewest characters of a secret that is all that stands between us and the world: sixteen random
/// ones are beyond guessing.
pub(super) const MIN_SECRET_CHARS: usize = 16;

/// Reads a secret; messages never repeat its value.
pub(super) fn secret(field: &Field<'_>, expected: &str) -> Option<Secret> {
    let field = field.clone().secretly();
    let text = field.text(expected)?;
    let text = if let Some(path) = text.strip_prefix("file:") {
        from_file(&field, path)?
    } else if let Some(name) = text.strip_prefix("${").and_then(|t| t.strip_suffix('}')) {
        match field.env(name) {
            Some(value) => value.to_string(),
            None => {
                field.bad(
                    format!("environment variable {name} is not set"),
                    "the name of one that is",
                );
                return None;
            }
        }
    } else if text.contains("${") {
        field.bad(
            "`${` inside a secret",
            "`${ENV_NAME}` as the whole value, or the secret in a file (`file:/path`)",
        );
        return None;
    } else {
        text.to_string()
    };
    if text.is_empty() {
        field.bad("empty", expected);
        return None;
    }
    Some(Secret::new(text))
}

/// Reads a secret that people might be tempted to make short.
pub(super) fn long_secret(field: &Field<'_>) -> Option<Secret> {
    const EXPECTED: &str = "at least 16 characters, `${ENV_NAME}` or `file:/path`";
    let secret = secret(field, EXPECTED)?;
    if secret.expose().chars().count() < MIN_SECRET_CHARS {
        field.clone().secretly().bad("too short", EXPECTED);
        return None;
    }
    Some(secret)
}

fn from_file(field: &Field<'_>, path: &str) -> Option<String> {
    let path = field.resolve(path.strip_prefix("//").unwrap_or(path));
    let mut text = String::new();
    let read = std::fs::File::open(&path).and_then(|file| {
        file.take(MAX_SECRET_FILE_BYTES + 1)
            .read_to_string(&mut text)
    });
    match read {
        Ok(length) if length as u64 > MAX_SECRET_FILE_BYTES => {
            field.bad(
                format!("{} is larger than a secret", path.display()),
                "a file of at most 64 KiB",
            );
            None
        }
        // An editor's newline at the end is not part of the secret.
        Ok(_) => Some(text.trim_end_matches(['\r', '\n']).to_string()),
        Err(error) => {
            field.bad(
                format!("{} cannot be read: {error}", path.display()),
                "a readable file that holds the secret",
            );
            None
        }
    }
}
