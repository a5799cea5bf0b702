//! Which account made a response.

use chrono::{DateTime, Utc};

use super::{AccountId, GroupId};

/// Which account made a response, for requests that go on from it: only that account knows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ResponseBinding {
    /// Scope of the key.
    pub group: GroupId,
    /// See `tollgate_filters::affinity::response_key`.
    pub key: u128,
    /// The account.
    pub account: AccountId,
    /// When it was made or last used.
    pub at: DateTime<Utc>,
}
