//! Which account the next attempt goes to, with its slot: the one that is tried again, the one that
//! made the previous response, the conversation's, else the best by load; those that the group's routing
//! names for the model before all others. Where all are full the request stands in line for any of them.

use std::sync::Arc;
use std::time::Instant;

use chrono::{DateTime, TimeDelta, Utc};
use pingora::Result;
use pingora::proxy::Session;
use tollgate_filters::affinity::routed_key;
use tollgate_filters::reply::{ErrorReply, errors};

use super::context::{Asked, Context};
use super::failover::exhausted;
use super::gates::GateView;
use super::peer::unserved;
use super::wait::{Line, Lined, Wait, in_line};
use crate::auth::Principal;
use crate::domain::{Account, AccountId, Conditions};
use crate::scheduler::sticky::{sticky, waits};
use crate::scheduler::{
    Candidates, Decision, Fit, Gates, Layer, Member, Need, NoAccount, Pool, Request, Seed, Stage,
    Sticky, Unfit,
};
use crate::state::{Lease, MAX_LINES, Slot, StateError, Want};

/// An account with its slot held.
pub struct Choice {
    /// The account.
    pub account: Arc<Account>,
    /// Its slot, where one is taken.
    pub lease: Option<Lease>,
    /// Among which it was chosen; told how the attempt went.
    pub pool: Pool,
    /// Whether another account could serve the request as well.
    pub has_others: bool,
}

/// What a look at the accounts came to.
enum Look {
    Found(Choice),
    /// The conversation's account is full and worth a brief wait.
    Bound(Want),
    Full(Full),
}

/// All that may serve the request are full.
struct Full {
    /// What may be waited for, better tiers first.
    wants: Vec<Want>,
    /// Whether the conversation is bound to whatever comes free.
    binds: bool,
    /// Its key then.
    key: Option<u128>,
    /// Which layer waits: for any account, or for one.
    layer: Layer,
    /// When an account that is out now will be back.
    returns_at: Option<DateTime<Utc>>,
}

/// Chooses an account and takes its slot.
pub async fn choose_account(session: &mut Session, ctx: &mut Context) -> Result<Choice> {
    if ctx.asked.as_ref().is_some_and(|asked| asked.counts) {
        return without_slot(ctx).await;
    }
    let mut changes = None;
    loop {
        let full = match look(ctx).await? {
            Look::Found(choice) => return Ok(choice),
            Look::Bound(want) => {
                if let Some(choice) = wait_for_bound(session, ctx, want).await? {
                    return Ok(choice);
                }
                // Time has passed: what was seen before counts no more.
                ctx.snapshot = ctx.rooms.snapshot.load_full();
                continue;
            }
            Look::Full(full) => full,
        };
        let Some(seen) = &mut changes else {
            // From here on no change goes unseen; one that came before is seen by looking once more.
            changes = Some(ctx.rooms.changes.subscribe());
            ctx.snapshot = ctx.rooms.snapshot.load_full();
            continue;
        };
        let changed = async {
            tokio::select! {
                _ = seen.changed() => {}
                () = time_of(full.returns_at) => {}
            }
        };
        match line_up(session, ctx, &full.wants, None, changed).await? {
            Lined::Granted(lease) => {
                if let Some(choice) = granted(ctx, lease, &full).await {
                    return Ok(choice);
                }
            }
            Lined::Changed => ctx.snapshot = ctx.rooms.snapshot.load_full(),
            Lined::LineFull => return Err(unserved(ctx, errors::too_many_pending())),
            Lined::TimedOut => return Err(unserved(ctx, errors::account_slot_timeout())),
            Lined::StateGone(error) => return Err(state_gone(ctx, &error)),
        }
    }
}

/// That moment, or never.
async fn time_of(at: Option<DateTime<Utc>>) {
    match at {
        Some(at) => {
            let wait = (at - Utc::now()).to_std().unwrap_or_default();
            tokio::time::sleep(wait).await;
        }
        None => std::future::pending().await,
    }
}

