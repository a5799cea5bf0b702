//! Background jobs: one file each, run as Pingora background services.

pub mod conditions;
pub mod follow;
pub mod heartbeat;
pub mod listening;
pub mod metrics;
pub mod prices;
pub mod reload;
pub mod sweep;
pub mod verify;
pub mod writer;
