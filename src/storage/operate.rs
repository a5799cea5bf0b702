//! Single changes an operator makes from the command line: a new key, accounts paused or resumed.

use chrono::{DateTime, Utc};
use sea_orm::ActiveValue::{NotSet, Set};
use sea_orm::{
    ColumnTrait, DatabaseTransaction, EntityTrait, PaginatorTrait, QueryFilter, QueryOrder,
    QuerySelect,
};

use super::convert::{millis, now_millis};
use super::entities::{account, api_key, group, user};
use super::seal::{generate_key, hint};
use super::{StorageError, Store, conditions, meta, windows};
use crate::domain::Secret;
use crate::domain::text::{NAME_RULE, is_name};

/// Which objects an operation is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Names<'a> {
    /// These.
    List(&'a [String]),
    /// Every one there is.
    All,
}

impl Store {
    /// Makes a key for a user in a group and returns it, the only time it can be seen. Without a
    /// name it is called `<user>-<n>`.
    ///
    /// # Errors
    /// [`StorageError::NotFound`] for an unknown user or group, [`StorageError::Invalid`] when the
    /// name is taken.
    pub async fn create_key(
        &self,
        user: &str,
        group: &str,
        name: Option<&str>,
    ) -> Result<Secret, StorageError> {
        let txn = self.begin_write().await?;
        let user_id: i64 = user::Entity::find()
            .select_only()
            .column(user::Column::Id)
            .filter(user::Column::Name.eq(user))
            .into_tuple()
            .one(&txn)
            .await?
            .ok_or_else(|| not_found("user", user))?;
        let group_id: i64 = group::Entity::find()
            .select_only()
            .column(group::Column::Id)
            .filter(group::Column::Name.eq(group))
            .into_tuple()
            .one(&txn)
            .await?
            .ok_or_else(|| not_found("group", group))?;
        let name = match name {
            Some(name) if !is_name(name) => {
                return Err(StorageError::Invalid(vec![format!(
                    "name: must be {NAME_RULE}"
                )]));
            }
            Some(name) if is_taken(&txn, name).await? => {
                return Err(StorageError::Invalid(vec![format!(
                    "name: there is already a key named {name}"
                )]));
            }
            Some(name) => name.to_owned(),
            None => free_name(&txn, user, user_id).await?,
        };
        let key = generate_key()?;
        let row = api_key::ActiveModel {
            id: NotSet,
            name: Set(name),
            enabled: Set(true),
            key_hash: Set(self.hasher().hash(key.expose()).0.to_vec()),
            hint: Set(hint(key.expose())),
            user_id: Set(Some(user_id)),
            group_id: Set(Some(group_id)),
            quota_nanos: Set(None),
            quota_used_nanos: Set(0),
            rate_limit_5h_nanos: Set(None),
            rate_limit_1d_nanos: Set(None),
            rate_limit_7d_nanos: Set(None),
            expires_at: Set(None),
            ip_allow: Set("[]".to_owned()),
            ip_deny: Set("[]".to_owned()),
            created_at: Set(now_millis()),
        };
        api_key::Entity::insert(row)
            .exec_without_returning(&txn)
            .await?;
        meta::bump_version(&txn).await?;
        txn.commit().await?;
        Ok(key)
    }

    /// Takes accounts out of scheduling, or puts them back: then what began before `now` to keep
    /// them from being chosen (errors, limits, cool-downs) is void, so are strikes, and what is used up
    /// of their quotas begins anew. Returns the names it was done to, in order.
    ///
    /// # Errors
    /// [`StorageError::NotFound`] with every name that does not exist; then nothing was done.
    pub async fn set_paused(
        &self,
        names: Names<'_>,
        paused: bool,
        now: DateTime<Utc>,
    ) -> Result<Vec<String>, StorageError> {
        let txn = self.begin_write().await?;
        let mut existing: Vec<(i64, String)> = account::Entity::find()
            .select_only()
            .columns([account::Column::Id, account::Column::Name])
            .order_by_asc(account::Column::Name)
            .into_tuple()
            .all(&txn)
            .await?;
        if let Names::List(wanted) = names {
            let missing: Vec<&str> = wanted
                .iter()
                .map(String::as_str)
                .filter(|name| !existing.iter().any(|(_, known)| known == name))
                .collect();
            if !missing.is_empty() {
                return Err(not_found("account", &missing.join(", ")));
            }
            existing.retain(|(_, name)| wanted.contains(name));
        }
        let change = account::ActiveModel {
            paused: Set(paused),
            resumed_at: if paused {
                NotSet
            } else {
                Set(Some(millis(now)))
            },
            ..account::ActiveModel::default()
        };
        for (id, _) in &existing {
            account::Entity::update_many()
                .set(change.clone())
                .filter(account::Column::Id.eq(*id))
                .exec(&txn)
                .await?;
            if !paused {
                conditions::lift(&txn, *id, now).await?;
                windows::begin_anew(&txn, *id, now).await?;
            }
        }
        if !existing.is_empty() {
            meta::bump_version(&txn).await?;
        }
        txn.commit().await?;
        Ok(existing.into_iter().map(|(_, name)| name).collect())
    }
}

/// `<user>-<n>` with the first free number from the user's count of keys on.
async fn free_name(
    txn: &DatabaseTransaction,
    user: &str,
    user_id: i64,
) -> Result<String, StorageError> {
    let held = api_key::Entity::find()
        .filter(api_key::Column::UserId.eq(user_id))
        .count(txn)
        .await?;
    let mut number = held + 1;
    loop {
        let name = format!("{user}-{number}");
        if !is_taken(txn, &name).await? {
            return Ok(name);
        }
        number += 1;
    }
}

async fn is_taken(txn: &DatabaseTransaction, name: &str) -> Result<bool, StorageError> {
    let held = api_key::Entity::find()
        .filter(api_key::Column::Name.eq(name))
        .count(txn)
        .await?;
    Ok(held > 0)
}

fn not_found(kind: &'static str, name: &str) -> StorageError {
    StorageError::NotFound {
        kind,
        name: name.to_owned(),
    }
}
