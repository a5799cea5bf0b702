//! Filters know bytes, not people: everything Tollgate decides from a request or response alone.

pub mod affinity;
pub mod beta;
pub mod body;
pub mod client;
pub mod credential;
pub mod edits;
pub mod headers;
pub mod intercept;
mod json;
pub mod passthrough;
pub mod peek;
pub mod repair;
pub mod reply;
pub mod rewrite;
pub mod route;
pub mod sse;
pub mod usage;
pub mod validate;
pub mod verdict;
