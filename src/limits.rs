//! Limits: how many requests a user may run and wait with, and how much memory bodies may take.
//!
//! The counting is done by the live state, exactly. (`pingora_limits::inflight` estimates: keys that
//! collide share a count, which may only ever refuse too much, and it cannot hand a unit on.)

pub mod bodies;
pub mod messages;
pub mod noise;

use crate::domain::{AccountId, User};
use crate::state::{Slot, Want};

/// Requests a user may have waiting beside those running (SPEC 3.3).
const WAITING_BEYOND_CONCURRENCY: u32 = 20;

/// The slot a request of `user` needs.
pub fn user_slot(user: &User) -> Want {
    Want {
        slot: Slot::User(user.id),
        limit: user.concurrency,
    }
}

/// The turn a message of a user's needs at `account` where they go one after another.
pub fn turn(account: AccountId) -> Want {
    Want {
        slot: Slot::Turn(account),
        limit: 1,
    }
}

/// How many requests of `user` may wait in line: `max(concurrency, 1) + 20`.
pub fn max_waiting(user: &User) -> u32 {
    user.concurrency
        .max(1)
        .saturating_add(WAITING_BEYOND_CONCURRENCY)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{UserId, UserStatus};

    #[test]
    fn the_line_is_as_long_as_the_specification_says() {
        for (concurrency, expected) in [(5, 25), (1, 21), (0, 21)] {
            let user = User {
                id: UserId(1),
                name: "u".into(),
                status: UserStatus::Active,
                concurrency,
                rpm_limit: 0,
                group_multipliers: Default::default(),
            };
            assert_eq!(max_waiting(&user), expected);
        }
    }
}
