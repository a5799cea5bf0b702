//! API keys that we issue to clients. Only a keyed hash of the key itself is ever stored.

use chrono::{DateTime, Utc};

use super::{ApiKeyId, GroupId, Money, UserId};

/// HMAC-SHA-256 of a client key under the installation's secret.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyHash(pub [u8; 32]);

impl std::fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyHash(…)")
    }
}

/// The stored status of a key. Expiry and quota are also checked at run time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ApiKeyStatus {
    /// May be used.
    Active,
    /// Switched off (`enabled: false`).
    Disabled,
    /// Its whole-life quota is used up.
    QuotaExhausted,
    /// Past its expiry.
    Expired,
}

/// An API key as the request path sees it.
#[derive(Clone, PartialEq, Debug)]
pub struct ApiKey {
    /// Row id.
    pub id: ApiKeyId,
    /// Unique name.
    pub name: String,
    /// What a presented key must hash to.
    pub hash: KeyHash,
    /// First characters of the key, for people to tell keys apart. Never enough to use it.
    pub hint: String,
    /// Owner; `None` when the user was removed.
    pub user: Option<UserId>,
    /// Group; a key without one is refused.
    pub group: Option<GroupId>,
    /// Stored status.
    pub status: ApiKeyStatus,
    /// USD for its whole life.
    pub quota: Option<Money>,
    /// USD per 5 h, 1 d and 7 d.
    pub rate_limits: [Option<Money>; 3],
    /// Refused from this moment on.
    pub expires_at: Option<DateTime<Utc>>,
    /// Plain IPs or CIDRs, as written.
    pub ip_allow: Vec<String>,
    /// Plain IPs or CIDRs, as written.
    pub ip_deny: Vec<String>,
}
