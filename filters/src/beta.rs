//! Which of Anthropic's beta features a client may ask for: the operator's rules on the tokens of
//! `anthropic-beta` (SPEC 9.7). Use [`BetaPolicy::apply`] once the account of an attempt is known, because a
//! rule may be about one kind of credential only.

use http::{HeaderMap, HeaderValue};

use crate::headers::anthropic::{Betas, OAUTH_BETA};
use crate::verdict::CredentialKind;

/// What becomes of a token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BetaAction {
    /// It is sent on.
    #[default]
    Pass,
    /// It is left out; the request goes on.
    Filter,
    /// The request is refused: 400, on any account.
    Block,
}

/// Which accounts a rule is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BetaScope {
    /// Every account.
    #[default]
    All,
    /// Accounts with an OAuth or set-up token.
    OAuth,
    /// Accounts with an API key.
    ApiKey,
}

impl BetaScope {
    fn holds(self, credential: CredentialKind) -> bool {
        match self {
            BetaScope::All => true,
            BetaScope::OAuth => credential == CredentialKind::OAuth,
            BetaScope::ApiKey => credential == CredentialKind::ApiKey,
        }
    }
}

/// A rule about one token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BetaRule {
    /// The token, compared without case.
    pub token: String,
    /// What becomes of it.
    pub action: BetaAction,
    /// For which accounts.
    pub scope: BetaScope,
    /// Models that `action` is for, exact or with a `*` at the end; none = every model. The name is the one
    /// that is sent upstream.
    pub models: Vec<String>,
    /// What becomes of it with any other model.
    pub fallback: BetaAction,
    /// What a blocked client reads; a text of ours where there is none.
    pub message: Option<String>,
}

impl BetaRule {
    fn action(&self, model: &str) -> BetaAction {
        match self.models.is_empty() || self.models.iter().any(|name| matches(name, model)) {
            true => self.action,
            false => self.fallback,
        }
    }
}

fn matches(pattern: &str, model: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => model.starts_with(prefix),
        None => pattern == model,
    }
}

/// A request that asks for what it may not have: a 400 `invalid_request_error` with this text, and no
/// other account is tried.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct BetaBlocked {
    /// The token, as the rule writes it.
    pub token: String,
    /// What the client reads.
    pub message: String,
}

/// All rules of an operator, in order. Of those about a token and an account the first decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BetaPolicy {
    /// The rules.
    pub rules: Vec<BetaRule>,
}

/// Left out by default: features that are billed at other prices than the ordinary ones.
const FILTERED: [&str; 2] = ["fast-mode-2026-02-01", "context-1m-2025-08-07"];

impl Default for BetaPolicy {
    fn default() -> Self {
        let rule = |token: &str| BetaRule {
            token: token.to_owned(),
            action: BetaAction::Filter,
            ..BetaRule::default()
        };
        BetaPolicy {
            rules: FILTERED.map(rule).into(),
        }
    }
}

impl BetaPolicy {
    /// The value of `anthropic-beta` for a request with this account and model: the client's tokens as far
    /// as they are let through, and the one that an OAuth credential requires. `None`: no such header.
    ///
    /// # Errors
    /// [`BetaBlocked`] for a token that refuses the whole request.
    pub fn apply(
        &self,
        headers: &HeaderMap,
        credential: CredentialKind,
        model: &str,
    ) -> Result<Option<HeaderValue>, BetaBlocked> {
        let mut betas = Betas::read(headers);
        for token in betas.iter() {
            if let Some(rule) = self.rule(token, credential)
                && rule.action(model) == BetaAction::Block
            {
                return Err(rule.blocked());
            }
        }
        betas.retain(|token| {
            let rule = self.rule(token, credential);
            rule.is_none_or(|rule| rule.action(model) == BetaAction::Pass)
        });
        if credential == CredentialKind::OAuth {
            betas.add(OAUTH_BETA);
        }
        Ok(betas.value())
    }

    fn rule(&self, token: &str, credential: CredentialKind) -> Option<&BetaRule> {
        self.rules
            .iter()
            .find(|rule| rule.token.eq_ignore_ascii_case(token) && rule.scope.holds(credential))
    }
}

impl BetaRule {
    fn blocked(&self) -> BetaBlocked {
        let own = || format!("beta feature {} is not allowed", self.token);
        BetaBlocked {
            token: self.token.clone(),
            message: self.message.clone().unwrap_or_else(own),
        }
    }
}

#[cfg(test)]
mod tests {
    use BetaAction::{Block, Filter, Pass};
    use CredentialKind::{ApiKey, OAuth};
    use proptest::prelude::*;

    use super::*;
    use crate::headers::anthropic::BETA;

    fn headers(value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(BETA, HeaderValue::from_str(value).unwrap());
        headers
    }

    fn rule(token: &str, action: BetaAction, scope: BetaScope) -> BetaRule {
        BetaRule {
            token: token.to_owned(),
            action,
            scope,
            ..BetaRule::default()
        }
    }

    fn applied(
        policy: &BetaPolicy,
        asked: &str,
        credential: CredentialKind,
        model: &str,
    ) -> Result<String, String> {
        match policy.apply(&headers(asked), credential, model) {
            Ok(value) => Ok(value.map_or(String::new(), |v| v.to_str().unwrap().to_owned())),
            Err(blocked) => Err(blocked.to_string()),
        }
    }

