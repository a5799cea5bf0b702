//! The provider families an account or group belongs to.

use serde::{Deserialize, Serialize};

/// A provider family. Fixed names: they are values of the `platform` field in resources.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Platform {
    /// OpenAI and servers that speak its Responses API.
    #[serde(rename = "openai")]
    OpenAi,
    /// Anthropic.
    Anthropic,
    /// Google Gemini.
    Gemini,
    /// Google Antigravity.
    Antigravity,
}

impl Platform {
    /// Every platform, in the order of the documentation.
    pub const ALL: [Platform; 4] = [
        Platform::OpenAi,
        Platform::Anthropic,
        Platform::Gemini,
        Platform::Antigravity,
    ];

    /// The name used in resources, records and metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Platform::OpenAi => "openai",
            Platform::Anthropic => "anthropic",
            Platform::Gemini => "gemini",
            Platform::Antigravity => "antigravity",
        }
    }

    /// The platform of that name, if there is one.
    pub fn parse(name: &str) -> Option<Platform> {
        Platform::ALL.into_iter().find(|p| p.as_str() == name)
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}
