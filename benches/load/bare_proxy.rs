//! The yardstick of benches/load: the least a Pingora proxy can do. It forwards everything to one
//! upstream, with Pingora's own defaults except for the number of threads.
//!
//! Usage: `bare_proxy LISTEN UPSTREAM THREADS`, both addresses as `127.0.0.1:PORT`. Runs until
//! SIGTERM.

use std::net::SocketAddr;
use std::process::ExitCode;

use async_trait::async_trait;
use pingora::Result;
use pingora::proxy::{ProxyHttp, Session, http_proxy_service};
use pingora::server::configuration::ServerConf;
use pingora::server::{RunArgs, Server};
use pingora::upstreams::peer::HttpPeer;

struct Bare {
    upstream: SocketAddr,
}

#[async_trait]
impl ProxyHttp for Bare {
    type CTX = ();

    fn new_ctx(&self) {}

    async fn upstream_peer(&self, _session: &mut Session, _ctx: &mut ()) -> Result<Box<HttpPeer>> {
        Ok(Box::new(HttpPeer::new(self.upstream, false, String::new())))
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let parsed = match arguments.as_slice() {
        [listen, upstream, threads] => listen
            .parse::<SocketAddr>()
            .ok()
            .zip(upstream.parse().ok())
            .zip(threads.parse().ok()),
        _ => None,
    };
    let Some(((listen, upstream), threads)) = parsed else {
        eprintln!("usage: bare_proxy LISTEN UPSTREAM THREADS");
        return ExitCode::FAILURE;
    };
    let conf = ServerConf {
        threads,
        // SIGTERM ends it at once: there is nothing to drain when a measurement is over.
        grace_period_seconds: Some(0),
        graceful_shutdown_timeout_seconds: Some(0),
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let mut proxy = http_proxy_service(&server.configuration, Bare { upstream });
    proxy.threads = Some(threads);
    proxy.add_tcp(&listen.to_string());
    server.add_service(proxy);
    server.run(RunArgs::default());
    ExitCode::SUCCESS
}
