//! The record of one choice, for the debug log and the metrics.

use std::fmt;
use std::time::Duration;

use crate::domain::AccountId;

/// What decided.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Layer {
    /// The account that made the response which the request goes on from.
    PreviousResponse,
    /// The account that the conversation is bound to.
    Session,
    /// The account that is tried again.
    Again,
    /// Load, errors and speed, among the accounts that the group's routing names for the model.
    Routed,
    /// Load, errors and speed.
    Load,
}

impl Layer {
    /// All of them.
    pub const ALL: [Layer; 5] = [
        Layer::PreviousResponse,
        Layer::Session,
        Layer::Again,
        Layer::Routed,
        Layer::Load,
    ];

    /// The name in logs and metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Layer::PreviousResponse => "previous_response",
            Layer::Session => "session",
            Layer::Again => "again",
            Layer::Routed => "routed",
            Layer::Load => "load",
        }
    }
}

/// One choice.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Decision {
    /// What decided.
    pub layer: Layer,
    /// The response that the request goes on from is known.
    pub previous_hit: bool,
    /// The conversation was bound to an account.
    pub session_hit: bool,
    /// Accounts that were compared; 0 where nothing was.
    pub candidates: usize,
    /// They were a sample of their tier.
    pub sampled: bool,
    /// The weighted choice was among so many of them.
    pub top_k: usize,
    /// Standard deviation of their load rates, percent.
    pub skew: f64,
    /// The account.
    pub account: AccountId,
    /// Time it took to decide, without waiting for slots.
    pub took: Duration,
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "account {} by {}: previous_hit={} session_hit={} candidates={}{} top_k={} skew={:.1} took_us={}",
            self.account,
            self.layer.as_str(),
            self.previous_hit,
            self.session_hit,
            self.candidates,
            if self.sampled { " (sample)" } else { "" },
            self.top_k,
            self.skew,
            self.took.as_micros(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_as_one_line() {
        let decision = Decision {
            layer: Layer::Load,
            previous_hit: false,
            session_hit: true,
            candidates: 32,
            sampled: true,
            top_k: 7,
            skew: 12.345,
            account: AccountId(4),
            took: Duration::from_nanos(2_500),
        };
        assert_eq!(
            decision.to_string(),
            "account 4 by load: previous_hit=false session_hit=true candidates=32 (sample) \
             top_k=7 skew=12.3 took_us=2"
        );
        let names = Layer::ALL.map(Layer::as_str);
        let expected = ["previous_response", "session", "again", "routed", "load"];
        assert_eq!(names, expected);
    }
}
