//! `gateway.beta_policy:` as checked: what becomes of the beta features that clients of Anthropic's API ask for.

use tollgate_filters::beta::{BetaAction, BetaPolicy, BetaRule, BetaScope};

use super::field::Field;

const KEYS: &[&str] = &[
    "beta_token",
    "action",
    "scope",
    "models",
    "fallback_action",
    "error_message",
];
const ACTIONS: [(&str, BetaAction); 3] = [
    ("pass", BetaAction::Pass),
    ("filter", BetaAction::Filter),
    ("block", BetaAction::Block),
];
const SCOPES: [(&str, BetaScope); 3] = [
    ("all", BetaScope::All),
    ("oauth", BetaScope::OAuth),
    ("apikey", BetaScope::ApiKey),
];

/// The rules; an empty list is none.
pub(super) fn beta_policy(field: &Field<'_>) -> Option<BetaPolicy> {
    let items =
        field.items("rules, such as { beta_token: context-1m-2025-08-07, action: pass }")?;
    let rules = items.iter().filter_map(rule).collect();
    Some(BetaPolicy { rules })
}

fn rule(item: &Field<'_>) -> Option<BetaRule> {
    let table = item.table(KEYS)?;
    let token = table.required("beta_token", "a token of the header anthropic-beta");
    let token = token.and_then(|field| token_of(&field));
    let action = table.required("action", "pass, filter or block");
    let action = action.and_then(|field| field.choice(&ACTIONS));
    let rule = BetaRule {
        scope: table.or("scope", BetaScope::All, |f| f.choice(&SCOPES)),
        models: table.or("models", Vec::new(), models),
        fallback: table.or("fallback_action", BetaAction::Pass, |f| f.choice(&ACTIONS)),
        message: table.or_null("error_message", message),
        token: token?,
        action: action?,
    };
    if rule.models.is_empty()
        && let Some(fallback) = table.given("fallback_action")
    {
        fallback.bad(
            "without `models` there is no other model that it could be for",
            "`models`, or no `fallback_action`",
        );
    }
    Some(rule)
}

fn token_of(field: &Field<'_>) -> Option<String> {
    const EXPECTED: &str = "one token of the header anthropic-beta, such as context-1m-2025-08-07";
    let text = field.text(EXPECTED)?;
    // What a header's list of tokens cannot have in it would never match.
    let is_token = !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b',');
    if !is_token {
        field.bad("not a token", EXPECTED);
    }
    is_token.then(|| text.to_owned())
}

fn models(field: &Field<'_>) -> Option<Vec<String>> {
    const EXPECTED: &str =
        "the name of a model at the provider, or its beginning with * at the end";
    let model = |item: &Field<'_>| {
        let text = item.text(EXPECTED)?;
        let name = text.strip_suffix('*').unwrap_or(text);
        if text.is_empty() || name.contains('*') {
            item.bad("not a pattern", EXPECTED);
            return None;
        }
        Some(text.to_owned())
    };
    let items = field.items("models, such as [\"claude-opus-*\"]")?;
    Some(items.iter().filter_map(model).collect())
}

fn message(field: &Field<'_>) -> Option<String> {
    const EXPECTED: &str =
        "what a client reads whose request is blocked, or null for a text of ours";
    let text = field.text(EXPECTED)?;
    if text.trim().is_empty() {
        field.bad("empty", EXPECTED);
        return None;
    }
    Some(text.to_owned())
}
