//! Relays that serve Antigravity's models through the Messages API, with a key of their own (SPEC 9.10). They speak
//! Anthropic's dialect in everything; only where requests go and what proves an account is theirs.

use http::HeaderName;

use super::anthropic::API_KEY;
use super::target::Target;
use crate::domain::{Account, AccountType};

/// Path of the Messages endpoint at `target`: a base URL that already ends in `/messages`, `/v1` or `/antigravity` is
/// taken at its word.
pub fn messages_path(target: &Target) -> String {
    let prefix = &target.prefix;
    let rest = if prefix.ends_with("/messages") {
        ""
    } else if prefix.ends_with("/v1") {
        "/messages"
    } else if prefix.ends_with("/antigravity") {
        "/v1/messages"
    } else {
        "/antigravity/v1/messages"
    };
    format!("{prefix}{rest}")
}

/// The header that proves an account, and its value; `None` for an account that is no relay.
pub fn credential(account: &Account) -> Option<(HeaderName, String)> {
    let key = account.credentials.api_key.expose();
    (account.account_type == AccountType::Upstream).then(|| (API_KEY, key.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_url_rules() {
        for (base, path) in [
            ("https://relay.example", "/antigravity/v1/messages"),
            ("https://h:8443/", "/antigravity/v1/messages"),
            (
                "https://h/some/where",
                "/some/where/antigravity/v1/messages",
            ),
            ("https://h/antigravity", "/antigravity/v1/messages"),
            ("https://h/antigravity/v1", "/antigravity/v1/messages"),
            ("https://h/v1/", "/v1/messages"),
            ("https://h/x/v1/messages", "/x/v1/messages"),
        ] {
            let target = Target::parse(base).unwrap();
            assert_eq!(messages_path(&target), path, "{base}");
        }
    }
}
