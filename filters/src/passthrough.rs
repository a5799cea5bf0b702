//! Error passthrough rules: what of an upstream's error reaches the client, as the operator wants it
//! (SPEC 8.1 to 8.3). Asked before our own mapping of a final upstream error that has a status.

use crate::reply::ErrorReply;
use crate::reply::errors;

/// Statuses that an error can have.
const ERROR_STATUSES: std::ops::RangeInclusive<u16> = 400..=599;

/// Bytes of a body that are searched for keywords.
const SEARCHED: usize = 8 * 1024;

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

impl Rule {
    /// What the client gets for an upstream's error with this status and body. Its message is without
    /// secrets and bounded; a status that is no error's becomes 502.
    pub fn reply(&self, status: u16, body: &[u8]) -> ErrorReply {
        let status = match self.response_code {
            Some(code) if !self.passthrough_code => code,
            _ => status,
        };
        let message = match &self.custom_message {
            Some(message) if !self.passthrough_body => Some(message.clone()),
            _ => crate::verdict::upstream_message(body),
        };
        let status = match ERROR_STATUSES.contains(&status) {
            true => status,
            false => 502,
        };
        errors::passed_through(status, message)
    }
}

/// All rules, ready to be asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules(Vec<Ready>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Ready {
    rule: Rule,
    /// Its keywords in lower case, without blank ones.
    keywords: Vec<String>,
}

impl Rules {
    /// Puts them in order: by priority, then by name. Those switched off are left out.
    pub fn new(mut rules: Vec<Rule>) -> Rules {
        rules.retain(|rule| rule.enabled);
        rules.sort_by(|a, b| (a.priority, &a.name).cmp(&(b.priority, &b.name)));
        let ready = |rule: Rule| Ready {
            keywords: rule
                .keywords
                .iter()
                .filter(|word| !word.trim().is_empty())
                .map(|word| word.to_lowercase())
                .collect(),
            rule,
        };
        Rules(rules.into_iter().map(ready).collect())
    }

    /// Whether there is none to ask.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The first rule for an error of an account of this platform.
    pub fn find(&self, platform: &str, status: u16, body: &[u8]) -> Option<&Rule> {
        let mut head = Head::Raw(&body[..body.len().min(SEARCHED)]);
        self.0
            .iter()
            .find(|ready| ready.is_for(platform) && ready.matches(status, &mut head))
            .map(|ready| &ready.rule)
    }
}

impl Ready {
    fn is_for(&self, platform: &str) -> bool {
        let platforms = &self.rule.platforms;
        platforms.is_empty() || platforms.iter().any(|p| p.eq_ignore_ascii_case(platform))
    }

    fn matches(&self, status: u16, head: &mut Head<'_>) -> bool {
        let has_code = self.rule.error_codes.contains(&status);
        let mut has_keyword = || self.keywords.iter().any(|word| head.lower().contains(word));
        match (self.rule.error_codes.is_empty(), self.keywords.is_empty()) {
            (_, true) => has_code,
            (true, false) => has_keyword(),
            (false, false) => match self.rule.match_mode {
                MatchMode::Any => has_code || has_keyword(),
                MatchMode::All => has_code && has_keyword(),
            },
        }
    }
}

/// The searched part of a body, put in lower case when the first rule asks for it.
enum Head<'a> {
    Raw(&'a [u8]),
    Lower(String),
}

