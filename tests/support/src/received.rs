//! What a fake upstream received, and waiting for it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::Notify;

use crate::LIMIT;
use crate::link::Peer;
use crate::wire::find;

/// One request as it was received; it grows while it is.
#[derive(Clone, Debug)]
pub struct Received {
    /// The connection it came on, counted from 1.
    pub connection: u64,
    /// HTTP version.
    pub version: http::Version,
    /// Method.
    pub method: String,
    /// Path and query, as received.
    pub target: String,
    /// Fields in order, spelled as received; on HTTP/2 with `:authority` and `:scheme` first.
    pub headers: Vec<(String, String)>,
    /// The head's bytes, HTTP/1.1 only.
    pub raw_head: Bytes,
    /// The body, as far as it was received (set at its end or when it broke off).
    pub body: Bytes,
    /// Body bytes received so far.
    pub body_bytes: u64,
    /// The request was received completely.
    pub complete: bool,
    /// The peer closed or reset before the answer was complete.
    pub peer_left: bool,
    /// The answer was written completely, or broken off as planned.
    pub answered: bool,
}

impl Received {
    /// The first field of that name, compared without case.
    pub fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }

    /// Every value of that field, in order.
    pub fn headers(&self, name: &str) -> Vec<&str> {
        self.headers
            .iter()
            .filter(|(field, _)| field.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
            .collect()
    }

    /// `Host`, or `:authority` on HTTP/2.
    pub fn host(&self) -> Option<&str> {
        self.header("host").or_else(|| self.header(":authority"))
    }

    /// The bearer token of the `Authorization` field (its whole value when it is no bearer), else the
    /// `x-api-key`.
    pub fn credential(&self) -> Option<&str> {
        let bearer = self.header("authorization");
        let token = bearer.map(|value| value.strip_prefix("Bearer ").unwrap_or(value));
        token.or_else(|| self.header("x-api-key"))
    }

    /// The target up to its query.
    pub fn path(&self) -> &str {
        let path = self.target.split('?').next();
        path.unwrap_or_default()
    }

    /// The body as JSON, `Null` when it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The `model` of the body, empty when there is none.
    pub fn model(&self) -> String {
        let json = self.json();
        json["model"].as_str().unwrap_or_default().to_owned()
    }

    fn summary(&self) -> String {
        format!(
            "#{} {:?} {} {} as {:?}: {} body bytes, complete={} answered={} peer_left={}",
            self.connection,
            self.version,
            self.method,
            self.target,
            self.credential(),
            self.body_bytes,
            self.complete,
            self.answered,
            self.peer_left
        )
    }
}

/// Requests and counters of one fake upstream.
pub(crate) struct Log {
    requests: Mutex<Vec<Received>>,
    counts: Mutex<Counts>,
    changed: Notify,
    keep: bool,
    tickets: AtomicU64,
}

#[derive(Default)]
struct Counts {
    connections: u64,
    open_connections: u64,
    total: u64,
    all: Level,
    per_credential: HashMap<String, AtOnce>,
}

#[derive(Clone, Copy, Default)]
struct Level {
    now: usize,
    most: usize,
}

impl Level {
    fn up(&mut self) {
        self.now += 1;
        self.most = self.most.max(self.now);
    }
}

/// The exchanges of one credential, counted as whoever sent them counts: from the head of a request
/// until its end is on its way to the sender or the sender has gone. What is behind either may come
/// before this side gets to do anything else.
#[derive(Default)]
struct AtOnce {
    running: Vec<Exchange>,
    most: usize,
}

struct Exchange {
    ticket: u64,
    peer: Arc<Peer>,
}

impl AtOnce {
    fn start(&mut self, ticket: u64, peer: Arc<Peer>) {
        self.running.push(Exchange { ticket, peer });
        if self.running.len() > self.most {
            // Some that have been given up may not know it yet.
            let there = self.running.iter().filter(|e| !e.peer.has_left());
            self.most = self.most.max(there.count());
        }
    }
}

impl Log {
    /// `keep` = remember the requests (counters are always kept).
    pub(crate) fn new(keep: bool) -> Self {
        Self {
            requests: Mutex::default(),
            counts: Mutex::default(),
            changed: Notify::new(),
            keep,
            tickets: AtomicU64::new(0),
        }
    }

