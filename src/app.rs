//! Builds every room once and hands it its neighbours. The only place that knows them all.

pub mod first_start;
pub mod lock;
pub mod recovery;
pub mod shutdown;
pub mod tls;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use chrono::Utc;
use pingora::apps::HttpServerOptions;
use pingora::apps::http_app::HttpServer;
use pingora::listeners::tls::TlsSettings;
use pingora::protocols::http::v2::server::default_h2_options;
use pingora::proxy::http_proxy_service;
use pingora::server::configuration::ServerConf;
use pingora::server::{RunArgs, Server};
use pingora::services::background::background_service;
use pingora::services::listening::Service;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::signal::unix::{SignalKind, signal};

use crate::admin::Admin;
use crate::billing::account_quota::AccountQuotas;
use crate::billing::book::Book;
use crate::billing::journal::{self, Journal, JournalError};
use crate::billing::price_map::source::{Source, Stamp};
use crate::billing::price_map::{PriceFileError, Prices};
use crate::billing::window_cost::{self, WindowCosts};
use crate::config::{Config, Listener};
use crate::domain::account::quota::AccountUsage;
use crate::domain::{AccountId, JournalPosition, Money, Platform};
use crate::jobs::conditions::{Keeper, RestoreError};
use crate::jobs::follow::Follower;
use crate::jobs::heartbeat::Heartbeat;
use crate::jobs::listening::{Listening, LookOut};
use crate::jobs::metrics::JobMetrics;
use crate::jobs::prices::PriceWatch;
use crate::jobs::reload::Reloader;
use crate::jobs::sweep::Sweeper;
use crate::jobs::verify::Verifier;
use crate::jobs::writer::Writer;
use crate::limits::bodies::BodyBudget;
use crate::limits::noise::Noise;
use crate::metrics::Metrics;
use crate::providers::resolve::Resolver;
use crate::proxy::context::RequestIds;
use crate::proxy::egress::Egress;
use crate::proxy::metrics::ProxyMetrics;
use crate::proxy::snapshot::Snapshot;
use crate::proxy::unpriced::UnpricedModels;
use crate::proxy::usage::reports::Reports;
use crate::proxy::{Gateway, Rooms};
use crate::scheduler::Scheduler;
use crate::state::LiveState;
use crate::state::memory::MemoryState;
use crate::storage::{StorageError, Store};
use lock::{DirectoryLock, LockError};
use shutdown::DrainWatch;
pub use shutdown::StopSignal;

/// Idle connections to upstreams kept for reuse: enough for a thousand accounts in use, at a few
/// KiB each.
const UPSTREAM_POOL: usize = 1024;
/// What an HTTP/2 client may send before we have read it: large uploads over long distances are
/// slow with the 64 KiB that HTTP/2 begins with.
const H2_STREAM_WINDOW: u32 = 1 << 20;
const H2_CONNECTION_WINDOW: u32 = 4 << 20;
/// Streams of one HTTP/2 client connection at once.
const H2_STREAMS: u32 = 256;
/// An HTTP/2 client connection without any stream is closed after this long (SPEC 13.3).
const H2_IDLE: Duration = Duration::from_secs(75);
/// After the last request, how long unwritten usage records are tried to be written.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(30);

/// A request that took no longer than this is found at the start among those that ended lately; they are looked up by
/// when they began.
const LONGEST_COUNTED: chrono::TimeDelta = chrono::TimeDelta::hours(1);

/// Why the server cannot start, or did not end well.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The data directory is in use or cannot be used.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The secret cannot be read or made.
    #[error("the secret in {path}: {source}")]
    Secret {
        /// Its file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The store cannot be opened or read.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// What was learnt about accounts cannot be read.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// The price map cannot be read.
    #[error(transparent)]
    Prices(#[from] PriceFileError),
    /// An address cannot be bound.
    #[error("{key}: cannot listen on {addr}: {source}")]
    Listen {
        /// Key path in the configuration.
        key: String,
        /// The address.
        addr: std::net::SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// A listener did not come up.
    #[error("nothing listens on {0}, although it was free; the log above may say why")]
    NotListening(std::net::SocketAddr),
    /// A certificate cannot be used.
    #[error("server.listen[{index}]: the certificate or key cannot be used: {reason}")]
    Tls {
        /// Which listener.
        index: usize,
        /// Why.
        reason: String,
    },
    /// A runtime cannot be started.
    #[error("cannot start a runtime: {0}")]
    Runtime(std::io::Error),
    /// The journal cannot be opened.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Usage records are left that could not be written to the database.
    #[error(
        "{0} usage records could not be written to the database before the end; they are in the journal \
         and will be written at the next start"
    )]
    Unwritten(usize),
}