/// Stands in line for accounts, within what is left of the request's budget for that, and at most
/// for `limit`.
async fn line_up(
    session: &mut Session,
    ctx: &mut Context,
    wants: &[Want],
    limit: Option<std::time::Duration>,
    changed: impl Future<Output = ()>,
) -> Result<Lined> {
    let Some(exchange) = ctx.exchange.clone() else {
        return Err(unserved(ctx, errors::internal_error()));
    };
    let config = &ctx.config.concurrency;
    let left = config.account_wait.saturating_sub(ctx.tries.waited);
    let wait = Wait {
        line: Line::Accounts,
        wants,
        max_waiting: config.max_waiting_per_account,
        deadline: Instant::now() + limit.map_or(left, |limit| limit.min(left)),
    };
    in_line(session, ctx, &exchange, wait, changed).await
}

/// A slot came free after a wait. `None` when its account has become unfit meanwhile: the slot goes
/// back, the request keeps its place in line.
async fn granted(ctx: &mut Context, lease: Lease, full: &Full) -> Option<Choice> {
    let (principal, asked) = (ctx.principal.clone()?, ctx.asked.clone()?);
    let Slot::Account(id) = lease.slot() else {
        return None;
    };
    let view = View::new(ctx, &principal, &asked).await;
    let excluded = ctx.tries.excluded.clone();
    let request = view.request(ctx, &asked, &excluded);
    let account = view.fit_member(ctx, id, request)?.account.clone();
    // Nobody else may be let in.
    let among = view.among(&asked, request).ok();
    let candidates = among.as_ref().map(|among| &among.candidates);
    let last_resort = candidates.is_none_or(|candidates| candidates.last_resort());
    if !view.takes(ctx, &account, last_resort).await {
        return None;
    }
    let required = full.layer == Layer::PreviousResponse;
    let has_others = !required && among.as_ref().is_some_and(|among| among.has_others);
    let found = Found {
        layer: full.layer,
        previous_hit: required,
        session_hit: full.layer == Layer::Session,
        candidates: candidates.map_or(0, |candidates| candidates.everyone(MAX_LINES).len()),
        ..Found::default()
    };
    drop(among);
    if full.binds {
        view.bind(ctx, full.key, id).await;
    }
    Some(view.choice(ctx, account, lease, has_others, found))
}

/// Whether an account that was chosen some time ago may still be. What of it has been configured anew since is taken
/// over.
pub async fn fits_still(ctx: &mut Context, choice: &mut Choice) -> bool {
    let (Some(principal), Some(asked)) = (ctx.principal.clone(), ctx.asked.clone()) else {
        return false;
    };
    ctx.snapshot = ctx.rooms.snapshot.load_full();
    let view = View::new(ctx, &principal, &asked).await;
    let id = choice.account.id;
    let request = view.request(ctx, &asked, &ctx.tries.excluded);
    let Some(member) = view.fit_member(ctx, id, request) else {
        return false;
    };
    choice.account = member.account.clone();
    true
}

/// What every layer looks at.
struct View {
    pool: Pool,
    /// Those of it that the group's routing names for the model, with the pattern that does.
    routed: Option<(Pool, String)>,
    conditions: Arc<Conditions>,
    group: crate::domain::GroupId,
    seed: Seed,
    now: DateTime<Utc>,
    ttl: TimeDelta,
    began: Instant,
    /// Where any account of the group has soft limits.
    gates: Option<GateView>,
    /// The keys that were looked up already, and the accounts that they are bound to.
    bound: Vec<(u128, Option<AccountId>)>,
}

/// The accounts that are asked.
struct Among<'v> {
    candidates: Candidates<'v>,
    /// By which a choice among them is made.
    layer: Layer,
    /// Under which the conversation is bound to one of them.
    key: Option<u128>,
    /// Whether a request that fails at one of them can go on to another, of whomever.
    has_others: bool,
}

