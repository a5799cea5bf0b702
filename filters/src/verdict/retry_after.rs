//! How long a rate-limited upstream wants to be left alone.

use std::time::{Duration, SystemTime};

use http::HeaderMap;
use http::header::RETRY_AFTER;
use serde_json::Value;

/// The longest an upstream can take its account out for. The longest window of any provider is seven
/// days; what goes beyond that is nonsense, or malice of a relay.
pub const LONGEST_REST: Duration = Duration::from_secs(8 * 24 * 60 * 60);

/// Error types (or codes) whose error object may say when the limit ends.
const LIMIT_TYPES: [&str; 2] = ["usage_limit_reached", "rate_limit_exceeded"];

/// Timestamps above this are in milliseconds: as seconds they would lie beyond the year 5000.
const LARGEST_SECONDS: f64 = 1e11;

/// What an error object says about the end of a limit.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Resets {
    at: Option<f64>,
    in_seconds: Option<f64>,
}

impl Resets {
    /// Of the `error` object of a body; nothing if it is not about a limit.
    pub fn of(error: &Value) -> Resets {
        let is_limit = |field: &str| {
            let name = error.get(field).and_then(Value::as_str);
            name.is_some_and(|name| LIMIT_TYPES.contains(&name))
        };
        if !is_limit("type") && !is_limit("code") {
            return Resets::default();
        }
        let number = |field: &str| error.get(field).and_then(Value::as_f64);
        Resets {
            at: number("resets_at"),
            in_seconds: number("resets_in_seconds"),
        }
    }

    /// The wait it comes to: `resets_at`, else `resets_in_seconds`. A time that has passed already
    /// says nothing (clocks differ); a wait of zero does.
    pub fn wait(&self, now: SystemTime) -> Option<Duration> {
        self.at
            .and_then(|at| until(at, now))
            .or_else(|| self.in_seconds.and_then(seconds))
    }
}

/// The wait that headers ask for: `retry-after-ms`, else `Retry-After` in seconds or as a date.
pub(super) fn from_headers(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = |name: &str| text(headers, name);
    if let Some(wait) = text("retry-after-ms")
        .and_then(number)
        .and_then(|ms| seconds(ms / 1000.0))
    {
        return Some(wait);
    }
    let value = text(RETRY_AFTER.as_str())?;
    match number(value) {
        Some(wait) => seconds(wait),
        None => {
            let at = httpdate::parse_http_date(value).ok()?;
            let wait = at.duration_since(now).ok()?;
            (!wait.is_zero()).then(|| wait.min(LONGEST_REST))
        }
    }
}

/// The trimmed value of a header, if it is text.
pub(super) fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

/// A plain decimal number; `f64` would also take words such as "inf".
pub(super) fn number(text: &str) -> Option<f64> {
    let plain = text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    plain.then(|| text.parse().ok()).flatten()
}

pub(super) fn seconds(wait: f64) -> Option<Duration> {
    // Cut before the conversion, which fails beyond its range.
    Duration::try_from_secs_f64(wait.min(LONGEST_REST.as_secs_f64())).ok()
}

