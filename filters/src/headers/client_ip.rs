//! Whose address a request comes from, behind proxies the operator trusts or without any.

use std::net::{IpAddr, SocketAddr};

use http::HeaderMap;

/// The address that IP rules are held against.
///
/// Without a trusted `peer` that is the peer itself. Otherwise `X-Forwarded-For` is read from its
/// right end, where the nearest proxy wrote, for as long as the addresses are trusted; the first
/// that is not is the client. Where all are, the leftmost is; where one cannot be read, nothing
/// further left is believed and the last trusted address stands.
///
/// IPv4 addresses in their IPv6 clothes are undressed, so that a rule for one matches both.
pub fn client_ip(peer: IpAddr, headers: &HeaderMap, trusted: impl Fn(IpAddr) -> bool) -> IpAddr {
    let mut client = peer.to_canonical();
    if !trusted(client) {
        return client;
    }
    // Several headers count as one list, in the order in which they stand.
    for value in headers.get_all("x-forwarded-for").iter().rev() {
        let Ok(value) = value.to_str() else {
            return client;
        };
        for entry in value.rsplit(',').map(str::trim) {
            if entry.is_empty() {
                continue;
            }
            let Some(address) = parse(entry) else {
                return client;
            };
            client = address;
            if !trusted(client) {
                return client;
            }
        }
    }
    client
}

/// An address as proxies write them: bare, bracketed, with or without a port.
fn parse(entry: &str) -> Option<IpAddr> {
    let bare = entry.parse::<IpAddr>().ok();
    let with_port = || entry.parse::<SocketAddr>().ok().map(|a| a.ip());
    let bracketed = || {
        let inner = entry.strip_prefix('[')?.strip_suffix(']')?;
        inner.parse::<std::net::Ipv6Addr>().ok().map(IpAddr::V6)
    };
    bare.or_else(with_port)
        .or_else(bracketed)
        .map(|a| a.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;

    /// Trusts 10.0.0.0/8 and ::1.
    fn trusted(address: IpAddr) -> bool {
        match address {
            IpAddr::V4(a) => a.octets()[0] == 10,
            IpAddr::V6(a) => a.is_loopback(),
        }
    }

    fn forwarded(values: &[&str]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for value in values {
            map.append(
                "x-forwarded-for",
                HeaderValue::from_bytes(value.as_bytes()).unwrap(),
            );
        }
        map
    }

    #[test]
    fn the_rightmost_untrusted_address_of_a_trusted_peer() {
        #[rustfmt::skip]
        let rows: [(&str, &[&str], &str); 23] = [
            // An untrusted peer may write what it likes.
            ("192.0.2.1", &[], "192.0.2.1"),
            ("192.0.2.1", &["198.51.100.7"], "192.0.2.1"),
            ("192.0.2.1", &["10.0.0.9"], "192.0.2.1"),
            ("::ffff:192.0.2.1", &["198.51.100.7"], "192.0.2.1"),
            // A trusted one is believed, and so on leftwards.
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &[""], "10.0.0.1"),
            ("10.0.0.1", &["198.51.100.7"], "198.51.100.7"),
            ("::ffff:10.0.0.1", &["198.51.100.7"], "198.51.100.7"),
            ("::1", &["198.51.100.7"], "198.51.100.7"),
            ("10.0.0.1", &["203.0.113.5, 198.51.100.7"], "198.51.100.7"),
            ("10.0.0.1", &["203.0.113.5, 198.51.100.7, 10.0.0.2"], "198.51.100.7"),
            ("10.0.0.1", &["203.0.113.5", "198.51.100.7", "10.0.0.2"], "198.51.100.7"),
            ("10.0.0.1", &["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
            ("10.0.0.1", &[" 198.51.100.7 ,, "], "198.51.100.7"),
            // Garbage ends the chain of belief.
            ("10.0.0.1", &["198.51.100.7, unknown, 10.0.0.2"], "10.0.0.2"),
            ("10.0.0.1", &["198.51.100.7, unknown"], "10.0.0.1"),
            ("10.0.0.1", &["198.51.100.7", "\u{e9}", "10.0.0.2"], "10.0.0.2"),
            ("10.0.0.1", &["198.51.100.300"], "10.0.0.1"),
            // Spellings.
            ("10.0.0.1", &["198.51.100.7:4711"], "198.51.100.7"),
            ("10.0.0.1", &["2001:db8::7"], "2001:db8::7"),
            ("10.0.0.1", &["[2001:db8::7]"], "2001:db8::7"),
            ("10.0.0.1", &["[2001:db8::7]:443"], "2001:db8::7"),
            ("10.0.0.1", &["203.0.113.5, ::ffff:10.0.0.2"], "203.0.113.5"),
        ];
        for (peer, values, expected) in rows {
            let found = client_ip(peer.parse().unwrap(), &forwarded(values), trusted);
            assert_eq!(
                found,
                expected.parse::<IpAddr>().unwrap(),
                "{peer} {values:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn an_untrusted_peer_is_never_overridden(value in "[ -~]{0,60}") {
            let peer: IpAddr = "192.0.2.1".parse().unwrap();
            prop_assert_eq!(client_ip(peer, &forwarded(&[&value]), trusted), peer);
        }

        #[test]
        fn what_a_client_writes_first_does_not_matter(forged in "[ -~]{0,60}") {
            let list = format!("{forged}, 198.51.100.7, 10.0.0.2");
            let found = client_ip("10.0.0.1".parse().unwrap(), &forwarded(&[&list]), trusted);
            prop_assert_eq!(found, "198.51.100.7".parse::<IpAddr>().unwrap());
        }
    }
}
