//! Rows compared and inserted column by column, for any table.

use sea_orm::{
    ActiveModelTrait, DatabaseTransaction, EntityTrait, IdenStatic, IntoActiveModel, Iterable,
    ModelTrait,
};

use crate::storage::StorageError;
use crate::storage::rows::rows_per_statement;

/// The columns in which `wanted` differs from `held`; `None` when there are none.
pub(super) fn difference<M, A>(held: &M, wanted: &M) -> Option<A>
where
    M: ModelTrait + IntoActiveModel<A>,
    A: ActiveModelTrait<Entity = M::Entity>,
{
    let mut change = A::default();
    let mut differs = false;
    for column in <M::Entity as EntityTrait>::Column::iter() {
        let value = wanted.get(column);
        if value != held.get(column) {
            change.set(column, value);
            differs = true;
        }
    }
    differs.then_some(change)
}

/// Inserts many rows; an `id` column is left to the database.
pub(super) async fn insert<M, A>(
    txn: &DatabaseTransaction,
    rows: Vec<M>,
) -> Result<(), StorageError>
where
    M: ModelTrait + IntoActiveModel<A>,
    A: ActiveModelTrait<Entity = M::Entity>,
{
    let columns = <M::Entity as EntityTrait>::Column::iter().count();
    let mut rows = rows.into_iter().peekable();
    while rows.peek().is_some() {
        let chunk = rows.by_ref().take(rows_per_statement(columns)).map(|row| {
            let mut row = row.into_active_model().reset_all();
            for column in <M::Entity as EntityTrait>::Column::iter() {
                if column.as_str() == "id" {
                    row.not_set(column);
                }
            }
            row
        });
        A::Entity::insert_many(chunk)
            .exec_without_returning(txn)
            .await?;
    }
    Ok(())
}
