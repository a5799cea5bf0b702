//! `server:` and `admin:` as checked: addresses, certificates, bounds on bodies.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use base64::Engine;
use ipnet::IpNet;

use super::field::{Field, Table};
use super::secrets::long_secret;
use super::{AdminConfig, Listener, ServerConfig, TlsFiles};

/// Loopback: a fresh installation is not open to the network before somebody says so.
const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);
/// As above, and beside the data plane.
const DEFAULT_ADMIN_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9090);
/// 256 MiB: several images as base64 with a long history fit.
const DEFAULT_MAX_BODY_BYTES: usize = 256 * 1024 * 1024;
/// A body is held in memory in one piece; beyond 16 GiB that is a typing mistake.
const MAX_MAX_BODY_BYTES: i128 = 16 * 1024 * 1024 * 1024;
/// No machine has more cores to give.
const MAX_THREADS: i128 = 1024;
/// Far beyond any machine, far below where arithmetic would overflow.
const MAX_MEMORY_BYTES: i128 = 1 << 62;
/// Where the machine does not say how much memory it has.
const ASSUMED_MEMORY_BYTES: u64 = 4 * 1024 * 1024 * 1024;

const ADDRESS: &str = "an IP address and a port, such as 127.0.0.1:8080 or [::]:8080";

pub(super) fn server(table: &Table<'_>) -> ServerConfig {
    let default_listen = vec![Listener {
        addr: DEFAULT_LISTEN,
        tls: None,
    }];
    let threads = table.or("threads", 0, |f| {
        f.whole(0..=MAX_THREADS, "0 (all cores) to 1024")
    });
    let max_body_bytes = table.or("max_body_bytes", DEFAULT_MAX_BODY_BYTES, |f| {
        f.whole(
            1..=MAX_MAX_BODY_BYTES,
            "1 to 17179869184 (16 GiB) bytes: a body is held in memory",
        )
    });
    let max_inflight = table.or("max_inflight_body_bytes", 0, |f| {
        let bytes: usize = f.whole(
            0..=MAX_MEMORY_BYTES,
            "bytes, or 0 for a quarter of the machine's memory",
        )?;
        if bytes != 0 && bytes < max_body_bytes {
            f.bad(
                format!("smaller than max_body_bytes ({max_body_bytes}): such a body could never be read"),
                format!("at least {max_body_bytes}, or a smaller max_body_bytes"),
            );
        }
        Some(bytes)
    });
    ServerConfig {
        listen: table.or("listen", default_listen, listeners),
        h2c: table.or("h2c", false, Field::flag),
        threads: match threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        },
        max_body_bytes,
        max_inflight_body_bytes: match max_inflight {
            // Small machines must still be able to read one body.
            0 => usize::try_from(memory_bytes() / 4)
                .unwrap_or(usize::MAX)
                .max(max_body_bytes),
            bytes => bytes,
        },
        trusted_proxies: table.or("trusted_proxies", Vec::new(), networks),
    }
}

pub(super) fn admin(table: &Table<'_>) -> AdminConfig {
    AdminConfig {
        listen: table.or("listen", DEFAULT_ADMIN_LISTEN, address),
        token: table.or_null("token", long_secret),
    }
}

/// The data plane and the admin listener cannot have the same address.
pub(super) fn admin_beside_server(
    server: &ServerConfig,
    admin: &AdminConfig,
    server_table: &Table<'_>,
    admin_table: &Table<'_>,
) {
    let clash = server.listen.iter().find(|l| collide(l.addr, admin.listen));
    let (Some(clash), Some(field)) = (
        clash,
        admin_table
            .get("listen")
            .or_else(|| server_table.get("listen")),
    ) else {
        return;
    };
    field.bad(
        format!(
            "server.listen ({}) and admin.listen ({}) collide",
            clash.addr, admin.listen
        ),
        "another port for one of them",
    );
}

