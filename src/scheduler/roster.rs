//! The accounts of a group that may be chosen at all, and which of them take a model. Worked out once
//! per directory; everything that changes from request to request is in [`super::candidates`].

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwapOption;
use chrono::{DateTime, Utc};

use super::conditions::Held;
use super::health::{Health, Moment, Outcome, Vitals};
use super::need::{Need, serves};
use crate::domain::mapping::Prefixes;
use crate::domain::{Account, AccountId, Conditions, GroupRules, Platform};
use crate::state::{Slot, Want};

/// An account with what is needed to choose it.
#[derive(Debug)]
pub struct Member {
    /// The account.
    pub account: Arc<Account>,
    // What every look at a member needs stands here and not behind `account`: a cache miss less.
    id: AccountId,
    capacity: u32,
    pub(super) expires_at: Option<DateTime<Utc>>,
    /// Whether it has soft limits, so that its gates have to be asked.
    pub(super) gated: bool,
    pub(super) vitals: Arc<Vitals>,
}

/// What an account without a limit counts as carrying, in requests. (The reference counts it as
/// carrying one, so that its first request makes it look full.)
const CAPACITY_OF_UNLIMITED: u32 = 1_000;

impl Member {
    fn new(account: &Arc<Account>, vitals: Arc<Vitals>) -> Member {
        Member {
            account: account.clone(),
            id: account.id,
            capacity: match (account.load_factor, account.concurrency) {
                (Some(factor), _) if factor > 0 => factor,
                (_, 0) => CAPACITY_OF_UNLIMITED,
                (_, concurrency) => concurrency,
            },
            expires_at: account.expires_at,
            gated: account.gates().is_some(),
            vitals,
        }
    }

    /// Its id.
    pub fn id(&self) -> AccountId {
        self.id
    }

    /// The slot a request needs there.
    pub fn want(&self) -> Want {
        Want {
            slot: Slot::Account(self.id),
            limit: self.account.concurrency,
        }
    }

    /// What its load is measured against: `load_factor`, else its concurrency.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }
}

/// The accounts of a group that serve one platform and that the operator lets be chosen, best tier first.
#[derive(Debug)]
pub(super) struct Roster {
    /// By priority, then id.
    members: Box<[Member]>,
    /// Which of them are asked first for which models.
    rules: Arc<GroupRules>,
    /// Where an account stands in `members`; in id order.
    by_id: Box<[(AccountId, u32)]>,
    /// Models named by a rule of any of the accounts or by the routing, and the class of each.
    exact: HashMap<Box<str>, usize>,
    /// Prefixes in rules of any of the accounts or in the routing, and the class of each.
    prefixes: Prefixes<usize>,
    /// A class of models that the same accounts take, whatever the model: those that one exact key
    /// names; those with the same longest prefix; all others. There are as many as there are rules,
    /// so that models that clients make up cost nothing to remember.
    classes: Box<[[OnceLock<Class>; Need::COUNT]]>,
    /// Whether any member has soft limits.
    gated: bool,
    /// The conditions last asked about, sorted by member.
    held: ArcSwapOption<Held>,
}

/// Who takes a class of models.
#[derive(Clone, Debug)]
struct Class {
    takers: Arc<Takers>,
    /// Those of them that the group's routing names, if there are any.
    routed: Option<Arc<Routed>>,
}

/// Accounts that are asked first.
#[derive(Debug)]
struct Routed {
    /// The pattern that names them.
    pattern: Box<str>,
    takers: Arc<Takers>,
}

/// The members that take a class of models.
#[derive(Debug)]
pub(super) struct Takers {
    /// Indices of members, ascending, that is by priority and id.
    pub(super) members: Box<[u32]>,
    /// Of one priority each: where they are in `members`.
    pub(super) tiers: Box<[Range<usize>]>,
}

impl Roster {
    pub(super) fn new(
        accounts: &[Arc<Account>],
        platform: Platform,
        rules: Arc<GroupRules>,
        health: &Health,
    ) -> Roster {
        let mut accounts: Vec<&Arc<Account>> = accounts
            .iter()
            .filter(|a| a.serves_groups_of(platform) && a.enabled && a.schedulable && !a.paused)
            .collect();
        accounts.sort_by_key(|a| (a.priority, a.id));
        let vitals = health.of_all(&accounts);
        let members: Box<[Member]> = accounts
            .into_iter()
            .zip(vitals)
            .map(|(account, vitals)| Member::new(account, vitals))
            .collect();
        let mut by_id: Box<[_]> = members.iter().zip(0..).map(|(m, i)| (m.id(), i)).collect();
        by_id.sort_unstable();

        // Class 0 is that of models no rule names.
        let mut count = 1;
        let mut class = |known: &mut HashMap<Box<str>, usize>, key: &str| {
            if !known.contains_key(key) {
                known.insert(key.into(), count);
                count += 1;
            }
        };
        let mut exact = HashMap::new();
        let mut prefixes = HashMap::new();
        let names = members
            .iter()
            .flat_map(|member| member.account.model_mapping.iter())
            .map(|(key, _)| key);
        for key in names.chain(rules.routing.iter().map(|(pattern, _)| pattern.as_str())) {
            class(&mut exact, key);
            if let Some(prefix) = key.strip_suffix('*') {
                class(&mut prefixes, prefix);
            }
        }
        Roster {
            gated: members.iter().any(|member| member.gated),
            members,
            rules,
            by_id,
            exact,
            prefixes: Prefixes::new(prefixes.into_iter()),
            classes: (0..count).map(|_| Default::default()).collect(),
            held: ArcSwapOption::empty(),
        }
    }

