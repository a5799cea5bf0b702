//! Anthropic and servers that speak its Messages API, through an API key or a token (SPEC 9.7).

use http::{HeaderName, header};

use super::target::Target;
use crate::domain::account::options::ANTHROPIC_PASSTHROUGH;
use crate::domain::{Account, AccountType};

/// The provider's own address.
pub const DEFAULT_BASE_URL: &str = "https://api.anthropic.com";

/// Behind every path: without it the provider takes no beta features.
pub const QUERY: &str = "beta=true";

/// Where an API key stands.
pub(super) const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Path of the Messages endpoint at `target`: a base URL that already ends in `/messages` or `/v1` is taken at
/// its word. `subpath` is empty or [`COUNT_TOKENS`].
pub fn messages_path(target: &Target, subpath: &str) -> String {
    let prefix = &target.prefix;
    let middle = if prefix.ends_with("/messages") {
        ""
    } else if prefix.ends_with("/v1") {
        "/messages"
    } else {
        "/v1/messages"
    };
    format!("{prefix}{middle}{subpath}")
}

/// What follows the path of the Messages endpoint where tokens are counted.
pub const COUNT_TOKENS: &str = "/count_tokens";

/// The header that proves an account, and its value; `None` for an account that has nothing to prove itself with.
pub fn credential(account: &Account) -> Option<(HeaderName, String)> {
    let credentials = &account.credentials;
    let (name, value) = match account.account_type {
        AccountType::ApiKey => (API_KEY, credentials.api_key.expose().to_owned()),
        AccountType::Oauth | AccountType::SetupToken => {
            let token = credentials.access_token()?;
            (header::AUTHORIZATION, format!("Bearer {token}"))
        }
        AccountType::Upstream => return None,
    };
    Some((name, value))
}

/// Whether `account` gets its requests as nearly as possible as the clients write them.
pub fn passes_through(account: &Account) -> bool {
    account.account_type == AccountType::ApiKey
        && account
            .extra
            .get(ANTHROPIC_PASSTHROUGH)
            .is_some_and(|on| on == true)
}

/// Models shown by `GET /v1/models` when no account of the group names any.
pub const DEFAULT_MODELS: &[&str] = &[
    "claude-opus-5-5",
    "claude-sonnet-5-5",
    "claude-haiku-5-5",
    "claude-opus-4-8",
    "claude-opus-4-7",
    "claude-opus-4-6",
    "claude-sonnet-4-6",
    "claude-opus-4-5-20251101",
    "claude-sonnet-4-5-20250929",
    "claude-haiku-4-5-20251001",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_url_rules() {
        for (base, subpath, path) in [
            ("https://api.anthropic.com", "", "/v1/messages"),
            ("https://h/v1", "", "/v1/messages"),
            ("https://h/v1/", COUNT_TOKENS, "/v1/messages/count_tokens"),
            ("https://h/claude/v1/messages", "", "/claude/v1/messages"),
            (
                "https://h/relay",
                COUNT_TOKENS,
                "/relay/v1/messages/count_tokens",
            ),
        ] {
            let target = Target::parse(base).unwrap();
            assert_eq!(messages_path(&target, subpath), path);
        }
    }
}
