//! Integration tests: a real `tollgate` process, real sockets, a real SQLite, a fake provider.

#![expect(
    clippy::disallowed_methods,
    reason = "the harness waits for the server's process and in Drop, where nothing can be awaited"
)]

mod auth;
mod beta;
mod billing;
mod bodies;
mod call;
mod cells;
mod chance;
mod claude;
mod conditions;
mod dialect;
mod disconnects;
mod egress;
mod failover;
mod fallback;
mod faults;
mod framing;
mod gates;
mod groups;
mod harness;
mod intercepts;
mod lifecycle;
mod message_queue;
mod messages;
mod metrics;
mod mixed;
mod models;
mod money;
mod operate;
mod prices;
mod refusals;
mod refused_messages;
mod repairs;
mod routing;
mod rules;
mod scheduling;
mod settling;
mod smoke;
mod streaming;
mod stress;
mod turns;
mod uploads;
mod usage;
mod waiting;
