//! What one upstream response means: served, the client's own mistake, or a reason to go elsewhere.
//!
//! A [`Judge`] reads a refusal, a failure inside a stream or the want of any answer (SPEC 7.1, 7.5, 7.6,
//! 7.8, 15.3). Its [`Reading`] says what is decided for the request ([`Verdict`]: may another account be
//! tried, does the client see the upstream's words) and what it means for the account ([`Effect`]). How
//! often to try, counting and remembering are the caller's.

mod effect;
mod message;
mod policy;
mod retry_after;
mod stream;
mod table;
mod too_long;
mod windows;
mod words;

pub use effect::{Effect, LimitScope, LimitSource, Strike};
pub use message::{LONGEST_REASON, is_anthropic_error, is_openai_error, upstream_message};
pub use policy::{ErrorPolicy, TempRule};
pub use retry_after::LONGEST_REST;
pub use too_long::is_prompt_too_long;
pub use windows::{CodexUsage, CodexWindow, SessionStatus, SessionWindow, weekly_use};

use std::time::{Duration, SystemTime};

use http::HeaderMap;

use crate::usage::Failure;

/// What is decided for the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The answer is good.
    Fine,
    /// The client's request is at fault on any account: its status and body are for the client.
    ClientFault,
    /// A status that the account's custom error codes do not list and that is not the client's own
    /// mistake: nothing is to come of it, and the client gets [`crate::reply::errors::upstream_gateway_error`].
    Unlisted,
    /// The account may not be used as it is: its credential, its payment, its permissions.
    BadCredential,
    /// The account has used up what it may use for now.
    Limited {
        /// How long, if the upstream said.
        retry_after: Option<Duration>,
    },
    /// The provider has more to do than it can.
    Overloaded,
    /// Anything else that went wrong at or before the upstream.
    Failed,
}

impl Verdict {
    /// Whether another account may do better.
    pub fn fails_over(&self) -> bool {
        match self {
            Verdict::Fine | Verdict::ClientFault | Verdict::Unlisted => false,
            Verdict::BadCredential
            | Verdict::Limited { .. }
            | Verdict::Overloaded
            | Verdict::Failed => true,
        }
    }

    /// A short name for logs and metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Verdict::Fine => "fine",
            Verdict::ClientFault => "client_fault",
            Verdict::Unlisted => "unlisted",
            Verdict::BadCredential => "bad_credential",
            Verdict::Limited { .. } => "limited",
            Verdict::Overloaded => "overloaded",
            Verdict::Failed => "failed",
        }
    }
}

/// Everything one upstream response says to us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// What is decided for the request.
    pub verdict: Verdict,
    /// What it means for the account.
    pub effect: Effect,
    /// The same account is tried again first, as often as [`ErrorPolicy::pool_mode_retry_count`] says;
    /// then another. Never together with an effect.
    pub retry_same: bool,
}

impl Reading {
    /// Nothing to say about the account.
    const fn only(verdict: Verdict) -> Self {
        Reading {
            verdict,
            effect: Effect::None,
            retry_same: false,
        }
    }
}

/// Whose way to write errors and limits an upstream has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// OpenAI and everything that imitates it.
    OpenAi,
    /// Anthropic.
    Anthropic,
}

/// What an account proves itself with, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CredentialKind {
    /// A provider's API key. Pool mode and custom error codes are for these accounts only.
    ApiKey,
    /// A token that can be renewed, or a set-up token: being refused may pass.
    OAuth,
}

/// For how long an account is left alone where the upstream does not say it. Nothing is done to it where that
/// is no time at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cooldowns {
    /// After a 429 without any information (SPEC 0, Change 11); not used for Anthropic, whose 429 of that
    /// kind is no real limit.
    pub rate_limited: Duration,
    /// After a 529 (SPEC 7.6).
    pub overloaded: Duration,
    /// After a 401 to a token that may be renewed (SPEC 7.6).
    pub unauthorized: Duration,
}

impl Default for Cooldowns {
    /// 30 s; 10 min; 10 min.
    fn default() -> Self {
        Cooldowns {
            rate_limited: Duration::from_secs(30),
            overloaded: Duration::from_secs(10 * 60),
            unauthorized: Duration::from_secs(10 * 60),
        }
    }
}

/// An upstream's answer with a status that is no success.
#[derive(Clone, Copy, Debug)]
pub struct Refusal<'a> {
    /// Its status.
    pub status: u16,
    /// Its headers.
    pub headers: &'a HeaderMap,
    /// Its body, as much as was read of it (at most 2 MiB).
    pub body: &'a [u8],
    /// When it came.
    pub now: SystemTime,
}

