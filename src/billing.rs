//! Money: what a request costs.
//!
//! [`price_map`] knows which prices apply to a model's name, [`pricing`] what a request costs at
//! them. Both are pure: no clock, no I/O.

pub mod account_quota;
pub mod balances;
pub mod book;
pub mod outbox;
pub mod price_map;
pub mod pricing;
