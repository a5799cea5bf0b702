//! The key with which a client calls us, as it stands in the request.
//!
//! For every path but Google's native ones, which look in other places. What is found here is only
//! a string: whose it is, and whether it may be used, is for the authentication room.

use http::HeaderMap;
use http::header::AUTHORIZATION;

/// Why a request carries no key that could be looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// The key stands in the URL, where every log on the way keeps it.
    #[error("the API key is in the query string")]
    InQuery,
    /// None of the headers holds a key.
    #[error("no API key")]
    Missing,
}

/// The headers that may hold a key by themselves, in the order in which they are asked.
const KEY_HEADERS: [&str; 2] = ["x-api-key", "x-goog-api-key"];

/// Finds the client's key: `Authorization: Bearer`, then `x-api-key`, then `x-goog-api-key`; the
/// first that is not empty wins. `query` is the part of the URL behind the question mark.
///
/// # Errors
/// [`CredentialError::InQuery`] when the query has a `key` or `api_key`, whatever the headers hold;
/// [`CredentialError::Missing`] when there is none at all.
pub fn client_key<'a>(
    headers: &'a HeaderMap,
    query: Option<&str>,
) -> Result<&'a str, CredentialError> {
    if query.is_some_and(names_a_key) {
        return Err(CredentialError::InQuery);
    }
    let bearer = values(headers, AUTHORIZATION.as_str()).filter_map(bearer_token);
    let plain = KEY_HEADERS.into_iter().flat_map(|h| values(headers, h));
    bearer
        .chain(plain)
        .find(|key| !key.is_empty())
        .ok_or(CredentialError::Missing)
}

/// The readable values of a header, trimmed. A value that is not visible ASCII cannot be a key of ours.
fn values<'a>(headers: &'a HeaderMap, name: &str) -> impl Iterator<Item = &'a str> {
    let readable = |v: &'a http::HeaderValue| v.to_str().ok().map(str::trim);
    headers.get_all(name).into_iter().filter_map(readable)
}

fn bearer_token(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once([' ', '\t'])?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Whether a non-empty `key` or `api_key` is among the parameters of a query.
fn names_a_key(query: &str) -> bool {
    query.split('&').any(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        !value.is_empty() && (spells(name, b"key") || spells(name, b"api_key"))
    })
}

/// Whether `written`, with its percent escapes undone, is `word`: an escaped key is as much in the
/// logs as a plain one.
fn spells(written: &str, word: &[u8]) -> bool {
    let mut rest = written.as_bytes();
    for &expected in word {
        let (byte, used) = match rest {
            [b'%', high, low, ..] => match (hex(*high), hex(*low)) {
                (Some(high), Some(low)) => (high * 16 + low, 3),
                _ => return false,
            },
            [byte, ..] => (*byte, 1),
            [] => return false,
        };
        if byte != expected {
            return false;
        }
        rest = &rest[used..];
    }
    rest.is_empty()
}

fn hex(digit: u8) -> Option<u8> {
    let value = char::from(digit).to_digit(16)?;
    u8::try_from(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue};
    use proptest::prelude::*;

    fn headers(pairs: &[(&'static str, &'static [u8])]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(
                HeaderName::from_static(name),
                HeaderValue::from_bytes(value).unwrap(),
            );
        }
        map
    }

    #[test]
    fn the_first_header_that_is_not_empty_wins() {
        use CredentialError::Missing;
        type Row = (
            &'static [(&'static str, &'static [u8])],
            Result<&'static str, CredentialError>,
        );
        #[rustfmt::skip]
        let rows: [Row; 20] = [
            (&[], Err(Missing)),
            (&[("authorization", b"Bearer tg-1")], Ok("tg-1")),
            (&[("authorization", b"bearer tg-1")], Ok("tg-1")),
            (&[("authorization", b"BEARER \t tg-1  ")], Ok("tg-1")),
            (&[("authorization", b"Bearer\ttg-1")], Ok("tg-1")),
            (&[("authorization", b"  Bearer tg-1")], Ok("tg-1")),
            (&[("authorization", b"Bearer")], Err(Missing)),
            (&[("authorization", b"Bearer   ")], Err(Missing)),
            (&[("authorization", b"Bearertg-1")], Err(Missing)),
            (&[("authorization", b"Basic dXNlcg==")], Err(Missing)),
            (&[("authorization", b"tg-1")], Err(Missing)),
            (&[("authorization", b"Bearer t\xc3\xa9")], Err(Missing)),
            (&[("x-api-key", b"tg-2")], Ok("tg-2")),
            (&[("x-api-key", b" tg-2 ")], Ok("tg-2")),
            (&[("x-goog-api-key", b"tg-3")], Ok("tg-3")),
            (&[("x-goog-api-key", b"tg-3"), ("x-api-key", b"tg-2"), ("authorization", b"Bearer tg-1")], Ok("tg-1")),
            (&[("x-goog-api-key", b"tg-3"), ("x-api-key", b"tg-2")], Ok("tg-2")),
            (&[("authorization", b"Bearer "), ("x-api-key", b""), ("x-goog-api-key", b"tg-3")], Ok("tg-3")),
            (&[("authorization", b"Basic x"), ("x-api-key", b"tg-2")], Ok("tg-2")),
            (&[("authorization", b"Bearer tg-1"), ("authorization", b"Bearer tg-4")], Ok("tg-1")),
        ];
        for (pairs, expected) in rows {
            assert_eq!(client_key(&headers(pairs), None), expected, "{pairs:?}");
        }
    }

    #[test]
    fn a_key_in_the_query_is_refused_even_beside_a_good_header() {
        let rows = [
            ("", false),
            ("key=", false),
            ("key", false),
            ("api_key=&x=1", false),
            ("monkey=1", false),
            ("Key=1", false),
            ("keys=1", false),
            ("%6=1", false),
            ("%=1", false),
            ("ke%zz=1", false),
            ("key=abc", true),
            ("api_key=abc", true),
            ("beta=true&key=abc", true),
            ("key=&api_key=abc", true),
            ("k%65y=abc", true),
            ("%6B%65%79=abc", true),
            ("api%5fkey=abc", true),
        ];
        let headers = headers(&[("authorization", b"Bearer tg-1")]);
        for (query, refused) in rows {
            let expected = match refused {
                true => Err(CredentialError::InQuery),
                false => Ok("tg-1"),
            };
            assert_eq!(client_key(&headers, Some(query)), expected, "{query}");
        }
    }

    proptest! {
        #[test]
        fn any_query_is_survived(query in ".{0,40}") {
            let headers = HeaderMap::new();
            prop_assert!(client_key(&headers, Some(&query)).is_err());
        }

        #[test]
        fn any_escaping_of_the_name_is_seen(escape in proptest::collection::vec(any::<bool>(), 7)) {
            let mut query = String::new();
            for (byte, escaped) in b"api_key".iter().zip(escape) {
                match escaped {
                    true => query.push_str(&format!("%{byte:02x}")),
                    false => query.push(char::from(*byte)),
                }
            }
            query.push_str("=x");
            let headers = HeaderMap::new();
            prop_assert_eq!(client_key(&headers, Some(&query)), Err(CredentialError::InQuery));
        }
    }
}
