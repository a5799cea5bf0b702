//! What the background jobs count.

use prometheus::{Histogram, IntCounter, IntGauge};

use crate::metrics::{Metrics, OWN_SECONDS};

/// The jobs' dashboard.
#[derive(Clone, Debug)]
pub struct JobMetrics {
    /// Records waiting to be written.
    pub queue: IntGauge,
    /// Records written.
    pub written: IntCounter,
    /// Batches that could not be written, and will be tried again.
    pub write_errors: IntCounter,
    /// Seconds to write one batch.
    pub write_seconds: Histogram,
    /// Times the configured objects were read anew.
    pub reloads: IntCounter,
    /// Times reading them failed; the last good picture stays in use.
    pub reload_errors: IntCounter,
    /// Changes of accounts' conditions written.
    pub conditions_written: IntCounter,
    /// Bindings of responses to accounts written.
    pub responses_written: IntCounter,
    /// Times either could not be written; both are kept and tried again.
    pub live_state_write_errors: IntCounter,
}

impl JobMetrics {
    /// Registers the families.
    pub fn new(m: &Metrics) -> JobMetrics {
        JobMetrics {
            queue: m.gauge(
                "writer_queue_records",
                "Usage records waiting to be written.",
            ),
            written: m.counter(
                "records_written_total",
                "Usage records written to the database.",
            ),
            write_errors: m.counter(
                "record_write_errors_total",
                "Batches of usage records that could not be written; they are tried again.",
            ),
            write_seconds: m.histogram(
                "record_write_seconds",
                "Seconds to write one batch of usage records.",
                OWN_SECONDS,
            ),
            reloads: m.counter(
                "directory_reloads_total",
                "Times groups, accounts, users and keys were read anew after a change.",
            ),
            reload_errors: m.counter(
                "directory_reload_errors_total",
                "Times reading them failed; the last good picture stays in use.",
            ),
            conditions_written: m.counter(
                "conditions_written_total",
                "Changes of the accounts' conditions written to the database.",
            ),
            responses_written: m.counter(
                "response_bindings_written_total",
                "Bindings of responses to accounts written to the database.",
            ),
            live_state_write_errors: m.counter(
                "live_state_write_errors_total",
                "Times conditions or bindings could not be written; they are tried again.",
            ),
        }
    }
}
