//! The names of the configuration's keys, in one list: what a file may say, what an environment
//! variable may be called, and what a misspelt one was probably meant to be.

/// Every key of the configuration, in the order of conf/tollgate.yaml.
pub(super) const KEYS: &[&str] = &[
    "server.listen",
    "server.h2c",
    "server.threads",
    "server.max_body_bytes",
    "server.max_inflight_body_bytes",
    "server.trusted_proxies",
    "admin.listen",
    "admin.token",
    "data_dir",
    "database.url",
    "redis.url",
    "gateway.max_account_switches",
    "gateway.max_account_switches_gemini",
    "gateway.connect_timeout_ms",
    "gateway.response_header_timeout_ms",
    "gateway.stall_timeout_ms",
    "gateway.keepalive_interval_ms",
    "gateway.drain_timeout_ms",
    "gateway.on_client_disconnect",
    "gateway.cooldowns.rate_limited_ms",
    "gateway.cooldowns.overloaded_ms",
    "gateway.cooldowns.unauthorized_ms",
    "gateway.user_message_queue.mode",
    "gateway.user_message_queue.min_delay_ms",
    "gateway.user_message_queue.max_delay_ms",
    "gateway.user_message_queue.wait_ms",
    "gateway.beta_policy",
    "gateway.inner_retries",
    "gateway.repairs.signature",
    "gateway.repairs.budget",
    "concurrency.ping_interval_ms",
    "concurrency.user_wait_ms",
    "concurrency.account_wait_ms",
    "concurrency.sticky_wait_ms",
    "concurrency.max_waiting_per_account",
    "scheduling.top_k",
    "scheduling.sticky_ttl_s",
    "scheduling.weights.load",
    "scheduling.weights.queue",
    "scheduling.weights.error",
    "scheduling.weights.first_token",
    "billing.mode",
    "billing.reservation",
    "billing.prices",
    "billing.default_rate_multiplier",
    "billing.reserve_output_tokens",
    "billing.strict_output",
    "billing.wait_ms",
    "billing.journal.segment_bytes",
    "billing.journal.sync_interval_ms",
    "timezone",
    "security.secret",
    "logging.format",
    "logging.level",
];

/// Keys whose value is a list; an environment variable writes it as JSON.
pub(super) const LIST_KEYS: &[&str] = &[
    "server.listen",
    "server.trusted_proxies",
    "gateway.beta_policy",
];

/// Whether `path` is a section: a map with keys of its own. The top (`""`) is one.
pub(super) fn is_section(path: &str) -> bool {
    !children(path).is_empty()
}

/// The keys right under a section, in order.
pub(super) fn children(section: &str) -> Vec<&'static str> {
    let mut names: Vec<&str> = Vec::new();
    for key in KEYS {
        let rest = if section.is_empty() {
            Some(*key)
        } else {
            key.strip_prefix(section).and_then(|k| k.strip_prefix('.'))
        };
        if let Some(name) = rest.and_then(|rest| rest.split('.').next())
            && names.last() != Some(&name)
        {
            names.push(name);
        }
    }
    names
}

/// Keys elsewhere in the configuration that end in this name: somebody who writes `listen:` at the
/// top meant one of them.
pub(super) fn elsewhere(name: &str) -> Vec<&'static str> {
    KEYS.iter()
        .filter(|key| key.rsplit('.').next() == Some(name))
        .copied()
        .collect()
}

/// The known name that `word` was probably meant to be.
pub(super) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_ascii_lowercase();
    known
        .into_iter()
        .map(|name| {
            let distance = strsim::damerau_levenshtein(&word, &name.to_ascii_lowercase());
            (distance, name)
        })
        // Further away than half its letters it is another word.
        .filter(|(distance, name)| *distance <= name.chars().count().max(4) / 2)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_know_their_keys() {
        assert_eq!(
            children(""),
            [
                "server",
                "admin",
                "data_dir",
                "database",
                "redis",
                "gateway",
                "concurrency",
                "scheduling",
                "billing",
                "timezone",
                "security",
                "logging"
            ]
        );
        assert_eq!(children("scheduling"), ["top_k", "sticky_ttl_s", "weights"]);
        assert!(is_section("scheduling.weights") && !is_section("data_dir"));
        assert_eq!(elsewhere("listen"), ["server.listen", "admin.listen"]);
    }

    #[test]
    fn the_nearest_name_is_near() {
        let names = ["listen", "h2c", "threads", "max_body_bytes"];
        for (word, want) in [
            ("thread", Some("threads")),
            ("Listen", Some("listen")),
            ("lisetn", Some("listen")),
            ("max_body", Some("max_body_bytes")),
            ("bytes", None),
            ("max_body_byte", Some("max_body_bytes")),
            ("zebra", None),
        ] {
            assert_eq!(nearest(word, names), want, "{word}");
        }
    }
}
