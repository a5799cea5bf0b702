//! Configuration as checked: what the rooms are given. `raw` reads it as written, `check` turns
//! one into the other and names every mistake at once.

mod beta;
mod check;
mod env;
mod field;
mod gateway;
mod keys;
mod mistakes;
mod node;
mod raw;
mod report;
pub mod resources;
mod resources_raw;
mod secrets;
mod server;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use tollgate_filters::beta::BetaPolicy;
use tollgate_filters::verdict::Cooldowns;

pub use check::{default_with, load};
pub use mistakes::{Mistake, Mistakes};
pub use resources_raw::load_resources;

use crate::domain::{MessageQueueMode, Multiplier, Secret};

/// Everything `tollgate serve` needs to know.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Data-plane listeners and bodies.
    pub server: ServerConfig,
    /// Admin listener.
    pub admin: AdminConfig,
    /// Absolute path of the data directory.
    pub data_dir: PathBuf,
    /// Forwarding.
    pub gateway: GatewayConfig,
    /// Slots and waiting.
    pub concurrency: ConcurrencyConfig,
    /// Choice of accounts.
    pub scheduling: SchedulingConfig,
    /// Money.
    pub billing: BillingConfig,
    /// Name of the time zone that days and windows begin in.
    pub timezone: chrono_tz::Tz,
    /// Key for hashing client keys and sealing credentials; `None` = generated into `data_dir`.
    pub secret: Option<Secret>,
    /// Log output.
    pub logging: LoggingConfig,
}

/// One data-plane listener.
#[derive(Clone, Debug, PartialEq)]
pub struct Listener {
    /// Address to bind.
    pub addr: SocketAddr,
    /// Certificate chain and key (PEM files); `None` = cleartext.
    pub tls: Option<TlsFiles>,
}

/// PEM files of a TLS listener.
#[derive(Clone, Debug, PartialEq)]
pub struct TlsFiles {
    /// Certificate chain.
    pub cert: PathBuf,
    /// Private key.
    pub key: PathBuf,
}

/// `server:`
#[derive(Clone, Debug, PartialEq)]
pub struct ServerConfig {
    /// At least one.
    pub listen: Vec<Listener>,
    /// HTTP/2 without TLS on the cleartext listeners.
    pub h2c: bool,
    /// Worker threads, resolved (never 0).
    pub threads: usize,
    /// Largest request body, decoded, bytes.
    pub max_body_bytes: usize,
    /// Bound on the sum of bodies held, bytes, resolved (never 0).
    pub max_inflight_body_bytes: usize,
    /// Networks whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
}

/// `admin:`
#[derive(Clone, Debug, PartialEq)]
pub struct AdminConfig {
    /// Address of /metrics, /healthz, /readyz.
    pub listen: SocketAddr,
    /// Token of the admin API; `None` = generated at first start.
    pub token: Option<Secret>,
}

/// What happens to a running request when its client has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnClientDisconnect {
    /// Read the upstream to its end, so that usage is exact.
    Drain,
    /// End the upstream request.
    Abort,
}

/// `gateway:`
#[derive(Clone, Debug, PartialEq)]
pub struct GatewayConfig {
    /// Account switches a request may make.
    pub max_account_switches: u32,
    /// The same for Gemini groups.
    pub max_account_switches_gemini: u32,
    /// TCP and TLS towards the upstream.
    pub connect_timeout: Duration,
    /// From the request sent to the response header.
    pub response_header_timeout: Duration,
    /// No upstream data for this long ends the stream.
    pub stall_timeout: Duration,
    /// SSE comment towards the client in silence; `None` = off.
    pub keepalive_interval: Option<Duration>,
    /// Reading on after a client left; also how long SIGTERM waits.
    pub drain_timeout: Duration,
    /// Drain or abort.
    pub on_client_disconnect: OnClientDisconnect,
    /// How long accounts are left alone whose upstream does not say how long.
    pub cooldowns: Cooldowns,
    /// How messages of users follow each other at one account.
    pub message_queue: MessageQueueConfig,
    /// Which beta features of Anthropic's clients may ask for.
    pub beta_policy: BetaPolicy,
    /// When an account is asked again whose refusal may pass.
    pub inner_retries: InnerRetries,
    /// Which refused requests are mended and sent once more.
    pub repairs: RepairsConfig,
}

