//! Names to addresses, asynchronously and cached.
//!
//! Pingora's own look-up blocks a worker thread. This one asks the system's resolver on the
//! blocking pool, keeps answers for a while, refreshes them in the background before anybody has to
//! wait, and goes on with the last good answer when the resolver fails.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::target::Target;

/// An answer this old is refreshed while it is still used. The system's resolver does not tell the
/// record's own life; half a minute follows a provider's change of address quickly enough.
const REFRESH_AFTER: Duration = Duration::from_secs(30);
/// An answer this old is used only while the resolver fails.
const STALE_AFTER: Duration = Duration::from_secs(300);
/// How long a failure is remembered when there is no older answer.
const FAILURE_FOR: Duration = Duration::from_secs(1);

/// A name could not be resolved.
#[derive(Clone, Debug, thiserror::Error)]
#[error("cannot resolve {host}: {reason}")]
pub struct ResolveError {
    /// The name.
    pub host: String,
    /// What the resolver said.
    pub reason: String,
}

#[derive(Default)]
struct Entry {
    addresses: Vec<IpAddr>,
    /// When `addresses` was learnt.
    learnt: Option<Instant>,
    /// When the last look-up failed, with its reason.
    failed: Option<(Instant, String)>,
    refreshing: bool,
    next: usize,
}

/// A cache of look-ups. Share it by `Arc`.
#[derive(Default)]
pub struct Resolver {
    entries: Mutex<HashMap<String, Arc<Host>>>,
}

#[derive(Default)]
struct Host {
    entry: Mutex<Entry>,
    /// Held by the one request that looks up a name nobody knows yet; the others wait for it.
    first: tokio::sync::Mutex<()>,
}

enum Cached {
    Fresh(IpAddr),
    /// Usable, but somebody should look again.
    Ageing(IpAddr),
    Failed(String),
    Unknown,
}

impl Entry {
    fn pick(&mut self) -> Option<IpAddr> {
        let address = *self
            .addresses
            .get(self.next % self.addresses.len().max(1))?;
        Some(address)
    }

    fn look(&mut self, now: Instant) -> Cached {
        let age = self.learnt.map(|at| now.saturating_duration_since(at));
        match (age, self.pick()) {
            (Some(age), Some(address)) if age < REFRESH_AFTER => Cached::Fresh(address),
            (Some(age), Some(address)) if age < STALE_AFTER => Cached::Ageing(address),
            (_, address) => match &self.failed {
                Some((at, reason)) if now.saturating_duration_since(*at) < FAILURE_FOR => {
                    address.map_or(Cached::Failed(reason.clone()), Cached::Fresh)
                }
                _ => Cached::Unknown,
            },
        }
    }

    fn learn(&mut self, answer: Result<Vec<IpAddr>, String>, now: Instant) {
        self.refreshing = false;
        match answer {
            Ok(addresses) if !addresses.is_empty() => {
                self.addresses = addresses;
                self.learnt = Some(now);
                self.failed = None;
            }
            Ok(_) => self.failed = Some((now, "no address".into())),
            Err(reason) => self.failed = Some((now, reason)),
        }
    }
}

async fn look_up(host: &str, port: u16) -> Result<Vec<IpAddr>, String> {
    match tokio::net::lookup_host((host, port)).await {
        Ok(addresses) => {
            let mut all: Vec<IpAddr> = addresses.map(|a| a.ip()).collect();
            all.dedup();
            Ok(all)
        }
        Err(error) => Err(error.to_string()),
    }
}

impl Resolver {
    /// An address of `target`.
    pub async fn resolve(&self, target: &Target) -> Result<SocketAddr, ResolveError> {
        if let Some(ip) = target.ip() {
            return Ok(SocketAddr::new(ip, target.port));
        }
        let host = self
            .entries
            .lock()
            .entry(target.host.clone())
            .or_default()
            .clone();
        let cached = host.entry.lock().look(Instant::now());
        match cached {
            Cached::Fresh(ip) => Ok(SocketAddr::new(ip, target.port)),
            Cached::Ageing(ip) => {
                Self::refresh(&host, target);
                Ok(SocketAddr::new(ip, target.port))
            }
            Cached::Failed(reason) => Err(ResolveError {
                host: target.host.clone(),
                reason,
            }),
            Cached::Unknown => Self::resolve_first(&host, target).await,
        }
    }

