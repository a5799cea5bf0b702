//! What the request path counts.

use prometheus::{
    CounterVec, Gauge, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
};
use tollgate_filters::repair::Repair;

use crate::metrics::{Metrics, OWN_SECONDS, REQUEST_SECONDS};
use crate::scheduler::GateKind;

/// A choice takes microseconds; with thousands of accounts some dozens of them.
const CHOICE_SECONDS: &[f64] = &[
    0.000_001, 0.000_002, 0.000_005, 0.000_01, 0.000_02, 0.000_05, 0.000_1, 0.000_5, 0.005,
];
/// Percent of an account's capacity.
const SKEW_PERCENT: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0];

/// The request path's dashboard.
#[derive(Clone, Debug)]
pub struct ProxyMetrics {
    /// Requests ended, by endpoint, status and outcome.
    pub requests: IntCounterVec,
    /// Requests being served.
    pub in_flight: IntGauge,
    /// Attempts ended, by platform and result.
    pub attempts: IntCounterVec,
    /// Changes to another account, by reason.
    pub failovers: IntCounterVec,
    /// Further tries on the same account, by reason.
    pub retries: IntCounterVec,
    /// Requests mended after a refusal and sent once more, by kind.
    pub repairs: IntCounterVec,
    /// Accounts chosen, by platform and layer.
    pub choices: IntCounterVec,
    /// Conversations' accounts, by what became of them.
    pub sticky: IntCounterVec,
    /// Seconds a choice took, waits aside.
    pub choice_seconds: Histogram,
    /// How unevenly the accounts looked at were loaded.
    pub load_skew: Histogram,
    /// Conditions put on accounts, by kind.
    pub conditions: IntCounterVec,
    /// Looks at accounts whose gates were not open, by gate and how it stood.
    pub gates: IntCounterVec,
    /// Waits for a slot, by kind of slot and how they ended.
    pub waits: IntCounterVec,
    /// Seconds waited for a slot.
    pub wait_seconds: HistogramVec,
    /// Messages of users that were queued at their accounts, by mode and how that ended.
    pub message_queue: IntCounterVec,
    /// Seconds they were queued.
    pub message_queue_seconds: Histogram,
    /// Slots held.
    pub slots: IntGaugeVec,
    /// Attempts to set money aside, by how they ended.
    pub reservations: IntCounterVec,
    /// Seconds until it was set aside, or not.
    pub reserve_seconds: Histogram,
    /// Reservations of running requests.
    pub reservations_open: IntGauge,
    /// What they hold, USD.
    pub reserved: Gauge,
    /// Output limits lowered to what could be paid for.
    pub outputs_lowered: IntCounter,
    /// Requests that were answered here in place of an account, by kind.
    pub intercepted: IntCounterVec,
    /// Seconds from the request's arrival to before the wait for the user's slot.
    pub auth_seconds: Histogram,
    /// Seconds from there to the last attempt's start.
    pub routing_seconds: Histogram,
    /// Seconds from the last attempt's start to the upstream's response header.
    pub upstream_seconds: Histogram,
    /// Seconds from the upstream's response header to the end.
    pub response_seconds: Histogram,
    /// Seconds of whole requests.
    pub request_seconds: HistogramVec,
    /// Seconds from arrival to the first real output.
    pub first_token_seconds: Histogram,
    /// Tokens, by platform and class.
    pub tokens: IntCounterVec,
    /// List price of what was used, USD.
    pub cost: CounterVec,
    /// What users were charged, USD.
    pub charge: CounterVec,
    /// Records without a known price.
    pub unpriced: IntCounter,
    /// Bytes of request bodies held.
    pub body_bytes: IntGauge,
    /// Upstream connections used, new or reused.
    pub connections: IntCounterVec,
    /// Clients that left before the end, by phase.
    pub clients_gone: IntCounterVec,
}

impl ProxyMetrics {
    /// Registers the families.
    pub fn new(m: &Metrics) -> ProxyMetrics {
        let metrics = ProxyMetrics::registered(m);
        // There from the beginning: an alert on what has never happened yet should not find nothing.
        for repair in [Repair::Signature, Repair::Budget] {
            metrics.repairs.with_label_values(&[repair.label()]);
        }
        metrics
    }

