//! The one door to the client while an attempt runs.
//!
//! Pingora pumps a request body of at most 64 KiB a second time, and writes an upstream's answer as
//! it comes. This wrapper stands between Pingora and the real client session, so that a body of any
//! size can be fed to every attempt, an answer is held back until it is judged, keep-alive comments
//! fill silences, and a client that has left is hidden from a request that is read to its end.
//!
//! It is the only file that touches `pingora::protocols::http::custom`, a trait without a semver
//! promise: Pingora is pinned, and the matrix of tests/suite/bodies.rs proves each combination.

use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{FutureExt, Stream};
use http::{HeaderMap, Version, header};
use parking_lot::Mutex;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::Digest;
use pingora::protocols::http::custom::CustomMessageWrite;
use pingora::protocols::http::custom::server::Session as CustomSession;
use pingora::protocols::http::{HttpTask, ServerSession};
use pingora::protocols::l4::socket::SocketAddr;
use pingora::proxy::Session;
use pingora::{Error, ErrorType, Result};
use tokio::time::Sleep;

use super::exchange::{Exchange, Judgement, Phase, Tick};

/// The client's session, seen through an exchange.
struct Downstream {
    /// Always there, except while the session is handed back.
    inner: Option<ServerSession>,
    exchange: Arc<Mutex<Exchange>>,
    /// Where the real session goes back to.
    home: Arc<Mutex<Option<ServerSession>>>,
    /// One timer for all deadlines: armed for the earliest, re-armed when it fires. It is not
    /// touched when data flows, which is what makes it cheap.
    timer: Option<Pin<Box<Sleep>>>,
    /// The rest of a keep-alive comment that HTTP/2 could not take at once.
    pending: Bytes,
    /// Whether a keep-alive comment may wait in HTTP/1's own queue.
    queued: bool,
}

/// The way back from a wrapped session.
pub struct WayBack {
    home: Arc<Mutex<Option<ServerSession>>>,
}

/// Puts the wrapper between Pingora and the client.
pub fn wrap(session: &mut Session, exchange: &Arc<Mutex<Exchange>>) -> WayBack {
    let inner = mem::replace(
        &mut *session.downstream_session,
        ServerSession::Custom(Box::new(())),
    );
    let home = Arc::new(Mutex::new(None));
    *session.downstream_session = ServerSession::Custom(Box::new(Downstream {
        inner: Some(inner),
        exchange: exchange.clone(),
        home: home.clone(),
        timer: None,
        pending: Bytes::new(),
        queued: false,
    }));
    WayBack { home }
}

/// Takes the wrapper away again, so that Pingora finishes the real session.
pub fn unwrap(session: &mut Session, way_back: WayBack) {
    // Dropping the wrapper sends the real session home.
    *session.downstream_session = ServerSession::Custom(Box::new(()));
    let inner = way_back.home.lock().take();
    if let Some(inner) = inner {
        *session.downstream_session = inner;
    }
}

/// Writes tasks to a client. Pingora bounds the writing of a body, but not that of a header: a client
/// that never reads could hold its request there for ever.
pub async fn write_bounded(session: &mut ServerSession, mut tasks: Vec<HttpTask>) -> Result<()> {
    let bound = session.get_write_timeout();
    let mut has_header = false;
    for task in &mut tasks {
        if let HttpTask::Header(head, _) = task {
            has_header = true;
            unchunk(session, head);
        }
    }
    let write = session.response_duplex_vec(tasks);
    match bound {
        Some(bound) if has_header => tokio::time::timeout(bound, write)
            .await
            .map_err(|_| Error::explain(ErrorType::WriteTimedout, "writing the header"))?
            .map(drop),
        _ => write.await.map(drop),
    }
}

/// HTTP/1.0 knows no chunks: there an answer without a length ends with its connection.
pub fn unchunk(session: &mut ServerSession, head: &mut ResponseHeader) {
    if session.req_header().version == Version::HTTP_10
        && head.remove_header(&header::TRANSFER_ENCODING).is_some()
    {
        session.set_keepalive(None);
    }
}

impl Drop for Downstream {
    fn drop(&mut self) {
        *self.home.lock() = self.inner.take();
    }
}

impl Downstream {
    fn inner(&self) -> &ServerSession {
        match &self.inner {
            Some(inner) => inner,
            // `inner` is taken in `drop` only.
            None => unreachable!("the session is inside until the wrapper is dropped"),
        }
    }

    fn inner_mut(&mut self) -> &mut ServerSession {
        match &mut self.inner {
            Some(inner) => inner,
            None => unreachable!("the session is inside until the wrapper is dropped"),
        }
    }

    /// The client has left: say so, and close its side without waiting for it. An orderly shutdown
    /// would flush first and hang on a reader that has stopped.
    fn leave(&mut self) {
        {
            let mut exchange = self.exchange.lock();
            if !exchange.is_client_gone() {
                log::debug!("the client has left, {}", exchange.request_id());
            }
            exchange.client_left(Instant::now());
        }
        self.pending = Bytes::new();
        self.queued = false;
        let inner = self.inner_mut();
        inner.set_keepalive(None);
        let _ = inner.shutdown().now_or_never();
    }

