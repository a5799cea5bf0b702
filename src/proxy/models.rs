//! `GET /v1/models` and `GET /v1/models/{id}`: what the accounts of the key's group name, or the platform's usual
//! models, in the form of whichever library asks.

use std::collections::BTreeSet;

use chrono::Utc;
use serde_json::{Value, json};
use tollgate_filters::reply::{ErrorReply, errors};
use tollgate_filters::route::{Dialect, model_id};

use super::snapshot::Snapshot;
use crate::auth::Principal;
use crate::domain::Platform;
use crate::providers::{anthropic, openai};

/// Every model in the list carries this date (SPEC 12.1): the real ones are not known here.
const CREATED_AT: &str = "2024-01-01T00:00:00Z";
/// The same as a Unix time.
const CREATED: u64 = 1_704_067_200;

/// The list, or the one model whose id is `id`, as it stands in the path; as JSON in the form of `dialect`.
///
/// # Errors
/// 404 for a model that the list does not have.
pub fn answer(
    snapshot: &Snapshot,
    principal: &Principal,
    dialect: Dialect,
    id: &str,
) -> Result<Vec<u8>, ErrorReply> {
    let models = models(snapshot, principal);
    let owner = principal.group.platform.as_str();
    let body = if id.is_empty() {
        list(&models, dialect, owner)
    } else {
        let id = model_id(id).filter(|id| models.contains(&&**id));
        one(&id.ok_or_else(errors::model_not_found)?, dialect, owner)
    };
    Ok(body.to_string().into_bytes())
}

/// Exact names from the mappings of the group's available accounts, sorted; the platform's usual models when no
/// account names any.
fn models<'s>(snapshot: &'s Snapshot, principal: &Principal) -> Vec<&'s str> {
    let now = Utc::now();
    let named: BTreeSet<&str> = snapshot
        .directory
        .accounts_of(principal.group.id)
        .iter()
        .filter(|account| account.serves_groups_of(principal.group.platform))
        .filter(|account| account.is_available(now))
        .flat_map(|account| account.model_mapping.iter())
        .map(|(model, _)| model)
        .filter(|model| !model.ends_with('*'))
        .collect();
    if named.is_empty() {
        return match principal.group.platform {
            Platform::Anthropic => anthropic::DEFAULT_MODELS.to_vec(),
            _ => openai::DEFAULT_MODELS.to_vec(),
        };
    }
    named.into_iter().collect()
}

/// - OpenAI: <https://platform.openai.com/docs/api-reference/models/list>
/// - Anthropic: <https://platform.claude.com/docs/en/api/models/list>
/// - Google: <https://ai.google.dev/api/models#method:-models.list>
///
/// Always in one page.
fn list(models: &[&str], dialect: Dialect, owner: &str) -> Value {
    let each: Vec<Value> = models.iter().map(|id| one(id, dialect, owner)).collect();
    match dialect {
        Dialect::OpenAi => json!({ "object": "list", "data": each }),
        Dialect::Anthropic => json!({
            "data": each,
            "has_more": false,
            "first_id": models.first(),
            "last_id": models.last(),
        }),
        Dialect::Google => json!({ "models": each }),
    }
}

fn one(id: &str, dialect: Dialect, owner: &str) -> Value {
    match dialect {
        Dialect::OpenAi => json!({
            "id": id,
            "object": "model",
            "created": CREATED,
            "owned_by": owner,
            "type": "model",
            "display_name": id,
            "created_at": CREATED_AT,
        }),
        Dialect::Anthropic => json!({
            "type": "model",
            "id": id,
            "display_name": id,
            "created_at": CREATED_AT,
        }),
        Dialect::Google => json!({
            "name": format!("models/{id}"),
            "displayName": id,
            "supportedGenerationMethods": ["generateContent", "countTokens"],
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_in_each_form() {
        let models = ["a", "b/c:d"];
        let openais = list(&models, Dialect::OpenAi, "anthropic");
        assert_eq!(openais["object"], "list");
        assert_eq!(openais["data"][1]["id"], "b/c:d");
        assert_eq!(openais["data"][1]["owned_by"], "anthropic");
        let anthropics = list(&models, Dialect::Anthropic, "anthropic");
        assert_eq!(
            (
                &anthropics["first_id"],
                &anthropics["last_id"],
                &anthropics["has_more"]
            ),
            (&json!("a"), &json!("b/c:d"), &json!(false))
        );
        let googles = list(&models, Dialect::Google, "gemini");
        assert_eq!(
            googles["models"][1],
            json!({
                "name": "models/b/c:d",
                "displayName": "b/c:d",
                "supportedGenerationMethods": ["generateContent", "countTokens"],
            })
        );
        for dialect in [Dialect::OpenAi, Dialect::Anthropic, Dialect::Google] {
            let each = one("a", dialect, "x");
            let all = list(&["a"], dialect, "x").to_string();
            assert!(all.contains(&each.to_string()), "{dialect:?}");
        }
        let none = list(&[], Dialect::Anthropic, "x");
        assert_eq!(
            (&none["data"], &none["first_id"]),
            (&json!([]), &Value::Null)
        );
    }
}
