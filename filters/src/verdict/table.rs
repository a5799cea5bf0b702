//! The table of statuses (SPEC 7.1, 7.6, 7.8, 15.3), before an account's own options are applied.

use std::time::{Duration, SystemTime};

use http::HeaderMap;

use super::message::Said;
use super::windows::{self, CodexUsage};
use super::{
    CredentialKind, Effect, Judge, LimitScope, LimitSource, Shape, Strike, Verdict, retry_after,
    words,
};

/// The OpenAI 403 rule (SPEC 15.3): a 403 comes from bot protection and the like as often as from a
/// decision about the account.
const STRIKE_WINDOW: Duration = Duration::from_secs(180 * 60);
const STRIKE_LIMIT: u32 = 3;
const STRIKE_LASTS: Duration = Duration::from_secs(10 * 60);

/// One answer, however it came.
pub(super) struct Answer<'a> {
    /// The status, or the one that would have been sent instead of a stream.
    pub status: u16,
    pub headers: &'a HeaderMap,
    pub said: &'a Said,
    /// After a status of 200, so that headers about limits are about the time before.
    pub in_stream: bool,
    pub now: SystemTime,
}

/// One row of the table.
pub(super) struct Row {
    pub verdict: Verdict,
    pub effect: Effect,
    /// A bad moment of the provider that is none of the account's.
    pub transient: bool,
}

impl Row {
    fn new(verdict: Verdict, effect: Effect) -> Row {
        Row {
            verdict,
            effect,
            transient: false,
        }
    }
}