    /// Finishes what of a keep-alive comment is still on its way.
    async fn finish_comment(&mut self) -> Result<()> {
        if self.queued {
            // `queued` stays set while this waits: a dropped future is gone on with.
            if self.inner().has_pending_downstream_proxy_tasks() {
                self.inner_mut().write_downstream_proxy_tasks().await?;
            }
            self.queued = false;
        }
        // HTTP/2 has no queue that survives a dropped future: a single byte is sent whole or not at
        // all, so what has been sent is always known.
        while !self.pending.is_empty() {
            let byte = self.pending.slice(..1);
            self.inner_mut().write_response_body(byte, false).await?;
            let _ = self.pending.split_to(1);
        }
        Ok(())
    }

    /// Starts a keep-alive comment, behind the stream's header where that is not out yet. May be
    /// dropped at any await: `finish_comment` goes on.
    async fn comment(&mut self, mut header: Option<HttpTask>) -> Result<()> {
        if let Some(HttpTask::Header(head, _)) = &mut header {
            unchunk(self.inner_mut(), head);
        }
        let comment = self.exchange.lock().keep_alive();
        match self.inner_mut() {
            ServerSession::H1(h1) => {
                if let Some(header) = header {
                    h1.send_proxy_task(header);
                }
                h1.send_proxy_task(HttpTask::Body(Some(comment), false));
                self.queued = true;
            }
            inner => {
                if let Some(HttpTask::Header(header, _)) = header {
                    // HTTP/2 hands a header to its connection at once, without waiting.
                    inner.write_response_header(header).await?;
                }
                self.pending = comment;
            }
        }
        self.finish_comment().await
    }

    /// Writes to the client. An error means that it has left; whether that ends the request is the
    /// exchange's to say.
    async fn write(&mut self, tasks: Vec<HttpTask>) -> Result<()> {
        if self.exchange.lock().is_client_gone() {
            return Ok(());
        }
        let written = match self.finish_comment().await {
            Ok(()) => write_bounded(self.inner_mut(), tasks).await,
            Err(error) => Err(error),
        };
        self.exchange.lock().written(Instant::now());
        match written {
            Ok(()) => Ok(()),
            Err(error) => self.lost(error),
        }
    }

    /// Writing to or watching the client failed. Where the request is read to its end, that is no
    /// error of the request.
    fn lost(&mut self, error: Box<Error>) -> Result<()> {
        let drains = self.exchange.lock().drains();
        self.leave();
        if drains {
            Ok(())
        } else {
            Err(error.into_down())
        }
    }

    fn arm(&mut self, at: Instant) {
        let at = tokio::time::Instant::from_std(at);
        match &mut self.timer {
            Some(timer) => timer.as_mut().reset(at),
            None => self.timer = Some(Box::pin(tokio::time::sleep_until(at))),
        }
    }

    /// Watches the client and the clock until there is something to tell Pingora.
    async fn watch(&mut self) -> Result<Option<Bytes>> {
        loop {
            // Nothing is pending, as a rule: then this is over at once.
            if let Err(error) = self.finish_comment().await {
                self.lost(error)?;
            }
            let tick = self.exchange.lock().tick(Instant::now());
            let next = match tick {
                Tick::Expired(what) => return Err(Error::explain(ErrorType::Custom(what), "")),
                Tick::KeepAlive(header) => {
                    if let Err(error) = self.comment(header).await {
                        self.lost(error)?;
                    }
                    continue;
                }
                Tick::At(next) => next,
            };
            // The timer is left alone while it is early enough: it only has to fire in time.
            let armed = self
                .timer
                .as_ref()
                .is_some_and(|t| !t.is_elapsed() && t.deadline().into_std() <= next);
            if !armed {
                self.arm(next);
            }
            let gone = self.exchange.lock().is_client_gone();
            let (Some(timer), Some(inner)) = (&mut self.timer, &mut self.inner) else {
                return Ok(None);
            };
            if gone {
                timer.as_mut().await;
                continue;
            }
            tokio::select! {
                read = inner.read_body_or_idle(true) => match read {
                    Ok(more) => return Ok(more),
                    Err(error) => self.lost(error)?,
                },
                () = timer.as_mut() => {}
            }
        }
    }
}

#[async_trait]
impl CustomSession for Downstream {
    fn is_body_done(&mut self) -> bool {
        self.exchange.lock().pieces.is_empty()
    }

    fn is_body_empty(&mut self) -> bool {
        self.exchange.lock().pieces.is_empty()
    }

    async fn read_body_or_idle(&mut self, no_body_expected: bool) -> Result<Option<Bytes>> {
        let phase = {
            let mut exchange = self.exchange.lock();
            if !no_body_expected && exchange.phase == Phase::Attempting {
                // Nothing left: sent to its end, or answered before that.
                return Ok(exchange.next_piece(Instant::now()));
            }
            exchange.phase
        };
        match phase {
            Phase::Waiting => self.inner_mut().read_body_or_idle(true).await,
            Phase::Attempting => self.watch().await,
        }
    }

