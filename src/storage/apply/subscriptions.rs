//! Subscriptions: one for each user and group.

use super::columns::{difference, insert};
use super::pass::{Fate, Pass, id_of};
use super::wanted;
use crate::config::resources::unused_subscription;
use crate::domain::SubscriptionType;
use crate::storage::StorageError;
use crate::storage::convert::subscription_name;
use crate::storage::entities::subscription;

impl Pass<'_> {
    /// To be called after users and groups.
    pub(super) async fn subscriptions(&mut self) -> Result<(), StorageError> {
        let mut new = Vec::new();
        for resource in &self.resources.subscriptions {
            let name = resource.name();
            let ids = (
                id_of(&self.user_ids, &resource.user)?,
                id_of(&self.group_ids, &resource.group)?,
            );
            // Of the groups in the file it was said when the file was read.
            let in_file = self
                .resources
                .groups
                .iter()
                .any(|g| g.name == resource.group);
            let group = self.held.groups.get(&resource.group).filter(|_| !in_file);
            let standard = subscription_name(SubscriptionType::Standard);
            if group.is_some_and(|row| row.subscription_type == standard) {
                let warning = unused_subscription(&name, &resource.group);
                self.report.warnings.push(warning);
            }
            let held = self.held.subscriptions.get(&ids);
            let row = wanted::subscription(resource, held, ids, self.now);
            let fate = match held {
                None => {
                    new.push(row);
                    Fate::Created
                }
                Some(held) => {
                    let change = difference(held, &row);
                    self.update(subscription::Column::Id, held.id, change)
                        .await?
                }
            };
            self.note(fate, "subscriptions", &name);
        }
        insert(self.txn, new).await
    }
}
