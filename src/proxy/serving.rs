//! Who serves a Messages request, once its body has said which client sends it: the key's group or the one that it
//! leaves other clients to, for versions of Claude Code that it takes.

use tollgate_filters::client::{self, ClaudeCode};
use tollgate_filters::reply::{ErrorReply, errors};

use super::context::Context;
use super::intake::reply_to;
use super::money;
use crate::auth::Principal;
use crate::auth::serving::serving;
use crate::config::BillingMode;

/// The principal in the group that serves the request, which has something left to spend there. From here on
/// the request is that group's: its accounts, prices, limits and record.
pub fn serve(
    ctx: &mut Context,
    principal: &Principal,
    client: Option<&ClaudeCode>,
) -> Result<Principal, ErrorReply> {
    let snapshot = ctx.snapshot.clone();
    if !snapshot
        .directory
        .rules(principal.group.id)
        .claude_code_only
    {
        return Ok(principal.clone());
    }
    let now = (ctx.config.billing.mode == BillingMode::Standard).then_some(ctx.arrived);
    let elsewhere =
        serving(&snapshot.directory, principal, client.is_some(), now).map_err(reply_to)?;
    if let Some(served) = &elsewhere {
        ctx.fallback_from = Some(principal.group.clone());
        ctx.principal = Some(served.clone());
    }
    let served = elsewhere.unwrap_or_else(|| principal.clone());
    // Not asked before: who pays has only now become known.
    money::check(ctx, &served)?;
    Ok(served)
}

/// Whether the group takes the client's version. Other clients have none.
pub fn check_version(
    ctx: &Context,
    principal: &Principal,
    client: Option<&ClaudeCode>,
) -> Result<(), ErrorReply> {
    let Some(client) = client else { return Ok(()) };
    let rules = ctx.snapshot.directory.rules(principal.group.id);
    client::check_version(client, rules.min_client_version, rules.max_client_version)
        .map_err(|error| errors::invalid(error.to_string()))
}
