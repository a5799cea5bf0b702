//! `tollgate check`

use std::path::{Path, PathBuf};

use super::open::{self, Failure};
use crate::app::{AppError, tls};
use crate::billing::price_map::Prices;
use crate::config;
use crate::config::resources::Resources;
use crate::domain::text::OneLine;

/// Reads everything and says what is wrong with it, all at once.
pub fn run(file: Option<&Path>, resources: &[PathBuf]) -> Result<(), Failure> {
    let env = open::environment();
    let mut wrong = Vec::new();
    let mut prices = None;
    match config::load(file, &env) {
        Ok(config) => {
            match Prices::configured(&config) {
                Ok(configured) => prices = Some(configured),
                Err(error) => wrong.push(error.to_string()),
            }
            for (index, listener) in config.server.listen.iter().enumerate() {
                if let Some(Err(reason)) = listener.tls.as_ref().map(tls::check) {
                    wrong.push(AppError::Tls { index, reason }.to_string());
                }
            }
        }
        Err(mistakes) => wrong.push(mistakes.to_string()),
    }
    if !resources.is_empty() {
        match config::load_resources(resources, &env) {
            Ok((resources, warnings)) => {
                for warning in warnings {
                    eprintln!("warning: {warning}");
                }
                if let Some(warning) = not_in_files(&resources) {
                    eprintln!("warning: {warning}");
                }
                let prices = prices.map(|prices| prices.with_overrides(&resources.prices));
                for warning in prices
                    .iter()
                    .flat_map(|prices| unpriced(&resources, prices))
                {
                    eprintln!("warning: {warning}");
                }
            }
            Err(mistakes) => wrong.push(mistakes.to_string()),
        }
    }
    if wrong.is_empty() {
        println!("no mistakes");
        return Ok(());
    }
    Err(Failure::Message(format!("mistakes:\n{}", wrong.join("\n"))))
}

/// The names that only the store may know, which a check does not open.
fn not_in_files(resources: &Resources) -> Option<String> {
    let missing = resources.missing();
    if missing.is_empty() {
        return None;
    }
    let lines: Vec<String> = missing.iter().map(|m| format!("\n  {m}")).collect();
    Some(format!(
        "not in these files; apply looks in the store as well:{}",
        lines.concat()
    ))
}

/// The models named in the resources that have no price: requests for them cost nothing. Where a mapping
/// names two models and one of them has a price, that one is charged.
fn unpriced(resources: &Resources, prices: &Prices) -> Vec<String> {
    let mappings = resources.accounts.iter().map(|account| {
        let place = format!("accounts/{}: model_mapping", OneLine(&account.name));
        (place, &account.model_mapping)
    });
    mappings
        .flat_map(|(place, mapping)| {
            let pairs = mapping.iter().map(move |pair| (place.clone(), pair));
            pairs.filter_map(|(place, (from, to))| without_price(&place, from, to, prices))
        })
        .collect()
}

/// What is to be said of one pair of a mapping.
fn without_price(place: &str, from: &str, to: &str, prices: &Prices) -> Option<String> {
    let is_priced = |model: &str| prices.lookup(model).is_some();
    // A pattern is no model, and what it stands for is the client's choice.
    let from = (!from.ends_with('*')).then_some(from);
    if is_priced(to) || from.is_some_and(is_priced) {
        return None;
    }
    let mut names = vec![format!("{:?}", to)];
    names.splice(
        0..0,
        from.filter(|from| *from != to)
            .map(|from| format!("{from:?}")),
    );
    Some(format!(
        "{place}: there is no price for {}; such requests cost nothing until `prices` has one",
        names.join(" or ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::resources::ApiKeyResource;

    #[test]
    fn models_without_a_price_are_named() {
        let prices = Prices::built_in();
        let house = r#"{"house": {"input_cost_per_token": 1e-6}}"#;
        let own = Prices::from_json(house).unwrap();
        for (from, to, prices, named) in [
            ("gpt-5", "gpt-5", &prices, None),
            ("alias", "gpt-5", &prices, None),
            ("gpt-5", "house", &prices, None),
            ("alias", "house", &prices, Some("\"alias\" or \"house\"")),
            ("alias", "house", &own, None),
            ("house", "house", &prices, Some("\"house\"")),
            ("gpt-*", "house", &prices, Some("\"house\"")),
            ("*", "ho\nuse", &prices, Some("\"ho\\nuse\"")),
        ] {
            let expected = named.map(|named| {
                format!(
                    "here: there is no price for {named}; \
                     such requests cost nothing until `prices` has one"
                )
            });
            assert_eq!(
                without_price("here", from, to, prices),
                expected,
                "{from} {to}"
            );
        }
    }

    #[test]
    fn names_in_no_file_are_listed() {
        let mut resources = Resources::default();
        assert_eq!(not_in_files(&resources), None);
        resources.api_keys.push(ApiKeyResource {
            name: "k".into(),
            enabled: true,
            key: None,
            user: "u".into(),
            group: Some("g\n".into()),
            quota: None,
            rate_limits: [None; 3],
            expires_at: None,
            ip_allow: Vec::new(),
            ip_deny: Vec::new(),
        });
        assert_eq!(
            not_in_files(&resources).unwrap(),
            "not in these files; apply looks in the store as well:\n  \
             api_keys/k: user: there is no user named \"u\"\n  \
             api_keys/k: group: there is no group named \"g\\n\""
        );
    }
}
