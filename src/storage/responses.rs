//! Which account made which response, kept beyond a restart: bounded in number and age.
//!
//! Nearly every request makes one, and they are read at a start only. So they are appended, a batch of them
//! in one row, and nothing is looked for: where the same response was made or used again it stands again.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use sea_orm::ConnectionTrait;

use super::convert::{millis, time};
use super::rows::statement;
use super::{StorageError, Store};
use crate::domain::{AccountId, GroupId, ResponseBinding};

/// Bytes of one binding in a batch: group, key, account, last use.
const BINDING_BYTES: usize = 40;
/// Bindings in one row. What is kept is kept in whole rows.
const BATCH: usize = 1_000;
/// Rows read at once, some MB.
const READ_AT_ONCE: u32 = 100;
/// Rows removed in one transaction, so that nobody waits long for the write lock.
const PRUNED_AT_ONCE: u32 = 100;

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
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let sql = format!(
            "SELECT id, content FROM response_batches WHERE newest >= ? AND id < ? \
             ORDER BY id DESC LIMIT {READ_AT_ONCE}"
        );
        let mut found: HashMap<(GroupId, u128), ResponseBinding> = HashMap::new();
        let mut before = i64::MAX;
        while found.len() < limit {
            let values = vec![millis(not_before).into(), before.into()];
            let reader = &self.inner.pools.reader;
            let rows = reader.query_all_raw(statement(&*sql, values)).await?;
            for row in &rows {
                before = row.try_get_by_index(0)?;
                let content: Vec<u8> = row.try_get_by_index(1)?;
                for binding in unpack(&content)? {
                    let known = found.entry((binding.group, binding.key)).or_insert(binding);
                    if binding.at > known.at {
                        *known = binding;
                    }
                }
            }
            if rows.is_empty() {
                break;
            }
        }
        let mut bindings: Vec<ResponseBinding> = found
            .into_values()
            .filter(|binding| binding.at >= not_before)
            .collect();
        bindings.sort_unstable_by_key(|binding| std::cmp::Reverse(binding.at));
        bindings.truncate(limit);
        Ok(bindings)
    }

    /// Writes bindings, in one transaction. Of two with the same key the one used last counts,
    /// whatever the order in which they come. The change counter stays as it is.
    ///
    /// # Errors
    /// [`StorageError`] when the database cannot be written; then nothing of it was.
    pub async fn save_responses(&self, bindings: &[ResponseBinding]) -> Result<(), StorageError> {
        if bindings.is_empty() {
            return Ok(());
        }
        let txn = self.begin_write().await?;
        for batch in bindings.chunks(BATCH) {
            let mut content = Vec::with_capacity(batch.len() * BINDING_BYTES);
            let mut newest = i64::MIN;
            for binding in batch {
                let (group, account, at) = (binding.group.0, binding.account.0, millis(binding.at));
                pack(&mut content, group, binding.key.to_be_bytes(), account, at);
                newest = newest.max(at);
            }
            txn.execute_raw(statement(
                "INSERT INTO response_batches (bindings, newest, content) VALUES (?, ?, ?)",
                vec![
                    i64::try_from(batch.len()).unwrap_or(i64::MAX).into(),
                    newest.into(),
                    content.into(),
                ],
            ))
            .await?;
        }
        txn.commit().await?;
        Ok(())
    }

    /// Removes batches of bindings without which there are still the `keep` written last, and those of
    /// which none was used since `not_before`, some a transaction; how many bindings that were.
    ///
    /// # Errors
    /// [`StorageError`] when the database cannot be written; some may be gone then.
    pub async fn prune_responses(
        &self,
        keep: u32,
        not_before: DateTime<Utc>,
    ) -> Result<u64, StorageError> {
        // The batch with which there are enough, counted from the last one.
        let sql = "SELECT id FROM (SELECT id, SUM(bindings) OVER (ORDER BY id DESC) AS sum \
                   FROM response_batches) WHERE sum >= ? ORDER BY id DESC LIMIT 1";
        let enough = self
            .inner
            .pools
            .reader
            .query_one_raw(statement(sql, vec![i64::from(keep).into()]))
            .await?;
        let first_kept = match enough {
            _ if keep == 0 => i64::MAX,
            Some(row) => row.try_get_by_index(0)?,
            None => i64::MIN,
        };
        let sql = format!(
            "DELETE FROM response_batches WHERE id IN (SELECT id FROM response_batches \
             WHERE id < ? OR newest < ? ORDER BY id LIMIT {PRUNED_AT_ONCE}) RETURNING bindings"
        );
        let mut removed = 0;
        loop {
            let values = vec![first_kept.into(), millis(not_before).into()];
            let txn = self.begin_write().await?;
            let gone = txn.query_all_raw(statement(&*sql, values)).await?;
            txn.commit().await?;
            if gone.is_empty() {
                return Ok(removed);
            }
            for row in gone {
                let bindings: i64 = row.try_get_by_index(0)?;
                removed += bindings.unsigned_abs();
            }
        }
    }
}

/// Adds a binding to a batch.
pub(super) fn pack(batch: &mut Vec<u8>, group: i64, key: [u8; 16], account: i64, used_at: i64) {
    batch.extend_from_slice(&group.to_be_bytes());
    batch.extend_from_slice(&key);
    batch.extend_from_slice(&account.to_be_bytes());
    batch.extend_from_slice(&used_at.to_be_bytes());
}

/// The bindings of a batch.
fn unpack(batch: &[u8]) -> Result<Vec<ResponseBinding>, StorageError> {
    let (bindings, rest) = batch.as_chunks::<BINDING_BYTES>();
    if !rest.is_empty() {
        let what = "a batch of responses ends in the middle of one";
        return Err(StorageError::Corrupt(what.to_owned()));
    }
    bindings.iter().map(binding).collect()
}

fn binding(bytes: &[u8; BINDING_BYTES]) -> Result<ResponseBinding, StorageError> {
    let (mut number, mut key) = ([0; 8], [0; 16]);
    let mut at = |range: std::ops::Range<usize>| {
        number.copy_from_slice(&bytes[range]);
        i64::from_be_bytes(number)
    };
    let (group, account, used_at) = (at(0..8), at(24..32), at(32..40));
    key.copy_from_slice(&bytes[8..24]);
    Ok(ResponseBinding {
        group: GroupId(group),
        key: u128::from_be_bytes(key),
        account: AccountId(account),
        at: time(used_at)?,
    })
}
