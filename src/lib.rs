//! Tollgate: an edge reverse proxy between AI clients and AI providers.
//!
//! The rooms, in dependency order; every arrow goes down (ARCHITECTURE.md has the picture):
//! `main → app → proxy, jobs, admin, cli → auth, limits, scheduler, billing, providers →
//! state, storage → domain, config → filters`.

pub mod billing;
pub mod config;
pub mod domain;
pub mod logging;
pub mod storage;
