//! The fake provider: a listener on a real socket, plain HTTP/1.1 or TLS with HTTP/2 and
//! HTTP/1.1, that answers as planned and remembers what it received.

mod h1;
mod h2;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use crate::answer::{Answer, Next, Plans, Reply};
use crate::echo;
use crate::link::Link;
use crate::received::{Log, Received};
use crate::tls::{self, TestCa};

/// The protocols a TLS listener offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alpn {
    /// `h2` and `http/1.1`, as providers do.
    Both,
    /// `h2` alone.
    Http2,
    /// `http/1.1` alone.
    Http1,
}

/// How a fake upstream is set up; see [`FakeUpstream::builder`].
pub struct Builder {
    address: SocketAddr,
    tls: Option<Arc<rustls::ServerConfig>>,
    keep: bool,
}

impl Builder {
    /// Listens there in place of a free port of `127.0.0.1`.
    pub fn bind(mut self, address: SocketAddr) -> Self {
        self.address = address;
        self
    }

    /// Speaks TLS with this authority's leaf.
    pub fn tls(mut self, ca: &TestCa, alpn: Alpn) -> Self {
        self.tls = Some(ca.server(match alpn {
            Alpn::Both => &[tls::H2, tls::HTTP_1_1],
            Alpn::Http2 => &[tls::H2],
            Alpn::Http1 => &[tls::HTTP_1_1],
        }));
        self
    }

    /// Does not remember requests (for load; counters stay).
    pub fn forgetful(mut self) -> Self {
        self.keep = false;
        self
    }

    /// Starts on the current tokio runtime.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn start(self) -> io::Result<FakeUpstream> {
        let listener = TcpListener::bind(self.address).await?;
        let address = listener.local_addr()?;
        let is_tls = self.tls.is_some();
        let shared = Arc::new(Shared {
            log: Arc::new(Log::new(self.keep)),
            plans: Mutex::default(),
        });
        let acceptor = self.tls.map(TlsAcceptor::from);
        let task = tokio::spawn(accept(listener, acceptor, shared.clone())).abort_handle();
        Ok(FakeUpstream {
            address,
            is_tls,
            shared,
            task,
        })
    }
}

/// A fake provider. Dropping it closes the listener and every connection.
pub struct FakeUpstream {
    address: SocketAddr,
    is_tls: bool,
    shared: Arc<Shared>,
    task: AbortHandle,
}

/// What the connections share.
struct Shared {
    log: Arc<Log>,
    plans: Mutex<Plans>,
}

impl FakeUpstream {
    /// Settings to start from: cleartext HTTP/1.1 on a free port of `127.0.0.1`.
    pub fn builder() -> Builder {
        Builder {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            tls: None,
            keep: true,
        }
    }

    /// Cleartext HTTP/1.1 on a free port.
    ///
    /// # Panics
    /// When no port can be bound.
    pub async fn start() -> Self {
        Self::builder().start().await.expect("a free port")
    }