/// How an account was found, for the decision's record.
struct Found {
    layer: Layer,
    previous_hit: bool,
    session_hit: bool,
    candidates: usize,
    sampled: bool,
    top_k: usize,
    skew: f64,
}

impl Default for Found {
    fn default() -> Found {
        Found {
            layer: Layer::Load,
            previous_hit: false,
            session_hit: false,
            candidates: 0,
            sampled: false,
            top_k: 0,
            skew: 0.0,
        }
    }
}

impl View {
    async fn new(ctx: &Context, principal: &Principal, asked: &Asked) -> View {
        let began = Instant::now();
        let group = &principal.group;
        let pool = ctx.rooms.scheduler.pool(
            &ctx.snapshot.directory,
            group.id,
            group.platform,
            need(asked),
            &asked.model,
        );
        let routed = pool
            .routed()
            .map(|(first, pattern)| (first, pattern.to_owned()));
        let session = asked.sticky_key.map(u128::to_be_bytes);
        let previous = asked.previous_response.map(u128::to_be_bytes);
        let mut view = View {
            pool,
            routed,
            conditions: ctx.rooms.state.conditions(),
            group: group.id,
            seed: Seed::of(
                session.as_ref().map(|bytes| &bytes[..]),
                previous.as_ref().map(|bytes| &bytes[..]),
                &asked.model,
                group.id,
                ctx.chance,
            ),
            now: Utc::now(),
            ttl: TimeDelta::from_std(ctx.config.scheduling.sticky_ttl).unwrap_or(TimeDelta::MAX),
            began,
            gates: None,
            bound: Vec::new(),
        };
        if view.pool.has_gates() {
            // Whom a gate lets in depends on where the conversation is bound, among routed accounts and among all.
            for key in [asked.sticky_key, view.key_by_route(asked)]
                .into_iter()
                .flatten()
            {
                let bound = view.bound_account(ctx, Some(key)).await;
                view.bound.push((key, bound));
            }
            let bound = view.bound.iter().filter_map(|(_, bound)| *bound).collect();
            view.gates = Some(GateView::new(&ctx.rooms, asked, bound, view.now));
        }
        view
    }

