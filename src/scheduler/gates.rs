//! The gates of an account: limits that keep new conversations from it, and then those it has, without its being at
//! fault (SPEC 6.4).
//!
//! | gate | open | for bound conversations only | closed |
//! |---|---|---|---|
//! | window cost | cost < limit | < limit + reserve | from there on, until the window ends |
//! | requests a minute, `tiered` | count < base | < base + buffer | from there on, until the minute ends |
//! | requests a minute, `sticky_exempt` | count < base | from there on | never |
//! | sessions | the conversation is carried by the account, or there is room for one more | – | else: for this one only |
//!
//! Pure: [`gate`] takes what was read and says how it stands. Who reads it is asked through [`Gates`], for members that
//! have limits only and when they are looked at, so that they cost the others nothing.

use std::fmt;

use chrono::{DateTime, Utc};

use crate::domain::account::soft_limits::{RpmStrategy, SoftLimits};
use crate::domain::{Account, Money};
use crate::state::SessionRoom;

/// Which limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GateKind {
    /// What the account may cost in its session window.
    WindowCost,
    /// Requests a minute.
    Rpm,
    /// Conversations at once.
    Sessions,
}

impl GateKind {
    /// All of them.
    pub const ALL: [GateKind; 3] = [GateKind::WindowCost, GateKind::Rpm, GateKind::Sessions];

    /// The name in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            GateKind::WindowCost => "window_cost",
            GateKind::Rpm => "rpm",
            GateKind::Sessions => "sessions",
        }
    }
}

/// A gate that is not open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shut {
    /// Which.
    pub kind: GateKind,
    /// When it opens again, as far as that can be told.
    pub until: DateTime<Utc>,
}

/// How an account's gates stand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Gate {
    /// Everybody may come.
    Open,
    /// Conversations that are bound to the account may.
    StickyOnly(Shut),
    /// Nobody may.
    Closed(Shut),
}

impl Gate {
    /// What keeps a request out whose conversation is bound to the account, or not; `None` = it may come.
    pub fn keeps_out(self, bound: bool) -> Option<Shut> {
        match self {
            Gate::Open => None,
            Gate::StickyOnly(shut) => (!bound).then_some(shut),
            Gate::Closed(shut) => Some(shut),
        }
    }

    /// The one that lets fewer in; of equals the one that lasts longer.
    fn worse(self, other: Gate) -> Gate {
        let rank = |gate: &Gate| match gate {
            Gate::Open => (0, None),
            Gate::StickyOnly(shut) => (1, Some(shut.until)),
            Gate::Closed(shut) => (2, Some(shut.until)),
        };
        match rank(&other) > rank(&self) {
            true => other,
            false => self,
        }
    }
}

/// What was read of an account's use; what has no limit need not be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Readings {
    /// What it has cost at list price in its session window.
    pub cost: Money,
    /// When that window ends.
    pub cost_until: DateTime<Utc>,
    /// Requests it has served in this minute.
    pub rpm: u32,
    /// When that minute ends.
    pub rpm_until: DateTime<Utc>,
    /// Whether it has a place for the conversation; [`SessionRoom::Free`] for a request of none.
    pub room: SessionRoom,
}

/// How the gates of an account with these limits and so many slots (0 = unlimited) stand.
pub fn gate(limits: &SoftLimits, concurrency: u32, readings: &Readings) -> Gate {
    by_cost(limits, readings)
        .worse(by_rpm(limits, concurrency, readings))
        .worse(by_sessions(limits, readings))
}

fn by_cost(limits: &SoftLimits, readings: &Readings) -> Gate {
    let Some(limit) = limits.window_cost else {
        return Gate::Open;
    };
    let shut = Shut {
        kind: GateKind::WindowCost,
        until: readings.cost_until,
    };
    let last = Money(limit.0.saturating_add(limits.window_cost_sticky_reserve.0));
    match readings.cost {
        cost if cost < limit => Gate::Open,
        cost if cost < last => Gate::StickyOnly(shut),
        _ => Gate::Closed(shut),
    }
}

