//! Connections through an account's egress proxy.
//!
//! Pingora knows proxies only behind Unix sockets; here is the connector that it calls in place of
//! its own. The way to the provider is: the proxy's name looked up, TCP, TLS to the proxy if it is an
//! `https://` one, the handshake (`providers/egress.rs`), and then Pingora's own TLS and HTTP with
//! the provider, through the tunnel. Whatever fails on the way is an error of the attempt with the
//! etype [`EGRESS_PROXY`]; there is no way around the proxy.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pingora::connectors::L4Connect;
use pingora::protocols::TcpKeepalive;
use pingora::protocols::l4::ext::set_tcp_keepalive;
use pingora::protocols::l4::socket::SocketAddr as PingoraAddr;
use pingora::protocols::l4::stream::Stream;
use pingora::tls::{
    ClientConfig, ClientTlsStream, RootCertStore, ServerName, TlsConnector,
    install_default_crypto_provider, load_platform_certs_incl_env_into_store,
};
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType, Result};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy, split};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::OnceCell;
use tokio::time::{Instant, timeout, timeout_at};

use crate::domain::{Account, AccountId, EgressProxy, EgressScheme};
use crate::providers::egress::{HandshakeError, http_connect, socks5_connect};
use crate::providers::resolve::{ResolveError, Resolver};
use crate::providers::target::Target;

/// The etype of a connection that an egress proxy did not give, and its label in metrics.
pub const EGRESS_PROXY: &str = "egress_proxy";

/// What stands in a peer for the address of a provider that only the proxy looks up. The
/// unspecified address: Pingora compares a kept connection's other end, which is the proxy, with any
/// other; and port 0: should a peer ever lack its connector, nothing can be connected to.
pub const UNRESOLVED: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// Group keys of proxied connections have this bit, those of direct ones (account ids) never.
const PROXIED: u64 = 1 << 63;

/// How long the end of a tunnel inside TLS is tried to be told to the proxy.
const FAREWELL: Duration = Duration::from_secs(1);
/// A proxy that takes nothing for this long has left its tunnel; as with direct connections.
const STUCK: Duration = Duration::from_secs(60);
/// Carried at once through a tunnel inside TLS; about what one TLS record holds.
const PUMP_BUFFER: usize = 16 << 10;

