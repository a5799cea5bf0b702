//! Real proxies from Debian, and proxies that misbehave.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream as StdTcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tollgate_test_support::TestCa;

use crate::harness::{LIMIT, free_address};

/// Where connections through the real proxies come from.
pub const SOURCE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
/// The same of a second proxy.
pub const OTHER_SOURCE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 3));
/// Where direct connections come from.
pub const DIRECT: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// What the proxies want to know, as it is written in an address: user and password, one letter
/// of it percent-encoded.
pub const LOGIN: &str = "prx-user:prx-p%61ssword";
/// The password as the proxies know it; it must never be in a log.
pub const PASSWORD: &str = "prx-password";

/// A running proxy; it ends with the value.
pub struct Proxy {
    /// Where it listens.
    pub address: SocketAddr,
    child: Child,
    folder: TempDir,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("---- the proxy's log\n{}", self.logged());
        }
    }
}

impl Proxy {
    /// tinyproxy, with further lines of configuration.
    pub fn tinyproxy(source: IpAddr, more: &str) -> Proxy {
        let conf = include_str!("../../egress/tinyproxy.conf").to_owned() + more;
        Proxy::start("tinyproxy", "tinyproxy-bin", |folder, address| {
            let conf = conf
                .replace("@PORT@", &address.port().to_string())
                .replace("@SOURCE@", &source.to_string());
            vec!["-d".into(), "-c".into(), write_conf(folder, &conf)]
        })
    }

    /// tinyproxy that wants [`LOGIN`].
    pub fn tinyproxy_with_login() -> Proxy {
        Proxy::tinyproxy(SOURCE, &format!("BasicAuth prx-user {PASSWORD}\n"))
    }

    /// stunnel with the leaf of `ca`, in front of another proxy.
    pub fn tls_before(proxy: &Proxy, ca: &TestCa) -> Proxy {
        Proxy::start("stunnel4", "stunnel4", |folder, address| {
            ca.write(folder.path()).unwrap();
            let conf = include_str!("../../egress/stunnel.conf")
                .replace("@PORT@", &address.port().to_string())
                .replace("@BEHIND@", &proxy.address.to_string());
            vec![write_conf(folder, &conf)]
        })
    }

    /// microsocks, that wants [`LOGIN`] or nothing.
    pub fn microsocks(with_login: bool) -> Proxy {
        Proxy::start("microsocks", "microsocks", |_, address| {
            let (port, source) = (address.port().to_string(), SOURCE.to_string());
            let mut arguments = vec!["-i", "127.0.0.1", "-p", &port, "-b", &source];
            if with_login {
                arguments.extend(["-u", "prx-user", "-P", PASSWORD]);
            }
            arguments.into_iter().map(str::to_owned).collect()
        })
    }

    fn start(
        program: &str,
        package: &str,
        arguments: impl Fn(&TempDir, SocketAddr) -> Vec<String>,
    ) -> Proxy {
        // Another process may take a port between our look and the proxy's.
        for _ in 0..5 {
            let folder = TempDir::new().unwrap();
            let address = free_address();
            let log = std::fs::File::create(folder.path().join("output.log")).unwrap();
            let spawned = Command::new(program)
                .args(arguments(&folder, address))
                .stdin(Stdio::null())
                .stdout(log.try_clone().unwrap())
                .stderr(log)
                .spawn();
            let child = spawned.unwrap_or_else(|error| {
                panic!(
                    "{program} cannot be started ({error}). It is in the Debian package {package}: \
                     apt-get install {package}; tests/run.sh sees to it"
                )
            });
            let mut proxy = Proxy {
                address,
                child,
                folder,
            };
            let deadline = Instant::now() + LIMIT;
            while proxy.child.try_wait().unwrap().is_none() {
                if StdTcpStream::connect(address).is_ok() {
                    return proxy;
                }
                assert!(Instant::now() < deadline, "{program}: {}", proxy.logged());
                std::thread::sleep(Duration::from_millis(5));
            }
            eprintln!("{program} ended: {}", proxy.logged());
        }
        panic!("{program} does not start");
    }

    /// What it has logged and printed.
    pub fn logged(&self) -> String {
        let read = |name| std::fs::read_to_string(self.folder.path().join(name));
        read("proxy.log").unwrap_or_default() + &read("output.log").unwrap_or_default()
    }

    /// Its address as an account has it.
    pub fn url(&self, scheme: &str, login: &str) -> String {
        let at = if login.is_empty() { "" } else { "@" };
        // A certificate is for the name.
        let host = if scheme == "https" {
            "localhost"
        } else {
            "127.0.0.1"
        };
        format!("{scheme}://{login}{at}{host}:{}", self.address.port())
    }
}

fn write_conf(folder: &TempDir, conf: &str) -> String {
    let path = folder.path().join("conf");
    let conf = conf.replace("@FOLDER@", &folder.path().display().to_string());
    std::fs::write(&path, conf).unwrap();
    path.display().to_string()
}

/// The provider's door: passes connections on to it and notes where each came from.
pub struct Door {
    /// Where it listens.
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<IpAddr>>>,
    task: AbortHandle,
}

impl Door {
    /// In front of a provider.
    pub async fn before(provider: SocketAddr) -> Door {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let noted = seen.clone();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let Ok((mut client, from)) = listener.accept().await else {
                    continue;
                };
                noted.lock().push(from.ip());
                connections.spawn(async move {
                    let _ = client.set_nodelay(true);
                    if let Ok(mut provider) = TcpStream::connect(provider).await {
                        let _ = copy_bidirectional(&mut client, &mut provider).await;
                    }
                });
            }
        });
        Door {
            address,
            seen,
            task: task.abort_handle(),
        }
    }

    /// Where the connections so far came from.
    pub fn seen(&self) -> Vec<IpAddr> {
        self.seen.lock().clone()
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A proxy of ours, for what real ones do not do.
pub struct OddProxy {
    /// Where it listens.
    pub address: SocketAddr,
    /// What it was told first on each connection.
    said: Arc<Mutex<Vec<Vec<u8>>>>,
    task: AbortHandle,
}

impl OddProxy {
    /// To each piece it is told it gives the next of `answers`; after the last, connects to
    /// `provider` if there is one, whatever was asked for, or is silent.
    pub async fn start(
        answers: &'static [&'static [u8]],
        provider: Option<SocketAddr>,
    ) -> OddProxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let said = Arc::new(Mutex::new(Vec::new()));
        let noted = said.clone();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let Ok((mut client, _)) = listener.accept().await else {
                    continue;
                };
                let noted = noted.clone();
                connections.spawn(async move {
                    let mut told = [0; 4096];
                    for answer in answers {
                        let Ok(len @ 1..) = client.read(&mut told).await else {
                            return;
                        };
                        noted.lock().push(told[..len].to_vec());
                        if client.write_all(answer).await.is_err() {
                            return;
                        }
                    }
                    match provider {
                        Some(provider) => {
                            let mut provider = TcpStream::connect(provider).await.unwrap();
                            let _ = copy_bidirectional(&mut client, &mut provider).await;
                        }
                        None => while matches!(client.read(&mut told).await, Ok(1..)) {},
                    }
                });
            }
        });
        OddProxy {
            address,
            said,
            task: task.abort_handle(),
        }
    }

    /// What it was told, piece by piece.
    pub fn said(&self) -> Vec<Vec<u8>> {
        self.said.lock().clone()
    }
}

impl Drop for OddProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}
