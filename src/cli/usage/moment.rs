//! Moments as people write them on the command line.

use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use chrono_tz::Tz;

use crate::domain::window::midnight;

/// A moment, before the present and the time zone are known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Moment {
    /// So long ago.
    Ago(TimeDelta),
    /// A whole day of the configured time zone.
    Day(NaiveDate),
    /// Exactly then.
    At(DateTime<Utc>),
}

impl Moment {
    /// Reads `30m`, `24h`, `7d`, `2w`, `2026-11-01` or `2026-11-01T00:00:00Z`.
    ///
    /// # Errors
    /// What to write instead.
    pub fn parse(text: &str) -> Result<Moment, String> {
        if let Ok(moment) = DateTime::parse_from_rfc3339(text) {
            return Ok(Moment::At(moment.with_timezone(&Utc)));
        }
        if let Ok(day) = NaiveDate::parse_from_str(text, "%Y-%m-%d") {
            return Ok(Moment::Day(day));
        }
        let wrong = || {
            "write a span such as 30m, 24h, 7d, a day such as 2026-11-01 \
             or a moment such as 2026-11-01T00:00:00Z"
        };
        let at = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let count: i64 = text[..at].parse().map_err(|_| wrong())?;
        let seconds = match &text[at..] {
            "s" => 1,
            "m" => 60,
            "h" => 3_600,
            "d" => 86_400,
            "w" => 604_800,
            _ => return Err(wrong().to_owned()),
        };
        count
            .checked_mul(seconds)
            .and_then(TimeDelta::try_seconds)
            // Further back than any clock goes.
            .filter(|span| Utc::now().checked_sub_signed(*span).is_some())
            .map(Moment::Ago)
            .ok_or_else(|| "that is too long ago".to_owned())
    }

    /// Where it begins.
    pub fn begin(self, now: DateTime<Utc>, tz: Tz) -> DateTime<Utc> {
        match self {
            Moment::Ago(span) => now - span,
            Moment::Day(day) => midnight(day, tz).unwrap_or(now),
            Moment::At(moment) => moment,
        }
    }

    /// Where it is over: of a day the next midnight.
    pub fn end(self, now: DateTime<Utc>, tz: Tz) -> DateTime<Utc> {
        match self {
            Moment::Day(day) => match day.succ_opt() {
                Some(next) => Moment::Day(next).begin(now, tz),
                None => now,
            },
            other => other.begin(now, tz),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_days_and_moments() {
        let at = |text: &str| text.parse::<DateTime<Utc>>().unwrap();
        let now = at("2026-11-25T12:00:00Z");
        let berlin = chrono_tz::Europe::Berlin;
        for (text, begin, end) in [
            ("90s", "2026-11-25T11:58:30Z", "2026-11-25T11:58:30Z"),
            ("30m", "2026-11-25T11:30:00Z", "2026-11-25T11:30:00Z"),
            ("24h", "2026-11-24T12:00:00Z", "2026-11-24T12:00:00Z"),
            ("7d", "2026-11-18T12:00:00Z", "2026-11-18T12:00:00Z"),
            ("2w", "2026-11-11T12:00:00Z", "2026-11-11T12:00:00Z"),
            ("2026-11-01", "2026-10-31T23:00:00Z", "2026-11-01T23:00:00Z"),
            // 25 hours.
            ("2026-10-25", "2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z"),
            (
                "2026-11-01T00:00:00+01:00",
                "2026-10-31T23:00:00Z",
                "2026-10-31T23:00:00Z",
            ),
        ] {
            let moment = Moment::parse(text).unwrap();
            assert_eq!(moment.begin(now, berlin), at(begin), "{text}");
            assert_eq!(moment.end(now, berlin), at(end), "{text}");
        }
        for wrong in ["", "24", "h", "1y", "-1h", "99999999999999d", "2026-13-01"] {
            assert!(Moment::parse(wrong).is_err(), "{wrong}");
        }
    }
}