    /// The accounts that take `model` and can serve `need`.
    fn class(&self, need: Need, model: &str) -> Class {
        let class = match self.exact.get(model) {
            Some(class) => *class,
            None => self.prefixes.longest(model).map_or(0, |(_, class)| *class),
        };
        let class = self.classes[class][need.index()].get_or_init(|| {
            let takes =
                |m: &Member| serves(&m.account, need) && m.account.model_mapping.supports(model);
            let routed = self.rules.route(model).map(|(pattern, first)| Routed {
                pattern: pattern.into(),
                takers: Arc::new(Takers::new(&self.members, |m| {
                    first.contains(&m.id) && takes(m)
                })),
            });
            Class {
                takers: Arc::new(Takers::new(&self.members, takes)),
                routed: routed
                    .filter(|routed| !routed.takers.members.is_empty())
                    .map(Arc::new),
            }
        });
        class.clone()
    }

    /// The conditions, sorted by member: once for each picture of them.
    fn held(&self, conditions: &Arc<Conditions>) -> Arc<Held> {
        if let Some(held) = &*self.held.load()
            && held.is_of(conditions)
        {
            return held.clone();
        }
        let held = Arc::new(Held::new(conditions, &self.members, |id| self.index(id)));
        self.held.store(Some(held.clone()));
        held
    }

    fn index(&self, id: AccountId) -> Option<usize> {
        let place = self.by_id.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        Some(self.by_id[place].1 as usize)
    }
}

impl Takers {
    fn new(members: &[Member], takes: impl Fn(&Member) -> bool) -> Takers {
        let taking: Box<[u32]> = members
            .iter()
            .zip(0..)
            .filter(|(member, _)| takes(member))
            .map(|(_, index)| index)
            .collect();
        let priority = |index: &u32| members[*index as usize].account.priority;
        let mut end = 0;
        let tiers = taking
            .chunk_by(|a, b| priority(a) == priority(b))
            .map(|tier| {
                let start = end;
                end += tier.len();
                start..end
            })
            .collect();
        Takers {
            members: taking,
            tiers,
        }
    }
}

/// The accounts of a group that know a model. A handle: cheap to clone and to keep for the life of a
/// request.
#[derive(Clone, Debug)]
pub struct Pool {
    roster: Arc<Roster>,
    pub(super) takers: Arc<Takers>,
    routed: Option<Arc<Routed>>,
}

impl Pool {
    pub(super) fn new(roster: Arc<Roster>, need: Need, model: &str) -> Pool {
        let Class { takers, routed } = roster.class(need, model);
        Pool {
            roster,
            takers,
            routed,
        }
    }

    /// Those of its accounts that the group's routing names for the model, which are asked before all
    /// others (SPEC 6.4), and the pattern that names them.
    pub fn routed(&self) -> Option<(Pool, &str)> {
        let routed = self.routed.as_ref()?;
        let first = Pool {
            roster: self.roster.clone(),
            takers: routed.takers.clone(),
            routed: None,
        };
        Some((first, &routed.pattern))
    }

    /// How many accounts know the model and can serve the need, whether or not they may be chosen now.
    pub fn len(&self) -> usize {
        self.takers.members.len()
    }

    /// Whether no account does.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether any of the group's accounts has soft limits: else nobody's gates need to be asked.
    pub fn has_gates(&self) -> bool {
        self.roster.gated
    }

    /// The account of this id, if the operator lets it be chosen for the group, the model aside.
    pub fn member(&self, id: AccountId) -> Option<&Member> {
        Some(&self.roster.members[self.roster.index(id)?])
    }

    pub(super) fn at(&self, index: usize) -> &Member {
        &self.roster.members[index]
    }

    pub(super) fn index(&self, id: AccountId) -> Option<usize> {
        self.roster.index(id)
    }

    pub(super) fn held(&self, conditions: &Arc<Conditions>) -> Arc<Held> {
        self.roster.held(conditions)
    }

    pub(super) fn takes(&self, index: usize) -> bool {
        let index = u32::try_from(index).unwrap_or(u32::MAX);
        self.takers.members.binary_search(&index).is_ok()
    }

    /// Tells the account's health how an attempt with a model of this pool went; a slow answer is
    /// slow compared with the other accounts here. Transport errors are told to
    /// [`Health::transport_failed`] besides.
    pub fn report(&self, id: AccountId, outcome: Outcome, now: DateTime<Utc>) {
        if let Some(member) = self.member(id) {
            let usual = match outcome {
                Outcome::Served { .. } => self.usual_first_token_ms(id, now),
                Outcome::Failed => None,
            };
            member.vitals.report(outcome, usual, now);
        }
    }

    /// The mean of the first-token averages of other accounts: of some, evenly spread, where there
    /// are many.
    fn usual_first_token_ms(&self, except: AccountId, now: DateTime<Utc>) -> Option<f64> {
        const ASKED: usize = 16;
        let moment = Moment::of(now);
        let members = &self.takers.members;
        let step = members.len().div_ceil(ASKED).max(1);
        let mut sum = 0.0;
        let mut count = 0.0;
        for index in members.iter().step_by(step) {
            let member = self.at(*index as usize);
            if member.id() != except
                && let Some(ms) = member.vitals.read(moment).first_token_ms
            {
                sum += ms;
                count += 1.0;
            }
        }
        (count > 0.0).then(|| sum / count)
    }
}