/// Where the configuration came from, to read it again on SIGHUP.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    /// The file, if there is one.
    pub file: Option<PathBuf>,
    /// The environment.
    pub env: BTreeMap<String, String>,
}

/// A server that is built but does not run yet.
pub struct App {
    runtime: tokio::runtime::Runtime,
    rooms: Arc<Rooms>,
    store: Store,
    writer: Writer,
    follower: Follower,
    keeper: Keeper,
    prices: Arc<ArcSwap<Prices>>,
    /// The price map's file as it was before it was read.
    price_file: (Source, Stamp),
    metrics: Metrics,
    jobs: JobMetrics,
    origin: Origin,
    _lock: DirectoryLock,
}

impl App {
    /// Opens the data directory and builds the rooms. Nothing listens yet.
    pub fn build(config: Config, origin: Origin) -> Result<App, AppError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("store")
            .enable_all()
            .build()
            .map_err(AppError::Runtime)?;
        // From here on SIGHUP no longer ends the process, as it would by default; the reload job
        // answers it once the server runs.
        let hangup = runtime.block_on(async { signal(SignalKind::hangup()) });
        drop(hangup.map_err(AppError::Runtime)?);
        let lock = DirectoryLock::take(&config.data_dir)?;
        let secret = first_start::secret(&config)?;
        let price_file = Source::of(&config);
        let price_file = (price_file.clone(), price_file.stamp());
        let prices = Arc::new(ArcSwap::from_pointee(Prices::configured(&config)?));
        let config = Arc::new(config);
        let metrics = Metrics::new();
        let jobs = JobMetrics::new(&metrics);
        build_info(&metrics);
        let book = Arc::new(Book::new(config.timezone));
        let state: Arc<dyn LiveState> = Arc::new(MemoryState::new());
        let (store, directory, keeper, kept) = runtime.block_on(async {
            let store = Store::open(&config.data_dir, &secret).await?;
            first_start::seed(&store, &config, &origin.env).await?;
            let multiplier = config.billing.default_rate_multiplier;
            let directory = store.load_directory(multiplier).await?;
            book.refresh(store.balances().await?, store.key_spend().await?);
            book.load_windows(
                store.key_windows().await?,
                store.subscription_windows().await?,
            );
            // After the windows were read: what is given back in between stays counted until the next start,
            // which is better than to be taken off twice.
            let reversed = store.last_entry().await?;
            let kept = Kept {
                database: store.database_id(),
                applied: store.watermark().await?,
                account_usage: store.account_usage().await?,
                // A request that ended within it may have begun before.
                costs: store
                    .costs_by_minute(
                        Platform::Anthropic,
                        Utc::now() - window_cost::KEPT - LONGEST_COUNTED,
                    )
                    .await?,
                reversed,
            };
            let keeper = Keeper::restored(
                store.clone(),
                state.clone(),
                &directory,
                jobs.clone(),
                Utc::now(),
            )
            .await?;
            Ok::<_, AppError>((store, directory, keeper, kept))
        })?;
        let quotas = AccountQuotas::loaded(kept.account_usage, &directory);
        let window_costs = WindowCosts::loaded(kept.costs, Utc::now());
        let snapshot = Snapshot::new(directory, &prices.load());
        let (journal, mut recovered) =
            Journal::open(journal_options(&config, kept.database), kept.applied)?;
        let ids: Vec<String> = recovered.request_ids().map(str::to_owned).collect();
        let known = runtime.block_on(store.known_requests(&ids))?;
        journal.forget(&mut recovered, &known);
        recovery::take_up(
            recovered,
            &journal,
            &book,
            &window_costs,
            &snapshot,
            config.billing.reservation,
            Utc::now(),
        );
        let money = Arc::new(tokio::sync::Mutex::new(()));
        let resolver = Arc::new(Resolver::default());
        let rooms = Arc::new(Rooms {
            snapshot: ArcSwap::from_pointee(snapshot),
            state,
            bodies: BodyBudget::new(config.server.max_inflight_body_bytes),
            egress: Egress::new(resolver.clone()),
            resolver,
            scheduler: Scheduler::new(),
            changes: tokio::sync::watch::Sender::new(()),
            metrics: ProxyMetrics::new(&metrics),
            hasher: store.hasher().clone(),
            ids: RequestIds::new(random_u64()),
            unpriced: UnpricedModels::default(),
            noise: Noise::default(),
            reports: Reports::new(store.clone()),
            draining: AtomicBool::new(false),
            config: ArcSwap::new(config.clone()),
            book,
            quotas,
            window_costs,
            journal,
        });
        let writer = Writer::new(
            store.clone(),
            rooms.clone(),
            config.timezone,
            money.clone(),
            jobs.clone(),
        );
        let follower = Follower::new(
            store.clone(),
            rooms.clone(),
            prices.clone(),
            money,
            kept.reversed,
            jobs.clone(),
        );
        let snapshot = rooms.snapshot.load_full();
        runtime.block_on(follower.follow_quotas(&snapshot.directory));
        Ok(App {
            runtime,
            rooms,
            store,
            writer,
            follower,
            keeper,
            prices,
            price_file,
            metrics,
            jobs,
            origin,
            _lock: lock,
        })
    }

    /// The store, for whoever fills it before the server runs.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Runs something on the store's runtime.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    /// Reads the configured objects anew, after they were changed before the start.
    pub fn reload(&self) -> Result<(), AppError> {
        Ok(self.runtime.block_on(self.follower.reload())?)
    }

    /// Serves until SIGTERM, SIGINT or `stop`, drains, writes what is left and returns.
    pub fn serve(self, stop: StopSignal) -> Result<(), AppError> {
        let config = self.rooms.config.load_full();
        check_addresses(&config)?;
        check_certificates(&config)?;
        let mut server = Server::new_with_opt_and_conf(None, server_conf(&config));
        server.bootstrap();
        self.add_proxy(&mut server, &config)?;
        let listening = Listening::default();
        let failed = Arc::new(std::sync::OnceLock::new());
        let admin = HttpServer::new_app(Admin::new(
            self.rooms.clone(),
            listening.clone(),
            self.metrics.clone(),
            self.jobs.clone(),
        ));
        let mut admin = Service::new("admin".to_owned(), admin);
        admin.threads = Some(1);
        admin.add_tcp(&config.admin.listen.to_string());
        server.add_service(admin);
        server.add_service(background_service("writer", self.writer.clone()));
        server.add_service(background_service("follow", self.follower.clone()));
        server.add_service(background_service("conditions", self.keeper.clone()));
        server.add_service(background_service(
            "heartbeat",
            Heartbeat::new(self.rooms.state.clone()),
        ));
        server.add_service(background_service(
            "sweep",
            Sweeper::new(self.rooms.state.clone()),
        ));
        server.add_service(background_service(
            "verify",
            Verifier::new(self.store.clone(), self.jobs.clone()),
        ));
        server.add_service(background_service(
            "prices",
            PriceWatch::new(
                self.rooms.clone(),
                self.prices.clone(),
                self.follower.clone(),
                self.price_file.clone(),
            ),
        ));
        server.add_service(background_service(
            "reload",
            Reloader::new(
                self.origin.file.clone(),
                self.origin.env.clone(),
                self.rooms.clone(),
                self.prices.clone(),
                self.follower.clone(),
            ),
        ));
        let addresses = config.server.listen.iter().map(|l| l.addr);
        let addresses = addresses.chain([config.admin.listen]).collect();
        let (report, stopper) = (failed.clone(), stop.clone());
        let look_out = LookOut::new(addresses, listening, move |address| {
            log::error!("nothing listens on {address}");
            let _ = report.set(address);
            stopper.stop();
        });
        server.add_service(background_service("listening", look_out));
        announce(&config);
        server.run(RunArgs {
            shutdown_signal: Box::new(DrainWatch::new(self.rooms.clone(), stop)),
        });
        // Every request has ended or was dropped by now, and has left its record.
        let left = self
            .runtime
            .block_on(self.writer.flush(Instant::now() + FLUSH_TIMEOUT));
        let kept = self
            .runtime
            .block_on(self.keeper.flush(Instant::now() + FLUSH_TIMEOUT));
        if left > 0 {
            return Err(AppError::Unwritten(left));
        }
        if !kept {
            log::warn!("what was last learnt about accounts and responses is lost");
        }
        self.rooms.journal.close();
        self.runtime.block_on(self.store.close())?;
        log::info!("stopped");
        match failed.get() {
            Some(address) => Err(AppError::NotListening(*address)),
            None => Ok(()),
        }
    }

    fn add_proxy(&self, server: &mut Server, config: &Config) -> Result<(), AppError> {
        let mut proxy = http_proxy_service(&server.configuration, Gateway::new(self.rooms.clone()));
        proxy.threads = Some(config.server.threads);
        if let Some(logic) = proxy.app_logic_mut() {
            let mut h2 = default_h2_options();
            h2.initial_window_size(H2_STREAM_WINDOW)
                .initial_connection_window_size(H2_CONNECTION_WINDOW)
                .max_concurrent_streams(H2_STREAMS);
            logic.h2_options = Some(h2);
            let mut options = HttpServerOptions::default();
            options.h2c = config.server.h2c;
            options.h2_idle_timeout = Some(H2_IDLE);
            logic.server_options = Some(options);
        }
        for (index, listener) in config.server.listen.iter().enumerate() {
            let Listener { addr, tls } = listener;
            let Some(tls) = tls else {
                proxy.add_tcp(&addr.to_string());
                continue;
            };
            let (cert, key) = (tls.cert.to_string_lossy(), tls.key.to_string_lossy());
            let mut settings =
                TlsSettings::intermediate(&cert, &key).map_err(|e| AppError::Tls {
                    index,
                    reason: e.to_string(),
                })?;
            settings.enable_h2();
            proxy.add_tls_with_settings(&addr.to_string(), None, settings);
        }
        server.add_service(proxy);
        Ok(())
    }
}