    fn request<'r>(
        &'r self,
        ctx: &Context,
        asked: &'r Asked,
        excluded: &'r [AccountId],
    ) -> Request<'r> {
        Request {
            model: &asked.model,
            excluded,
            seed: self.seed,
            binds: asked.sticky_key.is_some(),
            top_k: ctx.config.scheduling.top_k,
            now: self.now,
            gates: self.gates.as_ref().map(GateView::gates).unwrap_or_default(),
        }
    }

    /// Whether `account`, a slot of which is held, is used: not where another request is just finding out whether it
    /// works again, unless there is no other, nor where others have taken the last place among its conversations.
    async fn takes(&self, ctx: &Context, account: &Account, last_resort: bool) -> bool {
        let health = ctx.rooms.scheduler.health();
        let chosen = health.chosen(account.id, self.now);
        if !chosen && !last_resort {
            return false;
        }
        let Some(gates) = &self.gates else {
            return true;
        };
        let joined = gates.join(account).await;
        if chosen && !joined {
            health.said_nothing(account.id);
        }
        joined
    }

    /// The account, if it may serve the request. The one that is tried again passes no gate anew: it has let this
    /// request in before.
    fn fit_member(&self, ctx: &Context, id: AccountId, request: Request<'_>) -> Option<&Member> {
        let gates = match ctx.tries.again {
            Some(again) if again.account == id => Gates::default(),
            _ => request.gates,
        };
        let request = Request { gates, ..request };
        let fit = self.pool.fit(id, &self.conditions, request);
        self.pool.member(id).filter(|_| !matches!(fit, Fit::No(_)))
    }

    /// The account that is tried again, if it still may serve the request.
    fn again(&self, ctx: &Context, request: Request<'_>) -> Option<&Member> {
        self.fit_member(ctx, ctx.tries.again?.account, request)
    }

    /// Under which the request's conversation is bound among those that its model is routed to.
    fn key_by_route(&self, asked: &Asked) -> Option<u128> {
        let (_, pattern) = self.routed.as_ref()?;
        Some(routed_key(asked.sticky_key?, pattern))
    }

    /// When the first account of the pool may serve the request that does not now, for a request in line.
    fn returns_at(&self, asked: &Asked) -> Option<DateTime<Utc>> {
        let conditions = self.conditions.0.iter();
        let back = conditions
            .filter(|(id, _)| self.pool.member(**id).is_some())
            .flat_map(|(_, conditions)| conditions)
            .filter(|c| c.concerns(&asked.model) && c.holds(self.now))
            .filter_map(|c| c.until);
        let opened = self.gates.as_ref().and_then(GateView::opens_at);
        back.chain(opened).min()
    }

    /// The account that made the response which the request goes on from.
    async fn response_account(&self, ctx: &Context, asked: &Asked) -> Option<AccountId> {
        let key = asked.previous_response?;
        let state = &ctx.rooms.state;
        let known = state.response_account(self.group, key, self.now).await;
        known.unwrap_or_else(|error| {
            log::warn!("a response's account is not known: {error}");
            None
        })
    }

    /// Who is asked: the accounts that the group's routing names, while any of them may be chosen; else all. A routed
    /// one that failed lately is as good as none while others did not.
    fn among<'v>(
        &'v self,
        asked: &Asked,
        request: Request<'v>,
    ) -> std::result::Result<Among<'v>, NoAccount> {
        let all = self.pool.candidates(&self.conditions, request)?;
        let has_others = all.more_than_one();
        if let Some((routed, _)) = &self.routed
            && let Ok(candidates) = routed.candidates(&self.conditions, request)
            && (all.last_resort() || !candidates.last_resort())
        {
            return Ok(Among {
                candidates,
                layer: Layer::Routed,
                key: self.key_by_route(asked),
                has_others,
            });
        }
        Ok(Among {
            candidates: all,
            layer: Layer::Load,
            key: asked.sticky_key,
            has_others,
        })
    }

    /// The account that the conversation is bound to. Among routed ones it is bound apart, so that its other models
    /// stay where they are; to begin with it stays where it is, if that is among them.
    async fn bound_among(
        &self,
        ctx: &Context,
        asked: &Asked,
        among: &Among<'_>,
    ) -> Option<AccountId> {
        let bound = self.bound_account(ctx, among.key).await;
        let Some((routed, _)) = self
            .routed
            .as_ref()
            .filter(|_| among.layer == Layer::Routed)
        else {
            return bound;
        };
        if let Some(id) = bound {
            let fit = routed.fit(id, &self.conditions, *among.candidates.request());
            // The route has been changed: it does not lead there any more.
            if fit != Fit::No(Unfit::Mismatch) {
                return bound;
            }
        }
        let elsewhere = self.bound_account(ctx, asked.sticky_key).await?;
        let stays = matches!(sticky(&among.candidates, elsewhere), Sticky::Use(_));
        stays.then_some(elsewhere)
    }

    /// The account that a conversation is bound to.
    async fn bound_account(&self, ctx: &Context, key: Option<u128>) -> Option<AccountId> {
        let key = key?;
        if let Some((_, bound)) = self.bound.iter().find(|(known, _)| *known == key) {
            return *bound;
        }
        let state = &ctx.rooms.state;
        let bound = state.sticky(self.group, key, self.ttl, self.now).await;
        bound.unwrap_or_else(|error| {
            log::warn!("a conversation's account is not known: {error}");
            None
        })
    }

    async fn bind(&self, ctx: &Context, key: Option<u128>, account: AccountId) {
        let Some(key) = key else { return };
        let state = &ctx.rooms.state;
        let bound = state.bind(self.group, key, account, self.ttl, self.now);
        if let Err(error) = bound.await {
            log::warn!("a conversation is not bound to its account: {error}");
        }
    }

    async fn unbind(&self, ctx: &Context, key: Option<u128>, account: AccountId) {
        let Some(key) = key else { return };
        if let Err(error) = ctx.rooms.state.unbind(self.group, key, account).await {
            log::warn!("a conversation stays bound to its account: {error}");
        }
    }

    /// The choice, with its record in the log and the metrics.
    fn choice(
        &self,
        ctx: &Context,
        account: Arc<Account>,
        lease: impl Into<Option<Lease>>,
        has_others: bool,
        found: Found,
    ) -> Choice {
        let decision = Decision {
            layer: found.layer,
            previous_hit: found.previous_hit,
            session_hit: found.session_hit,
            candidates: found.candidates,
            sampled: found.sampled,
            top_k: found.top_k,
            skew: found.skew,
            account: account.id,
            took: self.began.elapsed(),
        };
        let metrics = &ctx.rooms.metrics;
        metrics
            .choices
            .with_label_values(&[account.platform.as_str(), decision.layer.as_str()])
            .inc();
        metrics.choice_seconds.observe(decision.took.as_secs_f64());
        if decision.candidates > 1 {
            metrics.load_skew.observe(decision.skew);
        }
        log::debug!(target: "tollgate::scheduler", "request {}: {decision}", ctx.id);
        Choice {
            account,
            lease: lease.into(),
            pool: self.pool.clone(),
            has_others,
        }
    }
}

