//! `accounts:` as checked.

use std::collections::BTreeMap;

use serde_json::Map;

use super::groups::platform;
use super::options::extra;
use super::{Names, count, multiplier, unique_name};
use crate::config::field::{Field, Table};
use crate::config::resources::AccountResource;
use crate::config::secrets::secret;
use crate::domain::egress::EgressProxy;
use crate::domain::{AccountType, Credentials, ModelMapping, Multiplier, Platform, Secret};

const KEYS: &[&str] = &[
    "name",
    "enabled",
    "platform",
    "type",
    "credentials",
    "groups",
    "concurrency",
    "priority",
    "model_mapping",
    "rate_multiplier",
    "load_factor",
    "schedulable",
    "expires_at",
    "proxy",
    "extra",
];
/// Secrets, addresses and identifiers, for any type of account; options stand in `extra`.
const CREDENTIAL_KEYS: &[&str] = &[
    "api_key",
    "base_url",
    "access_token",
    "refresh_token",
    "id_token",
    "token_type",
    "scope",
    "expires_at",
    "expires_in",
    "client_id",
    "oauth_type",
    "project_id",
    "tier_id",
    "plan_type",
    "email",
    "organization_id",
    "org_uuid",
    "account_uuid",
    "chatgpt_account_id",
    "chatgpt_user_id",
];
/// A few requests at once are what an ordinary provider tier takes.
const DEFAULT_CONCURRENCY: u32 = 10;
/// The middle: others can be put before and behind it.
const DEFAULT_PRIORITY: i32 = 50;

pub(super) fn account<'a>(item: &Field<'a>, names: &mut Names<'a>) -> Option<AccountResource> {
    let table = item.table(KEYS)?;
    let name = unique_name(&table, "account", names);
    let platform = platform(&table);
    let account_type = table.or("type", AccountType::ApiKey, |f| {
        let choices = [
            AccountType::ApiKey,
            AccountType::Oauth,
            AccountType::SetupToken,
            AccountType::Upstream,
        ];
        f.choice(&choices.map(|t| (t.as_str(), t)))
    });
    if platform.is_some_and(|platform| !is_served(platform, account_type)) {
        item.warn(
            "this version sends requests only through openai accounts of type api_key, \
             anthropic accounts of type api_key, oauth and setup_token and, in anthropic groups, \
             antigravity accounts of type upstream",
        );
    }
    Some(AccountResource {
        enabled: table.or("enabled", true, Field::flag),
        account_type,
        credentials: credentials(&table, account_type),
        groups: table.or("groups", Vec::new(), Field::names),
        concurrency: table.or("concurrency", DEFAULT_CONCURRENCY, |f| {
            count(f, "unlimited")
        }),
        priority: table.or("priority", DEFAULT_PRIORITY, |f| {
            let bounds = i128::from(i32::MIN)..=i128::from(i32::MAX);
            f.whole(bounds, "a whole number; lower is chosen first")
        }),
        model_mapping: table.or("model_mapping", ModelMapping::default(), mapping),
        rate_multiplier: table.or("rate_multiplier", Multiplier::ONE, multiplier),
        load_factor: table.or_null("load_factor", |f| {
            f.whole(
                1..=i128::from(u32::MAX),
                "a whole number above zero, or null for the account's concurrency",
            )
        }),
        schedulable: table.or("schedulable", true, Field::flag),
        expires_at: table.or_null("expires_at", Field::time),
        proxy: table.or_null("proxy", proxy),
        extra: table.or("extra", Map::new(), |field| {
            extra(field, platform.map(|platform| (platform, account_type)))
        }),
        // What stands in for a bad name or platform is never seen: a mistake was noted.
        name: name.unwrap_or_default(),
        platform: platform.unwrap_or(Platform::OpenAi),
    })
}

/// Whether this version sends requests through accounts of this kind.
fn is_served(platform: Platform, account_type: AccountType) -> bool {
    match platform {
        Platform::OpenAi => account_type == AccountType::ApiKey,
        Platform::Anthropic => account_type != AccountType::Upstream,
        Platform::Antigravity => account_type == AccountType::Upstream,
        Platform::Gemini => false,
    }
}

