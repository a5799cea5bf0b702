//! The scheduler: which account serves this attempt.
//!
//! Pure decisions over a picture of the accounts, their conditions and their load; `proxy` fetches
//! the picture, takes the slots and waits. Clock and entropy are arguments. In the order of a request:
//!
//! 1. [`Scheduler::pool`] gives the accounts of a group that know the model ([`roster`]): worked out
//!    once per directory, then a look-up.
//!    [`Pool::routed`] are those that the group's routing names for the model: they are asked first, and
//!    the others while none of them may be chosen.
//! 2. A request that goes on from a response asks [`Pool::fit`] about the one account that made it;
//!    one of a conversation asks [`sticky::sticky`] about the account it is bound to.
//! 3. Else [`Pool::candidates`] gives the accounts that may be chosen now, stage by stage: strict tiers of
//!    priority, a sample first where a tier is large ([`candidates`]). Each stage is ordered by
//!    [`rank`], slots are tried in that order, then comes the next stage. Accounts with soft limits are
//!    asked at their [`gates`] whether they take the request.
//! 4. [`Health::chosen`] is asked before an account is used, and told how the attempt went ([`health`],
//!    [`circuit`]); [`effect`] says what a verdict leaves at the account, [`retry`]
//!    whether to stay.
//!
//! [`decision::Decision`] is the record of it for the log and the metrics.

pub mod candidates;
pub mod circuit;
mod conditions;
pub mod decision;
pub mod effect;
pub mod gates;
pub mod health;
pub mod need;
pub mod rank;
pub mod retry;
pub mod roster;
pub mod sticky;
#[cfg(test)]
mod tests;

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use chrono::{DateTime, Utc};

pub use candidates::{Candidates, Fit, Request, Stage, Unfit};
pub use decision::{Decision, Layer};
pub use gates::{Gate, GateKind, Gates, Shut};
pub use health::{Health, Outcome};
pub use need::{Image, Need, Transport};
pub use rank::{Ranked, Seed};
pub use roster::{Member, Pool};
pub use sticky::Sticky;

use crate::domain::{Directory, GroupId, Platform};
use roster::Roster;

/// Why no account may serve a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NoAccount {
    /// None of the group fits: none there, none enabled, none with the model, or all have failed.
    #[error("no account of the group can serve this request")]
    NoneEligible,
    /// Some fit, but all cool down until then.
    #[error("every account of the group cools down until {until}")]
    AllCoolingDown {
        /// The first end of a cool-down.
        until: DateTime<Utc>,
        /// Every one of them because its provider said 429.
        limited: bool,
    },
}

/// What the scheduler keeps between requests: the rosters of the current directory and the accounts'
/// health. Both are bounded by what the operator configured; nothing a client sends adds to them.
#[derive(Debug, Default)]
pub struct Scheduler {
    health: Health,
    rosters: ArcSwap<Rosters>,
}

/// The rosters asked for so far, of one version of the directory.
#[derive(Clone, Debug, Default)]
struct Rosters {
    version: i64,
    of: HashMap<(GroupId, Platform), Arc<Roster>>,
}

impl Scheduler {
    /// Knows nothing yet.
    pub fn new() -> Scheduler {
        Scheduler::default()
    }

    /// How the accounts have done lately.
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// The accounts of `group` that serve `platform`, can serve `need` and take `model` (the name after
    /// channel mapping).
    pub fn pool(
        &self,
        directory: &Directory,
        group: GroupId,
        platform: Platform,
        need: Need,
        model: &str,
    ) -> Pool {
        Pool::new(self.roster(directory, group, platform), need, model)
    }

    fn roster(&self, directory: &Directory, group: GroupId, platform: Platform) -> Arc<Roster> {
        let key = (group, platform);
        let known = self.rosters.load();
        if known.version == directory.version
            && let Some(roster) = known.of.get(&key)
        {
            return roster.clone();
        }
        // Only groups of Anthropic's platform route (SPEC 6.4).
        let rules = match platform {
            Platform::Anthropic => directory.rules(group),
            Platform::OpenAi | Platform::Gemini | Platform::Antigravity => Arc::default(),
        };
        let roster = Arc::new(Roster::new(
            directory.accounts_of(group),
            platform,
            rules,
            &self.health,
        ));
        self.rosters.rcu(|known| {
            let mut of = match known.version.cmp(&directory.version) {
                Ordering::Equal => known.of.clone(),
                Ordering::Less => HashMap::new(),
                // A request that still holds an older picture of the directory goes its way with a
                // roster of its own: keeping it would throw out those of everybody else.
                Ordering::Greater => return known.clone(),
            };
            of.insert(key, roster.clone());
            Arc::new(Rosters {
                version: directory.version,
                of,
            })
        });
        if known.version < directory.version {
            self.health.forget_all_but(directory);
        }
        roster
    }
}