fn by_rpm(limits: &SoftLimits, concurrency: u32, readings: &Readings) -> Gate {
    let base = limits.base_rpm;
    if base == 0 || readings.rpm < base {
        return Gate::Open;
    }
    let shut = Shut {
        kind: GateKind::Rpm,
        until: readings.rpm_until,
    };
    let last = base.saturating_add(limits.rpm_buffer(concurrency));
    match limits.rpm_strategy {
        RpmStrategy::StickyExempt => Gate::StickyOnly(shut),
        RpmStrategy::Tiered if readings.rpm < last => Gate::StickyOnly(shut),
        RpmStrategy::Tiered => Gate::Closed(shut),
    }
}

fn by_sessions(limits: &SoftLimits, readings: &Readings) -> Gate {
    match readings.room {
        SessionRoom::Full { until } if limits.max_sessions > 0 => Gate::Closed(Shut {
            kind: GateKind::Sessions,
            until,
        }),
        _ => Gate::Open,
    }
}

/// Says what keeps a request from an account that has limits.
pub type KeptOut<'g> = dyn Fn(&Account) -> Option<Shut> + Send + Sync + 'g;

/// Who is asked about the gates of accounts, for one request.
#[derive(Clone, Copy, Default)]
pub struct Gates<'g>(Option<&'g KeptOut<'g>>);

impl<'g> Gates<'g> {
    /// `ask` is asked.
    pub fn kept_by(ask: &'g KeptOut<'g>) -> Gates<'g> {
        Gates(Some(ask))
    }

    /// What keeps the request from `account`. Without anybody to ask, nothing does.
    pub(super) fn shut(&self, account: &Account) -> Option<Shut> {
        self.0?(account)
    }
}

