//! An account's egress proxy: the server its connections are made through.
//!
//! The one place that reads such an address: what `apply` accepts here is what the request path
//! uses. The credential is never part of a message, of `Debug` or of `Display`.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Secret;

/// How one speaks to the proxy.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum EgressScheme {
    /// HTTP `CONNECT`, in clear.
    Http,
    /// HTTP `CONNECT` inside TLS to the proxy.
    Https,
    /// SOCKS version 5; the proxy resolves names.
    Socks5,
}

impl EgressScheme {
    /// The name it has in an address.
    pub const fn as_str(self) -> &'static str {
        match self {
            EgressScheme::Http => "http",
            EgressScheme::Https => "https",
            EgressScheme::Socks5 => "socks5",
        }
    }

    const fn default_port(self) -> u16 {
        match self {
            EgressScheme::Http => 80,
            EgressScheme::Https => 443,
            EgressScheme::Socks5 => 1080,
        }
    }
}

/// What the proxy wants to know from those who use it. Both parts are secret: a user name is often
/// a customer number, or the token itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EgressCredential {
    /// Not empty.
    pub user: Secret,
    /// May be empty for HTTP.
    pub password: Secret,
}

/// An egress proxy, as checked.
#[derive(Clone, PartialEq, Eq)]
pub struct EgressProxy {
    /// How to speak to it.
    pub scheme: EgressScheme,
    /// Name in lower case, or address without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Who we are there.
    pub credential: Option<EgressCredential>,
}

/// Why an address is no egress proxy. The texts can follow "the egress proxy", and repeat nothing of
/// the address, which may hold a password anywhere when it is badly written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum EgressError {
    /// No scheme, or another one.
    #[error("is none of http://, https://, socks5:// and socks5h://")]
    Scheme,
    /// No host, or one that is neither a name nor an address.
    #[error("has no usable host: a name, an IPv4 address or an [IPv6] address")]
    Host,
    /// A port that is none.
    #[error("has a port that is none (or a special character before the @ that is not %-encoded)")]
    Port,
    /// User and password that cannot be sent.
    #[error(
        "has a user or password that cannot be sent: no empty user, special characters %-encoded as \
         UTF-8, for http no control characters and no colon in the user, for socks5 1 to 255 bytes each"
    )]
    Credential,
    /// A path, query or fragment.
    #[error("has a path, query or fragment, which a proxy does not take")]
    Surplus,
}

/// RFC 1929 counts both in one byte.
const SOCKS5_CREDENTIAL_MAX: usize = 255;
/// A domain name's length in text, RFC 1035.
const NAME_MAX: usize = 253;

impl EgressProxy {
    /// Reads `http://[user:password@]host[:port][/]`, or the same with `https`, `socks5` or
    /// `socks5h`. User and password are percent-decoded.
    pub fn parse(address: &str) -> Result<EgressProxy, EgressError> {
        let (scheme, rest) = address
            .trim()
            .split_once("://")
            .ok_or(EgressError::Scheme)?;
        let scheme = match scheme.to_ascii_lowercase().as_str() {
            "http" => EgressScheme::Http,
            "https" => EgressScheme::Https,
            "socks5" | "socks5h" => EgressScheme::Socks5,
            _ => return Err(EgressError::Scheme),
        };
        let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        if !matches!(path, "" | "/") {
            return Err(EgressError::Surplus);
        }
        let (credential, host_port) = match authority.rsplit_once('@') {
            Some((credential, host_port)) => {
                (Some(self::credential(credential, scheme)?), host_port)
            }
            None => (None, authority),
        };
        let (host, port) = host_and_port(host_port)?;
        Ok(EgressProxy {
            scheme,
            host,
            port: port.unwrap_or(scheme.default_port()),
            credential,
        })
    }

    /// The host as an address, when it is one and needs no look-up.
    pub fn ip(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }
}

fn credential(text: &str, scheme: EgressScheme) -> Result<EgressCredential, EgressError> {
    let (user, password) = text.split_once(':').unwrap_or((text, ""));
    let (user, password) = (decoded(user)?, decoded(password)?);
    let sendable = match scheme {
        EgressScheme::Http | EgressScheme::Https => {
            // RFC 7617, 2.
            !user.is_empty()
                && !user.contains(':')
                && !user.chars().chain(password.chars()).any(char::is_control)
        }
        EgressScheme::Socks5 => [&user, &password]
            .iter()
            .all(|part| (1..=SOCKS5_CREDENTIAL_MAX).contains(&part.len())),
    };
    if !sendable {
        return Err(EgressError::Credential);
    }
    Ok(EgressCredential {
        user: Secret::new(user),
        password: Secret::new(password),
    })
}

