//! What answers say about the limits that run over hours and days: OpenAI's subscription windows in
//! `x-codex-*` headers, Anthropic's in `anthropic-ratelimit-unified-*`.

use std::time::{Duration, SystemTime};

use http::HeaderMap;

use super::LimitSource;
use super::retry_after::{number, seconds, text, until};

/// How far one of OpenAI's windows is used.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CodexWindow {
    /// Percent of it that is used.
    pub used_percent: Option<f64>,
    /// Until it begins anew, from the moment of the answer.
    pub resets_in: Option<Duration>,
    /// How long it is, minutes.
    pub minutes: Option<u64>,
}

impl CodexWindow {
    fn read(headers: &HeaderMap, which: &str, now: SystemTime) -> Self {
        let value = |what: &str| text(headers, &format!("x-codex-{which}-{what}")).and_then(number);
        CodexWindow {
            used_percent: value("used-percent"),
            // Newer answers give the moment instead of the distance.
            resets_in: value("reset-after-seconds")
                .and_then(seconds)
                .or_else(|| until(value("reset-at")?, now)),
            minutes: value("window-minutes").map(|minutes| minutes as u64),
        }
    }

    fn reset_if_exhausted(&self) -> Option<Duration> {
        self.used_percent.filter(|used| *used >= 100.0)?;
        self.future_reset()
    }

    fn future_reset(&self) -> Option<Duration> {
        self.resets_in.filter(|wait| !wait.is_zero())
    }
}

/// How far a subscription at OpenAI is used: the headers call the windows primary and secondary, which
/// is which is told by their lengths (SPEC 9.3).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CodexUsage {
    /// The short window, of five hours as a rule.
    pub five_hours: CodexWindow,
    /// The long window, of seven days as a rule.
    pub seven_days: CodexWindow,
}

/// A window no longer than this is the short one, minutes, where only one length is known.
const SHORT_MINUTES: u64 = 360;

impl CodexUsage {
    /// From the headers of any answer; empty windows where there are none.
    pub fn read(headers: &HeaderMap, now: SystemTime) -> CodexUsage {
        let primary = CodexWindow::read(headers, "primary", now);
        let secondary = CodexWindow::read(headers, "secondary", now);
        let primary_is_short = match (primary.minutes, secondary.minutes) {
            (Some(primary), Some(secondary)) => primary < secondary,
            (Some(primary), None) => primary <= SHORT_MINUTES,
            (None, Some(secondary)) => secondary > SHORT_MINUTES,
            (None, None) => false,
        };
        let (five_hours, seven_days) = match primary_is_short {
            true => (primary, secondary),
            false => (secondary, primary),
        };
        CodexUsage {
            five_hours,
            seven_days,
        }
    }

    /// When the window that is used up begins anew; the long one first.
    pub(super) fn exhausted(&self) -> Option<(Duration, LimitSource)> {
        let long = self.seven_days.reset_if_exhausted();
        let short = self.five_hours.reset_if_exhausted();
        long.map(|wait| (wait, LimitSource::CodexSevenDays))
            .or_else(|| short.map(|wait| (wait, LimitSource::CodexFiveHours)))
    }

    /// The later of the two resets.
    pub(super) fn later(&self) -> Option<(Duration, LimitSource)> {
        let resets = [
            self.five_hours.future_reset(),
            self.seven_days.future_reset(),
        ];
        let later = resets.into_iter().flatten().max()?;
        Some((later, LimitSource::CodexLater))
    }
}

