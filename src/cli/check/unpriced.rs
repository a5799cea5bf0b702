//! Which models that the resources name have no price, neither of their own nor of a channel's:
//! requests for them cost nothing.

use crate::billing::channel::price_row;
use crate::billing::price_map::Prices;
use crate::config::resources::{AccountResource, ChannelResource, Resources};
use crate::domain::text::OneLine;
use crate::domain::{Channel, ChannelId, Platform};

/// A line for every pair of a mapping, of an account or a channel, that leads to a model without a
/// price. A request has several names on its way (as asked for, as mapped by the channel, as mapped by
/// the account); where one of them has a price, that is charged.
pub(super) fn unpriced(resources: &Resources, prices: &Prices) -> Vec<String> {
    let channels = resources.channels.iter().filter(|channel| channel.enabled);
    let channels: Vec<Bound<'_>> = channels.map(Bound::of).collect();
    let check = Check {
        resources,
        prices,
        channels,
    };
    let accounts = resources.accounts.iter();
    let of_accounts = accounts.flat_map(|account| check.account(account));
    let of_channels = check.channels.iter().flat_map(|bound| check.channel(bound));
    of_accounts.chain(of_channels).collect()
}

/// A channel and the names of its groups.
struct Bound<'a> {
    channel: Channel,
    groups: &'a [String],
}

impl<'a> Bound<'a> {
    fn of(resource: &'a ChannelResource) -> Bound<'a> {
        let channel = Channel {
            id: ChannelId(0),
            name: resource.name.clone(),
            enabled: resource.enabled,
            groups: Vec::new(),
            model_mapping: resource.model_mapping.clone(),
            restrict_models: resource.restrict_models,
            billing_model_source: resource.billing_model_source,
            prices: resource.prices.clone(),
        };
        Bound {
            channel,
            groups: &resource.groups,
        }
    }

    fn maps(&self, platform: Platform, model: &str) -> Option<&str> {
        crate::billing::channel::mapped(&self.channel, platform, model)
    }
}

struct Check<'a> {
    resources: &'a Resources,
    prices: &'a Prices,
    channels: Vec<Bound<'a>>,
}

impl Check<'_> {
    /// What clients ask an account's groups for by the names in its mapping.
    fn account(&self, account: &AccountResource) -> Vec<String> {
        let place = format!("accounts/{}: model_mapping", OneLine(&account.name));
        let ways: Vec<(Option<&Bound<'_>>, Platform)> = if account.groups.is_empty() {
            vec![(None, account.platform)]
        } else {
            let groups = account.groups.iter();
            groups
                .map(|group| (self.bound(group), self.platform(group, account)))
                .collect()
        };
        let unpriced = |(from, to)| {
            let names = names([from, to]);
            let is_unpriced = ways.iter().any(|(bound, platform)| {
                // A name that the channel makes another one of reaches no account.
                let kept = |bound: &&Bound<'_>| {
                    is_pattern(from) || bound.maps(*platform, from).is_none_or(|to| to == from)
                };
                bound.as_ref().is_none_or(kept) && !self.is_priced(*bound, *platform, &names)
            });
            is_unpriced.then(|| warning(&place, &names))
        };
        account.model_mapping.iter().filter_map(unpriced).collect()
    }

    /// What clients ask for by the names in a channel's mapping.
    fn channel(&self, bound: &Bound<'_>) -> Vec<String> {
        let place = format!("channels/{}: model_mapping", OneLine(&bound.channel.name));
        let mut warnings = Vec::new();
        for (platform, mapping) in &bound.channel.model_mapping {
            for (from, to) in mapping.iter() {
                let mut upstream = self.upstream(bound, *platform, to);
                if upstream.is_empty() {
                    // Who would serve it is not in these files.
                    upstream.push(to);
                }
                let ways = upstream.into_iter().map(|name| names([from, to, name]));
                let mut unpriced =
                    ways.filter(|names| !self.is_priced(Some(bound), *platform, names));
                warnings.extend(unpriced.next().map(|names| warning(&place, &names)));
            }
        }
        warnings
    }

    /// What the accounts behind a channel call a model.
    fn upstream<'m>(
        &'m self,
        bound: &Bound<'_>,
        platform: Platform,
        model: &'m str,
    ) -> Vec<&'m str> {
        let behind = |account: &&AccountResource| {
            let mut groups = account.groups.iter().filter(|g| bound.groups.contains(g));
            groups.any(|group| self.platform(group, account) == platform)
        };
        let name = |account: &'m AccountResource| match account.model_mapping.is_empty() {
            true => Some(model),
            false => account.model_mapping.lookup(model),
        };
        let accounts = self.resources.accounts.iter().filter(behind);
        accounts.filter_map(name).collect()
    }

    fn bound(&self, group: &String) -> Option<&Bound<'_>> {
        self.channels.iter().find(|b| b.groups.contains(group))
    }

    /// A group that is not in these files has its account's platform.
    fn platform(&self, group: &str, account: &AccountResource) -> Platform {
        let mut groups = self.resources.groups.iter();
        let found = groups.find(|resource| resource.name == group);
        found.map_or(account.platform, |resource| resource.platform)
    }

    fn is_priced(&self, bound: Option<&Bound<'_>>, platform: Platform, names: &[&str]) -> bool {
        let channel = bound.map(|bound| &bound.channel);
        // What such a channel lets through has a price of its own.
        channel.is_some_and(|channel| channel.restrict_models)
            || names.iter().any(|name| {
                self.prices.lookup(name).is_some()
                    || channel.is_some_and(|c| price_row(c, platform, name).is_some())
            })
    }
}