/// `gateway.user_message_queue:`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageQueueConfig {
    /// Where an account does not say otherwise.
    pub mode: MessageQueueMode,
    /// Between two messages, while the account is asked little.
    pub min_delay: Duration,
    /// The same near the account's limit of requests a minute; not below `min_delay`.
    pub max_delay: Duration,
    /// Longest wait of one request, over all its attempts; then it goes on out of turn.
    pub wait: Duration,
}

/// When an account of Anthropic's is asked again that refused a request in a way that may pass (SPEC 7.4).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InnerRetries {
    /// Never.
    Off,
    /// While no other account can serve the request: a change of account costs its client no time.
    Alone,
    /// Before any other account is asked.
    Always,
}

/// `gateway.repairs:`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RepairsConfig {
    /// Thinking whose signature is refused becomes text.
    pub signature: bool,
    /// A thinking budget that is refused becomes one that any model takes.
    pub budget: bool,
}

/// `concurrency:`
#[derive(Clone, Debug, PartialEq)]
pub struct ConcurrencyConfig {
    /// Between pings while a stream's request waits.
    pub ping_interval: Duration,
    /// Longest wait for the user's own slot.
    pub user_wait: Duration,
    /// Longest wait for an account.
    pub account_wait: Duration,
    /// Longest wait for the sticky account before spilling.
    pub sticky_wait: Duration,
    /// Waiting requests per account.
    pub max_waiting_per_account: u32,
}

/// `scheduling:`
#[derive(Clone, Debug, PartialEq)]
pub struct SchedulingConfig {
    /// Candidates kept for the weighted choice.
    pub top_k: usize,
    /// Life of a sticky binding since its last use.
    pub sticky_ttl: Duration,
    /// Weights of the score.
    pub weights: SchedulingWeights,
}

/// `scheduling.weights:`
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SchedulingWeights {
    /// Of free slots.
    pub load: f64,
    /// Of a short queue.
    pub queue: f64,
    /// Of few errors.
    pub error: f64,
    /// Of a quick first token.
    pub first_token: f64,
}

/// `billing.mode`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BillingMode {
    /// Balances are checked and charged.
    Standard,
    /// Usage is recorded, nothing is charged.
    Simple,
}

/// `billing.reservation`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reservation {
    /// Reserve an estimate or what is free.
    Available,
    /// Never below zero.
    Strict,
    /// No reservation.
    None,
}

/// `billing:`
#[derive(Clone, Debug, PartialEq)]
pub struct BillingConfig {
    /// Standard or simple.
    pub mode: BillingMode,
    /// Reservation mode.
    pub reservation: Reservation,
    /// Price map file; `None` = the built-in copy of conf/prices.json.
    pub prices: Option<PathBuf>,
    /// Where neither user nor group says otherwise.
    pub default_rate_multiplier: Multiplier,
    /// Output tokens that `available` reserves for at most.
    pub reserve_output_tokens: u64,
    /// What `strict` does with a request whose output cannot be paid for in full.
    pub strict_output: StrictOutput,
    /// Longest wait for money that other requests of the user hold.
    pub wait: Duration,
    /// The journal.
    pub journal: JournalConfig,
}

/// `billing.strict_output`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StrictOutput {
    /// Lower its output limit to what can be paid for.
    Lower,
    /// Refuse it.
    Refuse,
}

/// `billing.journal:`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalConfig {
    /// Size of a segment on disk; two are there at any time.
    pub segment_bytes: u64,
    /// Longest time until what was written is on disk: what a power cut may lose.
    pub sync_interval: Duration,
}

/// `logging.format`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// `key=value` for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// `logging:`
#[derive(Clone, Debug, PartialEq)]
pub struct LoggingConfig {
    /// Text or JSON.
    pub format: LogFormat,
    /// Least severe level written.
    pub level: log::LevelFilter,
}

#[cfg(test)]
mod tests;
