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
    /// Records of users or keys that the database does not know, put aside.
    pub put_aside: IntCounter,
    /// Batches that could not be written, and will be tried again.
    pub write_errors: IntCounter,
    /// Seconds to write one batch.
    pub write_seconds: Histogram,
    /// Bytes of the journal on disk.
    pub journal_bytes: IntGauge,
    /// Files of the journal.
    pub journal_segments: IntGauge,
    /// Requests whose end is not in the journal.
    pub journal_open: IntGauge,
    /// Whether the journal cannot be written at the moment.
    pub journal_failing: IntGauge,
    /// Writes to the journal that failed.
    pub journal_errors: IntCounter,
    /// Flushes of the journal to the disk.
    pub journal_syncs: IntCounter,
    /// Differences the last check of the ledger found.
    pub ledger_mismatches: IntGauge,
    /// Checks of the ledger that were made.
    pub ledger_checks: IntCounter,
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
            put_aside: m.counter(
                "records_put_aside_total",
                "Usage records of users or keys that the database does not know; they stand in unbilled.jsonl.",
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
            journal_bytes: m.gauge("journal_bytes", "Bytes that the journal takes on disk."),
            journal_segments: m.gauge("journal_segments", "Files of the journal."),
            journal_open: m.gauge(
                "journal_open_requests",
                "Requests that the journal knows of and whose end it does not have.",
            ),
            journal_failing: m.gauge(
                "journal_failing",
                "1 while the journal cannot be written; new requests are refused then.",
            ),
            journal_errors: m.counter(
                "journal_write_errors_total",
                "Writes to the journal that failed; what they were to write is kept and written again.",
            ),
            journal_syncs: m.counter(
                "journal_syncs_total",
                "Flushes of the journal to the disk.",
            ),
            ledger_mismatches: m.gauge(
                "ledger_mismatches",
                "Differences between balances, ledger and records that the last check found; never anything but 0.",
            ),
            ledger_checks: m.counter(
                "ledger_checks_total",
                "Checks of the ledger that were made.",
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
