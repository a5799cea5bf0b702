//! The registry and the buckets that rooms share. The families themselves live in the rooms; each
//! doc comment there is the family's help text. deploy/METRICS.md lists them all (a test compares).

use prometheus::core::Collector;
use prometheus::{
    Encoder, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};

/// Buckets for whole requests, seconds: from a local echo to a long reasoning stream.
pub const REQUEST_SECONDS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
    120.0, 300.0, 600.0, 1800.0,
];
/// Buckets for what we do ourselves, seconds.
pub const OWN_SECONDS: &[f64] = &[
    0.000_025, 0.000_05, 0.0001, 0.000_25, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0,
    5.0, 30.0,
];

/// Registers families and writes them out.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics::new()
    }
}

impl Metrics {
    /// An empty registry; every name gets the prefix `tollgate_`.
    pub fn new() -> Metrics {
        let registry =
            Registry::new_custom(Some("tollgate".into()), None).expect("a constant, valid prefix");
        Metrics { registry }
    }

    fn register<C: Collector + Clone + 'static>(&self, made: prometheus::Result<C>) -> C {
        // Names and labels are constants: a mistake shows in the first test that builds the room.
        let family = made.expect("a valid constant name");
        self.registry
            .register(Box::new(family.clone()))
            .expect("a name that no other room uses");
        family
    }

    /// A counter.
    pub fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.register(IntCounter::new(name, help))
    }

    /// A counter with labels.
    pub fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.register(IntCounterVec::new(Opts::new(name, help), labels))
    }

    /// A gauge of whole numbers.
    pub fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.register(IntGauge::new(name, help))
    }

    /// A gauge of fractions.
    pub fn float_gauge(&self, name: &str, help: &str) -> Gauge {
        self.register(Gauge::new(name, help))
    }

    /// A gauge with labels.
    pub fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.register(IntGaugeVec::new(Opts::new(name, help), labels))
    }

    /// A histogram.
    pub fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        self.register(Histogram::with_opts(
            HistogramOpts::new(name, help).buckets(buckets.to_vec()),
        ))
    }

    /// A histogram with labels.
    pub fn histograms(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
        buckets: &[f64],
    ) -> HistogramVec {
        self.register(HistogramVec::new(
            HistogramOpts::new(name, help).buckets(buckets.to_vec()),
            labels,
        ))
    }

    /// A counter of fractions, for money.
    pub fn float_counters(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> prometheus::CounterVec {
        self.register(prometheus::CounterVec::new(Opts::new(name, help), labels))
    }

    /// Everything in Prometheus' text format.
    pub fn text(&self) -> Vec<u8> {
        let mut out = Vec::new();
        // Writing to memory cannot fail; a family that cannot be encoded is left out.
        let _ = TextEncoder::new().encode(&self.registry.gather(), &mut out);
        out
    }
}