fn decoded(text: &str) -> Result<String, EgressError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || (rest.next()? as char).to_digit(16);
        let (Some(high), Some(low)) = (digit(), digit()) else {
            return Err(EgressError::Credential);
        };
        bytes.push((high * 16 + low) as u8);
    }
    String::from_utf8(bytes).map_err(|_| EgressError::Credential)
}

fn host_and_port(text: &str) -> Result<(String, Option<u16>), EgressError> {
    let (host, port) = match text.strip_prefix('[') {
        Some(text) => {
            let (ip, port) = text.split_once(']').ok_or(EgressError::Host)?;
            let ip: Ipv6Addr = ip.parse().map_err(|_| EgressError::Host)?;
            (ip.to_string(), port)
        }
        None => {
            let (host, port) = text.split_at(text.find(':').unwrap_or(text.len()));
            if !is_name(host) {
                return Err(EgressError::Host);
            }
            (host.to_ascii_lowercase(), port)
        }
    };
    let port = match port.strip_prefix(':') {
        None if port.is_empty() => None,
        None => return Err(EgressError::Host),
        Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => {
            let port: u16 = digits.parse().map_err(|_| EgressError::Port)?;
            Some(port)
                .filter(|port| *port > 0)
                .map_or(Err(EgressError::Port), |p| Ok(Some(p)))?
        }
        Some(_) => return Err(EgressError::Port),
    };
    Ok((host, port))
}

/// A name as resolvers and certificates take it, or an IPv4 address.
fn is_name(host: &str) -> bool {
    let labels = host.strip_suffix('.').unwrap_or(host);
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    let well_formed = labels.len() <= NAME_MAX && labels.split('.').all(label);
    // No top-level domain is a number: such a host is meant as an address and has to be a whole one.
    let numeric = labels
        .rsplit('.')
        .next()
        .is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
    well_formed && (!numeric || host.parse::<Ipv4Addr>().is_ok())
}

/// Covers the credential: two proxies that differ only in it are two.
impl Hash for EgressProxy {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.scheme, &self.host, self.port).hash(state);
        let credential = self.credential.as_ref();
        credential
            .map(|c| (c.user.expose(), c.password.expose()))
            .hash(state);
    }
}

/// The address without its credential, for logs.
impl fmt::Display for EgressProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (open, close) = match self.ip() {
            Some(IpAddr::V6(_)) => ("[", "]"),
            _ => ("", ""),
        };
        let scheme = self.scheme.as_str();
        write!(f, "{scheme}://{open}{}{close}:{}", self.host, self.port)
    }
}