    async fn response_duplex_vec(&mut self, tasks: Vec<HttpTask>) -> Result<bool> {
        let judgement = self.exchange.lock().judge(tasks);
        match judgement {
            Judgement::Hold => Ok(false),
            Judgement::Write { tasks, end } => {
                self.write(tasks).await?;
                if end {
                    self.exchange.lock().delivered();
                }
                Ok(end)
            }
            Judgement::WriteThenFail { tasks, error } => {
                self.write(tasks).await?;
                Err(error)
            }
            Judgement::Fail(error) => Err(error),
        }
    }

    // What Pingora buffers for its own retries is not needed: the pieces are the retry.
    fn enable_retry_buffering(&mut self) {}

    fn retry_buffer_truncated(&self) -> bool {
        false
    }

    fn get_retry_buffer(&self) -> Option<Bytes> {
        None
    }

    fn take_custom_message_reader(
        &mut self,
    ) -> Option<Box<dyn Stream<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>> {
        None
    }

    fn restore_custom_message_reader(
        &mut self,
        _reader: Box<dyn Stream<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>,
    ) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_writer(&mut self) -> Option<Box<dyn CustomMessageWrite>> {
        None
    }

    fn restore_custom_message_writer(&mut self, _: Box<dyn CustomMessageWrite>) -> Result<()> {
        Ok(())
    }

    async fn finish(&mut self) -> Result<()> {
        if self.exchange.lock().is_client_gone() {
            return Ok(());
        }
        self.finish_comment().await?;
        self.inner_mut().finish_body().await
    }

    async fn drain_request_body(&mut self) -> Result<()> {
        if self.exchange.lock().is_client_gone() {
            return Ok(());
        }
        self.inner_mut().drain_request_body().await
    }

    // From here on: plain delegation.

    fn req_header(&self) -> &RequestHeader {
        self.inner().req_header()
    }

    fn req_header_mut(&mut self) -> &mut RequestHeader {
        self.inner_mut().req_header_mut()
    }

    async fn read_body_bytes(&mut self) -> Result<Option<Bytes>> {
        self.inner_mut().read_request_body().await
    }

    async fn write_response_header(&mut self, resp: Box<ResponseHeader>, _end: bool) -> Result<()> {
        self.inner_mut().write_response_header(resp).await
    }

    async fn write_response_header_ref(&mut self, resp: &ResponseHeader, _end: bool) -> Result<()> {
        self.inner_mut().write_response_header_ref(resp).await
    }

    async fn write_body(&mut self, data: Bytes, end: bool) -> Result<()> {
        self.inner_mut().write_response_body(data, end).await
    }

    async fn write_trailers(&mut self, trailers: HeaderMap) -> Result<()> {
        self.inner_mut().write_response_trailers(trailers).await
    }

    fn set_read_timeout(&mut self, timeout: Option<Duration>) {
        self.inner_mut().set_read_timeout(timeout);
    }

    fn get_read_timeout(&self) -> Option<Duration> {
        self.inner().get_read_timeout()
    }

    fn set_write_timeout(&mut self, timeout: Option<Duration>) {
        self.inner_mut().set_write_timeout(timeout);
    }

    fn get_write_timeout(&self) -> Option<Duration> {
        self.inner().get_write_timeout()
    }

    fn set_total_drain_timeout(&mut self, timeout: Option<Duration>) {
        self.inner_mut().set_total_drain_timeout(timeout);
    }

    fn get_total_drain_timeout(&self) -> Option<Duration> {
        self.inner().get_total_drain_timeout()
    }

    fn request_summary(&self) -> String {
        self.inner().request_summary()
    }

    fn response_written(&self) -> Option<&ResponseHeader> {
        self.inner().response_written()
    }

    async fn shutdown(&mut self, _code: u32, _context: &str) {
        self.inner_mut().shutdown().await;
    }

    fn body_bytes_sent(&self) -> usize {
        self.inner().body_bytes_sent()
    }

    fn body_bytes_read(&self) -> usize {
        self.inner().body_bytes_read()
    }

    fn digest(&self) -> Option<&Digest> {
        self.inner().digest()
    }

    fn digest_mut(&mut self) -> Option<&mut Digest> {
        self.inner_mut().digest_mut()
    }

    fn client_addr(&self) -> Option<&SocketAddr> {
        self.inner().client_addr()
    }

    fn server_addr(&self) -> Option<&SocketAddr> {
        self.inner().server_addr()
    }

    fn pseudo_raw_h1_request_header(&self) -> Bytes {
        self.inner().to_h1_raw()
    }

    async fn finish_custom(&mut self) -> Result<()> {
        Ok(())
    }

    fn is_upgrade_req(&self) -> bool {
        self.inner().is_upgrade_req()
    }

    fn was_upgraded(&self) -> bool {
        self.inner().was_upgraded()
    }
}
