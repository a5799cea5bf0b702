//! Which account made which response, kept beyond a restart: bounded in number and age.

use chrono::{DateTime, Utc};
use sea_orm::ConnectionTrait;

use super::convert::{millis, time};
use super::rows::{chunks, statement, tuples};
use super::{StorageError, Store};
use crate::domain::{AccountId, GroupId, ResponseBinding};

/// Rows removed in one transaction, so that nobody waits long for the write lock.
const PRUNED_AT_ONCE: u64 = 5_000;

impl Store {
    /// The bindings used last, newest first: at most `limit`, none used before `not_before`.
    ///
    /// # Errors
    /// [`StorageError`] when the database or a row cannot be read.
    pub async fn load_responses(
        &self,
        limit: u32,
        not_before: DateTime<Utc>,
    ) -> Result<Vec<ResponseBinding>, StorageError> {
        let sql = "SELECT group_id, key, account_id, used_at FROM response_bindings \
                   WHERE used_at >= ? ORDER BY used_at DESC LIMIT ?";
        let values = vec![millis(not_before).into(), i64::from(limit).into()];
        self.inner
            .pools
            .reader
            .query_all_raw(statement(sql, values))
            .await?
            .iter()
            .map(|row| {
                let key: Vec<u8> = row.try_get_by_index(1)?;
                let key = <[u8; 16]>::try_from(key)
                    .map_err(|_| StorageError::Corrupt("the key of a response".to_owned()))?;
                Ok(ResponseBinding {
                    group: GroupId(row.try_get_by_index(0)?),
                    key: u128::from_be_bytes(key),
                    account: AccountId(row.try_get_by_index(2)?),
                    at: time(row.try_get_by_index(3)?)?,
                })
            })
            .collect()
    }

    /// Writes bindings, in one transaction. Of two with the same key the one used last stays,
    /// whatever the order in which they come. The change counter stays as it is.
    ///
    /// # Errors
    /// [`StorageError`] when the database cannot be written; then nothing of it was.
    pub async fn save_responses(&self, bindings: &[ResponseBinding]) -> Result<(), StorageError> {
        if bindings.is_empty() {
            return Ok(());
        }
        let txn = self.begin_write().await?;
        for chunk in chunks(bindings) {
            let sql = format!(
                "INSERT INTO response_bindings (group_id, key, account_id, used_at) VALUES {} \
                 ON CONFLICT (group_id, key) DO UPDATE \
                 SET account_id = excluded.account_id, used_at = excluded.used_at \
                 WHERE excluded.used_at >= used_at",
                tuples(chunk.len(), 4)
            );
            let values = chunk.iter().flat_map(|binding| {
                [
                    binding.group.0.into(),
                    binding.key.to_be_bytes().to_vec().into(),
                    binding.account.0.into(),
                    millis(binding.at).into(),
                ]
            });
            txn.execute_raw(statement(sql, values.collect())).await?;
        }
        txn.commit().await?;
        Ok(())
    }

    /// Removes bindings beyond the `keep` used last and those used before `not_before`, a few
    /// thousand a transaction; how many. Of those used in the same millisecond all are kept.
    ///
    /// # Errors
    /// [`StorageError`] when the database cannot be written; some may be gone then.
    pub async fn prune_responses(
        &self,
        keep: u32,
        not_before: DateTime<Utc>,
    ) -> Result<u64, StorageError> {
        let sql = "SELECT used_at FROM response_bindings ORDER BY used_at DESC LIMIT 1 OFFSET ?";
        let last_kept = self
            .inner
            .pools
            .reader
            .query_one_raw(statement(
                sql,
                vec![i64::from(keep.saturating_sub(1)).into()],
            ))
            .await?;
        let mut before = millis(not_before);
        if let Some(row) = last_kept {
            before = before.max(row.try_get_by_index(0)?);
        }
        if keep == 0 {
            before = i64::MAX;
        }
        let sql = format!(
            "DELETE FROM response_bindings WHERE (group_id, key) IN (SELECT group_id, key \
             FROM response_bindings WHERE used_at < ? ORDER BY used_at LIMIT {PRUNED_AT_ONCE})"
        );
        let mut removed = 0;
        loop {
            let txn = self.begin_write().await?;
            let done = txn
                .execute_raw(statement(sql.as_str(), vec![before.into()]))
                .await?
                .rows_affected();
            txn.commit().await?;
            removed += done;
            if done < PRUNED_AT_ONCE {
                return Ok(removed);
            }
        }
    }
}
