//! Where an account's requests go: scheme, host, port and path prefix of its `base_url`.

use std::net::IpAddr;

/// The parts of a base URL.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    /// TLS or not.
    pub tls: bool,
    /// Host name or address, without brackets; also the TLS server name.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Value of the `Host` header.
    pub authority: String,
    /// Path without a trailing slash; empty for the root.
    pub prefix: String,
}

/// Why a base URL cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TargetError {
    /// Not an absolute URL.
    #[error("not a URL")]
    Malformed,
    /// Neither http nor https.
    #[error("the scheme must be http or https")]
    Scheme,
    /// User info, a query or a fragment.
    #[error("a base URL has no user info, query or fragment")]
    Surplus,
}

impl Target {
    /// Reads a base URL.
    pub fn parse(base_url: &str) -> Result<Target, TargetError> {
        let base_url = base_url.trim();
        if base_url.contains('#') {
            return Err(TargetError::Surplus);
        }
        let uri: http::Uri = base_url.parse().map_err(|_| TargetError::Malformed)?;
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            Some(_) => return Err(TargetError::Scheme),
            None => return Err(TargetError::Malformed),
        };
        let authority = uri.authority().ok_or(TargetError::Malformed)?;
        if uri.query().is_some() || authority.as_str().contains('@') {
            return Err(TargetError::Surplus);
        }
        let host = authority.host();
        let host = host
            .strip_prefix('[')
            .and_then(|h| h.strip_suffix(']'))
            .unwrap_or(host);
        if host.is_empty() {
            return Err(TargetError::Malformed);
        }
        Ok(Target {
            tls,
            host: host.to_ascii_lowercase(),
            port: authority.port_u16().unwrap_or(if tls { 443 } else { 80 }),
            authority: authority.as_str().to_ascii_lowercase(),
            prefix: uri.path().trim_end_matches('/').to_owned(),
        })
    }

    /// The host as an address, when it is one and needs no look-up.
    pub fn ip(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_come_apart() {
        for (url, tls, host, port, authority, prefix) in [
            (
                "https://api.openai.com",
                true,
                "api.openai.com",
                443,
                "api.openai.com",
                "",
            ),
            (
                "https://API.example.com/v1/",
                true,
                "api.example.com",
                443,
                "api.example.com",
                "/v1",
            ),
            (
                "http://127.0.0.1:8080/x/y",
                false,
                "127.0.0.1",
                8080,
                "127.0.0.1:8080",
                "/x/y",
            ),
            ("http://[::1]:81", false, "::1", 81, "[::1]:81", ""),
        ] {
            let target = Target::parse(url).unwrap();
            assert_eq!(
                (
                    target.tls,
                    &*target.host,
                    target.port,
                    &*target.authority,
                    &*target.prefix
                ),
                (tls, host, port, authority, prefix)
            );
        }
    }

    #[test]
    fn what_is_no_base_url_is_refused() {
        for (url, why) in [
            ("api.openai.com", TargetError::Malformed),
            ("/v1", TargetError::Malformed),
            ("ftp://host", TargetError::Scheme),
            ("https://user:pw@host", TargetError::Surplus),
            ("https://host/?q=1", TargetError::Surplus),
            ("https://host/#f", TargetError::Surplus),
            ("https://", TargetError::Malformed),
        ] {
            assert_eq!(Target::parse(url), Err(why), "{url}");
        }
    }
}
