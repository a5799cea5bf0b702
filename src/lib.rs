//! Tollgate: an edge reverse proxy between AI clients and AI providers.
//!
//! The rooms, in dependency order; every arrow goes down (ARCHITECTURE.md has the picture):
//! `main → app → proxy, jobs, admin, cli → auth, limits, scheduler, billing, providers →
//! state, storage → domain, config → filters`.

pub mod admin;
pub mod app;
pub mod auth;
pub mod billing;
pub mod cli;
pub mod config;
pub mod domain;
pub mod jobs;
pub mod limits;
pub mod logging;
pub mod metrics;
pub mod providers;
pub mod proxy;
pub mod scheduler;
pub mod state;
pub mod storage;