    #[test]
    fn the_default_rules() {
        let policy = BetaPolicy::default();
        #[rustfmt::skip]
        let rows = [
            (ApiKey, "", ""),
            (ApiKey, "context-1m-2025-08-07", ""),
            (ApiKey, "a,fast-mode-2026-02-01 ,b, Context-1M-2025-08-07", "a,b"),
            (ApiKey, "oauth-2025-04-20", "oauth-2025-04-20"),
            (ApiKey, "context-1m-2026-01-01", "context-1m-2026-01-01"),
            (OAuth, "", "oauth-2025-04-20"),
            (OAuth, "a,context-1m-2025-08-07", "a,oauth-2025-04-20"),
            (OAuth, "oauth-2025-04-20,a", "oauth-2025-04-20,a"),
        ];
        for (credential, asked, expected) in rows {
            let value = applied(&policy, asked, credential, "m");
            assert_eq!(value.as_deref(), Ok(expected), "{credential:?} {asked}");
        }
        let none = policy.apply(&HeaderMap::new(), ApiKey, "m");
        assert_eq!(none, Ok(None));
        let required = policy.apply(&HeaderMap::new(), OAuth, "m").unwrap();
        assert_eq!(required.unwrap(), OAUTH_BETA);
    }

    #[test]
    fn rules() {
        let for_models = BetaRule {
            models: vec!["claude-opus-*".into(), "claude-x".into()],
            fallback: Block,
            message: Some("only with opus".into()),
            ..rule("models", Pass, BetaScope::All)
        };
        let policy = BetaPolicy {
            rules: vec![
                rule("no", Block, BetaScope::All),
                rule("both", Pass, BetaScope::OAuth),
                rule("both", Filter, BetaScope::All),
                rule("both", Block, BetaScope::All),
                rule("key", Block, BetaScope::ApiKey),
                for_models,
                BetaRule {
                    models: vec!["m".into()],
                    ..rule("some", Filter, BetaScope::All)
                },
                rule(OAUTH_BETA, Filter, BetaScope::All),
            ],
        };
        const OWN: &str = "beta feature no is not allowed";
        #[rustfmt::skip]
        let rows = [
            (ApiKey, "m", "no", Err(OWN)),
            (OAuth, "m", "a,NO", Err(OWN)),
            // The first rule about a token and an account decides.
            (ApiKey, "m", "both,a", Ok("a")),
            (OAuth, "m", "both,a", Ok("both,a,oauth-2025-04-20")),
            (ApiKey, "m", "key", Err("beta feature key is not allowed")),
            (OAuth, "m", "key", Ok("key,oauth-2025-04-20")),
            // By the model.
            (ApiKey, "claude-opus-4-5", "models", Ok("models")),
            (ApiKey, "claude-x", "models", Ok("models")),
            (ApiKey, "claude-xy", "models", Err("only with opus")),
            (ApiKey, "m", "some,a", Ok("a")),
            (ApiKey, "n", "some,a", Ok("some,a")),
            // What the credential requires no rule takes away.
            (ApiKey, "m", "oauth-2025-04-20,a", Ok("a")),
            (OAuth, "m", "oauth-2025-04-20,a", Ok("a,oauth-2025-04-20")),
        ];
        for (credential, model, asked, expected) in rows {
            let value = applied(&policy, asked, credential, model);
            let value = value.as_deref().map_err(String::as_str);
            assert_eq!(value, expected, "{credential:?} {model} {asked}");
        }
    }

    fn rules_of_all_kinds() -> impl Strategy<Value = Vec<BetaRule>> {
        let action = || prop::sample::select(vec![Pass, Filter, Block]);
        let scope = prop::sample::select(vec![BetaScope::All, BetaScope::OAuth, BetaScope::ApiKey]);
        let models = prop::collection::vec("[mn]\\*?", 0..2);
        let rule = ("[a-c]", action(), scope, models, action());
        let rule = rule.prop_map(|(token, action, scope, models, fallback)| BetaRule {
            token,
            action,
            scope,
            models,
            fallback,
            message: None,
        });
        prop::collection::vec(rule, 0..5)
    }

    proptest! {
        /// Nothing is sent that the client did not ask for, but for what the credential requires.
        #[test]
        fn rules_only_take_away(
            rules in rules_of_all_kinds(), asked in "[a-d](,[a-d]){0,4}", oauth: bool, model in "[mno]",
        ) {
            let policy = BetaPolicy { rules };
            let credential = if oauth { OAuth } else { ApiKey };
            match applied(&policy, &asked, credential, &model) {
                Ok(sent) => {
                    let sent: Vec<_> = sent.split(',').filter(|t| !t.is_empty()).collect();
                    prop_assert_eq!(sent.contains(&OAUTH_BETA), oauth);
                    let others = sent.iter().filter(|t| **t != OAUTH_BETA);
                    for token in others {
                        prop_assert!(asked.split(',').any(|t| t == *token));
                    }
                }
                Err(_) => prop_assert!(policy.rules.iter().any(|r| r.action == Block || r.fallback == Block)),
            }
        }
    }
}