/// What the database says that only the start needs.
struct Kept {
    database: u64,
    applied: Option<JournalPosition>,
    account_usage: Vec<(AccountId, AccountUsage)>,
    /// What accounts have cost lately, by minutes since 1970.
    costs: Vec<(AccountId, i64, Money)>,
    reversed: i64,
}

fn journal_options(config: &Config, database: u64) -> journal::Options {
    journal::Options {
        directory: config.data_dir.join("journal"),
        segment_bytes: config.billing.journal.segment_bytes,
        sync_interval: config.billing.journal.sync_interval,
        database,
    }
}

fn server_conf(config: &Config) -> ServerConf {
    ServerConf {
        threads: config.server.threads,
        // Our own limits decide (switches, tries again on an account, dead connections); this one only
        // has to be out of their way.
        max_retries: usize::MAX,
        upstream_keepalive_pool_size: UPSTREAM_POOL,
        // Draining is done before Pingora hears of the shutdown (see `shutdown`).
        grace_period_seconds: Some(0),
        graceful_shutdown_timeout_seconds: Some(1),
        ..ServerConf::default()
    }
}

/// Finds out that an address is taken while the reason can still be told well.
fn check_addresses(config: &Config) -> Result<(), AppError> {
    let listeners = config
        .server
        .listen
        .iter()
        .enumerate()
        .map(|(i, l)| (format!("server.listen[{i}]"), l.addr));
    // All are held until the last is bound: two of ours may be in each other's way.
    let mut held = Vec::new();
    for (key, addr) in listeners.chain([("admin.listen".to_owned(), config.admin.listen)]) {
        match std::net::TcpListener::bind(addr) {
            Ok(listener) => held.push(listener),
            Err(source) => return Err(AppError::Listen { key, addr, source }),
        }
    }
    Ok(())
}