fn credentials(account: &Table<'_>, account_type: AccountType) -> Credentials {
    const API_KEY: &str = "the provider's key, `${ENV_NAME}` or `file:/path`";
    let has_key = matches!(account_type, AccountType::ApiKey | AccountType::Upstream);
    // Nobody knows where a relay is but its operator.
    let has_address = account_type == AccountType::Upstream;
    let mut credentials = Credentials::default();
    let field = account.given("credentials").map(Field::secretly);
    let table = field.and_then(|field| {
        let table = field.table(CREDENTIAL_KEYS)?;
        if has_key {
            table.required("api_key", API_KEY);
        }
        if has_address {
            table.required("base_url", "the relay's address");
        }
        Some(table)
    });
    let Some(table) = table else {
        if has_key && account.given("credentials").is_none() {
            account.required(
                "credentials",
                match has_address {
                    true => "a map with api_key and base_url",
                    false => "a map with api_key and, if need be, base_url",
                },
            );
        }
        return credentials;
    };
    for key in CREDENTIAL_KEYS {
        let Some(field) = table.given(key) else {
            continue;
        };
        match *key {
            "api_key" => credentials.api_key = header_secret(&field, API_KEY).unwrap_or_default(),
            "base_url" => credentials.base_url = base_url(&field),
            key => {
                // A token is sent in a header.
                let read = match key {
                    "access_token" => header_secret(&field, "the provider's token"),
                    _ => secret(&field, "a text"),
                };
                if let Some(value) = read {
                    credentials.other.insert(key.to_string(), value);
                }
            }
        }
    }
    credentials
}

/// A secret that is sent in a header.
fn header_secret(field: &Field<'_>, expected: &str) -> Option<Secret> {
    let secret = secret(field, expected)?;
    if !secret.expose().bytes().all(|b| b.is_ascii_graphic()) {
        field.bad(
            "holds a space or a character that cannot stand in a header",
            expected,
        );
        return None;
    }
    Some(secret)
}

/// An address that requests are sent to. Never repeated in a message before it is known to hold no
/// password.
fn base_url(field: &Field<'_>) -> Option<String> {
    const EXPECTED: &str =
        "an address such as https://api.openai.com, without user, query or fragment";
    let text = secret(field, EXPECTED)?;
    let text = text.expose();
    let problem = match text.parse::<http::Uri>() {
        _ if text.contains('#') => Some("has a fragment"),
        Err(_) => Some("not a URL"),
        Ok(uri) => {
            let authority = uri.authority().map_or("", |a| a.as_str());
            let host = uri.host().unwrap_or_default();
            let port = authority.rsplit_once('@').map_or(authority, |(_, a)| a);
            let port = port.strip_prefix(host).and_then(|p| p.strip_prefix(':'));
            if !matches!(uri.scheme_str(), Some("http" | "https")) {
                Some("neither http:// nor https://")
            } else if authority.contains('@') {
                Some("holds a user name or password")
            } else if host.is_empty() {
                Some("has no host")
            } else if port.is_some_and(|p| !p.parse::<u16>().is_ok_and(|p| p > 0)) {
                Some("has a port that is none")
            } else if uri.query().is_some() {
                Some("has a query")
            } else {
                None
            }
        }
    };
    match problem {
        Some(problem) => {
            field.bad(problem, EXPECTED);
            None
        }
        // Paths are put behind it.
        None => Some(text.trim_end_matches('/').to_string()),
    }
}

/// An egress proxy. Names are resolved by it, whether `socks5` or `socks5h` is written.
fn proxy(field: &Field<'_>) -> Option<Secret> {
    const EXPECTED: &str = "http://, https:// or socks5:// and [user:password@]host[:port]";
    let field = field.clone().secretly();
    let address = secret(&field, EXPECTED)?;
    // What it says repeats nothing of the address, which may hold a password.
    EgressProxy::parse(address.expose())
        .map_err(|problem| field.bad(problem.to_string(), EXPECTED))
        .ok()?;
    Some(address)
}

fn mapping(field: &Field<'_>) -> Option<ModelMapping> {
    let mut pairs = BTreeMap::new();
    for (pattern, target) in field.pairs("model names to model names")? {
        check_pattern(pattern, &target);
        if let Some(name) = target.name() {
            pairs.insert(pattern.to_string(), name.to_string());
        }
    }
    Some(ModelMapping::new(pairs))
}

/// A model name, or the beginning of one and a `*`.
pub(super) fn check_pattern(pattern: &str, field: &Field<'_>) {
    let stem = pattern.strip_suffix('*').unwrap_or(pattern);
    if pattern.is_empty() {
        field.bad(
            "an empty model name",
            "a model name, or `*` for every model",
        );
    } else if stem.contains('*') {
        field.bad(
            format!("`*` inside the model name `{}`", pattern.escape_default()),
            "`*` only at its end",
        );
    }
}
