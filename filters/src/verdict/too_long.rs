//! Whether a request was refused because its conversation is too long for the model.

use super::message::Said;
use crate::repair;

/// Words that say so, in lower case (SPEC 9.7a).
const WORDS: [&str; 3] = [
    "prompt is too long",
    "request is too long",
    "context length exceeded",
];
/// These say so together. SPEC 9.7a has the first alone; but with it a provider also says that a limit of the output
/// is beyond what its model writes, which is no shorter anywhere else.
const TOGETHER: [&str; 2] = ["max_tokens", "context"];

/// Whether an answer says that the conversation is longer than the model takes, so that another group with
/// other models may serve it (`fallback_group_on_invalid_request`). It stays the client's own fault otherwise. What
/// asks for a repair of the request ([`repair::wanted`]) is not about its length, although it may name `max_tokens`.
pub fn is_prompt_too_long(status: u16, body: &[u8]) -> bool {
    if !matches!(status, 400 | 413) || repair::wanted(status, body).is_some() {
        return false;
    }
    let text = Said::by_body(body).text.unwrap_or_default().to_lowercase();
    let says = |words: &&str| text.contains(*words);
    WORDS.iter().any(says) || TOGETHER.iter().all(says)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn answers() {
        #[rustfmt::skip]
        let rows = [
            (400, "prompt is too long: 208310 tokens > 200000 maximum", true),
            (400, "Prompt is too long", true),
            (400, "input length and `max_tokens` exceed context limit: 188240 + 21333 > 200000", true),
            (400, "Request is too long for this model", true),
            (400, "The context length exceeded", true),
            (400, "`max_tokens` must be greater than `thinking.budget_tokens`", false),
            (400, "max_tokens: 64000 > 32000, which is the maximum allowed number of output tokens for m", false),
            (400, "max_tokens: must be greater than 0", false),
            (413, "Prompt is too long", true),
            (413, "Request exceeds the maximum size", false),
            (400, "messages: at least one message is required", false),
            (429, "prompt is too long", false),
            (500, "prompt is too long", false),
            (200, "prompt is too long", false),
        ];
        for (status, message, expected) in rows {
            let error = json!({"type": "invalid_request_error", "message": message});
            let body = json!({"type": "error", "error": error}).to_string();
            assert_eq!(
                is_prompt_too_long(status, body.as_bytes()),
                expected,
                "{status} {message}"
            );
        }
        assert!(is_prompt_too_long(400, b"Prompt is too long"));
        let elsewhere =
            json!({"error": {"message": "no", "param": "prompt is too long"}}).to_string();
        assert!(!is_prompt_too_long(400, elsewhere.as_bytes()));
        assert!(!is_prompt_too_long(400, b""));
        assert!(!is_prompt_too_long(400, b"\xff"));
    }
}
