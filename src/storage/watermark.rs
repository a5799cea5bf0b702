//! Up to where the journal has been applied. It is written in the transaction that applies it, so
//! that after a crash each entry is either before it and in the database, or after it and in neither.

use sea_orm::ConnectionTrait;
use sea_orm::sqlx::{self, Executor, SqliteConnection};

use super::convert::whole;
use super::rows::statement;
use super::{StorageError, Store};
use crate::domain::JournalPosition;

/// A journal's mark only ever moves forward.
const MOVE: &str = "INSERT INTO journal_watermark (journal, segment, offset, turn) VALUES (?1, ?2, ?3, \
     (SELECT COALESCE(MAX(turn), 0) + 1 FROM journal_watermark WHERE journal <> ?1)) \
     ON CONFLICT (journal) DO UPDATE \
     SET segment = excluded.segment, offset = excluded.offset, turn = excluded.turn \
     WHERE (excluded.segment, excluded.offset) >= (segment, offset)";

/// Notes that everything before `upto` is applied.
pub(super) async fn move_to(
    txn: &mut SqliteConnection,
    upto: JournalPosition,
) -> Result<(), StorageError> {
    let stored = |number: u64| {
        i64::try_from(number).map_err(|_| StorageError::Corrupt(format!("a place {upto}")))
    };
    let query = sqlx::query(MOVE)
        .bind(upto.journal.cast_signed())
        .bind(stored(upto.segment)?)
        .bind(stored(upto.offset)?);
    txn.execute(query).await?;
    Ok(())
}

impl Store {
    /// Up to where the journal that was last applied has been; `None` = nothing was ever applied from
    /// one. It says nothing about another journal (of a folder that was made anew): nothing of that
    /// has been applied.
    ///
    /// # Errors
    /// [`StorageError`] when the database cannot be read.
    pub async fn watermark(&self) -> Result<Option<JournalPosition>, StorageError> {
        let sql = "SELECT journal, segment, offset FROM journal_watermark \
                   ORDER BY turn DESC LIMIT 1";
        let reader = &self.inner.pools.reader;
        let row = reader.query_one_raw(statement(sql, Vec::new())).await?;
        row.map(|row| {
            let journal: i64 = row.try_get_by_index(0)?;
            Ok(JournalPosition {
                journal: journal.cast_unsigned(),
                segment: whole(row.try_get_by_index(1)?)?,
                offset: whole(row.try_get_by_index(2)?)?,
            })
        })
        .transpose()
    }
}
