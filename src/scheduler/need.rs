//! What a request needs of an account besides the model: the one place that says which accounts can
//! serve what.

use crate::domain::{Account, AccountType, Platform};

/// How the request reaches the account (SPEC 6.6).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Transport {
    /// HTTP, answered at once or as a stream of events.
    #[default]
    HttpSse,
    /// A WebSocket.
    WebSocket,
}

/// Which way of making images it asks for (SPEC 6.7).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Image {
    /// None.
    #[default]
    Any,
    /// OAuth or API-key accounts can.
    Basic,
    /// Only API-key accounts can.
    Native,
}

/// What an account must be able to do.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Need {
    /// How it is reached.
    pub transport: Transport,
    /// Whether it makes images, and how.
    pub image: Image,
    /// Whether it counts tokens, and does nothing else.
    pub counts: bool,
}

impl Need {
    /// How many there are.
    pub(super) const COUNT: usize = 12;

    /// A number below [`Need::COUNT`], different for each.
    pub(super) fn index(self) -> usize {
        let transport = match self.transport {
            Transport::HttpSse => 0,
            Transport::WebSocket => 3,
        };
        let image = match self.image {
            Image::Any => 0,
            Image::Basic => 1,
            Image::Native => 2,
        };
        let counts = if self.counts { 6 } else { 0 };
        transport + image + counts
    }
}

/// Whether requests with this need can be sent through `account`. Requests go through API keys of OpenAI, API keys
/// and tokens of Anthropic and relays of Antigravity at present; other kinds of account are kept in the directory and
/// not chosen. Antigravity counts no tokens (SPEC 9.10).
pub fn serves(account: &Account, need: Need) -> bool {
    let kind = match account.platform {
        Platform::OpenAi => account.account_type == AccountType::ApiKey,
        Platform::Anthropic => {
            account.account_type != AccountType::Upstream && account.has_credential()
        }
        Platform::Antigravity => {
            account.account_type == AccountType::Upstream
                && account.has_credential()
                && !need.counts
        }
        Platform::Gemini => false,
    };
    let transport = match need.transport {
        Transport::HttpSse => true,
        Transport::WebSocket => account
            .extra
            .get("openai_apikey_responses_websockets_v2_enabled")
            .is_some_and(|on| on == true),
    };
    let image = match need.image {
        Image::Any => true,
        Image::Basic => matches!(
            account.account_type,
            AccountType::ApiKey | AccountType::Oauth
        ),
        Image::Native => account.account_type == AccountType::ApiKey,
    };
    kind && transport && image
}
