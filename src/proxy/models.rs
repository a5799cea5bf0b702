//! `GET /v1/models`: what the accounts of the key's group name, or the platform's usual models.

use std::collections::BTreeSet;

use chrono::Utc;
use serde_json::json;

use super::snapshot::Snapshot;
use crate::auth::Principal;
use crate::providers::openai;

/// Every model in the list carries this date (SPEC 12.1): the real ones are not known here.
const CREATED_AT: &str = "2024-01-01T00:00:00Z";
/// The same as a Unix time.
const CREATED: u64 = 1_704_067_200;

/// The list as JSON: exact names from the mappings of the group's available accounts, sorted; the
/// platform's default list when no account names any.
pub fn list(snapshot: &Snapshot, principal: &Principal) -> Vec<u8> {
    let now = Utc::now();
    let named: BTreeSet<&str> = snapshot
        .directory
        .accounts_of(principal.group.id)
        .iter()
        .filter(|account| account.platform == principal.group.platform && account.is_available(now))
        .flat_map(|account| account.model_mapping.iter())
        .map(|(model, _)| model)
        .filter(|model| !model.ends_with('*'))
        .collect();
    let models: Vec<&str> = if named.is_empty() {
        openai::DEFAULT_MODELS.to_vec()
    } else {
        named.into_iter().collect()
    };
    let data: Vec<_> = models
        .iter()
        .map(|id| {
            json!({
                "id": id,
                "object": "model",
                "created": CREATED,
                "owned_by": principal.group.platform.as_str(),
                "type": "model",
                "display_name": id,
                "created_at": CREATED_AT,
            })
        })
        .collect();
    json!({ "object": "list", "data": data })
        .to_string()
        .into_bytes()
}
