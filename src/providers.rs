//! What differs from provider to provider: addresses, credentials, headers. Data and small
//! functions, not a framework.

pub mod anthropic;
pub mod antigravity;
pub mod egress;
pub mod openai;
pub mod resolve;
pub mod target;
