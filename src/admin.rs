//! The admin listener: health and metrics. No token is needed for these.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use http::{Method, Response, StatusCode, header};
use pingora::apps::http_app::ServeHttp;
use pingora::protocols::http::ServerSession;
use prometheus::IntCounter;

use crate::jobs::listening::Listening;
use crate::jobs::metrics::JobMetrics;
use crate::metrics::Metrics;
use crate::proxy::Rooms;

/// Answers on the admin listener.
pub struct Admin {
    rooms: Arc<Rooms>,
    listening: Listening,
    metrics: Metrics,
    jobs: JobMetrics,
}

impl Admin {
    /// An admin listener over these rooms.
    pub fn new(
        rooms: Arc<Rooms>,
        listening: Listening,
        metrics: Metrics,
        jobs: JobMetrics,
    ) -> Admin {
        Admin {
            rooms,
            listening,
            metrics,
            jobs,
        }
    }

    /// Whether new requests should be sent here.
    fn is_ready(&self) -> bool {
        self.listening.is_up() && !self.rooms.draining.load(Ordering::Relaxed)
    }

    /// Gauges that are read rather than kept.
    fn measure(&self) {
        let (users, accounts) = self.rooms.state.held();
        let slots = &self.rooms.metrics.slots;
        slots.with_label_values(&["user"]).set(as_gauge(users));
        slots
            .with_label_values(&["account"])
            .set(as_gauge(accounts));
        let turns = self.rooms.state.turns_held();
        slots.with_label_values(&["turn"]).set(as_gauge(turns));
        let held = self.rooms.bodies.held() as u64;
        self.rooms.metrics.body_bytes.set(as_gauge(held));
        let open = self.rooms.book.open_holds();
        let metrics = &self.rooms.metrics;
        metrics.reservations_open.set(as_gauge(open.count));
        metrics.reserved.set(open.sum.as_usd_f64());
        let journal = self.rooms.journal.state();
        let jobs = &self.jobs;
        jobs.queue.set(as_gauge(journal.unapplied as u64));
        jobs.journal_bytes.set(as_gauge(journal.disk_bytes));
        jobs.journal_segments.set(as_gauge(journal.segments as u64));
        jobs.journal_open
            .set(as_gauge(journal.open_requests as u64));
        jobs.journal_failing.set(i64::from(journal.failing));
        up_to(&jobs.journal_errors, journal.write_errors);
        up_to(&jobs.journal_syncs, journal.syncs);
    }
}

/// Brings a counter up to what is counted elsewhere.
fn up_to(counter: &IntCounter, count: u64) {
    counter.inc_by(count.saturating_sub(counter.get()));
}

fn as_gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn text(status: StatusCode, kind: &'static str, body: Vec<u8>) -> Response<Vec<u8>> {
    let length = body.len();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    headers.insert(header::CONTENT_LENGTH, length.into());
    response
}

const PLAIN: &str = "text/plain; charset=utf-8";
/// Prometheus' text format.
const EXPOSITION: &str = "text/plain; version=0.0.4; charset=utf-8";

#[async_trait]
impl ServeHttp for Admin {
    async fn response(&self, session: &mut ServerSession) -> Response<Vec<u8>> {
        let head = session.req_header();
        if !matches!(head.method, Method::GET | Method::HEAD) {
            return text(StatusCode::METHOD_NOT_ALLOWED, PLAIN, b"use GET\n".to_vec());
        }
        match head.uri.path() {
            "/healthz" => text(StatusCode::OK, PLAIN, b"ok\n".to_vec()),
            "/readyz" if self.is_ready() => text(StatusCode::OK, PLAIN, b"ready\n".to_vec()),
            "/readyz" => text(
                StatusCode::SERVICE_UNAVAILABLE,
                PLAIN,
                b"not ready: starting or draining\n".to_vec(),
            ),
            "/metrics" => {
                self.measure();
                text(StatusCode::OK, EXPOSITION, self.metrics.text())
            }
            _ => text(
                StatusCode::NOT_FOUND,
                PLAIN,
                b"there are /healthz, /readyz and /metrics\n".to_vec(),
            ),
        }
    }
}
