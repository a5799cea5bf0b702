//! The accounts' conditions as the members of a roster have them, so that looking at a member costs a
//! bit and not a search. Made once for each picture of the conditions.

use std::sync::Arc;

use chrono::{DateTime, Utc};

use super::roster::Member;
use crate::domain::{AccountId, Condition, ConditionKind, Conditions};

/// What the conditions of one account come to at a moment, for a model.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Standing {
    /// Nothing holds.
    Clear,
    /// Behind the others.
    Failing,
    /// Out.
    Out {
        /// Until then; `None` = until an operator says so.
        until: Option<DateTime<Utc>>,
        /// Because its provider said 429.
        limited: bool,
    },
}

/// A picture of the conditions, by member.
#[derive(Debug)]
pub(super) struct Held {
    of: Arc<Conditions>,
    /// One bit a member: whether it has any.
    words: Box<[Word]>,
    /// Those that have, in the order of members.
    holds: Box<[Holds]>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Word {
    bits: u64,
    /// Members with conditions before these 64.
    before: u32,
}

/// The conditions of one member.
#[derive(Debug, Default)]
struct Holds {
    all: Hold,
    models: Vec<(Box<str>, Hold)>,
}

/// The last ends of conditions: of those that exclude, and of those that only put behind.
#[derive(Clone, Copy, Debug, Default)]
struct Hold {
    out: Option<Out>,
    failing: Option<Option<DateTime<Utc>>>,
}

#[derive(Clone, Copy, Debug)]
struct Out {
    until: Option<DateTime<Utc>>,
    limited: bool,
}

impl Held {
    pub(super) fn new(
        conditions: &Arc<Conditions>,
        members: &[Member],
        index: impl Fn(AccountId) -> Option<usize>,
    ) -> Held {
        let mut found: Vec<(usize, Holds)> = Vec::new();
        for (id, list) in &conditions.0 {
            let Some(member) = index(*id) else { continue };
            let resumed_at = members[member].account.resumed_at;
            let mut holds = Holds::default();
            // `tollgate accounts resume` voids what began before it.
            for condition in list
                .iter()
                .filter(|c| resumed_at.is_none_or(|at| at <= c.since))
            {
                holds.add(condition);
            }
            found.push((member, holds));
        }
        found.sort_unstable_by_key(|(member, _)| *member);
        let words = if found.is_empty() {
            0
        } else {
            members.len().div_ceil(64)
        };
        let mut words = vec![Word::default(); words].into_boxed_slice();
        for (member, _) in &found {
            words[member / 64].bits |= 1 << (member % 64);
        }
        let mut before = 0;
        for word in &mut words {
            word.before = before;
            before += word.bits.count_ones();
        }
        Held {
            of: conditions.clone(),
            words,
            holds: found.into_iter().map(|(_, holds)| holds).collect(),
        }
    }

    /// Whether this is that picture. Holding it, no other can come to stand at its address.
    pub(super) fn is_of(&self, conditions: &Arc<Conditions>) -> bool {
        Arc::ptr_eq(&self.of, conditions)
    }

    pub(super) fn standing(&self, member: usize, model: &str, now: DateTime<Utc>) -> Standing {
        match self.words.get(member / 64) {
            Some(word) if word.bits >> (member % 64) & 1 == 1 => {
                let below = word.bits & ((1 << (member % 64)) - 1);
                let place = word.before + below.count_ones();
                self.holds[place as usize].standing(model, now)
            }
            _ => Standing::Clear,
        }
    }
}

impl Holds {
    fn add(&mut self, condition: &Condition) {
        let hold = match &condition.model {
            None => &mut self.all,
            Some(model) => {
                let place = self.models.iter().position(|(name, _)| **name == **model);
                let place = place.unwrap_or_else(|| {
                    self.models.push((model.as_str().into(), Hold::default()));
                    self.models.len() - 1
                });
                &mut self.models[place].1
            }
        };
        let until = condition.until;
        if condition.kind.is_soft() {
            hold.failing = Some(match hold.failing {
                Some(there) => later(there, until),
                None => until,
            });
        } else {
            let limited = condition.kind == ConditionKind::RateLimited;
            hold.join(Out { until, limited });
        }
    }

    fn standing(&self, model: &str, now: DateTime<Utc>) -> Standing {
        let mut hold = self.all;
        for (name, more) in &self.models {
            if **name == *model {
                if let Some(out) = more.out {
                    hold.join(out);
                }
                hold.failing = match (hold.failing, more.failing) {
                    (Some(a), Some(b)) => Some(later(a, b)),
                    (a, b) => a.or(b),
                };
            }
        }
        let holds = |until: Option<DateTime<Utc>>| until.is_none_or(|until| until > now);
        match hold {
            Hold { out: Some(out), .. } if holds(out.until) => Standing::Out {
                until: out.until,
                limited: out.limited,
            },
            Hold {
                failing: Some(until),
                ..
            } if holds(until) => Standing::Failing,
            _ => Standing::Clear,
        }
    }
}

impl Hold {
    /// The one that ends last says why, since it decides when the account is back.
    fn join(&mut self, more: Out) {
        match &mut self.out {
            Some(there) if later(there.until, more.until) == there.until => {}
            out => *out = Some(more),
        }
    }
}

/// The later of two ends, of which `None` is never.
fn later(a: Option<DateTime<Utc>>, b: Option<DateTime<Utc>>) -> Option<DateTime<Utc>> {
    Some(a?.max(b?))
}