/// Why there is no tunnel. The texts can follow "egress proxy NAME".
#[derive(Debug, thiserror::Error)]
enum EgressFailure {
    #[error("{0}")]
    Resolve(#[from] ResolveError),
    #[error("cannot connect to {0}: {1}")]
    Connect(SocketAddr, std::io::Error),
    #[error("no trusted certificates to verify it with: {0}")]
    Roots(String),
    #[error("no TLS with it: {0}")]
    Tls(String),
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    #[error("{0} took longer than {1:?}")]
    TimedOut(&'static str, Duration),
}

/// What all egress proxies share. One per process; the request path makes peers with it.
pub struct Egress {
    resolver: Arc<Resolver>,
    /// TLS to `https://` proxies, with the roots Pingora trusts for providers: the system's, or those
    /// that `SSL_CERT_FILE` or `SSL_CERT_DIR` name. Read when first needed.
    tls: OnceCell<TlsConnector>,
}

impl Egress {
    /// With the resolver for proxies' names.
    pub fn new(resolver: Arc<Resolver>) -> Arc<Egress> {
        Arc::new(Egress {
            resolver,
            tls: OnceCell::new(),
        })
    }

    /// Sends this peer's connections to `target` through `proxy`. The peer's address should be
    /// [`UNRESOLVED`]; its time-out for connections and its keep-alive settings must stand.
    ///
    /// Kept connections are those of this account, proxy (with its credential) and target only.
    pub fn through(
        self: &Arc<Egress>,
        peer: &mut HttpPeer,
        account: &Arc<Account>,
        proxy: &Arc<EgressProxy>,
        target: &Arc<Target>,
    ) {
        peer.group_key = group_key(account.id, proxy, target);
        let limit = peer.options.connection_timeout.unwrap_or(DEFAULT_LIMIT);
        // Two ways one after the other, each with its own limit: to and through the proxy (ours),
        // and TLS with the provider behind it (Pingora's). This is the net around both.
        peer.options.total_connection_timeout = Some(limit * 2);
        peer.options.custom_l4 = Some(Arc::new(Route {
            egress: self.clone(),
            account: account.clone(),
            proxy: proxy.clone(),
            target: target.clone(),
            keepalive: peer.options.tcp_keepalive.clone(),
            limit,
        }));
    }

    async fn tls(&self) -> Result<&TlsConnector, EgressFailure> {
        let load = || async {
            // Files are read: not on a thread that serves requests.
            let config = tokio::task::spawn_blocking(client_config).await;
            let config = config.map_err(|error| EgressFailure::Roots(error.to_string()))?;
            Ok(TlsConnector::from(Arc::new(config?)))
        };
        self.tls.get_or_try_init(load).await
    }
}

/// For a peer without a limit of its own; the configuration always sets one.
const DEFAULT_LIMIT: Duration = Duration::from_secs(10);

fn group_key(account: AccountId, proxy: &EgressProxy, target: &Target) -> u64 {
    let mut hasher = DefaultHasher::new();
    account.0.hash(&mut hasher);
    proxy.hash(&mut hasher);
    // Not in Pingora's own key as long as the address is not the provider's.
    (&target.host, target.port, target.tls).hash(&mut hasher);
    hasher.finish() | PROXIED
}

fn client_config() -> Result<ClientConfig, EgressFailure> {
    install_default_crypto_provider();
    let mut roots = RootCertStore::empty();
    load_platform_certs_incl_env_into_store(&mut roots)
        .map_err(|error| EgressFailure::Roots(error.to_string()))?;
    if roots.is_empty() {
        return Err(EgressFailure::Roots("there are none".to_owned()));
    }
    let mut config = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    // CONNECT as we say it is HTTP/1.1.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// One account's way to one target.
struct Route {
    egress: Arc<Egress>,
    account: Arc<Account>,
    proxy: Arc<EgressProxy>,
    target: Arc<Target>,
    keepalive: Option<TcpKeepalive>,
    limit: Duration,
}

impl std::fmt::Debug for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Route({} to {})", self.proxy, self.target.authority)
    }
}

#[async_trait]
impl L4Connect for Route {
    /// The address is the peer's, [`UNRESOLVED`]: where to is the route's own matter.
    async fn connect(&self, _peer: &PingoraAddr) -> Result<Stream> {
        self.tunnel().await.map_err(|failure| {
            let (account, proxy) = (&self.account.name, &self.proxy);
            log::warn!("account {account:?}: egress proxy {proxy}: {failure}");
            let context = format!("egress proxy {proxy}: {failure}");
            Error::explain(ErrorType::Custom(EGRESS_PROXY), context).into_up()
        })
    }
}

impl Route {
    async fn tunnel(&self) -> Result<Stream, EgressFailure> {
        // Pingora's own limit on connecting is not applied to a connector like this.
        let deadline = Instant::now() + self.limit;
        let late = |step| move |_| EgressFailure::TimedOut(step, self.limit);
        let tcp = self.tcp(deadline).await?;
        let credential = self.proxy.credential.as_ref();
        let handshake = "its answer";
        match self.proxy.scheme {
            EgressScheme::Socks5 => {
                let mut tcp = tcp;
                let socks5 = socks5_connect(&mut tcp, &self.target, credential);
                timeout_at(deadline, socks5)
                    .await
                    .map_err(late(handshake))??;
                Ok(tcp.into())
            }
            EgressScheme::Http => {
                let mut tcp = tcp;
                let connect = http_connect(&mut tcp, &self.target, credential);
                let early = timeout_at(deadline, connect)
                    .await
                    .map_err(late(handshake))??;
                let mut stream = Stream::from(tcp);
                stream.rewind(&early);
                Ok(stream)
            }
            EgressScheme::Https => {
                let tls = timeout_at(deadline, self.tls(tcp));
                let mut tls = tls.await.map_err(late("TLS with it"))??;
                let connect = http_connect(&mut tls, &self.target, credential);
                let early = timeout_at(deadline, connect)
                    .await
                    .map_err(late(handshake))??;
                let (ours, pingoras) =
                    UnixStream::pair().map_err(|error| EgressFailure::Handshake(error.into()))?;
                let mut stream = Stream::from(pingoras);
                stream.rewind(&early);
                tokio::spawn(relay(tls, ours));
                Ok(stream)
            }
        }
    }