impl Head<'_> {
    fn lower(&mut self) -> &str {
        if let Head::Raw(raw) = self {
            *self = Head::Lower(String::from_utf8_lossy(raw).to_lowercase());
        }
        match self {
            Head::Lower(text) => text,
            Head::Raw(_) => "",
        }
    }
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::route::Dialect;

    fn rule(codes: &[u16], keywords: &[&str]) -> Rule {
        Rule {
            name: "r".into(),
            enabled: true,
            priority: 0,
            error_codes: codes.to_vec(),
            keywords: keywords.iter().map(|&word| word.into()).collect(),
            match_mode: MatchMode::Any,
            platforms: Vec::new(),
            passthrough_code: true,
            response_code: None,
            passthrough_body: true,
            custom_message: None,
            skip_monitoring: false,
            description: String::new(),
        }
    }

    fn finds(rule: Rule, platform: &str, status: u16, body: &str) -> bool {
        let rules = Rules::new(vec![rule]);
        rules.find(platform, status, body.as_bytes()).is_some()
    }

    #[test]
    fn statuses_and_keywords() {
        let all = |codes: &[u16], keywords: &[&str]| Rule {
            match_mode: MatchMode::All,
            ..rule(codes, keywords)
        };
        #[rustfmt::skip]
        let rows = [
            // Neither list: never.
            (rule(&[], &[]), 400, "busy", false),
            (all(&[], &[]), 400, "busy", false),
            (rule(&[], &["", " "]), 400, "busy", false),
            // One list: that alone, in either mode.
            (rule(&[400, 429], &[]), 429, "", true),
            (rule(&[400, 429], &[]), 430, "", false),
            (all(&[400, 429], &[]), 429, "", true),
            (all(&[400, 429], &[""]), 429, "", true),
            (rule(&[], &["no", "busy"]), 400, "too BUSY now", true),
            (rule(&[], &["no", "BUSY"]), 400, "too busy now", true),
            (rule(&[], &["no", "busy"]), 400, "too bus", false),
            (all(&[], &["busy"]), 400, "busy", true),
            (rule(&[], &["größe"]), 400, "GRÖSSE GRÖßE", true),
            // Both: by the mode.
            (rule(&[429], &["busy"]), 429, "x", true),
            (rule(&[429], &["busy"]), 400, "busy", true),
            (rule(&[429], &["busy"]), 400, "x", false),
            (all(&[429], &["busy"]), 429, "x", false),
            (all(&[429], &["busy"]), 400, "busy", false),
            (all(&[429], &["busy"]), 429, "busy", true),
            // Switched off.
            (Rule { enabled: false, ..rule(&[429], &[]) }, 429, "", false),
        ];
        for (rule, status, body, expected) in rows {
            let said = format!("{rule:?} {status} {body}");
            assert_eq!(finds(rule, "openai", status, body), expected, "{said}");
        }
    }

    #[test]
    fn platforms() {
        let of = |names: &[&str]| Rule {
            platforms: names.iter().map(|&name| name.into()).collect(),
            ..rule(&[429], &[])
        };
        for (platforms, platform, expected) in [
            (&[][..], "openai", true),
            (&["openai"], "openai", true),
            (&["OpenAI"], "openai", true),
            (&["openai"], "OPENAI", true),
            (&["anthropic", "openai"], "openai", true),
            (&["anthropic"], "openai", false),
            (&["open"], "openai", false),
        ] {
            assert_eq!(
                finds(of(platforms), platform, 429, ""),
                expected,
                "{platforms:?}"
            );
        }
    }

    #[test]
    fn only_the_first_8_kib_are_searched() {
        let body = |before: usize| format!("{}busy{}", "x".repeat(before), "y".repeat(9_000));
        assert!(finds(rule(&[], &["busy"]), "p", 400, &body(8_188)));
        assert!(!finds(rule(&[], &["busy"]), "p", 400, &body(8_189)));
        // Bytes that are no text, such as a letter cut in two, hide nothing else.
        let rules = Rules::new(vec![rule(&[], &["busy"])]);
        assert!(rules.find("p", 400, b"\xff busy \xc3").is_some());
    }

    #[test]
    fn the_lowest_priority_wins_then_the_name() {
        let named = |name: &str, priority: i32, code: u16| Rule {
            name: name.into(),
            priority,
            ..rule(&[code], &[])
        };
        let rules = Rules::new(vec![
            named("late", 9, 429),
            named("b", 1, 429),
            named("a", 1, 429),
            named("other", -5, 500),
            Rule {
                enabled: false,
                ..named("off", -9, 429)
            },
        ]);
        let found = |status| rules.find("p", status, b"").map(|rule| &*rule.name);
        assert_eq!(found(429), Some("a"));
        assert_eq!(found(500), Some("other"));
        assert_eq!(found(404), None);
        assert!(!rules.is_empty() && Rules::default().is_empty());
    }

    #[test]
    fn what_the_client_gets() {
        let body = br#"{"error":{"message":"key sk-abcdef123 is busy"}}"#;
        let code = |code: u16| Rule {
            passthrough_code: false,
            response_code: Some(code),
            ..rule(&[], &[])
        };
        let said = |text: &str| Rule {
            passthrough_body: false,
            custom_message: Some(text.into()),
            ..rule(&[], &[])
        };
        // Given, but not asked for.
        let idle = Rule {
            response_code: Some(418),
            custom_message: Some("x".into()),
            ..rule(&[], &[])
        };
        let own = "key sk-*** is busy";
        #[rustfmt::skip]
        let rows = [
            (rule(&[], &[]), 422, &body[..], 422, own),
            (idle, 422, body, 422, own),
            (code(503), 529, body, 503, own),
            (said("Busy, please retry"), 529, body, 529, "Busy, please retry"),
            (rule(&[], &[]), 500, b"<html>", 500, "Upstream request failed"),
            (rule(&[], &[]), 500, b"", 500, "Upstream request failed"),
            // No status of an error: it would be read as an answer.
            (rule(&[], &[]), 302, body, 502, own),
            (rule(&[], &[]), 600, body, 502, own),
            (code(200), 429, body, 502, own),
        ];
        for (rule, status, body, expected, message) in rows {
            let reply = rule.reply(status, body);
            assert_eq!(
                (reply.status, &*reply.message),
                (expected, message),
                "{rule:?}"
            );
            assert_eq!(
                (reply.kind, reply.code, reply.retry_after_s),
                ("upstream_error", None, None)
            );
            for dialect in [Dialect::OpenAi, Dialect::Anthropic] {
                let body: serde_json::Value = serde_json::from_slice(&reply.body(dialect)).unwrap();
                assert_eq!(body["error"]["type"], json!("upstream_error"));
            }
        }
        // Even where Anthropic has a name for the status.
        let body = rule(&[], &[]).reply(404, b"").body(Dialect::Anthropic);
        assert!(body.windows(14).any(|part| part == b"upstream_error"));
    }

    proptest! {
        #[test]
        fn any_error_is_survived_and_answered_with_an_error(
            status in any::<u16>(),
            body in prop::collection::vec(any::<u8>(), 0..100),
            code in any::<u16>(),
            keyword in any::<String>(),
        ) {
            let rules = Rules::new(vec![rule(&[code], &[&keyword])]);
            if let Some(rule) = rules.find("p", status, &body) {
                prop_assert!((400..600).contains(&rule.reply(status, &body).status));
            }
        }
    }
}
