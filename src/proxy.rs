//! THE REQUEST. Read `impl ProxyHttp for Gateway` from top to bottom: each hook is one phase, each
//! phase a few calls of well-named stages.

pub mod access_log;
pub mod answer;
pub mod asked;
pub mod attempt;
pub mod choice;
pub mod conditions;
pub mod contain;
pub mod context;
pub mod downstream;
pub mod egress;
pub mod exchange;
pub mod failover;
pub mod finish;
pub mod fold;
pub mod gates;
pub mod intake;
pub mod intercepts;
pub mod message_queue;
pub mod metrics;
pub mod models;
pub mod money;
pub mod next;
pub mod observe;
pub mod peer;
pub mod read;
pub mod regroup;
pub mod relay;
pub mod second;
pub mod serving;
pub mod settlement;
pub mod snapshot;
pub mod unpriced;
pub mod usage;
pub mod wait;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::Digest;
use pingora::proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, Result};
use tokio::sync::watch;
use tollgate_filters::reply::errors;

use crate::billing::account_quota::AccountQuotas;
use crate::billing::book::Book;
use crate::billing::journal::Journal;
use crate::billing::window_cost::WindowCosts;
use crate::config::Config;
use crate::limits::bodies::BodyBudget;
use crate::limits::noise::Noise;
use crate::providers::resolve::Resolver;
use crate::scheduler::Scheduler;
use crate::state::LiveState;
use crate::storage::KeyHasher;
use contain::{Panicked, contain};
use context::{Context, RequestIds};
use egress::Egress;
use intake::Intake;
use metrics::ProxyMetrics;
use snapshot::Snapshot;
use unpriced::UnpricedModels;
use usage::reports::Reports;

/// The rooms a request walks through.
pub struct Rooms {
    /// As checked; swapped when SIGHUP re-reads it.
    pub config: ArcSwap<Config>,
    /// What the operator configured, swapped as a whole when it changes.
    pub snapshot: ArcSwap<Snapshot>,
    /// Slots, bindings, cool-downs.
    pub state: Arc<dyn LiveState>,
    /// What users may spend.
    pub book: Arc<Book>,
    /// What accounts have cost, against their quotas.
    pub quotas: AccountQuotas,
    /// What accounts have cost lately, against their windows' limits.
    pub window_costs: WindowCosts,
    /// What has been used, on its way to the database.
    pub journal: Arc<Journal>,
    /// Memory for request bodies.
    pub bodies: Arc<BodyBudget>,
    /// Names to addresses.
    pub resolver: Arc<Resolver>,
    /// Connections through egress proxies.
    pub egress: Arc<Egress>,
    /// Which account serves.
    pub scheduler: Scheduler,
    /// Told whenever `snapshot` is swapped.
    pub changes: watch::Sender<()>,
    /// What is counted.
    pub metrics: ProxyMetrics,
    /// Client keys to hashes.
    pub hasher: KeyHasher,
    /// Request ids.
    pub ids: RequestIds,
    /// Models without a price that have been warned of.
    pub unpriced: UnpricedModels,
    /// Which complaints are worth a line.
    pub noise: Noise,
    /// What keys have used, for those who ask.
    pub reports: Reports,
    /// Set while the server waits for its last requests.
    pub draining: AtomicBool,
}

/// The proxy.
pub struct Gateway {
    rooms: Arc<Rooms>,
}

impl Gateway {
    /// A proxy over these rooms.
    pub fn new(rooms: Arc<Rooms>) -> Gateway {
        Gateway { rooms }
    }
}

#[async_trait]
impl ProxyHttp for Gateway {
    type CTX = Context;

    /// The clock starts, and the request has an id.
    fn new_ctx(&self) -> Context {
        Context::new(self.rooms.clone())
    }

    /// Pingora's own modules (compression among them) are not used.
    fn init_downstream_modules(&self, _modules: &mut pingora::modules::http::HttpModules) {}

    /// Route → authenticate → read the body and look at it → the user's slot → what may be spent →
    /// wrap the client's session. Every "no" is answered here; local endpoints end here.
    async fn request_filter(&self, session: &mut Session, ctx: &mut Context) -> Result<bool> {
        let taken_in = match contain(intake::take_in(session, ctx)).await {
            Ok(taken_in) => taken_in?,
            Err(Panicked) => Intake::Refused(errors::panicked()),
        };
        match taken_in {
            Intake::Answered => Ok(true),
            Intake::Refused(reply) => answer::refuse(session, ctx, &reply).await,
            Intake::Forward(exchange) => {
                ctx.way_back = Some(downstream::wrap(session, &exchange));
                Ok(false)
            }
        }
    }

    /// Once per attempt: an account that has not failed this request, its slot, its address.
    async fn upstream_peer(
        &self,
        session: &mut Session,
        ctx: &mut Context,
    ) -> Result<Box<HttpPeer>> {
        conditions::set(ctx).await;
        let attempt = match contain(peer::choose(session, ctx)).await {
            Ok(attempt) => attempt?,
            Err(Panicked) => return Err(peer::unserved(ctx, errors::panicked())),
        };
        let mut peer = peer::peer(&attempt, &ctx.config.gateway);
        if let Some(proxy) = ctx.snapshot.egress(attempt.account.id) {
            let (account, target) = (&attempt.account, &attempt.target);
            self.rooms.egress.through(&mut peer, account, proxy, target);
        }
        ctx.tries.attempts += 1;
        ctx.moments.attempt = Some(attempt.started);
        ctx.attempt = Some(attempt);
        Ok(Box::new(peer))
    }