async fn look(ctx: &mut Context) -> Result<Look> {
    let (Some(principal), Some(asked)) = (ctx.principal.clone(), ctx.asked.clone()) else {
        return Err(unserved(ctx, errors::internal_error()));
    };
    let view = View::new(ctx, &principal, &asked).await;
    let excluded = ctx.tries.excluded.clone();
    let request = view.request(ctx, &asked, &excluded);
    let mut kept = ctx.tries.kept.take();

    // A response exists at one account only (Change 15): who goes on from it goes there or nowhere.
    if let Some(id) = view.response_account(ctx, &asked).await {
        return going_on(ctx, &view, request, id).await;
    }

    // The account that is tried again, if its slot was kept for it or it has room: else the choice is as free as before.
    if let Some(member) = view.again(ctx, request)
        && let Some(lease) = match kept.take() {
            Some(lease) => Some(lease),
            None => try_lease(ctx, member.want()).await?,
        }
    {
        let account = member.account.clone();
        ctx.rooms.scheduler.health().chosen(account.id, view.now);
        let others = |among: Among<'_>| {
            let mut members = among.candidates.everyone(2).into_iter();
            among.has_others || members.any(|member| member.id() != account.id)
        };
        let has_others = view.among(&asked, request).is_ok_and(others);
        let found = Found {
            layer: Layer::Again,
            ..Found::default()
        };
        return Ok(Look::Found(
            view.choice(ctx, account, lease, has_others, found),
        ));
    }

    let mut among = match view.among(&asked, request) {
        Ok(among) => among,
        Err(none) => {
            // Nobody is let in but who was before: that account is waited for.
            if let Some(member) = view.again(ctx, request) {
                return Ok(Look::Full(Full {
                    wants: vec![member.want()],
                    binds: false,
                    key: None,
                    layer: Layer::Again,
                    returns_at: None,
                }));
            }
            let reply = no_account(ctx, none, view.now);
            return Err(unserved(ctx, reply));
        }
    };
    let has_others = among.has_others;
    // Whom a conversation that has to leave its account can go to now.
    let has_others_here = among.candidates.more_than_one();

    // Sticky: the account that has this conversation in its prompt cache.
    let mut binds = true;
    let mut session_hit = false;
    let bound = view.bound_among(ctx, &asked, &among).await;
    if ctx.tries.was_bound.is_none() {
        // Where none of those that are routed to can be asked it may still be bound to one of them.
        let by_route = match among.layer {
            Layer::Routed => None,
            _ => view.bound_account(ctx, view.key_by_route(&asked)).await,
        };
        ctx.tries.was_bound = Some(bound.or(by_route).is_some());
    }
    if let Some(id) = bound {
        session_hit = true;
        let sticky_metric = ctx.rooms.metrics.sticky.clone();
        let count = move |what| sticky_metric.with_label_values(&[what]).inc();
        match sticky(&among.candidates, id) {
            Sticky::Use(member) => {
                let (account, want) = (member.account.clone(), member.want());
                if let Some(lease) = try_lease(ctx, want).await? {
                    if view.takes(ctx, &account, !has_others_here).await {
                        count("hit");
                        let found = Found {
                            layer: Layer::Session,
                            session_hit,
                            ..Found::default()
                        };
                        return Ok(Look::Found(
                            view.choice(ctx, account, lease, has_others, found),
                        ));
                    }
                } else if has_others_here && worth_waiting(ctx, id).await {
                    return Ok(Look::Bound(want));
                }
                // With nobody else in reach it is waited for in the common line.
                if has_others_here {
                    count("spilled");
                }
                binds = false;
            }
            Sticky::SpillKeeping => {
                count("spilled");
                binds = false;
            }
            Sticky::Unbind => {
                count("unbound");
                view.unbind(ctx, among.key, id).await;
            }
        }
    }

    // By load, tier after tier.
    while let Some(stage) = among.candidates.next_stage() {
        let Some((place, lease, mut found)) = by_load(ctx, &view, &request, &stage).await? else {
            continue;
        };
        let account = stage.members[place].account.clone();
        found.layer = among.layer;
        found.session_hit = session_hit;
        let key = among.key;
        drop(among);
        if binds {
            view.bind(ctx, key, account.id).await;
        }
        return Ok(Look::Found(
            view.choice(ctx, account, lease, has_others, found),
        ));
    }
    let wants = among.candidates.wants(MAX_LINES);
    let (key, layer) = (among.key, among.layer);
    drop(among);
    let returns_at = view.returns_at(&asked);
    if wants.is_empty() {
        // Others have taken the last places among the conversations of all.
        let none = returns_at.map_or(NoAccount::NoneEligible, |until| NoAccount::AllCoolingDown {
            until,
            limited: false,
        });
        let reply = no_account(ctx, none, view.now);
        return Err(unserved(ctx, reply));
    }
    Ok(Look::Full(Full {
        wants,
        binds,
        key,
        layer,
        returns_at,
    }))
}

