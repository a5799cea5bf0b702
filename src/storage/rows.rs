//! Statements over many rows at once. Only a few row counts are used, so that the prepared
//! statements are few and stay in the connection's cache.

use sea_orm::{DbBackend, Statement, Value};

/// Row counts of the prepared statements, largest first.
const CHUNKS: [usize; 3] = [64, 8, 1];

/// Variables SQLite allows in one statement.
const MAX_VARIABLES: usize = 32_766;

/// Cuts `rows` into pieces of the prepared sizes.
pub(super) fn chunks<T>(rows: &[T]) -> impl Iterator<Item = &[T]> {
    let mut rest = rows;
    std::iter::from_fn(move || {
        let size = CHUNKS.into_iter().find(|size| *size <= rest.len())?;
        let (chunk, tail) = rest.split_at(size);
        rest = tail;
        Some(chunk)
    })
}

/// How many rows of `columns` values fit into one statement built by sea-orm.
pub(super) const fn rows_per_statement(columns: usize) -> usize {
    MAX_VARIABLES / columns
}

/// `(?,?),(?,?)`: `rows` tuples of `columns` variables.
pub(super) fn tuples(rows: usize, columns: usize) -> String {
    let tuple = format!("({})", vec!["?"; columns].join(","));
    vec![tuple.as_str(); rows].join(",")
}

/// A statement with its values.
pub(super) fn statement(sql: impl Into<String>, values: Vec<Value>) -> Statement {
    Statement::from_sql_and_values(DbBackend::Sqlite, sql, values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_every_row_once() {
        for length in [0, 1, 7, 8, 63, 64, 65, 1000] {
            let rows: Vec<usize> = (0..length).collect();
            let pieces: Vec<&[usize]> = chunks(&rows).collect();
            assert_eq!(pieces.concat(), rows);
            assert!(pieces.iter().all(|p| CHUNKS.contains(&p.len())));
        }
    }

    #[test]
    fn tuples_are_written_as_sql() {
        assert_eq!(tuples(2, 3), "(?,?,?),(?,?,?)");
        assert_eq!(tuples(1, 1), "(?)");
    }
}
