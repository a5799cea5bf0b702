//! For people: which entry is used for a name, and how two maps differ.

use std::collections::BTreeSet;

use super::{Layer, Prices};
use crate::domain::price::ModelPrice;

/// Where an entry stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// Among the operator's overrides.
    Override,
    /// In the price map.
    Map,
    /// In the table for what the map lacks.
    Table,
}

/// What [`Prices::lookup`] finds for a name.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Found<'p> {
    /// The name of the entry; `None` for one of the table.
    pub entry: Option<&'p str>,
    /// Where it stands.
    pub origin: Origin,
    /// Its prices.
    pub price: &'p ModelPrice,
}

/// How a map differs from another.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Difference {
    /// Names in it; a model may be known by its plain name and by one with its provider's prefix.
    pub names: usize,
    /// Those that are only in it.
    pub added: usize,
    /// Those that have other prices or limits in it.
    pub changed: usize,
    /// Those that are only in the other.
    pub removed: usize,
}

impl Prices {
    /// What [`Prices::lookup`] finds for a name, and where. Looks through the whole map.
    pub fn explain(&self, model: &str) -> Option<Found<'_>> {
        let price = self.lookup(model)?;
        let entry = |layer: &'_ Layer| -> Option<String> {
            let mut models = layer.models.iter();
            let (name, _) = models.find(|(_, held)| std::ptr::eq(*held, price))?;
            Some(name.clone())
        };
        let (layer, origin) = if entry(&self.overrides).is_some() {
            (&self.overrides, Origin::Override)
        } else if entry(&self.map).is_some() {
            (&*self.map, Origin::Map)
        } else {
            return Some(Found {
                entry: None,
                origin: Origin::Table,
                price,
            });
        };
        let name = entry(layer)?;
        let (entry, _) = layer.models.get_key_value(&name)?;
        Some(Found {
            entry: Some(entry),
            origin,
            price,
        })
    }

    /// How this price map differs from `old`, overrides left aside.
    pub fn difference(&self, old: &Prices) -> Difference {
        let (new, old) = (&self.map.models, &old.map.models);
        let names: BTreeSet<&String> = new.keys().chain(old.keys()).collect();
        let mut difference = Difference {
            names: new.len(),
            ..Difference::default()
        };
        for name in names {
            match (new.get(name), old.get(name)) {
                (Some(new), Some(old)) if new != old => difference.changed += 1,
                (Some(_), None) => difference.added += 1,
                (None, Some(_)) => difference.removed += 1,
                _ => {}
            }
        }
        difference
    }
}