/// A pattern is no model, and what it stands for is the client's choice.
fn is_pattern(name: &str) -> bool {
    name.ends_with('*')
}

/// The names of a request on its way to the provider, each once.
fn names<const N: usize>(way: [&str; N]) -> Vec<&str> {
    let mut names: Vec<&str> = way.into_iter().filter(|name| !is_pattern(name)).collect();
    names.dedup();
    names
}

fn warning(place: &str, names: &[&str]) -> String {
    let names: Vec<String> = names.iter().map(|name| format!("{name:?}")).collect();
    format!(
        "{place}: there is no price for {}; such requests cost nothing until `prices` has one",
        names.join(" or ")
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::config;

    /// The names in the warnings about these resources, with the kind of object that they are about.
    fn said(yaml: &str, prices: &Prices) -> Vec<String> {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("resources.yaml");
        std::fs::write(&file, yaml).unwrap();
        let (resources, _) = config::load_resources(&[file], &BTreeMap::new()).unwrap();
        let short = |line: String| {
            let (place, rest) = line.split_once("s/one: model_mapping: there is no price for ")?;
            let names = rest.strip_suffix("; such requests cost nothing until `prices` has one")?;
            Some(format!("{place} {names}"))
        };
        let lines = unpriced(&resources, prices).into_iter();
        lines.map(|line| short(line).unwrap()).collect()
    }

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
        ] {
            let yaml = format!(
                "accounts: [{{name: one, platform: openai, credentials: {{api_key: sk-1}}, \
                 model_mapping: {{{from:?}: {to:?}}}}}]"
            );
            let expected: Vec<String> = named.iter().map(|n| format!("account {n}")).collect();
            assert_eq!(said(&yaml, prices), expected, "{from} {to}");
        }
        assert_eq!(
            warning("here", &["ho\nuse"]),
            "here: there is no price for \"ho\\nuse\"; \
             such requests cost nothing until `prices` has one"
        );
    }

    #[test]
    fn channels_map_and_price() {
        const PRICED: &str =
            "prices: [{platform: openai, models: [house], input_per_million: '1'}]";
        let prices = Prices::built_in();
        #[rustfmt::skip]
        let rows: [(&str, &str, &str, &[&str]); 12] = [
            // Mapping of the account; of the channel; the rest of the channel; what is said.
            ("{}", "{alias: gpt-5}", "", &[]),
            ("{}", "{alias: house}", "", &["channel \"alias\" or \"house\""]),
            ("{}", "{gpt-5: house}", "", &[]),
            ("{}", "{'gpt*': house}", "", &["channel \"house\""]),
            ("{}", "{alias: house}", "PRICED", &[]),
            // The account has the last word on the name, and a price for it counts.
            ("{house: gpt-5}", "{alias: house}", "", &[]),
            ("{house: mansion}", "{alias: house}", "",
                &["account \"house\" or \"mansion\"", "channel \"alias\" or \"house\" or \"mansion\""]),
            ("{house: mansion}", "{alias: house}", "PRICED", &[]),
            // Nobody gets to the account by a name that the channel maps to another.
            ("{house: mansion, gpt-5: mansion}", "{house: gpt-5}", "", &[]),
            // An account that has no such model does not serve it.
            ("{gpt-5: gpt-5}", "{alias: house}", "", &["channel \"alias\" or \"house\""]),
            // Nothing is served that the channel does not price; a disabled one does nothing.
            ("{cottage: hut}", "{alias: shed}", "restrict_models: true, PRICED", &[]),
            ("{cottage: house}", "{alias: house}", "enabled: false, PRICED",
                &["account \"cottage\" or \"house\""]),
        ];
        for (account, channel, rest, expected) in rows {
            let rest = rest.replace("PRICED", PRICED);
            let comma = if rest.is_empty() { "" } else { ", " };
            let yaml = format!(
                "groups: [{{name: main, platform: openai}}]\n\
                 accounts: [{{name: one, platform: openai, groups: [main], \
                 credentials: {{api_key: sk-1}}, model_mapping: {account}}}]\n\
                 channels: [{{name: one, groups: [main], \
                 model_mapping: {{openai: {channel}}}{comma}{rest}}}]\n"
            );
            assert_eq!(said(&yaml, &prices), expected, "{yaml}");
        }
    }
}
