//! `gateway:`, `concurrency:` and `scheduling:` as checked: time-outs, waits, weights.

use std::time::Duration;

use tollgate_filters::verdict::Cooldowns;

use super::beta::beta_policy;
use super::field::{Field, Table};
use super::{
    ConcurrencyConfig, GatewayConfig, InnerRetries, MessageQueueConfig, OnClientDisconnect,
    RepairsConfig, SchedulingConfig, SchedulingWeights,
};
use crate::domain::MessageQueueMode;

/// A dead account costs one attempt; ten of them in a row and the pool itself is in trouble.
const DEFAULT_ACCOUNT_SWITCHES: u32 = 10;
/// Gemini accounts fail together more often than apart.
const DEFAULT_ACCOUNT_SWITCHES_GEMINI: u32 = 3;
/// Bounds the work one request can make.
const MAX_ACCOUNT_SWITCHES: i128 = 100;
/// Across an ocean with a lost packet or two.
const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A reasoning model without a stream thinks for minutes before its header.
const DEFAULT_RESPONSE_HEADER_TIMEOUT: Duration = Duration::from_secs(600);
/// Providers ping their streams far more often than this.
const DEFAULT_STALL_TIMEOUT: Duration = Duration::from_secs(180);
/// Below the idle time-outs of the usual load balancers (60 s) and clients.
const DEFAULT_KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// Long enough for most answers to end by themselves.
const DEFAULT_DRAIN_TIMEOUT: Duration = Duration::from_secs(120);
/// Each is made once, and the answer before it was a refusal that no client can mend.
const DEFAULT_REPAIRS: RepairsConfig = RepairsConfig {
    signature: true,
    budget: true,
};

/// Between messages of users where they are queued: as long as a person takes at least, and where requests are many
/// what a hurried one does; longer than half a minute nobody is held up by others.
const DEFAULT_MESSAGE_QUEUE: MessageQueueConfig = MessageQueueConfig {
    mode: MessageQueueMode::Off,
    min_delay: Duration::from_millis(200),
    max_delay: Duration::from_millis(2000),
    wait: Duration::from_secs(30),
};

/// As the keep-alive: what a waiting client sees.
const DEFAULT_PING_INTERVAL: Duration = Duration::from_secs(10);
/// As long as people wait for a first sign of life.
const DEFAULT_USER_WAIT: Duration = Duration::from_secs(30);
/// As above.
const DEFAULT_ACCOUNT_WAIT: Duration = Duration::from_secs(30);
/// A warm prompt cache is worth a few seconds, not more.
const DEFAULT_STICKY_WAIT: Duration = Duration::from_secs(5);
/// Beyond it a newcomer would not get through within its wait anyway.
const DEFAULT_MAX_WAITING: u32 = 100;
/// A queue longer than this is a memory leak with a name.
const MAX_MAX_WAITING: i128 = 1_000_000;

/// Spreads the load without giving bad candidates a chance.
const DEFAULT_TOP_K: usize = 7;
/// More candidates than this are not a choice any more.
const MAX_TOP_K: i128 = 1000;
/// Prompt caches of the providers live for about an hour.
const DEFAULT_STICKY_TTL: Duration = Duration::from_secs(3600);
/// A month; every binding costs memory.
const MAX_STICKY_TTL_S: i128 = 30 * 24 * 3600;
/// Free slots count most, then errors, the queue and speed.
const DEFAULT_WEIGHTS: SchedulingWeights = SchedulingWeights {
    load: 1.0,
    queue: 0.7,
    error: 0.8,
    first_token: 0.5,
};

/// Nothing is waited for longer than a day.
const DAY_MS: i128 = 24 * 3600 * 1000;
/// Messages further apart than a minute would be a queue that nobody gets through.
const MAX_MESSAGE_DELAY_MS: i128 = 60_000;
/// Shorter pings would be a load of their own.
const MIN_PING_MS: i128 = 100;
/// Rarer pings keep nobody's connection open.
const MAX_PING_MS: i128 = 60_000;

