//! How messages of users follow each other at one account (SPEC 9.7): which accounts queue them, and how far they
//! keep apart.

use std::time::Duration;

use crate::config::MessageQueueConfig;
use crate::domain::{AccountType, Habits, MessageQueueMode, Platform};

/// Up to this share of an account's requests a minute messages may follow each other closely …
const CALM: f64 = 0.5;
/// … and from this one on they keep as far apart as they ever do.
const BUSY: f64 = 0.8;
/// Share by which a distance is longer or shorter than planned, so that messages do not come like clockwork.
const JITTER: f64 = 0.15;

/// How messages go to an account: those of Anthropic's that prove themselves with a token queue them as they say, or as
/// the configuration does; others never do.
pub fn mode(
    platform: Platform,
    account_type: AccountType,
    habits: Habits,
    config: &MessageQueueConfig,
) -> MessageQueueMode {
    match (platform, account_type) {
        (Platform::Anthropic, AccountType::Oauth | AccountType::SetupToken) => {
            habits.message_queue.unwrap_or(config.mode)
        }
        _ => MessageQueueMode::Off,
    }
}

/// How long after the last message of an account the next one may go that has served `requests` in this minute, of
/// `base_rpm` (0 = without a limit). `chance` is any number; the delay it makes is between the configured bounds.
pub fn gap(config: &MessageQueueConfig, requests: u32, base_rpm: u32, chance: u64) -> Duration {
    let (min, max) = (config.min_delay, config.max_delay.max(config.min_delay));
    let used = match base_rpm {
        0 => 0.0,
        base => f64::from(requests) / f64::from(base),
    };
    let reach = ((used - CALM) / (BUSY - CALM)).clamp(0.0, 1.0);
    let planned = min + (max - min).mul_f64(reach);
    // The upper 53 bits, as a number from 0 to 1, without it.
    let uniform = (chance >> 11) as f64 / (1_u64 << 53) as f64;
    planned
        .mul_f64(1.0 + JITTER * (2.0 * uniform - 1.0))
        .clamp(min, max)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Of which there is no jitter.
    const MIDDLE: u64 = 1 << 63;

    fn config(min_ms: u64, max_ms: u64) -> MessageQueueConfig {
        MessageQueueConfig {
            mode: MessageQueueMode::Off,
            min_delay: Duration::from_millis(min_ms),
            max_delay: Duration::from_millis(max_ms),
            wait: Duration::from_secs(30),
        }
    }

    #[test]
    fn the_nearer_an_account_is_to_its_limit_the_longer_the_gap() {
        for (requests, base_rpm, ms) in [
            (0, 0, 200),
            (1_000_000, 0, 200),
            (0, 100, 200),
            (50, 100, 200),
            (65, 100, 1100),
            (80, 100, 2000),
            (81, 100, 2000),
            (4_000_000_000, 1, 2000),
            (1, 1, 2000),
        ] {
            let got = gap(&config(200, 2000), requests, base_rpm, MIDDLE);
            let millis = got.as_secs_f64() * 1000.0;
            assert!(
                (millis - f64::from(ms)).abs() < 0.001,
                "{requests} of {base_rpm}: {got:?}"
            );
        }
    }

    #[test]
    fn jitter_is_some_part_of_it_within_the_bounds() {
        let of = |requests, chance| gap(&config(200, 2000), requests, 100, chance).as_millis();
        // Half way, in either direction.
        assert_eq!((of(65, 0), of(65, u64::MAX)), (935, 1265));
        // At the bounds, in one.
        assert_eq!((of(0, 0), of(0, u64::MAX)), (200, 230));
        assert_eq!((of(99, 0), of(99, u64::MAX)), (1700, 2000));
    }

    proptest! {
        #[test]
        fn a_gap_is_within_the_bounds_and_grows_with_the_load(
            min in 0_u64..60_000, more in 0_u64..60_000,
            requests: u32, further in 0_u32..1000, base_rpm: u32, chance: u64,
        ) {
            let config = config(min, min + more);
            let got = gap(&config, requests, base_rpm, chance);
            prop_assert!(got >= config.min_delay && got <= config.max_delay);
            let busier = gap(&config, requests.saturating_add(further), base_rpm, chance);
            prop_assert!(busier >= got);
        }
    }

    #[test]
    fn only_tokens_of_anthropics_queue_messages() {
        use AccountType::{ApiKey, Oauth, SetupToken, Upstream};
        use MessageQueueMode::{Off, Serialize, Throttle};
        let queue = |mode| MessageQueueConfig {
            mode,
            ..config(0, 0)
        };
        for (platform, kind, own, general, expected) in [
            (Platform::Anthropic, Oauth, None, Serialize, Serialize),
            (Platform::Anthropic, SetupToken, None, Throttle, Throttle),
            (Platform::Anthropic, Oauth, None, Off, Off),
            (Platform::Anthropic, Oauth, Some(Off), Serialize, Off),
            (
                Platform::Anthropic,
                SetupToken,
                Some(Throttle),
                Off,
                Throttle,
            ),
            (Platform::Anthropic, ApiKey, Some(Serialize), Serialize, Off),
            (Platform::OpenAi, Oauth, Some(Serialize), Serialize, Off),
            (
                Platform::Antigravity,
                Upstream,
                Some(Serialize),
                Serialize,
                Off,
            ),
        ] {
            let habits = Habits {
                message_queue: own,
                ..Habits::default()
            };
            let got = mode(platform, kind, habits, &queue(general));
            assert_eq!(got, expected, "{platform} {kind:?} {own:?}");
        }
    }
}