    async fn tcp(&self, deadline: Instant) -> Result<TcpStream, EgressFailure> {
        let late = |_| EgressFailure::TimedOut("connecting to it", self.limit);
        let proxy = Target {
            tls: false,
            host: self.proxy.host.clone(),
            port: self.proxy.port,
            authority: String::new(),
            prefix: String::new(),
        };
        let resolved = timeout_at(deadline, self.egress.resolver.resolve(&proxy));
        let address = resolved.await.map_err(late)??;
        let failed = |error| EgressFailure::Connect(address, error);
        let connected = timeout_at(deadline, TcpStream::connect(address)).await;
        if !matches!(connected, Ok(Ok(_))) {
            // The next try is on another address of the name, also where this one swallows packets.
            self.egress.resolver.connect_failed(&proxy, address.ip());
        }
        let tcp = connected.map_err(late)?.map_err(failed)?;
        // Pingora does the same, but only when the tunnel is there, and not for one inside TLS.
        tcp.set_nodelay(true).map_err(failed)?;
        if let Some(keepalive) = &self.keepalive {
            set_tcp_keepalive(&tcp, keepalive)
                .map_err(|error| failed(std::io::Error::other(error.to_string())))?;
        }
        Ok(tcp)
    }

    async fn tls(&self, tcp: TcpStream) -> Result<ClientTlsStream<TcpStream>, EgressFailure> {
        let tls = self.egress.tls().await?;
        let name = ServerName::try_from(self.proxy.host.clone())
            .map_err(|error| EgressFailure::Tls(error.to_string()))?;
        let connected = tls.connect(name, tcp).await;
        connected.map_err(|error| EgressFailure::Tls(error.to_string()))
    }
}

/// Carries a tunnel between TLS to the proxy and the socket that Pingora has.
///
/// Pingora would take the TLS stream itself, as a `VirtualSocket`. But all of those have the same
/// identity, -1, and its pools tell connections by it: one that closes would take another out, and
/// HTTP/1 connections would never be used again. A socket pair has a descriptor of its own, for the
/// price of a copy in memory.
async fn relay(tls: ClientTlsStream<TcpStream>, local: UnixStream) {
    let (mut from_proxy, mut to_proxy) = split(tls);
    let (mut from_pingora, mut to_pingora) = local.into_split();
    let up = pump(&mut from_pingora, &mut to_proxy);
    let down = async {
        let result = copy(&mut from_proxy, &mut to_pingora).await;
        drop(to_pingora);
        // Pingora sees the end, and closes when it has said what it was saying.
        if result.is_ok() {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        _ = up => {}
        () = down => {}
    }
    // Pingora never closes one direction alone: with it gone the tunnel is over.
    let _ = timeout(FAREWELL, to_proxy.shutdown()).await;
}

/// Copies until the end. A proxy that takes nothing any more ends it: Pingora, which has given up on it
/// long since, could not be heard otherwise.
async fn pump(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
) -> std::io::Result<()> {
    let mut buffer = vec![0; PUMP_BUFFER];
    loop {
        let count = from.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        timeout(STUCK, to.write_all(&buffer[..count])).await??;
        timeout(STUCK, to.flush()).await??;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_kept_apart_by_account_proxy_credential_and_target() {
        let proxy = |address| EgressProxy::parse(address).unwrap();
        let target = |url| Target::parse(url).unwrap();
        let key = |id, at, url| group_key(AccountId(id), &proxy(at), &target(url));
        let (at, url) = ("http://u:p@h:1", "https://api.example.com/v1");
        let first = key(1, at, url);
        // The path is no matter of connections, nor is how the same proxy is written.
        assert_eq!(
            first,
            key(1, "http://%75:p@H:1/", "https://api.example.com")
        );
        let mut keys = std::collections::BTreeSet::from([first]);
        for other in [
            key(2, at, url),
            key(1, "https://u:p@h:1", url),
            key(1, "socks5://u:p@h:1", url),
            key(1, "http://u:p@h:2", url),
            key(1, "http://u:p@i:1", url),
            key(1, "http://u:q@h:1", url),
            key(1, "http://h:1", url),
            key(1, at, "https://api.example.com:444"),
            key(1, at, "https://other.example.com"),
            key(1, at, "http://api.example.com:443"),
        ] {
            assert!(keys.insert(other));
        }
        // Direct connections have the account's id, which is never negative.
        assert!(keys.iter().all(|key| *key > i64::MAX as u64));
    }
}