/// The account that a request would go to now, if there is one: the conversation's, else the best that has room, else
/// the best. Nothing is taken and nothing bound.
pub async fn prospect(ctx: &Context) -> Option<Arc<Account>> {
    let (principal, asked) = (ctx.principal.as_ref()?, ctx.asked.as_ref()?);
    let view = View::new(ctx, principal, asked).await;
    let request = view.request(ctx, asked, &ctx.tries.excluded);
    best(ctx, &view, asked, request, true)
        .await
        .ok()?
        .map(|(account, _)| account)
}

/// The conversation's account, else the best by load; with `room` the first in that order that has a slot free, where
/// there is one.
async fn best(
    ctx: &Context,
    view: &View,
    asked: &Asked,
    request: Request<'_>,
    room: bool,
) -> std::result::Result<Option<(Arc<Account>, Found)>, NoAccount> {
    let mut among = view.among(asked, request)?;
    let by_load = Found {
        layer: among.layer,
        ..Found::default()
    };
    if let Some(id) = view.bound_among(ctx, asked, &among).await
        && let Sticky::Use(member) = sticky(&among.candidates, id)
    {
        let found = Found {
            layer: Layer::Session,
            session_hit: true,
            ..Found::default()
        };
        return Ok(Some((member.account.clone(), found)));
    }
    let mut best = None;
    while let Some(stage) = among.candidates.next_stage() {
        let loads = ctx.rooms.state.loads(&stage.ids()).await;
        let loads = loads.unwrap_or_default();
        let weights = &ctx.config.scheduling.weights;
        let ranked = stage.rank(&loads, weights, &request);
        for place in ranked.first().iter().map(|place| *place as usize) {
            let member = stage.members[place];
            let limit = member.want().limit;
            let held = loads.get(place).map_or(0, |load| load.held);
            if !room || limit == 0 || held < limit {
                return Ok(Some((member.account.clone(), by_load)));
            }
            best.get_or_insert_with(|| member.account.clone());
        }
    }
    Ok(best.map(|account| (account, by_load)))
}

