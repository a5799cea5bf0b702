//! `channels:` as checked; what they charge stands in `channel_prices.rs`.

use std::collections::BTreeMap;

use super::accounts::check_pattern;
use super::channel_prices::prices;
use super::{Names, unique_name};
use crate::config::field::Field;
use crate::config::resources::ChannelResource;
use crate::domain::{BillingModelSource, ModelMapping, Platform};

const KEYS: &[&str] = &[
    "name",
    "enabled",
    "groups",
    "model_mapping",
    "restrict_models",
    "billing_model_source",
    "prices",
];
const PLATFORMS: &[&str] = &[
    Platform::OpenAi.as_str(),
    Platform::Anthropic.as_str(),
    Platform::Gemini.as_str(),
    Platform::Antigravity.as_str(),
];

pub(super) fn channel<'a>(item: &Field<'a>, names: &mut Names<'a>) -> Option<ChannelResource> {
    let table = item.table(KEYS)?;
    let name = unique_name(&table, "channel", names);
    let restriction = table.get("restrict_models");
    let restrict_models = restriction.as_ref().and_then(Field::flag).unwrap_or(false);
    let enabled = table.or("enabled", true, Field::flag);
    let channel = ChannelResource {
        enabled,
        groups: table.or("groups", Vec::new(), |f| groups(f, enabled, names)),
        model_mapping: table.or("model_mapping", BTreeMap::new(), mappings),
        restrict_models,
        billing_model_source: table.or(
            "billing_model_source",
            BillingModelSource::ChannelMapped,
            |f| {
                f.choice(&[
                    ("requested", BillingModelSource::Requested),
                    ("channel_mapped", BillingModelSource::ChannelMapped),
                    ("upstream", BillingModelSource::Upstream),
                ])
            },
        ),
        prices: table.or("prices", Vec::new(), |f| prices(f, restrict_models)),
        // What stands in for a bad name is never seen: a mistake was noted.
        name: name.unwrap_or_default(),
    };
    if let Some(field) = restriction.filter(|_| restrict_models && channel.prices.is_empty()) {
        field.warn("without prices: every model is refused");
    }
    Some(channel)
}

/// Its groups; each may have one channel, but for those that are disabled.
fn groups<'a>(field: &Field<'a>, enabled: bool, names: &mut Names<'a>) -> Option<Vec<String>> {
    let groups = field.names()?;
    let mut seen: Vec<&str> = Vec::new();
    for item in field.items("names")? {
        // What is no name, and a name twice, was complained about just now.
        let Some(name) = groups.iter().find(|name| item.is_text(name)) else {
            continue;
        };
        if !seen.contains(&name.as_str()) {
            seen.push(name);
            if enabled {
                names.unique("group of a channel", name.clone(), &item);
            }
        }
    }
    Some(groups)
}

fn mappings(field: &Field<'_>) -> Option<BTreeMap<Platform, ModelMapping>> {
    let table = field.table(PLATFORMS)?;
    let of_platform = |platform: Platform| {
        let mapping = table.or_null(platform.as_str(), mapping)?;
        (!mapping.is_empty()).then_some((platform, mapping))
    };
    Some(Platform::ALL.into_iter().filter_map(of_platform).collect())
}

/// A mapping whose keys are compared in lower case.
fn mapping(field: &Field<'_>) -> Option<ModelMapping> {
    let mut pairs = BTreeMap::new();
    for (pattern, target) in field.pairs("model names to model names")? {
        check_pattern(pattern, &target);
        if let Some(name) = target.name()
            && pairs
                .insert(pattern.to_lowercase(), name.to_string())
                .is_some()
        {
            target.bad(
                format!("`{}` is mapped twice", pattern.escape_default()),
                "each model once, in whatever case",
            );
        }
    }
    Some(ModelMapping::new(pairs))
}