    /// TLS with HTTP/2 and HTTP/1.1 on a free port.
    ///
    /// # Panics
    /// When no port can be bound.
    pub async fn start_tls(ca: &TestCa) -> Self {
        let builder = Self::builder().tls(ca, Alpn::Both);
        builder.start().await.expect("a free port")
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://127.0.0.1:PORT`, or `https://localhost:PORT` with TLS; the `base_url` of an
    /// account.
    pub fn url(&self) -> String {
        match self.is_tls {
            false => format!("http://{}", self.address),
            true => format!("https://localhost:{}", self.address.port()),
        }
    }

    /// Adds an answer to the common queue; each is given once.
    pub fn push(&self, answer: Answer) {
        self.shared.plans.lock().push(answer);
    }

    /// Adds answers to the common queue.
    pub fn push_all(&self, answers: impl IntoIterator<Item = Answer>) {
        answers.into_iter().for_each(|answer| self.push(answer));
    }

    /// Adds an answer to the queue of one credential (a bearer token or an `x-api-key`).
    pub fn push_for(&self, credential: &str, answer: Answer) {
        self.shared.plans.lock().push_for(credential, answer);
    }

    /// The answer for this credential whenever nothing is queued.
    pub fn always_for(&self, credential: &str, answer: Answer) {
        self.shared.plans.lock().always_for(credential, answer);
    }

    /// The answer whenever nothing is queued; at first [`Answer::echo`].
    pub fn otherwise(&self, answer: Answer) {
        self.shared.plans.lock().otherwise(answer);
    }

    /// Decides the answer from the complete request, whenever nothing is queued.
    pub fn handle(&self, handler: impl Fn(&Received) -> Answer + Send + Sync + 'static) {
        self.shared.plans.lock().handler(Arc::new(handler));
    }

    /// Queued answers nobody has asked for yet.
    pub fn plans_left(&self) -> usize {
        self.shared.plans.lock().left()
    }

    /// The requests so far, in order of arrival.
    pub fn requests(&self) -> Vec<Received> {
        self.shared.log.requests()
    }

    /// The only request so far.
    ///
    /// # Panics
    /// When there was none, or more than one.
    pub fn only_request(&self) -> Received {
        let mut requests = self.requests();
        assert_eq!(requests.len(), 1, "requests at the fake upstream");
        requests.remove(0)
    }

    /// Forgets the requests so far; counters stay.
    ///
    /// # Panics
    /// When one is still running.
    pub fn forget(&self) {
        self.shared.log.clear();
    }

    /// Waits until the condition holds for the requests seen, and returns them. The condition may
    /// look at the counters too, but must not call [`FakeUpstream::requests`].
    ///
    /// # Panics
    /// After [`crate::LIMIT`], saying what was waited for and what was seen.
    pub async fn wait_for(
        &self,
        what: &str,
        condition: impl Fn(&[Received]) -> bool,
    ) -> Vec<Received> {
        self.shared.log.wait_for(what, condition).await;
        self.requests()
    }

    /// Waits until so many requests were received completely.
    ///
    /// # Panics
    /// As [`FakeUpstream::wait_for`].
    pub async fn wait_complete(&self, count: usize) -> Vec<Received> {
        let what = format!("{count} complete requests");
        let complete = |seen: &[Received]| seen.iter().filter(|r| r.complete).count() >= count;
        self.wait_for(&what, complete).await
    }

    /// Waits until nothing is in flight.
    ///
    /// # Panics
    /// As [`FakeUpstream::wait_for`].
    pub async fn wait_idle(&self) {
        let idle = |_: &[Received]| self.in_flight() == 0;
        self.shared.log.wait_for("nothing in flight", idle).await;
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> u64 {
        self.shared.log.connections()
    }

    /// Connections open now.
    pub fn open_connections(&self) -> u64 {
        self.shared.log.open_connections()
    }

    /// Requests so far, forgotten ones too.
    pub fn total(&self) -> u64 {
        self.shared.log.total()
    }

    /// Requests in flight: from their head to the end of their answer.
    pub fn in_flight(&self) -> usize {
        self.shared.log.in_flight()
    }

    /// The most requests that were ever in flight at once.
    pub fn most_in_flight(&self) -> usize {
        self.shared.log.most_in_flight()
    }

    /// Requests of one credential in flight: to the end of their answers as their sender sees it,
    /// which is the moment before the last bytes are written.
    pub fn in_flight_of(&self, credential: &str) -> usize {
        self.shared.log.in_flight_of(credential)
    }

    /// The most requests of one credential that were ever in flight at once, as
    /// [`FakeUpstream::in_flight_of`] counts. A request is over, too, from the moment in which its
    /// sender has closed its connection. So a sender that keeps to a limit is never seen beyond it,
    /// with one exception: a stream of HTTP/2 that was reset may be over before its reset is read.
    pub fn most_in_flight_of(&self, credential: &str) -> usize {
        self.shared.log.most_in_flight_of(credential)
    }
}

impl Drop for FakeUpstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    fn next(&self, request: &Received) -> Next {
        self.plans.lock().next(request.credential())
    }
}

/// The answer to a complete request.
fn decide(next: Next, request: &Received) -> Answer {
    let answer = match next {
        Next::Answer(answer) => answer,
        Next::Handler(handler) => handler(request),
    };
    match answer.reply {
        Reply::Echo => {
            let suitable = echo::answer(request);
            Answer {
                gate: answer.gate.or(suitable.gate),
                delay: answer.delay.max(suitable.delay),
                ..suitable
            }
        }
        _ => answer,
    }
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, shared: Arc<Shared>) {
    // Dropped with this task, and the connections with it.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((tcp, _)) = accepted else { continue };
                connections.spawn(serve(tcp, tls.clone(), shared.clone()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Counts a connection as open for as long as it lives.
struct Open(Arc<Log>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.closed();
    }
}

async fn serve(tcp: TcpStream, tls: Option<TlsAcceptor>, shared: Arc<Shared>) {
    let number = shared.log.opened();
    let _open = Open(shared.log.clone());
    // Errors here are a peer that is already gone; its requests say so themselves.
    let _ = tcp.set_nodelay(true);
    match tls {
        None => h1::serve(Link::Plain(tcp), number, shared).await,
        Some(acceptor) => {
            let Ok(stream) = acceptor.accept(tcp).await else {
                return;
            };
            let is_h2 = stream.get_ref().1.alpn_protocol() == Some(tls::H2);
            let link = Link::Tls(Box::new(stream.into()));
            match is_h2 {
                true => h2::serve(link, number, shared).await,
                false => h1::serve(link, number, shared).await,
            }
        }
    }
}
