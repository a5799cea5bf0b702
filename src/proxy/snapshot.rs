//! What the operator configured, ready for the request path: the directory, where each account's
//! requests go, and the prices with the operator's overrides.

use std::collections::HashMap;
use std::sync::Arc;

use tollgate_filters::passthrough::Rules;

use crate::billing::price_map::Prices;
use crate::domain::{Account, AccountId, Directory, EgressProxy, Platform};
use crate::providers::target::Target;
use crate::providers::{anthropic, openai};

/// An immutable picture, swapped as a whole.
pub struct Snapshot {
    /// Groups, accounts, users, keys.
    pub directory: Directory,
    /// Prices, overrides included.
    pub prices: Arc<Prices>,
    /// What of upstream errors reaches clients.
    pub rules: Arc<Rules>,
    targets: HashMap<AccountId, Arc<Target>>,
    egress: HashMap<AccountId, Arc<EgressProxy>>,
}

impl Snapshot {
    /// Prepares a directory. An account whose address or egress proxy cannot be used gets no target,
    /// with a log line; `apply` refuses both, so this is for a store edited by other means.
    pub fn new(directory: Directory, prices: &Arc<Prices>) -> Snapshot {
        let mut targets = HashMap::new();
        let mut egress = HashMap::new();
        // Accounts of one provider share one target.
        let mut known: HashMap<String, Arc<Target>> = HashMap::new();
        for account in directory.accounts() {
            match account
                .proxy
                .as_ref()
                .map(|p| EgressProxy::parse(p.expose()))
            {
                None => {}
                Some(Ok(proxy)) => {
                    egress.insert(account.id, Arc::new(proxy));
                }
                // Without a target nothing is sent: above all not directly.
                Some(Err(error)) => {
                    let name = &account.name;
                    log::error!("account {name:?} cannot be used: its egress proxy {error}");
                    continue;
                }
            }
            let Some(base_url) = base_url(account) else {
                continue;
            };
            if let Some(target) = known.get(base_url) {
                targets.insert(account.id, target.clone());
                continue;
            }
            match Target::parse(base_url) {
                Ok(target) => {
                    let target = Arc::new(target);
                    known.insert(base_url.to_owned(), target.clone());
                    targets.insert(account.id, target);
                }
                Err(error) => log::error!(
                    "account {:?} cannot be used: its base_url is {error}",
                    account.name
                ),
            }
        }
        let prices = if directory.price_overrides.is_empty() {
            prices.clone()
        } else {
            Arc::new(prices.with_overrides(&directory.price_overrides))
        };
        Snapshot {
            rules: Arc::new(Rules::new(directory.error_rules.clone())),
            directory,
            prices,
            targets,
            egress,
        }
    }

    /// Where an account's requests go.
    pub fn target(&self, account: AccountId) -> Option<&Arc<Target>> {
        self.targets.get(&account)
    }

    /// What they go through, if not directly.
    pub fn egress(&self, account: AccountId) -> Option<&Arc<EgressProxy>> {
        self.egress.get(&account)
    }
}

fn base_url(account: &Account) -> Option<&str> {
    match (&account.credentials.base_url, account.platform) {
        (Some(url), _) => Some(url),
        (None, Platform::OpenAi) => Some(openai::DEFAULT_BASE_URL),
        (None, Platform::Anthropic) => Some(anthropic::DEFAULT_BASE_URL),
        // Their dialects come with their own issues; until then nothing is sent to them.
        (None, _) => None,
    }
}
