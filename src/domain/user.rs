//! Users: own keys and a balance.

use std::collections::HashMap;

use super::{GroupId, Multiplier, UserId};

/// Whether a user's keys may be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UserStatus {
    /// May use the gateway.
    Active,
    /// May not (`enabled: false`).
    Disabled,
}

/// A user as the request path sees it. The balance lives in the billing room: it changes with
/// every request, this does not.
#[derive(Clone, PartialEq, Debug)]
pub struct User {
    /// Row id.
    pub id: UserId,
    /// Unique name.
    pub name: String,
    /// Active or not.
    pub status: UserStatus,
    /// Requests at once, 0 = unlimited.
    pub concurrency: u32,
    /// Requests a minute, 0 = off.
    pub rpm_limit: u32,
    /// In place of a group's own multiplier.
    pub group_multipliers: HashMap<GroupId, Multiplier>,
}