/// The time from `now` to a Unix timestamp in seconds or milliseconds.
pub(super) fn until(at: f64, now: SystemTime) -> Option<Duration> {
    let at = if at > LARGEST_SECONDS {
        at / 1000.0
    } else {
        at
    };
    let since_epoch = Duration::try_from_secs_f64(at).ok()?;
    let now = now.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    let wait = since_epoch.checked_sub(now)?;
    (!wait.is_zero()).then(|| wait.min(LONGEST_REST))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;

    /// Sun, 06 Nov 1994 08:49:37 GMT, the example date of RFC 9110.
    const NOW_S: u64 = 784_111_777;

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(NOW_S)
    }

    fn asked(pairs: &[(&'static str, &str)], body: &str) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        let error = serde_json::from_str::<Value>(body).unwrap_or_default();
        Resets::of(&error["error"])
            .wait(now())
            .or_else(|| from_headers(&headers, now()))
    }

    #[test]
    fn headers() {
        let ms = Duration::from_millis;
        type Pairs = &'static [(&'static str, &'static str)];
        #[rustfmt::skip]
        let rows: [(Pairs, Option<Duration>); 24] = [
            (&[], None),
            (&[("retry-after", "0")], Some(ms(0))),
            (&[("retry-after", "1")], Some(ms(1_000))),
            (&[("retry-after", " 30 ")], Some(ms(30_000))),
            (&[("retry-after", "1.5")], Some(ms(1_500))),
            (&[("retry-after", "99999999999999999999999")], Some(LONGEST_REST)),
            (&[("retry-after", "")], None),
            (&[("retry-after", ".")], None),
            (&[("retry-after", "-1")], None),
            (&[("retry-after", "+1")], None),
            (&[("retry-after", "inf")], None),
            (&[("retry-after", "1e9")], None),
            (&[("retry-after", "soon")], None),
            (&[("retry-after", "1 s")], None),
            (&[("retry-after", "\u{e9}")], None),
            (&[("retry-after", "Sun, 06 Nov 1994 08:50:07 GMT")], Some(ms(30_000))),
            (&[("retry-after", "Sunday, 06-Nov-94 08:50:07 GMT")], Some(ms(30_000))),
            (&[("retry-after", "Sun Nov  6 08:50:07 1994")], Some(ms(30_000))),
            (&[("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT")], None),
            (&[("retry-after", "Sun, 06 Nov 1994 08:49:36 GMT")], None),
            (&[("retry-after", "Fri, 31 Dec 9999 23:59:59 GMT")], Some(LONGEST_REST)),
            (&[("retry-after-ms", "1500"), ("retry-after", "2")], Some(ms(1_500))),
            (&[("retry-after-ms", "0.5")], Some(Duration::from_micros(500))),
            (&[("retry-after-ms", "x"), ("retry-after", "2")], Some(ms(2_000))),
        ];
        for (pairs, expected) in rows {
            assert_eq!(asked(pairs, ""), expected, "{pairs:?}");
        }
    }

    #[test]
    fn bodies() {
        let s = Duration::from_secs;
        let in_600 = NOW_S + 600;
        #[rustfmt::skip]
        let rows = [
            // The two types, and the same as codes, as public OpenAI answers have them.
            (format!(r#"{{"error":{{"type":"usage_limit_reached","resets_at":{in_600}}}}}"#), Some(s(600))),
            (format!(r#"{{"error":{{"type":"rate_limit_exceeded","resets_at":{in_600}}}}}"#), Some(s(600))),
            (format!(r#"{{"error":{{"type":"requests","code":"rate_limit_exceeded","resets_at":{in_600}}}}}"#), Some(s(600))),
            (r#"{"error":{"type":"usage_limit_reached","resets_in_seconds":77}}"#.into(), Some(s(77))),
            (r#"{"error":{"type":"rate_limit_exceeded","resets_in_seconds":0.5}}"#.into(), Some(Duration::from_millis(500))),
            (r#"{"error":{"type":"rate_limit_exceeded","resets_in_seconds":0}}"#.into(), Some(s(0))),
            // The timestamp first; one that has passed is none.
            (format!(r#"{{"error":{{"type":"usage_limit_reached","resets_at":{in_600},"resets_in_seconds":5}}}}"#), Some(s(600))),
            (format!(r#"{{"error":{{"type":"usage_limit_reached","resets_at":{NOW_S},"resets_in_seconds":5}}}}"#), Some(s(5))),
            (format!(r#"{{"error":{{"type":"usage_limit_reached","resets_at":{}}}}}"#, NOW_S - 1), Some(s(9))),
            (format!(r#"{{"error":{{"type":"usage_limit_reached","resets_at":{}}}}}"#, in_600 * 1000), Some(s(600))),
            (r#"{"error":{"type":"usage_limit_reached","resets_at":1e300}}"#.into(), Some(s(9))),
            (r#"{"error":{"type":"usage_limit_reached","resets_in_seconds":1e300}}"#.into(), Some(LONGEST_REST)),
            // What says nothing leaves the header to speak.
            (r#"{"error":{"type":"usage_limit_reached"}}"#.into(), Some(s(9))),
            (r#"{"error":{"type":"usage_limit_reached","resets_in_seconds":-1}}"#.into(), Some(s(9))),
            (r#"{"error":{"type":"usage_limit_reached","resets_in_seconds":null}}"#.into(), Some(s(9))),
            (r#"{"error":{"type":"usage_limit_reached","resets_at":"soon"}}"#.into(), Some(s(9))),
            (r#"{"error":{"type":"insufficient_quota","resets_in_seconds":77}}"#.into(), Some(s(9))),
            (r#"{"error":{"resets_in_seconds":77}}"#.into(), Some(s(9))),
            (r#"{"error":"rate_limit_exceeded","resets_in_seconds":77}"#.into(), Some(s(9))),
            (r#"{"error":{"type":"usage_limit_reached","resets_in_seconds":77}"#.into(), Some(s(9))),
            ("<html>".into(), Some(s(9))),
            (String::new(), Some(s(9))),
        ];
        for (body, expected) in rows {
            assert_eq!(asked(&[("retry-after", "9")], &body), expected, "{body}");
        }
    }

    proptest! {
        #[test]
        fn no_wait_is_longer_than_the_longest(value in "[0-9.]{1,30}", resets in any::<f64>()) {
            let body = serde_json::json!({"error": {
                "type": "rate_limit_exceeded", "resets_at": resets, "resets_in_seconds": resets,
            }});
            for body in [String::new(), body.to_string()] {
                let wait = asked(&[("retry-after", &value), ("retry-after-ms", &value)], &body);
                prop_assert!(wait.is_none_or(|wait| wait <= LONGEST_REST));
            }
        }
    }
}
