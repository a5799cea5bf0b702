//! Waiting for a slot while the client is watched and, for a stream, kept company with pings.

use std::future::Future;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::HeaderValue;
use parking_lot::Mutex;
use pingora::proxy::Session;
use pingora::{Error, Result};

use super::answer::stream_head;
use super::downstream::unchunk;
use super::exchange::{Exchange, Reply};

/// A ping towards the client of a waiting stream (SPEC 3.6).
const PING: Bytes = Bytes::from_static(b":\n\n");

/// How a wait ended.
pub enum Waited<T> {
    /// With what was waited for.
    Granted(T),
    /// Without it.
    TimedOut,
}

/// Waits for `grant` until `deadline`. An error means that the client has left.
pub async fn wait_for<T>(
    session: &mut Session,
    exchange: &Mutex<Exchange>,
    request_id: &HeaderValue,
    ping_interval: Duration,
    deadline: Instant,
    grant: impl Future<Output = T>,
) -> Result<Waited<T>> {
    let mut grant = std::pin::pin!(grant);
    let is_stream = exchange.lock().is_stream();
    let mut next_ping = Instant::now() + ping_interval;
    loop {
        let wake = if is_stream {
            deadline.min(next_ping)
        } else {
            deadline
        };
        tokio::select! {
            biased;
            granted = &mut grant => return Ok(Waited::Granted(granted)),
            // Cancel-safe; ends only when the client leaves (or breaks the protocol).
            read = session.as_downstream_mut().read_body_or_idle(true) => {
                let error = match read {
                    Err(error) => error,
                    Ok(_) => Error::explain(
                        pingora::ErrorType::ConnectionClosed,
                        "the client sent data after the end of its request",
                    ),
                };
                exchange.lock().client_left(Instant::now());
                return Err(error.into_down());
            }
            () = tokio::time::sleep_until(wake.into()) => {}
        }
        let now = Instant::now();
        if now >= deadline {
            return Ok(Waited::TimedOut);
        }
        if is_stream && now >= next_ping {
            // Not part of the `select!`: a write that has begun is finished.
            if let Err(error) = ping(session, exchange, request_id).await {
                exchange.lock().client_left(Instant::now());
                return Err(error.into_down());
            }
            next_ping = Instant::now() + ping_interval;
        }
    }
}

async fn ping(
    session: &mut Session,
    exchange: &Mutex<Exchange>,
    request_id: &HeaderValue,
) -> Result<()> {
    let downstream = session.as_downstream_mut();
    let begun = exchange.lock().reply != Reply::NotStarted;
    if !begun {
        let mut head = stream_head(request_id)?;
        unchunk(downstream, &mut head);
        downstream.write_response_header(Box::new(head)).await?;
        exchange.lock().preamble_written(Instant::now());
    }
    downstream.write_response_body(PING, false).await
}