pub(super) fn gateway(table: &Table<'_>) -> GatewayConfig {
    let cooldowns = super::check::section(table, "cooldowns", "gateway.cooldowns");
    let switches = |f: &Field<'_>| f.whole(0..=MAX_ACCOUNT_SWITCHES, "0 to 100");
    GatewayConfig {
        max_account_switches: table.or("max_account_switches", DEFAULT_ACCOUNT_SWITCHES, switches),
        max_account_switches_gemini: table.or(
            "max_account_switches_gemini",
            DEFAULT_ACCOUNT_SWITCHES_GEMINI,
            switches,
        ),
        connect_timeout: table.or("connect_timeout_ms", DEFAULT_CONNECT_TIMEOUT, positive_ms),
        response_header_timeout: table.or(
            "response_header_timeout_ms",
            DEFAULT_RESPONSE_HEADER_TIMEOUT,
            positive_ms,
        ),
        stall_timeout: table.or("stall_timeout_ms", DEFAULT_STALL_TIMEOUT, positive_ms),
        keepalive_interval: table.or(
            "keepalive_interval_ms",
            Some(DEFAULT_KEEPALIVE_INTERVAL),
            keepalive,
        ),
        drain_timeout: table.or("drain_timeout_ms", DEFAULT_DRAIN_TIMEOUT, positive_ms),
        on_client_disconnect: table.or("on_client_disconnect", OnClientDisconnect::Drain, |f| {
            f.choice(&[
                ("drain", OnClientDisconnect::Drain),
                ("abort", OnClientDisconnect::Abort),
            ])
        }),
        cooldowns: cooldowns.map_or_else(Cooldowns::default, |table| cooldowns_of(&table)),
        message_queue: super::check::section(
            table,
            "user_message_queue",
            "gateway.user_message_queue",
        )
        .map_or(DEFAULT_MESSAGE_QUEUE, |queue| message_queue(&queue)),
        beta_policy: table
            .or_null("beta_policy", beta_policy)
            .unwrap_or_default(),
        inner_retries: table.or("inner_retries", InnerRetries::Alone, |f| {
            f.choice(&[
                ("off", InnerRetries::Off),
                ("alone", InnerRetries::Alone),
                ("always", InnerRetries::Always),
            ])
        }),
        repairs: super::check::section(table, "repairs", "gateway.repairs")
            .map_or(DEFAULT_REPAIRS, |repairs| repairs_of(&repairs)),
    }
}

fn repairs_of(table: &Table<'_>) -> RepairsConfig {
    RepairsConfig {
        signature: table.or("signature", DEFAULT_REPAIRS.signature, Field::flag),
        budget: table.or("budget", DEFAULT_REPAIRS.budget, Field::flag),
    }
}

fn cooldowns_of(table: &Table<'_>) -> Cooldowns {
    let defaults = Cooldowns::default();
    let rest = |f: &Field<'_>| {
        const EXPECTED: &str = "0 (not left alone) to 604800000 milliseconds (a week)";
        milliseconds(f, 0..=7 * DAY_MS, EXPECTED)
    };
    Cooldowns {
        rate_limited: table.or("rate_limited_ms", defaults.rate_limited, rest),
        overloaded: table.or("overloaded_ms", defaults.overloaded, rest),
        unauthorized: table.or("unauthorized_ms", defaults.unauthorized, rest),
    }
}

