//! A request whose prompt is too long for its group goes on in another (SPEC 9.7a): named, priced and paid for as one
//! of that group, with all its accounts before it. It stays the same request: it was counted where it came in, its
//! user's slot stays held, and it has one record, of the group that it was sent to last.

use std::sync::Arc;

use pingora::Result;
use pingora::proxy::Session;
use tollgate_filters::client::{check_version, claude_code};
use tollgate_filters::reply::{ErrorReply, errors};
use tollgate_filters::validate::messages;

use super::asked::named;
use super::context::{Asked, Context};
use super::failover::exhausted;
use super::money::{self, NotGranted};
use super::peer::unserved;
use crate::config::BillingMode;
use crate::domain::Group;

/// Why a request does not go on in the other group.
enum No {
    /// It is not for this request: what the provider said is the answer.
    Unfit,
    /// It cannot be paid for there.
    Refused(ErrorReply),
    /// The client has left.
    Gone(Box<pingora::Error>),
}

/// Brings the request into the group that its refusal has sent it to, if one has.
pub async fn enter(session: &mut Session, ctx: &mut Context) -> Result<()> {
    let Some(group) = ctx.tries.to_group.take() else {
        return Ok(());
    };
    match enter_group(session, ctx, &group).await {
        Ok(()) => Ok(()),
        Err(No::Gone(error)) => Err(error),
        Err(No::Refused(reply)) => Err(unserved(ctx, reply)),
        Err(No::Unfit) => {
            let reply = exhausted(ctx).unwrap_or_else(errors::upstream_failed);
            Err(unserved(ctx, reply))
        }
    }
}

async fn enter_group(
    session: &mut Session,
    ctx: &mut Context,
    group: &Arc<Group>,
) -> std::result::Result<(), No> {
    let (Some(before), Some(asked), Some(exchange)) = (
        ctx.principal.clone(),
        ctx.asked.clone(),
        ctx.exchange.clone(),
    ) else {
        return Err(No::Unfit);
    };
    // Time has passed since it was found: it may be another group now, or none.
    let found = ctx
        .snapshot
        .directory
        .fallback_on_invalid_request(before.group.id);
    let Some(group) = found.filter(|found| found.id == group.id).cloned() else {
        return Err(No::Unfit);
    };
    if !takes_client(session, ctx, &group) {
        return Err(No::Unfit);
    }
    let principal = before.in_group(&ctx.snapshot.directory, &group);
    // None of the accounts there has failed.
    ctx.tries.excluded.clear();
    let model = named(ctx, &principal, &asked.requested_model).map_err(|_| No::Unfit)?;
    // An account of both groups that would be asked for the same once more has said no.
    if let Some((account, _)) = &ctx.tries.last
        && account.upstream_model(&model) == account.upstream_model(&asked.model)
    {
        let refused = account.id;
        ctx.tries.excluded.push(refused);
    }
    let Some(quote) = ctx.quote.clone() else {
        return Err(No::Unfit);
    };
    let asked = Arc::new(Asked {
        model,
        ..(*asked).clone()
    });
    let hold = match ctx.config.billing.mode {
        BillingMode::Simple => None,
        BillingMode::Standard => {
            let bound = money::bound(
                &ctx.snapshot.directory,
                &ctx.config.billing,
                &ctx.tries.excluded,
                &principal,
                &quote,
                &asked,
                ctx.arrived,
            );
            let held = {
                let mut exchange = exchange.lock();
                let settlement = exchange.settlement.as_mut();
                settlement.and_then(|settlement| settlement.give_up_hold())
            };
            let granted =
                money::reserve_anew(session, ctx, &exchange, held, &principal, &bound).await;
            let granted = granted.map_err(|not| match not {
                NotGranted::Refused(reply) => No::Refused(reply),
                NotGranted::Gone(error) => No::Gone(error),
            })?;
            exchange.lock().output_limit = granted.output_limit;
            Some(granted.hold)
        }
    };
    let first = ctx.fallback_from.get_or_insert(before.group).clone();
    if let Some(settlement) = &mut exchange.lock().settlement {
        let kept_out = ctx.tries.excluded.clone();
        settlement.go_on_in(&principal, first, &asked, quote, hold, kept_out);
    }
    ctx.tries.begin_anew();
    ctx.principal = Some(principal);
    ctx.asked = Some(asked);
    Ok(())
}

/// Whether the group serves the program that the request comes from.
fn takes_client(session: &Session, ctx: &Context, group: &Group) -> bool {
    let rules = ctx.snapshot.directory.rules(group.id);
    let (least, most) = (rules.min_client_version, rules.max_client_version);
    if !rules.claude_code_only && least.is_none() && most.is_none() {
        return true;
    }
    let body = ctx.exchange.as_ref();
    let body = body.and_then(|exchange| Some(exchange.lock().body.as_ref()?.bytes.clone()));
    let request = body
        .as_deref()
        .and_then(|body| messages::messages(body).ok());
    let head = session.req_header();
    match claude_code(&head.headers, head.uri.path(), request.as_ref()) {
        Some(client) => check_version(&client, least, most).is_ok(),
        None => !rules.claude_code_only,
    }
}