    pub(crate) fn opened(&self) -> u64 {
        let mut counts = self.counts.lock();
        counts.connections += 1;
        counts.open_connections += 1;
        let number = counts.connections;
        drop(counts);
        self.changed.notify_waiters();
        number
    }

    pub(crate) fn closed(&self) {
        self.counts.lock().open_connections -= 1;
        self.changed.notify_waiters();
    }

    pub(crate) fn connections(&self) -> u64 {
        self.counts.lock().connections
    }

    pub(crate) fn open_connections(&self) -> u64 {
        self.counts.lock().open_connections
    }

    pub(crate) fn total(&self) -> u64 {
        self.counts.lock().total
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.counts.lock().all.now
    }

    pub(crate) fn most_in_flight(&self) -> usize {
        self.counts.lock().all.most
    }

    pub(crate) fn in_flight_of(&self, credential: &str) -> usize {
        let counts = self.counts.lock();
        let of = counts.per_credential.get(credential);
        of.map_or(0, |of| of.running.len())
    }

    pub(crate) fn most_in_flight_of(&self, credential: &str) -> usize {
        let counts = self.counts.lock();
        counts
            .per_credential
            .get(credential)
            .map_or(0, |of| of.most)
    }

    pub(crate) fn requests(&self) -> Vec<Received> {
        self.requests.lock().clone()
    }

    pub(crate) fn clear(&self) {
        // Tickets of running requests refer to entries by position: empty them, keep the places.
        let mut requests = self.requests.lock();
        if self.counts.lock().all.now == 0 {
            requests.clear();
        } else {
            panic!("requests are still running; wait for them before forgetting");
        }
    }

    /// Waits until the condition holds for the requests seen.
    pub(crate) async fn wait_for(&self, what: &str, condition: impl Fn(&[Received]) -> bool) {
        let waited = tokio::time::timeout(LIMIT, async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if condition(&self.requests.lock()) {
                    return;
                }
                changed.await;
            }
        });
        if waited.await.is_err() {
            let requests = self.requests.lock();
            let seen: Vec<_> = requests.iter().map(Received::summary).collect();
            panic!(
                "waited {LIMIT:?} for: {what}\nin flight: {}\nseen {}:\n  {}",
                self.counts.lock().all.now,
                seen.len(),
                seen.join("\n  ")
            );
        }
    }

    /// Starts a request; it counts as in flight until the ticket is dropped.
    pub(crate) fn start(self: &Arc<Self>, request: &Received, peer: &Arc<Peer>) -> Ticket {
        let credential = request.credential().map(str::to_owned);
        let number = self.tickets.fetch_add(1, Ordering::Relaxed);
        let mut counts = self.counts.lock();
        counts.total += 1;
        counts.all.up();
        if let Some(key) = &credential {
            let of = counts.per_credential.entry(key.clone()).or_default();
            of.start(number, peer.clone());
        }
        drop(counts);
        let place = self.keep.then(|| {
            let mut requests = self.requests.lock();
            requests.push(request.clone());
            requests.len() - 1
        });
        self.changed.notify_waiters();
        Ticket {
            log: self.clone(),
            number,
            place,
            credential,
        }
    }
}

/// A request in flight.
pub(crate) struct Ticket {
    log: Arc<Log>,
    number: u64,
    place: Option<usize>,
    credential: Option<String>,
}

impl Ticket {
    /// The end of the answer is about to be written: from now on the sender of the request may know
    /// that it is over.
    pub(crate) fn ends(&self) {
        if let Some(key) = &self.credential
            && let Some(of) = self.log.counts.lock().per_credential.get_mut(key)
        {
            of.running.retain(|exchange| exchange.ticket != self.number);
        }
    }

    /// Changes the request's entry and wakes who waits for it.
    pub(crate) fn update(&self, change: impl FnOnce(&mut Received)) {
        if let Some(place) = self.place {
            if let Some(request) = self.log.requests.lock().get_mut(place) {
                change(request);
            }
            self.log.changed.notify_waiters();
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.ends();
        self.log.counts.lock().all.now -= 1;
        self.log.changed.notify_waiters();
    }
}
