//! Channels and the groups they are bound to.

use std::collections::{BTreeSet, HashMap, HashSet};

use sea_orm::{ColumnTrait, Condition, EntityTrait, QueryFilter, QuerySelect};

use super::columns::{difference, insert};
use super::pass::{Fate, Pass, id_of};
use super::references::staying_channels;
use super::wanted;
use crate::storage::StorageError;
use crate::storage::entities::{channel, channel_group};

impl Pass<'_> {
    /// To be called after groups. A disabled channel is bound to those of its groups that no other has.
    pub(super) async fn channels(&mut self, prune: bool) -> Result<(), StorageError> {
        let mut taken: HashSet<&str> = staying_channels(self.resources, self.held, prune)
            .into_keys()
            .collect();
        let enabled = self.resources.channels.iter().filter(|r| r.enabled);
        taken.extend(enabled.flat_map(|r| &r.groups).map(String::as_str));
        let mut new = Vec::new();
        let mut moved = Vec::new();
        for resource in &self.resources.channels {
            let held = self.held.channels.get(&resource.name);
            let row = wanted::channel(resource, held, self.now)?;
            let mut groups = BTreeSet::new();
            for name in &resource.groups {
                if resource.enabled || taken.insert(name) {
                    groups.insert(id_of(&self.group_ids, name)?);
                }
            }
            let bound = held.and_then(|row| self.held.channel_groups.get(&row.id));
            let moves = bound.map_or(!groups.is_empty(), |bound| *bound != groups);
            let fate = match held {
                None => {
                    new.push(row);
                    Fate::Created
                }
                Some(held) => {
                    let change = difference(held, &row);
                    let fate = self.update(channel::Column::Id, held.id, change).await?;
                    fate.or(if moves { Fate::Changed } else { Fate::Left })
                }
            };
            if moves {
                moved.push((&resource.name, held.map(|row| row.id), groups));
            }
            self.note(fate, "channels", &resource.name);
        }
        insert(self.txn, new).await?;
        if moved.is_empty() {
            return Ok(());
        }
        // A group may go from one channel to another, so all are freed before any is bound.
        for (_, held, groups) in &moved {
            let mut freed =
                Condition::any().add(channel_group::Column::GroupId.is_in(groups.iter().copied()));
            if let Some(id) = held {
                freed = freed.add(channel_group::Column::ChannelId.eq(*id));
            }
            channel_group::Entity::delete_many()
                .filter(freed)
                .exec(self.txn)
                .await?;
        }
        let ids: HashMap<String, i64> = channel::Entity::find()
            .select_only()
            .columns([channel::Column::Name, channel::Column::Id])
            .into_tuple::<(String, i64)>()
            .all(self.txn)
            .await?
            .into_iter()
            .collect();
        let mut links = Vec::new();
        for (name, _, groups) in moved {
            let channel_id = id_of(&ids, name)?;
            links.extend(groups.into_iter().map(|group_id| channel_group::Model {
                group_id,
                channel_id,
            }));
        }
        insert(self.txn, links).await
    }
}