    async fn connected_to_upstream(
        &self,
        _session: &mut Session,
        reused: bool,
        _peer: &HttpPeer,
        _fd: std::os::unix::io::RawFd,
        _digest: Option<&Digest>,
        ctx: &mut Context,
    ) -> Result<()> {
        let kind = if reused { "reused" } else { "new" };
        let metrics = &self.rooms.metrics;
        metrics.connections.with_label_values(&[kind]).inc();
        if let Some(attempt) = &mut ctx.attempt {
            attempt.reused = reused;
        }
        Ok(())
    }

    /// The request as this account gets it; its body laid ready for the pump.
    async fn upstream_request_filter(
        &self,
        _session: &mut Session,
        upstream_request: &mut RequestHeader,
        ctx: &mut Context,
    ) -> Result<()> {
        let prepared = attempt::prepare(upstream_request, ctx)?;
        prepared.map_err(|error| {
            log::error!("the journal cannot be written, the request is not sent: {error}");
            peer::unserved(ctx, errors::records_unwritable())
        })
    }

    /// The upstream's header: what it says about the account, how its answer is treated, and what of it the
    /// client gets.
    async fn upstream_response_filter(
        &self,
        _session: &mut Session,
        upstream_response: &mut ResponseHeader,
        ctx: &mut Context,
    ) -> Result<()> {
        if let Some(attempt) = &mut ctx.attempt
            && !upstream_response.status.is_informational()
        {
            // Accepted, whatever it says: the next message may go.
            attempt.turn = None;
        }
        conditions::heard(ctx, upstream_response).await;
        if let (Some(attempt), Some(exchange), Some(asked)) =
            (&ctx.attempt, &ctx.exchange, &ctx.asked)
        {
            let client_model = (attempt.upstream_model != asked.requested_model)
                .then(|| asked.requested_model.clone());
            exchange
                .lock()
                .begin_response(upstream_response, client_model, Instant::now());
        }
        Ok(())
    }

    /// Each piece of the answer: usage is read from it as it passes. What the client gets of it is
    /// decided behind this, in `exchange.rs`, at the one door of `downstream.rs`.
    fn upstream_response_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        _end_of_stream: bool,
        ctx: &mut Context,
    ) -> Result<Option<Duration>> {
        if let Some(exchange) = &ctx.exchange {
            exchange.lock().observe(body, Instant::now());
        }
        Ok(None)
    }

    /// Could not connect: may the request go again, elsewhere?
    fn fail_to_connect(
        &self,
        _session: &mut Session,
        _peer: &HttpPeer,
        ctx: &mut Context,
        mut error: Box<Error>,
    ) -> Box<Error> {
        let again = failover::attempt_failed(ctx, &error);
        error.set_retry(again);
        error
    }

    /// The attempt failed on the way, or its answer says so: the same question.
    fn error_while_proxy(
        &self,
        _peer: &HttpPeer,
        _session: &mut Session,
        mut error: Box<Error>,
        ctx: &mut Context,
        _client_reused: bool,
    ) -> Box<Error> {
        let again = failover::attempt_failed(ctx, &error);
        error.set_retry(again);
        error
    }

    /// The last word, as JSON or as an event of the stream that has begun.
    async fn fail_to_proxy(
        &self,
        session: &mut Session,
        error: &Error,
        ctx: &mut Context,
    ) -> FailToProxy {
        if let Some(way_back) = ctx.way_back.take() {
            downstream::unwrap(session, way_back);
        }
        // Both of `last_word` write to the client: the lock is not held meanwhile.
        let error_code = match (ctx.exchange.clone(), ctx.intercepted) {
            (Some(exchange), Some(kind)) => {
                intercepts::last_word(session, ctx, &exchange, kind).await
            }
            (Some(exchange), None) => {
                let reply = failover::last_word(ctx, error);
                answer::last_word(session, &exchange, &reply).await
            }
            (None, _) => {
                ctx.client_left = true;
                0
            }
        };
        FailToProxy {
            error_code,
            can_reuse_downstream: false,
        }
    }

    /// Ends every request, whatever became of it.
    async fn logging(&self, session: &mut Session, _error: Option<&Error>, ctx: &mut Context) {
        // A session whose client has gone stays wrapped: Pingora would flush it, and wait for a client
        // that has only stopped reading.
        if let Some(way_back) = ctx.way_back.take()
            && !ctx.is_client_gone()
        {
            downstream::unwrap(session, way_back);
        }
        failover::judge_answered(ctx);
        conditions::set(ctx).await;
        conditions::remember_served(ctx).await;
        finish::finish(ctx);
    }

    /// The access log has a line for every request; Pingora's own would say the same less well.
    fn suppress_error_log(&self, _session: &Session, _ctx: &Context, _error: &Error) -> bool {
        true
    }

    fn suppress_proxy_warn_log(
        &self,
        _session: &Session,
        _ctx: &Context,
        _error: &Error,
        _context: ProxyWarnLogContext,
    ) -> bool {
        true
    }
}
