//! Makes the store hold what the resource files say: by name, idempotent, all or nothing.
//!
//! The order: read what is held, check every reference, then per kind work out the row each
//! resource wants and write only the columns that differ. A dry run does the same and rolls back.

mod accounts;
mod api_keys;
mod channels;
mod columns;
mod held;
mod pass;
mod prune;
mod references;
mod subscriptions;
mod users;
mod wanted;

use super::{StorageError, Store, meta};
use crate::config::resources::Resources;
use held::Held;
use pass::Pass;

/// How [`Store::apply`] goes about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ApplyOptions {
    /// Disable groups, accounts, users, keys, subscriptions, channels and error passthrough rules that
    /// the file does not name, and drop price overrides it does not name.
    pub prune: bool,
    /// Only report what would be done.
    pub dry_run: bool,
}

/// What [`Store::apply`] did, or would do. Objects are named like `groups/openai-main`, in the
/// order of the file.
#[derive(Clone, PartialEq, Debug, Default, serde::Serialize)]
pub struct ApplyReport {
    /// New objects.
    pub created: Vec<String>,
    /// Objects that were different.
    pub changed: Vec<String>,
    /// Objects that were so already.
    pub left: Vec<String>,
    /// Objects disabled by `prune`.
    pub removed: Vec<String>,
    /// Name and text of the keys made for entries without `key`; this is the only time they can
    /// be seen. Empty in a dry run. Not serialised: a report may be logged.
    #[serde(skip)]
    pub generated_keys: Vec<(String, crate::domain::Secret)>,
    /// What is allowed but hardly meant.
    #[serde(skip)]
    pub warnings: Vec<String>,
}

impl ApplyReport {
    /// Whether anything is different from before.
    pub fn has_changes(&self) -> bool {
        !(self.created.is_empty() && self.changed.is_empty() && self.removed.is_empty())
    }
}

impl Store {
    /// Makes the store hold what `resources` say. Objects are matched by name; lists that are
    /// left out leave their kind alone (unless pruned). A balance is only set when its user is
    /// created, as an opening credit in the ledger.
    ///
    /// # Errors
    /// [`StorageError::Invalid`] with every reference to a name that neither the file nor the
    /// store knows, every account in a group of another platform, every rule of a group that cannot be followed,
    /// every group with two enabled channels,
    /// every subscription that ends before it begins, every
    /// name given twice and every key text used twice; nothing was applied.
    pub async fn apply(
        &self,
        resources: &Resources,
        options: ApplyOptions,
    ) -> Result<ApplyReport, StorageError> {
        let txn = self.begin_write().await?;
        let held = Held::load(&txn).await?;
        let warnings = references::check(resources, &held, self.hasher(), options.prune)?;
        let mut pass = Pass::new(&txn, &held, resources, self.hasher(), &self.inner.sealer);
        pass.groups().await?;
        pass.users().await?;
        pass.accounts().await?;
        pass.api_keys().await?;
        pass.subscriptions().await?;
        pass.channels(options.prune).await?;
        pass.error_rules().await?;
        pass.prices().await?;
        if options.prune {
            pass.prune().await?;
        }
        let mut report = pass.into_report();
        report.warnings.extend(warnings);
        if options.dry_run {
            report.generated_keys.clear();
            txn.rollback().await?;
        } else {
            if report.has_changes() {
                meta::bump_version(&txn).await?;
            }
            txn.commit().await?;
        }
        Ok(report)
    }
}