    fn registered(m: &Metrics) -> ProxyMetrics {
        ProxyMetrics {
            requests: m.counters(
                "requests_total",
                "Requests ended, by endpoint, status the client got (0 = none) and outcome.",
                &["endpoint", "status", "outcome"],
            ),
            in_flight: m.gauge("requests_in_flight", "Requests being served."),
            attempts: m.counters(
                "attempts_total",
                "Attempts on an account, by platform and result (a verdict or transport error).",
                &["platform", "result"],
            ),
            failovers: m.counters(
                "failovers_total",
                "Changes to another account within a request, by reason.",
                &["platform", "reason"],
            ),
            retries: m.counters(
                "retries_total",
                "Further tries on the same account within a request, by reason.",
                &["platform", "reason"],
            ),
            repairs: m.counters(
                "repairs_total",
                "Requests that were refused, mended and sent once more, by kind (signature, budget).",
                &["kind"],
            ),
            choices: m.counters(
                "scheduler_choices_total",
                "Accounts chosen for an attempt, by platform and layer (previous_response, session, again = the same account, routed, load).",
                &["platform", "layer"],
            ),
            sticky: m.counters(
                "scheduler_sticky_total",
                "Requests of a conversation with a bound account, by what became of it (hit, spilled, unbound).",
                &["result"],
            ),
            choice_seconds: m.histogram(
                "scheduler_seconds",
                "Seconds it took to choose an account, waiting for a slot aside.",
                CHOICE_SECONDS,
            ),
            load_skew: m.histogram(
                "scheduler_load_skew",
                "Standard deviation of the load (percent of capacity) over the accounts looked at.",
                SKEW_PERCENT,
            ),
            conditions: m.counters(
                "account_conditions_total",
                "Conditions put on accounts, by platform and kind.",
                &["platform", "kind"],
            ),
            gates: {
                let gates = m.counters(
                    "account_gates_total",
                    "Looks at an account, for a request, of which a soft limit was reached, by gate (window_cost, rpm, sessions) and result (sticky_only, closed).",
                    &["gate", "result"],
                );
                // Few and known: there from the start, so that their rates have a beginning.
                for kind in GateKind::ALL {
                    for result in ["sticky_only", "closed"] {
                        gates.with_label_values(&[kind.as_str(), result]);
                    }
                }
                gates
            },
            waits: m.counters(
                "waits_total",
                "Waits for a slot, by kind (user, account) and end (granted, timeout, line_full, client_gone).",
                &["slot", "end"],
            ),
            wait_seconds: m.histograms(
                "wait_seconds",
                "Seconds waited for a slot, by kind.",
                &["slot"],
                REQUEST_SECONDS,
            ),
            message_queue: message_queue(m),
            message_queue_seconds: m.histogram(
                "message_queue_wait_seconds",
                "Seconds that messages of users were queued at their accounts.",
                REQUEST_SECONDS,
            ),
            slots: m.gauges("slots_held", "Slots held, by kind.", &["slot"]),
            reservations: m.counters(
                "reservations_total",
                "Attempts to set aside what a request may cost, by end (granted, refused, timeout = held by other requests of the user for too long, client_gone).",
                &["end"],
            ),
            reserve_seconds: m.histogram(
                "reserve_seconds",
                "Seconds until what a request may cost was set aside, or was not.",
                REQUEST_SECONDS,
            ),
            reservations_open: m.gauge(
                "reservations_open",
                "Reservations of running requests.",
            ),
            reserved: m.float_gauge(
                "reserved_usd",
                "What running requests hold of balances and subscriptions, USD.",
            ),
            outputs_lowered: m.counter(
                "outputs_lowered_total",
                "Requests whose output limit was lowered to what could be paid for (strict).",
            ),
            intercepted: m.counters(
                "intercepted_total",
                "Requests answered here because their account has that done (intercept_warmup_requests), by kind (probe, suggestion, warm_up).",
                &["kind"],
            ),
            auth_seconds: m.histogram(
                "auth_seconds",
                "Seconds from arrival until the request is read, checked and ready to wait for the user's slot.",
                OWN_SECONDS,
            ),
            routing_seconds: m.histogram(
                "routing_seconds",
                "Seconds from there until the last attempt starts: waits, billing check, choice of the account.",
                OWN_SECONDS,
            ),
            upstream_seconds: m.histogram(
                "upstream_seconds",
                "Seconds from the last attempt's start to the upstream's response header.",
                REQUEST_SECONDS,
            ),
            response_seconds: m.histogram(
                "response_seconds",
                "Seconds from the upstream's response header to the end of the request.",
                REQUEST_SECONDS,
            ),
            request_seconds: m.histograms(
                "request_seconds",
                "Seconds from arrival to the end, by endpoint.",
                &["endpoint"],
                REQUEST_SECONDS,
            ),
            first_token_seconds: m.histogram(
                "first_token_seconds",
                "Seconds from arrival to the first real output.",
                REQUEST_SECONDS,
            ),
            tokens: m.counters(
                "tokens_total",
                "Tokens, by platform and price class.",
                &["platform", "class"],
            ),
            cost: m.float_counters(
                "cost_usd_total",
                "List price of what was used, USD, by platform.",
                &["platform"],
            ),
            charge: m.float_counters(
                "charge_usd_total",
                "What users were charged, USD, by platform.",
                &["platform"],
            ),
            unpriced: m.counter(
                "unpriced_records_total",
                "Usage records whose model has no known price; recorded at cost 0.",
            ),
            body_bytes: m.gauge("inflight_body_bytes", "Bytes of request bodies held."),
            connections: m.counters(
                "upstream_connections_total",
                "Upstream connections used, by whether they were new or reused.",
                &["kind"],
            ),
            clients_gone: m.counters(
                "clients_gone_total",
                "Clients that left before their answer was complete, by phase.",
                &["phase"],
            ),
        }
    }
}

/// With every series there can be: they are few, and one that begins at its first sample hides that from rates.
fn message_queue(m: &Metrics) -> IntCounterVec {
    let counters = m.counters(
        "message_queue_total",
        "Messages of users that were queued at their accounts, by mode and result (granted, timeout = gone out of turn, client_gone, error = gone out of turn, the live state could not be reached).",
        &["mode", "result"],
    );
    for mode in ["serialize", "throttle"] {
        for result in ["granted", "timeout", "client_gone", "error"] {
            counters.with_label_values(&[mode, result]);
        }
    }
    counters
}
