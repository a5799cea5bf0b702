//! Filters know bytes, not people: everything Tollgate decides from a request or response alone.

pub mod usage;
