//! Which account the next attempt goes to, with its slot: the one that is tried again, the one that
//! made the previous response, the conversation's, else the best by load. Where all are full the
//! request stands in line for any of them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use pingora::Result;
use pingora::proxy::Session;
use tollgate_filters::reply::{ErrorReply, errors};

use super::context::{Asked, Context};
use super::failover::exhausted;
use super::peer::unserved;
use super::wait::{Line, Lined, Wait, in_line};
use crate::auth::Principal;
use crate::domain::{Account, AccountId};
use crate::scheduler::{
    self, Candidates, Decision, Layer, NoAccount, Pool, Request, Sticky, StickyHit,
};
use crate::state::{Lease, Slot, StateError, Want};

/// Accounts a request stands in line for at most; the best ones. Standing in more lines than this
/// costs more than it brings forward.
const LINES: usize = 256;

/// An account with its slot held.
pub struct Choice {
    /// The account.
    pub account: Arc<Account>,
    /// Its slot.
    pub lease: Lease,
    /// Whether another account could serve the request as well.
    pub has_others: bool,
}

/// What a look at the accounts came to.
enum Look {
    Found(Choice, Decision),
    /// All that may serve the request are full: these slots, best first, may be waited for.
    Full(Vec<Want>),
}

/// Chooses an account and takes its slot.
pub async fn choose_account(session: &mut Session, ctx: &mut Context) -> Result<Choice> {
    // Seen before the accounts are: what changes after that is not missed.
    let mut changes = None;
    loop {
        let wants = match look(session, ctx).await? {
            Look::Found(choice, decision) => {
                note(ctx, &decision);
                return Ok(choice);
            }
            Look::Full(wants) => wants,
        };
        let Some(seen) = &mut changes else {
            // Looked at once more, now that nothing goes unseen.
            changes = Some(ctx.rooms.changes.subscribe());
            ctx.snapshot = ctx.rooms.snapshot.load_full();
            continue;
        };
        let returns_at = returns_at(ctx);
        let changed = async {
            let returned = async {
                match returns_at {
                    Some(at) => tokio::time::sleep(until(at)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = seen.changed() => {}
                () = returned => {}
            }
        };
        let config = &ctx.config.concurrency;
        let wait = Wait {
            line: Line::Accounts,
            wants: &wants,
            max_waiting: config.max_waiting_per_account,
            deadline: Instant::now() + config.account_wait.saturating_sub(ctx.tries.waited),
        };
        let Some(exchange) = ctx.exchange.clone() else {
            return Err(unserved(ctx, errors::internal_error()));
        };
        match in_line(session, ctx, &exchange, wait, changed).await? {
            Lined::Granted(lease) => {
                if let Some(choice) = granted(ctx, lease).await {
                    return Ok(choice);
                }
                // It became unfit meanwhile: the slot went back, the place in line is kept.
            }
            Lined::Changed => ctx.snapshot = ctx.rooms.snapshot.load_full(),
            Lined::LineFull => return Err(unserved(ctx, errors::too_many_pending())),
            Lined::TimedOut => return Err(unserved(ctx, errors::account_slot_timeout())),
            Lined::StateGone(error) => return Err(state_gone(ctx, &error)),
        }
    }
}

/// What every layer looks at.
struct View {
    pool: Arc<Pool>,
    conditions: Arc<crate::domain::Conditions>,
    now: DateTime<Utc>,
    ttl: TimeDelta,
    began: Instant,
}

impl View {
    fn new(ctx: &Context, principal: &Principal, asked: &Asked) -> View {
        let need = scheduler::Need::responses(principal.group.platform);
        let pool = ctx.rooms.scheduler.pool(
            &ctx.snapshot.directory,
            principal.group.id,
            &need,
            &asked.model,
        );
        View {
            pool,
            conditions: ctx.rooms.state.conditions(),
            now: Utc::now(),
            ttl: TimeDelta::from_std(ctx.config.scheduling.sticky_ttl).unwrap_or(TimeDelta::MAX),
            began: Instant::now(),
        }
    }
}

async fn look(session: &mut Session, ctx: &mut Context) -> Result<Look> {
    let rooms = ctx.rooms.clone();
    let (Some(principal), Some(asked)) = (ctx.principal.clone(), ctx.asked.clone()) else {
        return Err(unserved(ctx, errors::internal_error()));
    };
    let group = principal.group.id;
    let view = View::new(ctx, &principal, &asked);
    let excluded = std::mem::take(&mut ctx.tries.excluded);
    let request = Request {
        group,
        model: &asked.model,
        session: asked.sticky_key,
        previous: asked.previous_response,
        excluded: &excluded,
        now: view.now,
        entropy: rooms.ids.entropy(),
    };
    let candidates = view.pool.candidates(&view.conditions, &request);
    ctx.tries.excluded = excluded.clone();
    let candidates = match candidates {
        Ok(candidates) => candidates,
        Err(none) => {
            let reply = no_account(ctx, none, view.now);
            return Err(unserved(ctx, reply));
        }
    };
    let _ = (session, &candidates, view.ttl);
    todo!()
}
