//! Address lists of a key (SPEC 1.5): plain addresses or CIDRs, deny before allow.

use std::net::IpAddr;

use ipnet::IpNet;

/// Whether `ip` may use a key with these lists. A rule that cannot be read matches nothing, but
/// its list still counts as non-empty: an allow list of garbage lets nobody in.
pub fn is_allowed(ip: IpAddr, allow: &[String], deny: &[String]) -> bool {
    if allow.is_empty() && deny.is_empty() {
        return true;
    }
    let ip = ip.to_canonical();
    !matches_any(ip, deny) && (allow.is_empty() || matches_any(ip, allow))
}

fn matches_any(ip: IpAddr, rules: &[String]) -> bool {
    rules.iter().any(|rule| {
        let rule = rule.trim();
        if let Ok(net) = rule.parse::<IpNet>() {
            net.contains(&ip)
        } else {
            rule.parse::<IpAddr>()
                .is_ok_and(|one| one.to_canonical() == ip)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deny_comes_first_and_garbage_matches_nothing() {
        for (ip, allow, deny, expected) in [
            ("10.0.0.1", vec![], vec![], true),
            ("10.0.0.1", vec!["10.0.0.1"], vec![], true),
            ("10.0.0.2", vec!["10.0.0.1"], vec![], false),
            ("10.0.0.2", vec!["10.0.0.0/8"], vec![], true),
            ("10.0.0.2", vec!["10.0.0.0/8"], vec!["10.0.0.2"], false),
            ("10.0.0.2", vec![], vec!["10.0.0.0/24"], false),
            ("10.0.1.2", vec![], vec!["10.0.0.0/24"], true),
            ("10.0.0.1", vec!["nonsense"], vec![], false),
            ("10.0.0.1", vec![], vec!["nonsense"], true),
            ("::ffff:10.0.0.1", vec!["10.0.0.1"], vec![], true),
            ("2001:db8::1", vec!["2001:db8::/32"], vec![], true),
            ("2001:db8::1", vec![" 2001:db8::1 "], vec![], true),
        ] {
            let owned = |list: &[&str]| list.iter().map(|s| s.to_string()).collect::<Vec<_>>();
            assert_eq!(
                is_allowed(ip.parse().unwrap(), &owned(&allow), &owned(&deny)),
                expected,
                "{ip} {allow:?} {deny:?}"
            );
        }
    }
}