    /// Moves on to the next address of a host after one could not be connected to.
    pub fn connect_failed(&self, target: &Target, address: IpAddr) {
        let host = self.entries.lock().get(&target.host).cloned();
        if let Some(host) = host {
            let mut entry = host.entry.lock();
            if entry.pick() == Some(address) {
                entry.next = entry.next.wrapping_add(1);
            }
        }
    }

    async fn resolve_first(host: &Host, target: &Target) -> Result<SocketAddr, ResolveError> {
        let _one_at_a_time = host.first.lock().await;
        let cached = host.entry.lock().look(Instant::now());
        let failed = |reason| ResolveError {
            host: target.host.clone(),
            reason,
        };
        match cached {
            Cached::Fresh(ip) | Cached::Ageing(ip) => Ok(SocketAddr::new(ip, target.port)),
            Cached::Failed(reason) => Err(failed(reason)),
            Cached::Unknown => {
                let answer = look_up(&target.host, target.port).await;
                let reason = answer.as_ref().err().cloned();
                let mut entry = host.entry.lock();
                entry.learn(answer, Instant::now());
                // With an older answer at hand a failing resolver does not matter yet.
                entry
                    .pick()
                    .map(|ip| SocketAddr::new(ip, target.port))
                    .ok_or_else(|| failed(reason.unwrap_or_else(|| "no address".into())))
            }
        }
    }

    fn refresh(host: &Arc<Host>, target: &Target) {
        if std::mem::replace(&mut host.entry.lock().refreshing, true) {
            return;
        }
        let (host, name, port) = (host.clone(), target.host.clone(), target.port);
        tokio::spawn(async move {
            let answer = look_up(&name, port).await;
            host.entry.lock().learn(answer, Instant::now());
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_answer_ages_and_a_failure_does_not_lose_it() {
        let start = Instant::now();
        let at = |s: u64| start + Duration::from_secs(s);
        let mut entry = Entry::default();
        assert!(matches!(entry.look(at(0)), Cached::Unknown));
        entry.learn(Err("down".into()), at(0));
        assert!(matches!(entry.look(at(0)), Cached::Failed(_)));
        assert!(matches!(entry.look(at(2)), Cached::Unknown), "asked again");
        entry.learn(Ok(vec![ip("192.0.2.1")]), at(2));
        assert!(matches!(entry.look(at(31)), Cached::Fresh(_)));
        assert!(matches!(entry.look(at(32)), Cached::Ageing(_)));
        assert!(matches!(entry.look(at(302)), Cached::Unknown));
        entry.learn(Err("down".into()), at(302));
        assert!(
            matches!(entry.look(at(302)), Cached::Fresh(_)),
            "the last good one"
        );
    }

    #[test]
    fn a_host_that_cannot_be_connected_to_gives_its_next_address() {
        let mut entry = Entry::default();
        entry.learn(Ok(vec![ip("192.0.2.1"), ip("192.0.2.2")]), Instant::now());
        assert_eq!(entry.pick(), Some(ip("192.0.2.1")));
        entry.next += 1;
        assert_eq!(entry.pick(), Some(ip("192.0.2.2")));
        entry.next += 1;
        assert_eq!(entry.pick(), Some(ip("192.0.2.1")));
    }

    #[tokio::test]
    async fn addresses_need_no_look_up_and_localhost_resolves() {
        let resolver = Resolver::default();
        let target = Target::parse("http://192.0.2.7:81").unwrap();
        assert_eq!(
            resolver.resolve(&target).await.unwrap(),
            "192.0.2.7:81".parse().unwrap()
        );
        let target = Target::parse("http://localhost:82").unwrap();
        assert!(resolver.resolve(&target).await.unwrap().ip().is_loopback());
    }
}
