//! Records that belong to nobody here: their user or key is not in the database, or its number is
//! another's. A database that was put back from a backup beside a newer journal is given them. They
//! must not stop the records behind them, and nobody else may be charged for them: they are written to
//! a file for the operator, and said in the log.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use sea_orm::sqlx::{self, Executor, Row, SqliteConnection};

use super::convert::to_json;
use super::rows::statement;
use super::usage::UsageRecordView;
use super::{StorageError, Store};
use crate::domain::UsageRecord;

/// The file's name in the data directory. Each line is a record as `usage records --json` has them, with
/// `reason`, `user_id` and `api_key_id` before it.
const FILE: &str = "unbilled.jsonl";
/// Request ids asked for in one statement: some hundred kilobytes of text.
const ASKED_AT_ONCE: usize = 10_000;

/// Whose records these are. Users and keys are known by their names, which never change, and none is ever
/// deleted: what was found once stays so.
#[derive(Debug, Default)]
pub(super) struct KnownOwners {
    users: HashMap<i64, Box<str>>,
    keys: HashMap<i64, Box<str>>,
    /// Written to the file by a batch that is not committed yet. It will come again.
    written: HashSet<String>,
}

impl KnownOwners {
    fn unknown(&self, batch: &[&UsageRecord]) -> (BTreeSet<i64>, BTreeSet<i64>) {
        let users = batch.iter().map(|r| r.user_id.0);
        let keys = batch.iter().map(|r| r.api_key_id.0);
        (
            users.filter(|id| !self.users.contains_key(id)).collect(),
            keys.filter(|id| !self.keys.contains_key(id)).collect(),
        )
    }

    /// Why a record is nobody's here; `None` = it is as it should be.
    fn objection(&self, record: &UsageRecord) -> Option<String> {
        let owners = [
            ("user", &self.users, record.user_id.0, &record.user),
            ("key", &self.keys, record.api_key_id.0, &record.api_key),
        ];
        owners.into_iter().find_map(|(kind, known, id, name)| {
            match known.get(&id).map(AsRef::as_ref) {
                Some(found) if found == name => None,
                Some(found) => Some(format!(
                    "{kind} {id} is {found:?} in this database, not {name:?}"
                )),
                None => Some(format!(
                    "there is no {kind} {id} ({name:?}) in this database"
                )),
            }
        })
    }
}

/// A record that is put aside, and why.
pub(super) type Aside<'a> = (&'a UsageRecord, String);

#[derive(serde::Serialize)]
struct Line<'a> {
    reason: &'a str,
    user_id: i64,
    api_key_id: i64,
    #[serde(flatten)]
    record: UsageRecordView,
}

impl Store {
    /// Parts a batch into what is to be settled and what is put aside, each in its order. A record that
    /// is in the database already is never put aside.
    pub(super) async fn sort_out<'a>(
        &self,
        txn: &mut SqliteConnection,
        batch: &[&'a UsageRecord],
    ) -> Result<(Vec<&'a UsageRecord>, Vec<Aside<'a>>), StorageError> {
        let (users, keys) = self.inner.owners.lock().unknown(batch);
        let users = names(txn, FIND_USERS, users).await?;
        let keys = names(txn, FIND_KEYS, keys).await?;
        let (mut good, mut aside) = (Vec::with_capacity(batch.len()), Vec::new());
        {
            let mut owners = self.inner.owners.lock();
            owners.users.extend(users);
            owners.keys.extend(keys);
            for record in batch {
                match owners.objection(record) {
                    None => good.push(*record),
                    Some(reason) => aside.push((*record, reason)),
                }
            }
        }
        if !aside.is_empty() {
            let ids: Vec<&str> = aside.iter().map(|(r, _)| r.request_id.as_str()).collect();
            let mut known: HashSet<String> = HashSet::new();
            let query = sqlx::query(FIND_REQUESTS).bind(to_json(&ids)?);
            for row in txn.fetch_all(query).await? {
                known.insert(row.try_get(0)?);
            }
            // Of two with one id the first counts.
            aside.retain(|(record, _)| known.insert(record.request_id.clone()));
        }
        Ok((good, aside))
    }

    /// Writes what is put aside to the file, safe on the disk when it returns: before the batch is
    /// committed, since afterwards it would not be given again. This waits for the disk, as hardly ever
    /// happens.
    pub(super) fn put_aside(&self, aside: &[Aside<'_>]) -> Result<(), StorageError> {
        let mut owners = self.inner.owners.lock();
        let mut lines = String::new();
        let mut fresh = Vec::new();
        for (record, reason) in aside {
            if owners.written.contains(&record.request_id) {
                continue;
            }
            lines += &to_json(&Line {
                reason,
                user_id: record.user_id.0,
                api_key_id: record.api_key_id.0,
                record: UsageRecordView::of(record),
            })?;
            lines.push('\n');
            fresh.push((*record, reason));
        }
        if fresh.is_empty() {
            return Ok(());
        }
        let path = self.inner.data_dir.join(FILE);
        append(&self.inner.data_dir, &path, &lines)
            .map_err(|source| StorageError::Io { path, source })?;
        for (record, reason) in fresh {
            log::error!(
                "request {} of user {:?} is not charged: {reason}; it is in {FILE}",
                record.request_id,
                record.user
            );
            owners.written.insert(record.request_id.clone());
        }
        Ok(())
    }

    /// Forgets what was put aside by a batch that is committed.
    pub(super) fn forget_aside(&self, aside: &[Aside<'_>]) {
        if aside.is_empty() {
            return;
        }
        let mut owners = self.inner.owners.lock();
        for (record, _) in aside {
            owners.written.remove(&record.request_id);
        }
    }

    /// Which of these requests have a record.
    ///
    /// # Errors
    /// [`StorageError`] when the database cannot be read.
    pub async fn known_requests(
        &self,
        request_ids: &[String],
    ) -> Result<HashSet<String>, StorageError> {
        use sea_orm::ConnectionTrait;
        let mut known = HashSet::new();
        for ids in request_ids.chunks(ASKED_AT_ONCE) {
            let values = vec![to_json(&ids)?.into()];
            let reader = &self.inner.pools.reader;
            for row in reader
                .query_all_raw(statement(FIND_REQUESTS, values))
                .await?
            {
                known.insert(row.try_get_by_index(0)?);
            }
        }
        Ok(known)
    }
}

const FIND_USERS: &str = "SELECT id, name FROM users WHERE id IN (SELECT value FROM json_each(?))";
const FIND_KEYS: &str =
    "SELECT id, name FROM api_keys WHERE id IN (SELECT value FROM json_each(?))";
const FIND_REQUESTS: &str = "SELECT request_id FROM usage_entries \
     WHERE request_id IN (SELECT value FROM json_each(?))";

async fn names(
    txn: &mut SqliteConnection,
    sql: &'static str,
    ids: BTreeSet<i64>,
) -> Result<Vec<(i64, Box<str>)>, StorageError> {
    let mut names = Vec::new();
    if !ids.is_empty() {
        for row in txn.fetch_all(sqlx::query(sql).bind(to_json(&ids)?)).await? {
            names.push((row.try_get(0)?, row.try_get(1)?));
        }
    }
    Ok(names)
}

fn append(directory: &Path, path: &Path, lines: &str) -> std::io::Result<()> {
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(lines.as_bytes())?;
    file.sync_all()?;
    // The name of a new file must last as well.
    File::open(directory)?.sync_all()
}