/// Finds out that a certificate cannot be used while the reason can still be told well.
fn check_certificates(config: &Config) -> Result<(), AppError> {
    for (index, listener) in config.server.listen.iter().enumerate() {
        if let Some(files) = &listener.tls {
            tls::check(files).map_err(|reason| AppError::Tls { index, reason })?;
        }
    }
    Ok(())
}

fn announce(config: &Config) {
    for listener in &config.server.listen {
        log::info!(
            "listening on {}{}",
            listener.addr,
            if listener.tls.is_some() { " (TLS)" } else { "" }
        );
    }
    log::info!(
        "health and metrics on http://{}, data in {}",
        config.admin.listen,
        config.data_dir.display()
    );
}

fn build_info(metrics: &Metrics) {
    metrics
        .gauges(
            "build_info",
            "Always 1; the label is the version of this program.",
            &["version"],
        )
        .with_label_values(&[env!("CARGO_PKG_VERSION")])
        .set(1);
}

fn random_u64() -> u64 {
    let mut bytes = [0; 8];
    // Without randomness the time since 1970 in nanoseconds tells processes apart as well.
    match SystemRandom::new().fill(&mut bytes) {
        Ok(()) => u64::from_le_bytes(bytes),
        Err(_) => chrono::Utc::now()
            .timestamp_nanos_opt()
            .unwrap_or_default()
            .unsigned_abs(),
    }
}