/// When the limit of Anthropic's that a 429 is about ends, by its unified headers (SPEC 7.8). With
/// `only_exceeded`, windows that are not used up say nothing.
pub(super) fn anthropic_limit(
    headers: &HeaderMap,
    only_exceeded: bool,
    now: SystemTime,
) -> Option<(Duration, LimitSource)> {
    let value = |name: &str| text(headers, &format!("anthropic-ratelimit-unified-{name}"));
    let reset = |name: &str| until(number(value(name)?)?, now);
    let exceeded = |window: &str| {
        let surpassed = value(&format!("{window}-surpassed-threshold"))
            .is_some_and(|text| text.eq_ignore_ascii_case("true"));
        let used = value(&format!("{window}-utilization")).and_then(number);
        surpassed || used.is_some_and(|used| used >= 1.0)
    };
    let short = reset("5h-reset").map(|wait| (wait, LimitSource::AnthropicFiveHours));
    let long = reset("7d-reset").map(|wait| (wait, LimitSource::AnthropicSevenDays));
    let used_up = long
        .filter(|_| exceeded("7d"))
        .or_else(|| short.filter(|_| exceeded("5h")));
    if used_up.is_some() || only_exceeded {
        return used_up;
    }
    [short, long]
        .into_iter()
        .flatten()
        .min_by_key(|(wait, _)| *wait)
        .or_else(|| Some((reset("reset")?, LimitSource::AnthropicReset)))
}

/// Whether Anthropic's session window lets requests in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionStatus {
    /// Yes.
    Allowed,
    /// Yes, but not for long.
    AllowedWarning,
    /// No.
    Rejected,
}

impl SessionStatus {
    /// The provider's name for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            SessionStatus::Allowed => "allowed",
            SessionStatus::AllowedWarning => "allowed_warning",
            SessionStatus::Rejected => "rejected",
        }
    }
}

/// The window of five hours that an Anthropic subscription counts in (SPEC 7.9).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SessionWindow {
    /// Whether requests are let in.
    pub status: SessionStatus,
    /// From when to when, where the answer says it plausibly.
    pub span: Option<(SystemTime, SystemTime)>,
    /// Which part of it is used, 1 being all of it; it may be somewhat more.
    pub used: Option<f64>,
}

/// How long the session window is.
const SESSION: Duration = Duration::from_secs(5 * 60 * 60);

/// How far clocks may differ for a reset still to be believed.
const SKEW: Duration = Duration::from_secs(60 * 60);

impl SessionWindow {
    /// From the headers of any answer with this status; `None` where it says nothing. A 429 rejects
    /// whatever its headers call it.
    pub fn read(status: u16, headers: &HeaderMap, now: SystemTime) -> Option<SessionWindow> {
        let value = |name: &str| text(headers, &format!("anthropic-ratelimit-unified-5h-{name}"));
        let span = value("reset").and_then(number).and_then(|at| span(at, now));
        let status = match (status, value("status")) {
            (429, _) if span.is_some() => SessionStatus::Rejected,
            (_, Some("allowed_warning")) => SessionStatus::AllowedWarning,
            (_, Some(status)) if status.starts_with("allowed") => SessionStatus::Allowed,
            (_, Some("rejected")) => SessionStatus::Rejected,
            _ => return None,
        };
        let used = used(headers, "5h");
        Some(SessionWindow { status, span, used })
    }

    /// Whether a rate limit that stands against the account is over.
    pub fn clears_limit(&self) -> bool {
        self.status != SessionStatus::Rejected
    }
}

/// Which part of its seven days an Anthropic subscription has used, by the headers of any answer; 1 is all of it.
pub fn weekly_use(headers: &HeaderMap) -> Option<f64> {
    used(headers, "7d")
}

/// More of a window than this is used by nobody: it is another unit.
const MOST_USED: f64 = 10.0;

fn used(headers: &HeaderMap, window: &str) -> Option<f64> {
    let name = format!("anthropic-ratelimit-unified-{window}-utilization");
    let used = text(headers, &name).and_then(number)?;
    (used <= MOST_USED).then_some(used)
}

/// The window that ends at a Unix timestamp, in seconds or milliseconds.
fn span(at: f64, now: SystemTime) -> Option<(SystemTime, SystemTime)> {
    let earliest = now.checked_sub(SKEW)?;
    let left = until(at, earliest)?;
    if left > SKEW + SESSION + SKEW {
        return None;
    }
    let end = earliest + left;
    Some((end.checked_sub(SESSION)?, end))
}
