//! Error passthrough rules: what of an upstream's error reaches the client, as the operator wants it
//! (SPEC 8.1 to 8.3). Asked before our own mapping of a final upstream error.

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Unique name.
    pub name: String,
    /// Off = never matches.
    pub enabled: bool,
    /// Lowest first.
    pub priority: i32,
    /// Upstream statuses it is for.
    pub error_codes: Vec<u16>,
    /// Words of the upstream's body it is for, as written.
    pub keywords: Vec<String>,
    /// How statuses and words go together, where both are given.
    pub match_mode: MatchMode,
    /// Platforms it is for, in lower case; empty = all.
    pub platforms: Vec<String>,
    /// The client gets the upstream's status; else [`Rule::response_code`].
    pub passthrough_code: bool,
    /// The client's status where the upstream's is not passed.
    pub response_code: Option<u16>,
    /// The client gets the upstream's message; else [`Rule::custom_message`].
    pub passthrough_body: bool,
    /// The client's message where the upstream's is not passed.
    pub custom_message: Option<String>,
    /// Leaves such errors out of error metrics and the log.
    pub skip_monitoring: bool,
    /// For the operator.
    pub description: String,
}

/// How a rule's conditions go together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MatchMode {
    /// Either of them.
    #[default]
    Any,
    /// Both of them.
    All,
}
