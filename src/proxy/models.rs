//! `GET /v1/models`: what the accounts of the key's group name, or the platform's usual models.

use std::collections::BTreeSet;

use chrono::Utc;
use serde_json::{Value, json};
use tollgate_filters::route::Dialect;

use super::snapshot::Snapshot;
use crate::auth::Principal;
use crate::domain::Platform;
use crate::providers::{anthropic, openai};

/// Every model in the list carries this date (SPEC 12.1): the real ones are not known here.
const CREATED_AT: &str = "2024-01-01T00:00:00Z";
/// The same as a Unix time.
const CREATED: u64 = 1_704_067_200;

/// The list as JSON: exact names from the mappings of the group's available accounts, sorted; the
/// platform's default list when no account names any. In the form of `dialect`.
pub fn list(snapshot: &Snapshot, principal: &Principal, dialect: Dialect) -> Vec<u8> {
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
    let models: Vec<&str> = if named.is_empty() {
        match principal.group.platform {
            Platform::Anthropic => anthropic::DEFAULT_MODELS.to_vec(),
            _ => openai::DEFAULT_MODELS.to_vec(),
        }
    } else {
        named.into_iter().collect()
    };
    let list = match dialect {
        Dialect::Anthropic => in_anthropics_form(&models),
        Dialect::OpenAi | Dialect::Google => {
            in_openais_form(&models, principal.group.platform.as_str())
        }
    };
    list.to_string().into_bytes()
}

/// <https://platform.claude.com/docs/en/api/models/list>; always in one page.
fn in_anthropics_form(models: &[&str]) -> Value {
    let data: Vec<_> = models
        .iter()
        .map(
            |id| json!({ "type": "model", "id": id, "display_name": id, "created_at": CREATED_AT }),
        )
        .collect();
    json!({
        "data": data,
        "has_more": false,
        "first_id": models.first(),
        "last_id": models.last(),
    })
}

fn in_openais_form(models: &[&str], owner: &str) -> Value {
    let data: Vec<_> = models
        .iter()
        .map(|id| {
            json!({
                "id": id,
                "object": "model",
                "created": CREATED,
                "owned_by": owner,
                "type": "model",
                "display_name": id,
                "created_at": CREATED_AT,
            })
        })
        .collect();
    json!({ "object": "list", "data": data })
}