/// For a request that takes no slot: the account that is tried again, the conversation's, else the best by load. No
/// other is tried.
async fn without_slot(ctx: &mut Context) -> Result<Choice> {
    let (Some(principal), Some(asked)) = (ctx.principal.clone(), ctx.asked.clone()) else {
        return Err(unserved(ctx, errors::internal_error()));
    };
    let view = View::new(ctx, &principal, &asked).await;
    let excluded = ctx.tries.excluded.clone();
    let request = view.request(ctx, &asked, &excluded);
    if let Some(member) = view.again(ctx, request) {
        let account = member.account.clone();
        ctx.rooms.scheduler.health().chosen(account.id, view.now);
        let found = Found {
            layer: Layer::Again,
            ..Found::default()
        };
        return Ok(view.choice(ctx, account, None, false, found));
    }
    let (account, found) = match best(ctx, &view, &asked, request, false).await {
        Ok(Some(best)) => best,
        Ok(None) => return Err(unserved(ctx, errors::no_available_accounts())),
        Err(_) if counts_nowhere(ctx, &view, &principal, &asked) => {
            return Err(unserved(ctx, errors::counting_not_supported()));
        }
        Err(none) => {
            let reply = no_account(ctx, none, view.now);
            return Err(unserved(ctx, reply));
        }
    };
    ctx.rooms.scheduler.health().chosen(account.id, view.now);
    Ok(view.choice(ctx, account, None, false, found))
}

/// What a request needs of its account besides the model.
fn need(asked: &Asked) -> Need {
    Need {
        counts: asked.counts,
        ..Need::default()
    }
}

/// Whether no account of the group that takes the model could ever count its tokens, though some could answer.
fn counts_nowhere(ctx: &Context, view: &View, principal: &Principal, asked: &Asked) -> bool {
    let group = &principal.group;
    let answering = || {
        let directory = &ctx.snapshot.directory;
        let need = Need::default();
        let scheduler = &ctx.rooms.scheduler;
        scheduler.pool(directory, group.id, group.platform, need, &asked.model)
    };
    view.pool.is_empty() && !answering().is_empty()
}

/// For a request that goes on from a response which one account made.
async fn going_on(
    ctx: &mut Context,
    view: &View,
    request: Request<'_>,
    id: AccountId,
) -> Result<Look> {
    let none = match view.pool.fit(id, &view.conditions, request) {
        Fit::Yes | Fit::LastResort => None,
        Fit::No(Unfit::Out {
            until: Some(until),
            limited,
        }) => Some(NoAccount::AllCoolingDown { until, limited }),
        Fit::No(_) => Some(NoAccount::NoneEligible),
    };
    let (None, Some(member)) = (none, view.pool.member(id)) else {
        let reply = no_account(ctx, none.unwrap_or(NoAccount::NoneEligible), view.now);
        return Err(unserved(ctx, reply));
    };
    let want = member.want();
    let Some(lease) = try_lease(ctx, want).await? else {
        return Ok(Look::Full(Full {
            wants: vec![want],
            binds: false,
            key: None,
            layer: Layer::PreviousResponse,
            returns_at: None,
        }));
    };
    ctx.rooms.scheduler.health().chosen(id, view.now);
    let found = Found {
        layer: Layer::PreviousResponse,
        previous_hit: true,
        ..Found::default()
    };
    let choice = view.choice(ctx, member.account.clone(), lease, false, found);
    Ok(Look::Found(choice))
}

