//! `error_passthrough_rules:` as checked.

use tollgate_filters::passthrough::{MatchMode, Rule};

use super::options::{keywords, statuses};
use super::{Names, unique_name};
use crate::config::field::Field;
use crate::domain::Platform;

const KEYS: &[&str] = &[
    "name",
    "enabled",
    "priority",
    "error_codes",
    "keywords",
    "match_mode",
    "platforms",
    "passthrough_code",
    "response_code",
    "passthrough_body",
    "custom_message",
    "skip_monitoring",
    "description",
];
/// Longest message to clients, characters: it is one line of an error, not a page.
const MAX_MESSAGE_CHARS: usize = 2_000;

pub(super) fn rule<'a>(item: &Field<'a>, names: &mut Names<'a>) -> Option<Rule> {
    const STATUS: &str = "a status from 400 to 599";
    const MESSAGE: &str = "a text of 1 to 2000 characters";
    let table = item.table(KEYS)?;
    let name = unique_name(&table, "error passthrough rule", names);
    let rule = Rule {
        enabled: table.or("enabled", true, Field::flag),
        priority: table.or("priority", 0, |f| {
            let bounds = i128::from(i32::MIN)..=i128::from(i32::MAX);
            f.whole(bounds, "a whole number; lower is asked first")
        }),
        error_codes: table.or("error_codes", Vec::new(), statuses),
        keywords: table.or("keywords", Vec::new(), keywords),
        match_mode: table.or("match_mode", MatchMode::Any, |f| {
            f.choice(&[("any", MatchMode::Any), ("all", MatchMode::All)])
        }),
        platforms: table.or("platforms", Vec::new(), platforms),
        passthrough_code: table.or("passthrough_code", true, Field::flag),
        response_code: table.or_null("response_code", |f| f.whole(400..=599, STATUS)),
        passthrough_body: table.or("passthrough_body", true, Field::flag),
        custom_message: table.or_null("custom_message", |f| {
            let text = f.text(MESSAGE)?;
            let fine = !text.trim().is_empty() && text.chars().count() <= MAX_MESSAGE_CHARS;
            if !fine {
                f.bad("empty or too long", MESSAGE);
            }
            fine.then(|| text.to_string())
        }),
        skip_monitoring: table.or("skip_monitoring", false, Field::flag),
        description: table
            .or_null("description", |f| f.text("a text"))
            .unwrap_or_default()
            .to_string(),
        // What stands in for a bad name is never seen: a mistake was noted.
        name: name.unwrap_or_default(),
    };
    // A list of which every entry is a mistake has been complained about already.
    let empty = |key| table.get(key).is_none_or(|list| list.is_empty());
    if empty("error_codes") && empty("keywords") {
        item.clone().secretly().bad(
            "neither `error_codes` nor `keywords`, so it would never match",
            "at least one status or keyword",
        );
    }
    for (passes, switch, key, expected) in [
        (
            rule.passthrough_code,
            "passthrough_code",
            "response_code",
            STATUS,
        ),
        (
            rule.passthrough_body,
            "passthrough_body",
            "custom_message",
            MESSAGE,
        ),
    ] {
        match table.given(key) {
            None if !passes => {
                table.required(key, &format!("{expected}, since {switch} is false"));
            }
            Some(field) if passes => field.warn(format!("not used while {switch} is true")),
            _ => {}
        }
    }
    Some(rule)
}

/// Platforms by name, in whatever case.
fn platforms(field: &Field<'_>) -> Option<Vec<String>> {
    let choices = Platform::ALL.map(|p| (p.as_str(), p));
    let platform = |item: &Field<'_>| {
        let text = item.text("the name of a platform")?.to_ascii_lowercase();
        Platform::parse(&text).or_else(|| item.choice(&choices))
    };
    let items = field.items("platforms")?;
    let platforms = items.iter().filter_map(platform);
    Some(platforms.map(|p| p.as_str().to_string()).collect())
}