impl Judge<'_> {
    /// The row of the table that an answer falls under.
    pub(super) fn row(&self, answer: &Answer<'_>) -> Row {
        use Verdict::{BadCredential, ClientFault, Failed, Overloaded};
        match answer.status {
            400 => self.bad_request(answer.said),
            401 => Row::new(BadCredential, self.unauthorized(answer.said)),
            402 => Row::new(BadCredential, payment_required(answer.said)),
            403 => Row::new(BadCredential, self.forbidden(answer)),
            429 => self.limited(answer),
            // About the way to the upstream or its moment rather than about the request.
            407 | 408 | 421 | 425 => Row::new(Failed, Effect::Failing),
            404..=499 => Row::new(ClientFault, Effect::None),
            529 => {
                let lasts = self.cooldowns.overloaded;
                let effect = match lasts.is_zero() {
                    true => Effect::None,
                    false => Effect::Overloaded { lasts },
                };
                Row::new(Overloaded, effect)
            }
            status @ 500.. if !answer.in_stream && self.custom_codes().is_some() => {
                let what = format!("Custom error code {status}");
                Row::new(Failed, error(&what, answer.said))
            }
            // Redirects among them: they are not followed.
            _ => Row::new(Failed, Effect::Failing),
        }
    }

    /// Most 400s are the client's; a few are the provider's bad moment, or about the account.
    fn bad_request(&self, said: &Said) -> Row {
        let Some(text) = said.text.as_deref() else {
            return Row::new(Verdict::ClientFault, Effect::None);
        };
        let text = words::without(text, self.echoed);
        if let Some(what) = self.accusation(&text) {
            return Row::new(
                Verdict::BadCredential,
                error(&format!("{what} (400)"), said),
            );
        }
        if self.shape == Shape::OpenAi && words::is_transient(&text) {
            return Row {
                transient: true,
                ..Row::new(Verdict::Failed, Effect::None)
            };
        }
        Row::new(Verdict::ClientFault, Effect::None)
    }

    /// What a text, in lower case, says of the account itself.
    fn accusation(&self, text: &str) -> Option<&'static str> {
        let accuses = |phrase: &str| words::accuses(text, phrase);
        if accuses("organization has been disabled") {
            Some("Organization disabled")
        } else if accuses("identity verification is required") {
            Some("Identity verification required")
        } else if self.shape == Shape::Anthropic && accuses("credit balance") {
            Some("Credit balance exhausted")
        } else {
            None
        }
    }

    fn unauthorized(&self, said: &Said) -> Effect {
        if self.shape == Shape::OpenAi {
            if said.is_any(&["token_invalidated", "token_revoked"]) {
                return error("Token revoked (401)", said);
            }
            if said.detail.as_deref() == Some("Unauthorized") {
                return error("Unauthorized (401)", said);
            }
        }
        match self.credential {
            CredentialKind::ApiKey => error("Authentication failed (401)", said),
            CredentialKind::OAuth if self.cooldowns.unauthorized.is_zero() => Effect::None,
            CredentialKind::OAuth => {
                let reason = said.explain("Token refused (401)");
                Effect::TempUnschedulable {
                    lasts: self.cooldowns.unauthorized,
                    reason,
                }
            }
        }
    }

    fn forbidden(&self, answer: &Answer<'_>) -> Effect {
        let said = answer.said;
        let what = "Access forbidden (403)";
        // A name that the client chose must not take account after account out.
        if said.is_any(&["model_not_found"]) {
            return Effect::None;
        }
        // A firewall before the upstream speaks, perhaps of what is in the request.
        if !said.is_error {
            return Effect::Failing;
        }
        match self.shape {
            // The account has just been let in: it is something about the request that it may not, unless the
            // words say otherwise.
            Shape::Anthropic if answer.in_stream => {
                let text = words::without(said.text.as_deref().unwrap_or_default(), self.echoed);
                match self.accusation(&text) {
                    Some(accusation) => error(&format!("{accusation} (403)"), said),
                    None => Effect::Failing,
                }
            }
            Shape::Anthropic => error(what, said),
            Shape::OpenAi => Effect::Strike(Strike {
                window: STRIKE_WINDOW,
                limit: STRIKE_LIMIT,
                lasts: STRIKE_LASTS,
                message: said.explain(what),
            }),
        }
    }

    /// SPEC 7.8, Change 11.
    fn limited(&self, answer: &Answer<'_>) -> Row {
        if self.is_too_large(answer.said) {
            // Another account's tier may have room for it.
            return Row::new(Verdict::Limited { retry_after: None }, Effect::None);
        }
        let known = match self.shape {
            Shape::OpenAi => openai_limit(answer),
            Shape::Anthropic => {
                windows::anthropic_limit(answer.headers, answer.in_stream, answer.now)
                    .or_else(|| from_retry_after(answer))
            }
        };
        let retry_after = known.map(|(lasts, _)| lasts);
        let lasts = known.or(match self.shape {
            Shape::OpenAi => Some((self.cooldowns.rate_limited, LimitSource::Setting)),
            // Without any information Anthropic's 429 is no real limit.
            Shape::Anthropic => None,
        });
        let effect = match lasts {
            Some((lasts, source)) if !lasts.is_zero() => Effect::RateLimited {
                lasts,
                source,
                scope: self.scope(answer.said, source),
            },
            _ => Effect::None,
        };
        Row::new(Verdict::Limited { retry_after }, effect)
    }

    /// Whether the request alone is more than the account's limit: no waiting helps, and the account has
    /// room for others.
    fn is_too_large(&self, said: &Said) -> bool {
        self.shape == Shape::OpenAi
            && said.is_any(&["rate_limit_exceeded"])
            && said.begins("request too large for ")
    }

    /// The rate limits of OpenAI's API are per model, and the message says so; those of subscriptions
    /// are not.
    fn scope(&self, said: &Said, source: LimitSource) -> LimitScope {
        let windows = matches!(
            source,
            LimitSource::CodexFiveHours | LimitSource::CodexSevenDays | LimitSource::CodexLater
        );
        let of_model = self.shape == Shape::OpenAi
            && self.credential == CredentialKind::ApiKey
            && !windows
            && said.is_any(&["rate_limit_exceeded"])
            && said.begins("rate limit reached for ");
        match of_model {
            true => LimitScope::Model,
            false => LimitScope::Account,
        }
    }
}

fn openai_limit(answer: &Answer<'_>) -> Option<(Duration, LimitSource)> {
    let windows = CodexUsage::read(answer.headers, answer.now);
    let by_window = match answer.in_stream {
        true => windows.exhausted(),
        false => windows.exhausted().or_else(|| windows.later()),
    };
    by_window
        .or_else(|| Some((answer.said.resets_in(answer.now)?, LimitSource::Body)))
        .or_else(|| from_retry_after(answer))
}

fn from_retry_after(answer: &Answer<'_>) -> Option<(Duration, LimitSource)> {
    let wait = retry_after::from_headers(answer.headers, answer.now)?;
    Some((wait, LimitSource::RetryAfter))
}

fn payment_required(said: &Said) -> Effect {
    match said.is_any(&["deactivated_workspace"]) {
        true => error("Workspace deactivated (402)", said),
        false => error("Payment required (402)", said),
    }
}

fn error(what: &str, said: &Said) -> Effect {
    Effect::Error {
        message: said.explain(what),
    }
}