fn listeners(field: &Field<'_>) -> Option<Vec<Listener>> {
    let items = field.items_or_one("addresses, or of { addr, cert, key }")?;
    if items.is_empty() {
        field.bad("nothing to listen on", "at least one address");
    }
    let mut listeners: Vec<Listener> = Vec::new();
    for item in items {
        let Some(listener) = listener(&item) else {
            continue;
        };
        if let Some(other) = listeners.iter().find(|l| collide(l.addr, listener.addr)) {
            item.bad(
                format!("{} and {} collide", other.addr, listener.addr),
                "each address once",
            );
        }
        listeners.push(listener);
    }
    Some(listeners)
}

/// Whether only one of the two can be bound. Port 0 is any free port.
fn collide(a: SocketAddr, b: SocketAddr) -> bool {
    // `[::]` takes the port of IPv4 as well.
    let covers = |all: SocketAddr, other: SocketAddr| {
        all.ip().is_unspecified() && (all.is_ipv6() || other.is_ipv4())
    };
    a.port() != 0 && a.port() == b.port() && (a.ip() == b.ip() || covers(a, b) || covers(b, a))
}

fn listener(field: &Field<'_>) -> Option<Listener> {
    if !field.is_map() {
        return address(field).map(|addr| Listener { addr, tls: None });
    }
    let table = field.table(&["addr", "cert", "key"])?;
    let addr = table.required("addr", ADDRESS).and_then(|f| address(&f));
    let cert = table.or_null("cert", |f| pem(f, Pem::Certificates));
    let key = table.or_null("key", |f| pem(f, Pem::Key));
    for (one, other) in [("cert", "key"), ("key", "cert")] {
        if table.given(one).is_some() && table.given(other).is_none() {
            field.bad(
                format!("`{one}` without `{other}`"),
                "both for TLS, or neither",
            );
        }
    }
    Some(Listener {
        addr: addr?,
        tls: cert.zip(key).map(|(cert, key)| TlsFiles { cert, key }),
    })
}

fn address(field: &Field<'_>) -> Option<SocketAddr> {
    let text = field.text(ADDRESS)?;
    if let Ok(addr) = text.parse() {
        return Some(addr);
    }
    if let Some(addr) = text
        .strip_prefix("localhost:")
        .and_then(|port| port.parse().ok())
        .map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
    {
        return Some(addr);
    }
    if text.parse::<IpAddr>().is_ok() {
        field.bad("an address without a port", ADDRESS);
    } else if let Some(port) = text.strip_prefix(':') {
        field.bad(
            "a port without an address",
            format!("127.0.0.1:{port}, or 0.0.0.0:{port} to be open to the network"),
        );
    } else if text.contains(|c: char| c.is_ascii_alphabetic()) && !text.contains(['[', '/']) {
        field.bad(
            "host names are not looked up",
            format!("{ADDRESS}, or localhost:PORT"),
        );
    } else {
        field.bad("not an address", ADDRESS);
    }
    None
}

fn networks(field: &Field<'_>) -> Option<Vec<IpNet>> {
    const NETWORK: &str = "a network such as 10.0.0.0/8, or an IP address";
    let mut networks = Vec::new();
    for item in field.items_or_one("networks")? {
        let Some(text) = item.text(NETWORK) else {
            continue;
        };
        let network = text
            .parse::<IpNet>()
            .or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        match network {
            Ok(network) => networks.push(network),
            Err(_) => item.bad("not a network", NETWORK),
        }
    }
    Some(networks)
}

#[derive(Clone, Copy, PartialEq)]
enum Pem {
    Certificates,
    Key,
}