impl fmt::Debug for Gates<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kept = if self.0.is_some() { "kept" } else { "none" };
        f.debug_tuple("Gates").field(&kept).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + second, 0).unwrap()
    }

    const COST_UNTIL: i64 = 3600;
    const RPM_UNTIL: i64 = 60;
    const ROOM_UNTIL: i64 = 300;

    fn readings(cost: i64, rpm: u32, room: SessionRoom) -> Readings {
        Readings {
            cost: Money(cost),
            cost_until: at(COST_UNTIL),
            rpm,
            rpm_until: at(RPM_UNTIL),
            room,
        }
    }

    fn shut(kind: GateKind) -> Shut {
        let until = match kind {
            GateKind::WindowCost => COST_UNTIL,
            GateKind::Rpm => RPM_UNTIL,
            GateKind::Sessions => ROOM_UNTIL,
        };
        Shut {
            kind,
            until: at(until),
        }
    }

    const FULL: fn() -> SessionRoom = || SessionRoom::Full {
        until: at(ROOM_UNTIL),
    };

    fn limits(cost: Option<i64>, reserve: i64, base_rpm: u32, max_sessions: u32) -> SoftLimits {
        SoftLimits {
            window_cost: cost.map(Money),
            window_cost_sticky_reserve: Money(reserve),
            base_rpm,
            max_sessions,
            ..SoftLimits::default()
        }
    }

    #[test]
    fn each_gate_at_its_bounds() {
        use Gate::{Closed, Open, StickyOnly};
        use GateKind::{Rpm, Sessions, WindowCost};
        use SessionRoom::{Free, Known};
        let exempt = SoftLimits {
            rpm_strategy: RpmStrategy::StickyExempt,
            ..limits(None, 0, 5, 0)
        };
        let buffered = |buffer| SoftLimits {
            rpm_sticky_buffer: Some(buffer),
            ..limits(None, 0, 5, 0)
        };
        #[rustfmt::skip]
        let rows = [
            // Without a limit nothing is too much.
            (limits(None, 0, 0, 0), readings(i64::MAX, u32::MAX, FULL()), Open),
            (limits(Some(100), 10, 0, 0), readings(0, 0, Free), Open),
            (limits(Some(100), 10, 0, 0), readings(99, 0, Free), Open),
            (limits(Some(100), 10, 0, 0), readings(100, 0, Free), StickyOnly(shut(WindowCost))),
            (limits(Some(100), 10, 0, 0), readings(109, 0, Free), StickyOnly(shut(WindowCost))),
            (limits(Some(100), 10, 0, 0), readings(110, 0, Free), Closed(shut(WindowCost))),
            (limits(Some(100), 0, 0, 0), readings(100, 0, Free), Closed(shut(WindowCost))),
            (limits(Some(i64::MAX), i64::MAX, 0, 0), readings(i64::MAX - 1, 0, Free), Open),
            (limits(Some(i64::MAX), i64::MAX, 0, 0), readings(i64::MAX, 0, Free), Closed(shut(WindowCost))),
            // The buffer is the account's slots where none is given: three.
            (limits(None, 0, 5, 0), readings(0, 4, Free), Open),
            (limits(None, 0, 5, 0), readings(0, 5, Free), StickyOnly(shut(Rpm))),
            (limits(None, 0, 5, 0), readings(0, 7, Free), StickyOnly(shut(Rpm))),
            (limits(None, 0, 5, 0), readings(0, 8, Free), Closed(shut(Rpm))),
            (limits(None, 0, 5, 2), readings(0, 9, Free), StickyOnly(shut(Rpm))),
            (limits(None, 0, 5, 2), readings(0, 10, Free), Closed(shut(Rpm))),
            (buffered(0), readings(0, 4, Free), Open),
            (buffered(0), readings(0, 5, Free), Closed(shut(Rpm))),
            (buffered(1), readings(0, 5, Free), StickyOnly(shut(Rpm))),
            (buffered(u32::MAX), readings(0, u32::MAX - 1, Free), StickyOnly(shut(Rpm))),
            (exempt.clone(), readings(0, 4, Free), Open),
            (exempt.clone(), readings(0, 5, Free), StickyOnly(shut(Rpm))),
            (exempt, readings(0, u32::MAX, Free), StickyOnly(shut(Rpm))),
            (limits(None, 0, 0, 2), readings(0, 0, Free), Open),
            (limits(None, 0, 0, 2), readings(0, 0, Known), Open),
            (limits(None, 0, 0, 2), readings(0, 0, FULL()), Closed(shut(Sessions))),
            // The worst of them; of two alike the one that lasts longer.
            (limits(Some(100), 10, 5, 0), readings(100, 8, Free), Closed(shut(Rpm))),
            (limits(Some(100), 10, 5, 0), readings(110, 5, Free), Closed(shut(WindowCost))),
            (limits(Some(100), 10, 5, 0), readings(100, 5, Free), StickyOnly(shut(WindowCost))),
            (limits(Some(100), 10, 5, 2), readings(110, 99, FULL()), Closed(shut(WindowCost))),
            (limits(None, 0, 5, 2), readings(0, 99, FULL()), Closed(shut(Sessions))),
        ];
        for (limits, readings, expected) in rows {
            assert_eq!(
                gate(&limits, 3, &readings),
                expected,
                "{limits:?} {readings:?}"
            );
        }
    }

    #[test]
    fn whom_a_gate_keeps_out() {
        let rpm = shut(GateKind::Rpm);
        for (gate, bound, other) in [
            (Gate::Open, None, None),
            (Gate::StickyOnly(rpm), None, Some(rpm)),
            (Gate::Closed(rpm), Some(rpm), Some(rpm)),
        ] {
            assert_eq!(gate.keeps_out(true), bound, "{gate:?}");
            assert_eq!(gate.keeps_out(false), other, "{gate:?}");
        }
        let names = GateKind::ALL.map(GateKind::as_str);
        assert_eq!(names, ["window_cost", "rpm", "sessions"]);
    }
}