/// Whether the account that a conversation is bound to, which is full, is waited for: once, and not
/// behind many others.
async fn worth_waiting(ctx: &Context, id: AccountId) -> bool {
    if ctx.tries.waited_for_bound {
        return false;
    }
    let loads = ctx.rooms.state.loads(&[id]).await.unwrap_or_default();
    waits(loads.first().copied().unwrap_or_default(), true)
}

/// A brief wait for the account that a conversation is bound to.
async fn wait_for_bound(
    session: &mut Session,
    ctx: &mut Context,
    want: Want,
) -> Result<Option<Choice>> {
    ctx.tries.waited_for_bound = true;
    let full = Full {
        wants: vec![want],
        binds: false,
        key: None,
        layer: Layer::Session,
        returns_at: None,
    };
    let limit = ctx.config.concurrency.sticky_wait;
    let never = std::future::pending();
    match line_up(session, ctx, &full.wants, Some(limit), never).await? {
        Lined::Granted(lease) => {
            let choice = granted(ctx, lease, &full).await;
            if choice.is_some() {
                let sticky = &ctx.rooms.metrics.sticky;
                sticky.with_label_values(&["hit"]).inc();
            }
            Ok(choice)
        }
        Lined::StateGone(error) => Err(state_gone(ctx, &error)),
        Lined::LineFull | Lined::TimedOut | Lined::Changed => Ok(None),
    }
}

/// The best account of a stage that has room, with its slot.
async fn by_load(
    ctx: &mut Context,
    view: &View,
    request: &Request<'_>,
    stage: &Stage<'_>,
) -> Result<Option<(usize, Lease, Found)>> {
    let rooms = ctx.rooms.clone();
    let loads = match rooms.state.loads(&stage.ids()).await {
        Ok(loads) => loads,
        // Slots decide in the end; without loads the order is only less good.
        Err(error) => {
            log::warn!("accounts are chosen without their load: {error}");
            Vec::new()
        }
    };
    let ranked = stage.rank(&loads, &ctx.config.scheduling.weights, request);
    let found = || Found {
        candidates: stage.members.len(),
        sampled: stage.sampled,
        top_k: ranked.top_k(),
        skew: ranked.skew,
        ..Found::default()
    };
    let mut order = ranked.first().to_vec();
    let mut rest_seen = false;
    loop {
        let wants: Vec<Want> = order
            .iter()
            .map(|i| stage.members[*i as usize].want())
            .collect();
        let leased = match rooms.state.lease_first(&wants).await {
            Ok(leased) => leased,
            Err(error) => return Err(state_gone(ctx, &error)),
        };
        match leased {
            Some((at, lease)) => {
                let place = order[at] as usize;
                let account = &stage.members[place].account;
                if view.takes(ctx, account, stage.last_resort).await {
                    return Ok(Some((place, lease, found())));
                }
                order.drain(..=at);
            }
            None if rest_seen => return Ok(None),
            None => {
                rest_seen = true;
                order = ranked.rest();
            }
        }
    }
}

async fn try_lease(ctx: &mut Context, want: Want) -> Result<Option<Lease>> {
    match ctx.rooms.state.try_lease(want).await {
        Ok(lease) => Ok(lease),
        Err(error) => Err(state_gone(ctx, &error)),
    }
}

fn state_gone(ctx: &mut Context, error: &StateError) -> Box<pingora::Error> {
    log::error!("{error}");
    unserved(ctx, errors::internal_error())
}

/// Why there is no account: what the last one said, if one was tried, else that there is none.
fn no_account(ctx: &Context, none: NoAccount, now: DateTime<Utc>) -> ErrorReply {
    if let Some(reply) = exhausted(ctx) {
        return reply;
    }
    match none {
        NoAccount::NoneEligible => errors::no_available_accounts(),
        NoAccount::AllCoolingDown { until, limited } => {
            let seconds = (until - now).num_seconds().max(1).unsigned_abs();
            let reply = if limited {
                // What the first request to meet the limit was told, the next is told as well.
                errors::exhausted(Some(429))
            } else {
                errors::no_available_accounts()
            };
            reply.with_retry_after(seconds)
        }
    }
}
