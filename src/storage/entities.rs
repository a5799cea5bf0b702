//! One module per table that is read as rows, columns as in `migrations/`; only this room sees
//! them. The ledger is only ever appended to and summed up: `ledger.rs`; usage records
//! are two tables joined: `usage.rs`.

pub mod account;
pub mod account_group;
pub mod api_key;
pub mod channel;
pub mod channel_group;
pub mod error_rule;
pub mod group;
pub mod price_override;
pub mod subscription;
pub mod user;
pub mod user_multiplier;