/// Reads what one account's upstream answers. Made for each attempt; costs nothing.
#[derive(Clone, Copy, Debug)]
pub struct Judge<'a> {
    /// How the upstream writes errors.
    pub shape: Shape,
    /// What the account proves itself with.
    pub credential: CredentialKind,
    /// What the account's options say about errors.
    pub policy: &'a ErrorPolicy,
    /// How long the account is left alone where the upstream does not say it.
    pub cooldowns: Cooldowns,
    /// Names that the request sent, such as its model, as the client and as the account call it: an
    /// upstream that repeats them does not say them.
    pub echoed: &'a [&'a str],
}

impl Judge<'_> {
    /// Reads an answer by its status, headers and body. A success is fine whatever it holds.
    pub fn refusal(&self, refusal: &Refusal<'_>) -> Reading {
        if (100..300).contains(&refusal.status) {
            return Reading::only(Verdict::Fine);
        }
        let said = message::Said::by_body(refusal.body);
        let row = self.row(&table::Answer {
            status: refusal.status,
            headers: refusal.headers,
            said: &said,
            in_stream: false,
            now: refusal.now,
        });
        let verdict = row.verdict;
        match (self.lists(refusal.status), verdict) {
            // Change 12 holds for every account.
            (false, Verdict::ClientFault) => Reading::only(Verdict::ClientFault),
            (false, _) => Reading::only(Verdict::Unlisted),
            (true, _) => self.apply(refusal.status, row, || match verdict {
                Verdict::ClientFault => self.own_words(&said),
                _ => words::of_body(refusal.body, self.echoed),
            }),
        }
    }

    /// Reads a failure that a stream reports before it has produced anything, after a status of 200;
    /// `headers` are those of that answer.
    pub fn stream_failure(
        &self,
        failure: &Failure,
        headers: &HeaderMap,
        now: SystemTime,
    ) -> Reading {
        let message = failure.message.as_deref();
        let heard = Failure {
            message: message.map(|text| words::without(text, self.echoed)),
            ..failure.clone()
        };
        let status = stream::equivalent_status(self.shape, &heard);
        let said = message::Said::by_failure(failure);
        let row = self.row(&table::Answer {
            status,
            headers,
            said: &said,
            in_stream: true,
            now,
        });
        let row = match self.lists(status) {
            true => row,
            // No status was sent that could be unlisted; it just means nothing for the account.
            false => table::Row {
                effect: Effect::None,
                ..row
            },
        };
        let verdict = row.verdict;
        self.apply(status, row, || match verdict {
            Verdict::ClientFault => self.own_words(&said),
            _ => stream::text(&heard).to_lowercase(),
        })
    }

    /// No answer: refused, reset, timed out, broken off before any output.
    pub fn transport_failure(&self) -> Reading {
        Reading {
            effect: Effect::Failing,
            ..Reading::only(Verdict::Failed)
        }
    }

    /// Whether a status means anything for the account.
    fn lists(&self, status: u16) -> bool {
        self.custom_codes()
            .is_none_or(|codes| codes.contains(&status))
    }

    fn custom_codes(&self) -> Option<&[u16]> {
        match self.credential {
            CredentialKind::ApiKey => self.policy.custom_error_codes.as_deref(),
            CredentialKind::OAuth => None,
        }
    }

    /// The upstream's own words of a message, in lower case.
    fn own_words(&self, said: &message::Said) -> String {
        let text = said.text.as_deref().unwrap_or_default();
        words::own(&words::without(text, self.echoed)).to_owned()
    }

    /// What the account's options make of a row of the table; `said` is what rules are matched with.
    fn apply(&self, status: u16, row: table::Row, said: impl FnOnce() -> String) -> Reading {
        let pool = self.policy.pool_mode && self.credential == CredentialKind::ApiKey;
        let (mut verdict, mut effect) = (row.verdict, row.effect);
        if pool && self.custom_codes().is_none() {
            effect = Effect::None;
        } else if status != 401
            && self.lists(status)
            && let Some(rule) = self.policy.rule_for(status, said)
        {
            effect = rule.effect();
            if !verdict.fails_over() {
                verdict = Verdict::Failed;
            }
        }
        let again = matches!(status, 401 | 403 | 429) || row.transient;
        Reading {
            retry_same: pool && again && effect == Effect::None,
            verdict,
            effect,
        }
    }
}
#[cfg(test)]
mod tests;
