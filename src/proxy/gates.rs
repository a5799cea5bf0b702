//! Who is asked at the gates of accounts for one request: reads what the rooms know of an account, decides by
//! [`gate`], and stays with it for as long as one look at the accounts takes.

use std::collections::HashMap;
use std::sync::Arc;

use chrono::{DateTime, DurationRound, TimeDelta, Utc};
use parking_lot::Mutex;

use super::Rooms;
use super::context::Asked;
use crate::billing::window_cost::counted_in;
use crate::domain::{Account, AccountId, Money};
use crate::scheduler::gates::{KeptOut, Readings, gate};
use crate::scheduler::{Gate, Gates, Shut};
use crate::state::{SessionLimit, SessionRoom};

/// The gates as one look at the accounts finds them.
pub struct GateView {
    known: Arc<Known>,
    ask: Box<KeptOut<'static>>,
}

struct Known {
    rooms: Arc<Rooms>,
    /// The request's conversation.
    session: Option<u128>,
    /// The accounts that it is bound to: for models that are routed, and for others.
    bound: Vec<AccountId>,
    now: DateTime<Utc>,
    /// What was asked already: an account may be looked at several times.
    gates: Mutex<HashMap<AccountId, Gate>>,
}

impl GateView {
    /// For a request whose conversation is bound to `bound`.
    pub fn new(
        rooms: &Arc<Rooms>,
        asked: &Asked,
        bound: Vec<AccountId>,
        now: DateTime<Utc>,
    ) -> GateView {
        let known = Arc::new(Known {
            rooms: rooms.clone(),
            session: asked.session,
            bound,
            now,
            gates: Mutex::default(),
        });
        let asks = known.clone();
        GateView {
            known,
            ask: Box::new(move |account| asks.keeps_out(account)),
        }
    }

    /// For the scheduler.
    pub fn gates(&self) -> Gates<'_> {
        Gates::kept_by(&*self.ask)
    }

    /// When the first of the accounts that were asked about and keep the request out may take it.
    pub fn opens_at(&self) -> Option<DateTime<Utc>> {
        let gates = self.known.gates.lock();
        let shut = gates
            .iter()
            .filter_map(|(id, gate)| gate.keeps_out(self.known.is_bound_to(*id)));
        shut.map(|shut| shut.until).min()
    }

    /// Makes the request's conversation one of those that `account` carries, now that a slot there is held; `false` =
    /// others have taken the last place since it was looked at.
    pub async fn join(&self, account: &Account) -> bool {
        let known = &self.known;
        let joined = join(&known.rooms, known.session, account, known.now).await;
        if !joined {
            known.gates.lock().remove(&account.id);
        }
        joined
    }
}

/// Makes a conversation one of those that `account` carries, or notes that it goes on; `false` = there is no room for
/// it. Without a limit, and while the live state cannot be reached, there always is.
pub async fn join(
    rooms: &Rooms,
    session: Option<u128>,
    account: &Account,
    now: DateTime<Utc>,
) -> bool {
    let (Some(limit), Some(session)) = (session_limit(account), session) else {
        return true;
    };
    let joined = rooms.state.join_session(account.id, session, limit, now);
    joined.await.unwrap_or_else(|error| {
        log::warn!(
            "account {:?}: a conversation is not counted: {error}",
            account.name
        );
        true
    })
}

fn session_limit(account: &Account) -> Option<SessionLimit> {
    let limits = account.gates().filter(|limits| limits.max_sessions > 0)?;
    Some(SessionLimit {
        max: limits.max_sessions,
        idle: limits.session_idle,
    })
}

impl Known {
    fn is_bound_to(&self, account: AccountId) -> bool {
        self.bound.contains(&account)
    }

    fn keeps_out(&self, account: &Account) -> Option<Shut> {
        let id = account.id;
        let mut gates = self.gates.lock();
        let gate = *gates.entry(id).or_insert_with(|| {
            let gate = self.read(account);
            self.count(gate);
            gate
        });
        gate.keeps_out(self.is_bound_to(id))
    }

    fn read(&self, account: &Account) -> Gate {
        let Some(limits) = account.gates() else {
            return Gate::Open;
        };
        let (id, now, state) = (account.id, self.now, &self.rooms.state);
        let (cost, cost_until) = match limits.window_cost {
            None => (Money::ZERO, now),
            Some(_) => {
                let span = counted_in(state.session_window(id), now);
                (self.rooms.window_costs.since(id, span.start, now), span.end)
            }
        };
        let room = match (session_limit(account), self.session) {
            (Some(limit), Some(session)) => state.session_room(id, session, limit, now),
            _ => SessionRoom::Free,
        };
        let minute = TimeDelta::minutes(1);
        let readings = Readings {
            cost,
            cost_until,
            rpm: match limits.base_rpm {
                0 => 0,
                _ => state.requests_in_minute(id, now),
            },
            rpm_until: now.duration_trunc(minute).unwrap_or(now) + minute,
            room,
        };
        gate(limits, account.concurrency, &readings)
    }

    fn count(&self, gate: Gate) {
        let (shut, result) = match gate {
            Gate::Open => return,
            Gate::StickyOnly(shut) => (shut, "sticky_only"),
            Gate::Closed(shut) => (shut, "closed"),
        };
        let labels = [shut.kind.as_str(), result];
        self.rooms.metrics.gates.with_label_values(&labels).inc();
    }
}
