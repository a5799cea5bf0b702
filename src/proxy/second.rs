//! What a refusal that puts the blame on the request may still lead to, each once in a request: the request is mended
//! and sent to the same account again (SPEC 7.4), or goes on in another group (SPEC 9.7a).

use std::sync::Arc;

use tollgate_filters::repair::{BUDGET_TOKENS, Repair, Repairs};
use tollgate_filters::verdict::is_prompt_too_long;

use super::asked;
use super::context::{Asked, Context};
use super::exchange::{Failure, HeldBody, Judged};
use super::settlement::Settlement;
use crate::auth::Principal;
use crate::billing::price_map::Prices;
use crate::domain::{Group, Platform};
use crate::providers::anthropic;

/// The status of a refusal that came within a stream.
const IN_STREAM: u16 = 400;

/// What is still open to a request. Nothing, to one of an API that has no such thing.
#[derive(Clone, Debug)]
pub struct SecondChances {
    repairs: Repairs,
    fallback: Option<Arc<Group>>,
    /// The client's output limit, where a changed budget has taken its place.
    own_limit: Option<u64>,
    /// What models are known to write at most.
    prices: Option<Arc<Prices>>,
}

/// A request whose body has been mended.
#[derive(Clone, Debug)]
pub struct Mended {
    /// What was done.
    pub repair: Repair,
    /// What it asks for now.
    pub asked: Arc<Asked>,
}

impl Default for SecondChances {
    /// None.
    fn default() -> SecondChances {
        SecondChances {
            repairs: Repairs {
                signature: false,
                budget: false,
            },
            fallback: None,
            own_limit: None,
            prices: None,
        }
    }
}

impl SecondChances {
    /// Of a request of the Messages API. Where tokens are only counted, no limit of the output matters, and no group
    /// counts them otherwise.
    pub fn of(ctx: &Context, principal: &Principal, counts: bool) -> SecondChances {
        let allowed = ctx.config.gateway.repairs;
        let directory = &ctx.snapshot.directory;
        let fallback = directory.fallback_on_invalid_request(principal.group.id);
        SecondChances {
            repairs: Repairs {
                signature: allowed.signature,
                budget: allowed.budget && !counts,
            },
            fallback: fallback.filter(|_| !counts).cloned(),
            own_limit: None,
            prices: Some(ctx.snapshot.prices.clone()),
        }
    }

    /// The most tokens that an answer of a model can have, as far as is known.
    fn most_output(&self, model: &str) -> u64 {
        let known = self.prices.as_ref().and_then(|prices| prices.lookup(model));
        known
            .and_then(|model| model.max_output_tokens)
            .unwrap_or(u64::MAX)
    }

    /// The group in which a request refused like this goes on.
    pub fn other_group(&mut self, failure: &Failure) -> Option<Arc<Group>> {
        let status = failure.status.unwrap_or(IN_STREAM);
        match is_prompt_too_long(status, &failure.body) {
            true => self.fallback.take(),
            false => None,
        }
    }

    /// Mends `body` as the refusal's words ask for. What accounts get that are to have it verbatim stays as it is. The
    /// memory it takes is counted, and where the answer may cost more, that much is held; where either is not to be
    /// had, nothing changes. On success the output limit to be sent is in `output_limit`.
    pub fn mend(
        &mut self,
        judged: &Judged,
        failure: &Failure,
        body: &mut HeldBody,
        settlement: Option<&mut Settlement>,
        output_limit: &mut Option<u64>,
    ) -> Option<Mended> {
        let account = &judged.account;
        if account.platform != Platform::Anthropic || anthropic::passes_through(account) {
            return None;
        }
        let status = failure.status.unwrap_or(IN_STREAM);
        let most = self.most_output(account.upstream_model(&judged.asked.model));
        let (repair, mut edits) =
            self.repairs
                .take_within(status, &failure.body, &body.bytes, most)?;
        let own_limit = self.own_limit.take();
        if let (Repair::Signature, Some(limit)) = (repair, own_limit) {
            // Without thinking there is no budget that the answer had to be longer than.
            edits.number(&judged.asked.output_limit_spans, limit);
        }
        let before = body.hold.bytes();
        let pieces = edits.pieces(&body.bytes);
        let len = pieces.iter().map(|piece| piece.len()).sum();
        // For a moment there are two.
        body.hold.grow(len).ok()?;
        let mended = edits.joined(&body.bytes);
        let asked = asked::with_body(&judged.asked, &mended).map(Arc::new);
        let paid = asked.and_then(|asked| match (repair, settlement) {
            (Repair::Budget, Some(settlement)) => {
                // Thinking is part of the answer, and something has to follow it.
                let before = *output_limit;
                *output_limit = settlement.raise(&asked, BUDGET_TOKENS + 1, before).ok()?;
                self.own_limit = judged.asked.demand.max_output_tokens;
                Some(asked)
            }
            // It only gets shorter.
            (Repair::Signature, Some(settlement)) => {
                settlement.mended(&asked);
                // What is held pays for so much; the client's own limit may be below it.
                *output_limit = output_limit.filter(|held| own_limit.is_none_or(|own| *held < own));
                Some(asked)
            }
            (_, None) => Some(asked),
        });
        let Some(asked) = paid else {
            body.hold.shrink_to(before);
            return None;
        };
        body.bytes = mended;
        body.hold.shrink_to(len);
        Some(Mended { repair, asked })
    }
}
