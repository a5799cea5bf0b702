//! `tollgate check`

mod unpriced;

use std::path::{Path, PathBuf};

use super::open::{self, Failure};
use crate::app::{AppError, tls};
use crate::billing::price_map::Prices;
use crate::config;
use crate::config::resources::{Others, Resources};

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
                let others = Others::default();
                wrong.extend(resources.check_platforms(&others));
                let rules = resources.check_group_rules(&others);
                for warning in rules.warnings {
                    eprintln!("warning: {warning}");
                }
                wrong.extend(rules.problems);
                let prices = prices.map(|prices| prices.with_overrides(&resources.prices));
                for warning in prices
                    .iter()
                    .flat_map(|prices| unpriced::unpriced(&resources, prices))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::resources::ApiKeyResource;

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
