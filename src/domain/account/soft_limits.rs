//! Limits of an account that keep new work from it without its being at fault (SPEC 6.4): what its provider gives
//! for a window, how often it may be asked, how many conversations it carries. Options of `extra`; for accounts of
//! Anthropic's that prove themselves with a token.

use chrono::TimeDelta;

use crate::domain::Money;

/// What `rpm_strategy` may say.
pub const RPM_STRATEGIES: [&str; 2] = ["tiered", "sticky_exempt"];

/// Whom an account still serves that has reached its `base_rpm`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum RpmStrategy {
    /// Bound conversations, up to a buffer beyond it.
    #[default]
    Tiered,
    /// Bound conversations, always.
    StickyExempt,
}

/// The limits of one account.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SoftLimits {
    /// Cost at list price within the account's session window, above zero; `None` = no limit.
    pub window_cost: Option<Money>,
    /// Beyond it, what bound conversations may still cost.
    pub window_cost_sticky_reserve: Money,
    /// Requests a minute; 0 = no limit.
    pub base_rpm: u32,
    /// What is beyond that.
    pub rpm_strategy: RpmStrategy,
    /// Requests a minute beyond `base_rpm` for bound conversations; `None` = see [`SoftLimits::rpm_buffer`].
    pub rpm_sticky_buffer: Option<u32>,
    /// Conversations at once; 0 = no limit.
    pub max_sessions: u32,
    /// After so long without a request a conversation counts no more.
    pub session_idle: TimeDelta,
}

impl Default for SoftLimits {
    /// No limit; the reserve and the idle time of SPEC 6.4.
    fn default() -> SoftLimits {
        SoftLimits {
            window_cost: None,
            window_cost_sticky_reserve: Money::from_usd(10),
            base_rpm: 0,
            rpm_strategy: RpmStrategy::Tiered,
            rpm_sticky_buffer: None,
            max_sessions: 0,
            session_idle: TimeDelta::minutes(5),
        }
    }
}

impl SoftLimits {
    /// Whether there is any limit.
    pub fn is_limited(&self) -> bool {
        self.window_cost.is_some() || self.base_rpm > 0 || self.max_sessions > 0
    }

    /// Requests a minute beyond `base_rpm` that bound conversations may make: as given, else as many as the account
    /// has slots and conversations, but at least a fifth of `base_rpm` (SPEC 6.4).
    pub fn rpm_buffer(&self, concurrency: u32) -> u32 {
        self.rpm_sticky_buffer.unwrap_or_else(|| {
            concurrency
                .saturating_add(self.max_sessions)
                .max(self.base_rpm / 5)
                .max(1)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_buffer_follows_slots_and_conversations() {
        for (given, concurrency, max_sessions, base_rpm, buffer) in [
            (Some(0), 10, 10, 100, 0),
            (Some(7), 10, 10, 100, 7),
            (None, 3, 4, 10, 7),
            (None, 3, 4, 100, 20),
            (None, 0, 0, 4, 1),
            (None, u32::MAX, 1, 4, u32::MAX),
        ] {
            let limits = SoftLimits {
                base_rpm,
                max_sessions,
                rpm_sticky_buffer: given,
                ..SoftLimits::default()
            };
            assert_eq!(limits.rpm_buffer(concurrency), buffer, "{limits:?}");
        }
    }
}
