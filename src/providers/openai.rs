//! OpenAI and servers that speak its Responses API, through an API key (SPEC 9.2, Change 13).

use super::target::Target;

/// The provider's own address.
pub const DEFAULT_BASE_URL: &str = "https://api.openai.com";

/// Path of the Responses endpoint at `target` (SPEC 9.2): a base URL that already ends in
/// `/responses` or `/v1` is taken at its word. `subpath` is what followed `/responses` in the
/// client's path, with its leading slash.
pub fn responses_path(target: &Target, subpath: &str) -> String {
    let prefix = &target.prefix;
    let middle = if prefix.ends_with("/responses") {
        ""
    } else if prefix.ends_with("/v1") {
        "/responses"
    } else {
        "/v1/responses"
    };
    format!("{prefix}{middle}{subpath}")
}

/// Models shown by `GET /v1/models` when no account of the group names any.
pub const DEFAULT_MODELS: &[&str] = &[
    "gpt-5.5",
    "gpt-5.4",
    "gpt-5.4-mini",
    "gpt-5.4-nano",
    "gpt-5.3-codex",
    "gpt-5.2",
    "gpt-5.1",
    "gpt-5",
    "gpt-5-mini",
    "gpt-5-nano",
    "gpt-4.1",
    "gpt-4.1-mini",
    "gpt-4o",
    "gpt-4o-mini",
    "o3",
    "o4-mini",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_url_rules() {
        for (base, subpath, path) in [
            ("https://api.openai.com", "", "/v1/responses"),
            ("https://h/v1", "", "/v1/responses"),
            ("https://h/v1/", "/compact", "/v1/responses/compact"),
            ("https://h/openai/v1/responses", "", "/openai/v1/responses"),
            ("https://h/relay", "/compact", "/relay/v1/responses/compact"),
        ] {
            let target = Target::parse(base).unwrap();
            assert_eq!(responses_path(&target, subpath), path);
        }
    }
}