/// As [`fmt::Display`], and whether there is a credential.
impl fmt::Debug for EgressProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = if self.credential.is_some() {
            ", with credential"
        } else {
            ""
        };
        write!(f, "EgressProxy({self}{known})")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn credential(proxy: &EgressProxy) -> Option<(&str, &str)> {
        let credential = proxy.credential.as_ref();
        credential.map(|c| (c.user.expose(), c.password.expose()))
    }

    #[test]
    fn addresses_come_apart() {
        for (address, shown, login) in [
            ("http://proxy", "http://proxy:80", None),
            (
                "https://Proxy.Example.com/",
                "https://proxy.example.com:443",
                None,
            ),
            ("socks5://10.0.0.1", "socks5://10.0.0.1:1080", None),
            ("SOCKS5H://gw_1.local.:9", "socks5://gw_1.local.:9", None),
            (
                " http://[2001:DB8::1]:65535/ ",
                "http://[2001:db8::1]:65535",
                None,
            ),
            ("http://[::1]", "http://[::1]:80", None),
            ("http://u:p@h:1", "http://h:1", Some(("u", "p"))),
            ("http://token@h", "http://h:80", Some(("token", ""))),
            ("http://u:a:b@h", "http://h:80", Some(("u", "a:b"))),
            ("http://u:a@b@h", "http://h:80", Some(("u", "a@b"))),
            (
                "https://u%40x:%2F%3a%25%C3%A9@h",
                "https://h:443",
                Some(("u@x", "/:%é")),
            ),
            ("socks5://u:%00@h", "socks5://h:1080", Some(("u", "\0"))),
            (
                "socks5h://u%3A:p@[::2]:7",
                "socks5://[::2]:7",
                Some(("u:", "p")),
            ),
        ] {
            let proxy = EgressProxy::parse(address).unwrap_or_else(|e| panic!("{address} {e}"));
            assert_eq!(
                (proxy.to_string().as_str(), credential(&proxy)),
                (shown, login)
            );
        }
    }

    #[test]
    fn what_is_no_proxy_is_refused() {
        use EgressError::*;
        for (address, why) in [
            ("", Scheme),
            ("proxy:3128", Scheme),
            ("//proxy", Scheme),
            ("socks4://proxy", Scheme),
            ("ftp://proxy", Scheme),
            ("http://", Host),
            ("http://:80", Host),
            ("http://u:p@", Host),
            ("http://u:p@:80", Host),
            ("http://a..b", Host),
            ("http://a b", Host),
            ("http://pröxy", Host),
            ("http://1.2.3", Host),
            ("http://256.1.1.1", Host),
            ("http://1.2.3.4.", Host),
            ("http://::1", Host),
            ("http://[::1", Host),
            ("http://[::1]x", Host),
            ("http://[fe80::1%25eth0]", Host),
            ("http://[1.2.3.4]", Host),
            ("http://h:", Port),
            ("http://h:0", Port),
            ("http://h:65536", Port),
            ("http://h:+1", Port),
            ("http://h:1:2", Port),
            ("http://u:pa/ss@h", Surplus),
            ("http://h/x", Surplus),
            ("http://h//", Surplus),
            ("http://h?x", Surplus),
            ("http://h/#x", Surplus),
            ("http://@h", Credential),
            ("http://:p@h", Credential),
            ("http://u:%zz@h", Credential),
            ("http://u:%4@h", Credential),
            ("http://u:%FF@h", Credential),
            ("http://u%3Ax:p@h", Credential),
            ("http://u:%0d%0aX-Evil:1@h", Credential),
            ("socks5://u@h", Credential),
            ("socks5://u:@h", Credential),
        ] {
            assert_eq!(EgressProxy::parse(address), Err(why), "{address}");
        }
        let long = |n| EgressProxy::parse(&format!("socks5://u:{}@h", "x".repeat(n)));
        assert!(long(255).is_ok());
        assert_eq!(long(256), Err(Credential));
        let long = |n| EgressProxy::parse(&format!("http://{}", vec!["x".repeat(62); n].join(".")));
        assert!(long(4).is_ok());
        assert_eq!(long(5), Err(Host));
    }

    #[test]
    fn a_credential_is_never_shown_but_tells_proxies_apart() {
        let hash = |proxy: &EgressProxy| {
            let mut hasher = std::hash::DefaultHasher::new();
            proxy.hash(&mut hasher);
            hasher.finish()
        };
        let proxy = EgressProxy::parse("http://customer7:hunter2@h").unwrap();
        for text in [
            format!("{proxy}"),
            format!("{proxy:?}"),
            format!("{proxy:#?}"),
        ] {
            assert!(
                !text.contains("customer7") && !text.contains("hunter2"),
                "{text}"
            );
        }
        for other in [
            "http://h",
            "http://customer7:hunter3@h",
            "http://customer7h:unter2@h",
        ] {
            let other = EgressProxy::parse(other).unwrap();
            assert_ne!(proxy, other);
            assert_ne!(hash(&proxy), hash(&other));
        }
    }

    proptest! {
        #[test]
        fn any_credential_can_be_written(user in "[^:\\p{C}]{1,20}", password in "\\P{C}{1,20}") {
            let encode = |text: &str| text.bytes().map(|b| format!("%{b:02x}")).collect::<String>();
            let address = format!("http://{}:{}@h:1", encode(&user), encode(&password));
            let proxy = EgressProxy::parse(&address).unwrap();
            prop_assert_eq!(credential(&proxy), Some((user.as_str(), password.as_str())));
        }

        #[test]
        fn nothing_makes_it_panic_and_what_is_shown_parses_again(address in "(http|socks5)://\\PC{0,40}") {
            if let Ok(proxy) = EgressProxy::parse(&address) {
                let again = EgressProxy::parse(&proxy.to_string()).unwrap();
                prop_assert_eq!((again.host, again.port), (proxy.host, proxy.port));
            }
        }
    }
}
