//! One apply under way: kind after kind, each resource created, changed or left.

use std::collections::{BTreeMap, HashMap};

use sea_orm::{
    ActiveModelTrait, ColumnTrait, DatabaseTransaction, EntityTrait, QueryFilter, QuerySelect,
};

use super::ApplyReport;
use super::columns::{difference, insert};
use super::held::Held;
use super::wanted;
use crate::config::resources::Resources;
use crate::storage::convert::{now_millis, price_row};
use crate::storage::entities::{error_rule, group, price_override};
use crate::storage::seal::Sealer;
use crate::storage::{KeyHasher, StorageError};

/// The state of an apply. The passes must run in the order groups, users, then the others.
pub(super) struct Pass<'a> {
    pub(super) txn: &'a DatabaseTransaction,
    pub(super) held: &'a Held,
    pub(super) resources: &'a Resources,
    pub(super) hasher: &'a KeyHasher,
    pub(super) sealer: &'a Sealer,
    pub(super) now: i64,
    pub(super) group_ids: HashMap<String, i64>,
    pub(super) user_ids: HashMap<String, i64>,
    pub(super) report: ApplyReport,
}

impl<'a> Pass<'a> {
    pub(super) fn new(
        txn: &'a DatabaseTransaction,
        held: &'a Held,
        resources: &'a Resources,
        hasher: &'a KeyHasher,
        sealer: &'a Sealer,
    ) -> Pass<'a> {
        Pass {
            txn,
            held,
            resources,
            hasher,
            sealer,
            now: now_millis(),
            group_ids: HashMap::new(),
            user_ids: HashMap::new(),
            report: ApplyReport::default(),
        }
    }

    pub(super) fn into_report(self) -> ApplyReport {
        self.report
    }

    pub(super) async fn groups(&mut self) -> Result<(), StorageError> {
        let mut new = Vec::new();
        for resource in &self.resources.groups {
            let held = self.held.groups.get(&resource.name);
            let row = wanted::group(resource, held, self.now)?;
            let fate = match held {
                None => {
                    new.push(row);
                    Fate::Created
                }
                Some(held) => {
                    let change = difference(held, &row);
                    self.update(group::Column::Id, held.id, change).await?
                }
            };
            self.note(fate, "groups", &resource.name);
        }
        insert(self.txn, new).await?;
        let ids = group::Entity::find()
            .select_only()
            .columns([group::Column::Name, group::Column::Id])
            .into_tuple::<(String, i64)>()
            .all(self.txn)
            .await?;
        self.group_ids = ids.into_iter().collect();
        Ok(())
    }

    pub(super) async fn error_rules(&mut self) -> Result<(), StorageError> {
        let mut new = Vec::new();
        for rule in &self.resources.error_passthrough_rules {
            let held = self.held.error_rules.get(&rule.name);
            let row = wanted::error_rule(rule, held, self.now)?;
            let fate = match held {
                None => {
                    new.push(row);
                    Fate::Created
                }
                Some(held) => {
                    let change = difference(held, &row);
                    self.update(error_rule::Column::Id, held.id, change).await?
                }
            };
            self.note(fate, "error_passthrough_rules", &rule.name);
        }
        insert(self.txn, new).await
    }

    pub(super) async fn prices(&mut self) -> Result<(), StorageError> {
        let sorted: BTreeMap<_, _> = self.resources.prices.iter().collect();
        let mut new = Vec::new();
        for (model, price) in sorted {
            let row = price_row(model, price)?;
            let fate = match self.held.prices.get(model) {
                None => {
                    new.push(row);
                    Fate::Created
                }
                Some(held) => match difference(held, &row) {
                    None => Fate::Left,
                    Some(change) => {
                        price_override::Entity::update_many()
                            .set(change)
                            .filter(price_override::Column::Model.eq(model.as_str()))
                            .exec(self.txn)
                            .await?;
                        Fate::Changed
                    }
                },
            };
            self.note(fate, "prices", model);
        }
        insert(self.txn, new).await
    }

    /// Writes the columns that differ, if any.
    pub(super) async fn update<A>(
        &self,
        id_column: <A::Entity as EntityTrait>::Column,
        id: i64,
        change: Option<A>,
    ) -> Result<Fate, StorageError>
    where
        A: ActiveModelTrait,
    {
        let Some(change) = change else {
            return Ok(Fate::Left);
        };
        A::Entity::update_many()
            .set(change)
            .filter(id_column.eq(id))
            .exec(self.txn)
            .await?;
        Ok(Fate::Changed)
    }

    pub(super) fn note(&mut self, fate: Fate, kind: &str, name: &str) {
        let list = match fate {
            Fate::Created => &mut self.report.created,
            Fate::Changed => &mut self.report.changed,
            Fate::Left => &mut self.report.left,
        };
        list.push(format!("{kind}/{name}"));
    }
}

/// What became of one resource.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Created,
    Changed,
    Left,
}

impl Fate {
    /// Changed if either part changed.
    pub(super) fn or(self, other: Fate) -> Fate {
        if self == Fate::Left { other } else { self }
    }
}

/// The id of a name that was checked to exist.
pub(super) fn id_of(ids: &HashMap<String, i64>, name: &str) -> Result<i64, StorageError> {
    ids.get(name)
        .copied()
        .ok_or_else(|| StorageError::Corrupt(format!("no row for the name {name:?}")))
}