/// A PEM file that holds what it should.
fn pem(field: &Field<'_>, what: Pem) -> Option<PathBuf> {
    let expected = match what {
        Pem::Certificates => "a readable PEM file with the certificate chain",
        Pem::Key => "a readable PEM file with an unencrypted private key",
    };
    let path = field.resolve(field.text(expected)?);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) => {
            field.bad(
                format!("{} cannot be read: {error}", path.display()),
                expected,
            );
            return None;
        }
    };
    let labels: Vec<&str> = pem_labels(&text);
    let found = match what {
        Pem::Certificates => labels.contains(&"CERTIFICATE"),
        Pem::Key => ["PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY"]
            .iter()
            .any(|label| labels.contains(label)),
    };
    if !found {
        let problem = match (what, labels.first()) {
            (_, None) => "holds nothing in PEM".to_string(),
            (Pem::Key, Some(&"ENCRYPTED PRIVATE KEY")) => "the key is encrypted".to_string(),
            (_, Some(label)) => format!("holds a {}, not what is needed", label.to_lowercase()),
        };
        field.bad(problem, expected);
        return None;
    }
    Some(path)
}

/// The labels of the well-formed blocks of a PEM text.
fn pem_labels(text: &str) -> Vec<&str> {
    let mut labels = Vec::new();
    let mut rest = text;
    while let Some((_, block)) = rest.split_once("-----BEGIN ") {
        let Some((label, body)) = block.split_once("-----") else {
            break;
        };
        let Some((body, after)) = body.split_once(&format!("-----END {label}-----")) else {
            break;
        };
        let body: String = body.split_whitespace().collect();
        // An encrypted key of the old form has headers before its base64; it counts by its label.
        let encrypted = body.starts_with("Proc-Type:");
        if encrypted {
            labels.push("ENCRYPTED PRIVATE KEY");
        } else if !body.is_empty()
            && base64::engine::general_purpose::STANDARD
                .decode(body)
                .is_ok()
        {
            labels.push(label);
        }
        rest = after;
    }
    labels
}

/// Memory we may use: the machine's, or what the container is given if that is less.
fn memory_bytes() -> u64 {
    let machine = std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| {
            let line = text.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
            let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
            Some(kib * 1024)
        });
    let container = std::fs::read_to_string("/sys/fs/cgroup/memory.max")
        .ok()
        .and_then(|text| text.trim().parse().ok());
    machine
        .into_iter()
        .chain(container)
        .min()
        .unwrap_or(ASSUMED_MEMORY_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_collide_when_only_one_can_be_bound() {
        for (a, b, want) in [
            ("127.0.0.1:1", "127.0.0.1:1", true),
            ("127.0.0.1:1", "127.0.0.1:2", false),
            ("127.0.0.1:1", "127.0.0.2:1", false),
            ("0.0.0.0:1", "127.0.0.1:1", true),
            ("[::]:1", "[::1]:1", true),
            ("[::]:1", "127.0.0.1:1", true),
            ("0.0.0.0:1", "[::]:1", true),
            ("0.0.0.0:1", "[::1]:1", false),
            ("127.0.0.1:1", "[::1]:1", false),
            ("127.0.0.1:0", "127.0.0.1:0", false),
        ] {
            assert_eq!(
                collide(a.parse().unwrap(), b.parse().unwrap()),
                want,
                "{a} {b}"
            );
        }
    }

    #[test]
    fn pem_blocks_are_told_apart() {
        let cert = "-----BEGIN CERTIFICATE-----\nAAAA\nAAAA\n-----END CERTIFICATE-----\n";
        let key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        let old = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nAAAA\n-----END RSA PRIVATE KEY-----\n";
        assert_eq!(
            pem_labels(&format!("# x\n{cert}{key}")),
            ["CERTIFICATE", "PRIVATE KEY"]
        );
        assert_eq!(pem_labels(old), ["ENCRYPTED PRIVATE KEY"]);
        assert!(pem_labels("-----BEGIN CERTIFICATE-----\nAAAA\n").is_empty());
        assert!(pem_labels(&cert.replace("AAAA", "!!")).is_empty());
    }

    #[test]
    fn the_machine_has_memory() {
        assert!(memory_bytes() > 64 * 1024 * 1024);
    }
}