fn message_queue(table: &Table<'_>) -> MessageQueueConfig {
    const DELAY: &str = "0 to 60000 milliseconds";
    let delay = |f: &Field<'_>| milliseconds(f, 0..=MAX_MESSAGE_DELAY_MS, DELAY);
    let queue = MessageQueueConfig {
        mode: table.or("mode", DEFAULT_MESSAGE_QUEUE.mode, |f| {
            f.choice(&MessageQueueMode::ALL.map(|mode| (mode.as_str(), mode)))
        }),
        min_delay: table.or("min_delay_ms", DEFAULT_MESSAGE_QUEUE.min_delay, delay),
        max_delay: table.or("max_delay_ms", DEFAULT_MESSAGE_QUEUE.max_delay, delay),
        wait: table.or("wait_ms", DEFAULT_MESSAGE_QUEUE.wait, wait_ms),
    };
    if queue.min_delay > queue.max_delay
        && let Some(field) = table
            .given("min_delay_ms")
            .or_else(|| table.given("max_delay_ms"))
    {
        field.bad(
            "min_delay_ms is longer than max_delay_ms",
            "min_delay_ms up to max_delay_ms",
        );
    }
    queue
}

pub(super) fn concurrency(table: &Table<'_>) -> ConcurrencyConfig {
    ConcurrencyConfig {
        ping_interval: table.or("ping_interval_ms", DEFAULT_PING_INTERVAL, |f| {
            milliseconds(f, MIN_PING_MS..=MAX_PING_MS, "100 to 60000 milliseconds")
        }),
        user_wait: table.or("user_wait_ms", DEFAULT_USER_WAIT, wait_ms),
        account_wait: table.or("account_wait_ms", DEFAULT_ACCOUNT_WAIT, wait_ms),
        sticky_wait: table.or("sticky_wait_ms", DEFAULT_STICKY_WAIT, wait_ms),
        max_waiting_per_account: table.or("max_waiting_per_account", DEFAULT_MAX_WAITING, |f| {
            f.whole(0..=MAX_MAX_WAITING, "0 (nobody waits) to 1000000")
        }),
    }
}

pub(super) fn scheduling(table: &Table<'_>) -> SchedulingConfig {
    SchedulingConfig {
        top_k: table.or("top_k", DEFAULT_TOP_K, |f| {
            f.whole(1..=MAX_TOP_K, "1 to 1000")
        }),
        sticky_ttl: table.or("sticky_ttl_s", DEFAULT_STICKY_TTL, |f| {
            f.whole(1..=MAX_STICKY_TTL_S, "1 to 2592000 seconds (30 days)")
                .map(Duration::from_secs)
        }),
        weights: super::check::section(table, "weights", "scheduling.weights")
            .map_or(DEFAULT_WEIGHTS, |weights| weights_of(&weights)),
    }
}

fn weights_of(table: &Table<'_>) -> SchedulingWeights {
    let weight = |f: &Field<'_>| f.ratio(0.0..=1000.0, "0 to 1000");
    SchedulingWeights {
        load: table.or("load", DEFAULT_WEIGHTS.load, weight),
        queue: table.or("queue", DEFAULT_WEIGHTS.queue, weight),
        error: table.or("error", DEFAULT_WEIGHTS.error, weight),
        first_token: table.or("first_token", DEFAULT_WEIGHTS.first_token, weight),
    }
}

pub(super) fn milliseconds(
    field: &Field<'_>,
    bounds: std::ops::RangeInclusive<i128>,
    expected: &str,
) -> Option<Duration> {
    field.whole(bounds, expected).map(Duration::from_millis)
}

fn positive_ms(field: &Field<'_>) -> Option<Duration> {
    milliseconds(field, 1..=DAY_MS, "1 to 86400000 milliseconds (a day)")
}

pub(super) fn wait_ms(field: &Field<'_>) -> Option<Duration> {
    milliseconds(
        field,
        0..=DAY_MS,
        "0 (answer at once) to 86400000 milliseconds (a day)",
    )
}

fn keepalive(field: &Field<'_>) -> Option<Option<Duration>> {
    const EXPECTED: &str = "0 (off), or 100 to 60000 milliseconds";
    let ms: u64 = field.whole(0..=MAX_PING_MS, EXPECTED)?;
    if ms == 0 {
        return Some(None);
    }
    milliseconds(field, MIN_PING_MS..=MAX_PING_MS, EXPECTED).map(Some)
}
