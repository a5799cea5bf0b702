//! Says when every listener really listens, and ends the server when one does not.
//!
//! Pingora binds inside its services; one that cannot would leave a process behind that looks
//! healthy and serves nobody.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use tokio::time::Instant;

/// Between looks.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// Pingora itself tries for about ten seconds.
const PATIENCE: Duration = Duration::from_secs(15);
/// State of a listening socket in the kernel's table.
const LISTEN: &str = "0A";

/// What the look-out found.
#[derive(Clone, Debug, Default)]
pub struct Listening(Arc<AtomicBool>);

impl Listening {
    /// Whether every listener listens.
    pub fn is_up(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The look-out.
pub struct LookOut {
    addresses: Vec<SocketAddr>,
    listening: Listening,
    give_up: Box<dyn Fn(SocketAddr) + Send + Sync>,
}

impl LookOut {
    /// Watches until `addresses` listen; otherwise tells `give_up` which does not.
    pub fn new(
        addresses: Vec<SocketAddr>,
        listening: Listening,
        give_up: impl Fn(SocketAddr) + Send + Sync + 'static,
    ) -> LookOut {
        LookOut {
            addresses,
            listening,
            give_up: Box::new(give_up),
        }
    }
}

/// Whether this machine has a listening socket on the port. The kernel's table is read rather than
/// a connection made: a connection would look like a client that breaks off its handshake.
fn listens(port: u16) -> bool {
    ["/proc/self/net/tcp", "/proc/self/net/tcp6"]
        .iter()
        .filter_map(|path| std::fs::read_to_string(path).ok())
        .any(|table| has_listener(&table, port))
}

fn has_listener(table: &str, port: u16) -> bool {
    let port = format!(":{port:04X}");
    table.lines().skip(1).any(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let local = fields.next().unwrap_or_default();
        let state = fields.nth(1).unwrap_or_default();
        state == LISTEN && local.ends_with(&port)
    })
}

#[async_trait]
impl BackgroundService for LookOut {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let deadline = Instant::now() + PATIENCE;
        // Port 0 is any free port: there is nothing to look for.
        let wanted = self.addresses.iter().filter(|a| a.port() != 0);
        for address in wanted {
            while !listens(address.port()) {
                if Instant::now() >= deadline {
                    (self.give_up)(*address);
                    return;
                }
                tokio::select! {
                    () = tokio::time::sleep(LOOK_EVERY) => {}
                    _ = shutdown.changed() => return,
                }
            }
        }
        self.listening.0.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listening_sockets_of_that_port_count() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue\n\
             0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000\n\
             1: 0100007F:2382 0100007F:C350 01 00000000:00000000 00:00000000\n";
        for (port, expected) in [(8080, true), (9090, false), (80, false)] {
            assert_eq!(has_listener(table, port), expected, "{port}");
        }
    }
}
