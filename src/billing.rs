//! Money: what a request costs.
//!
//! [`price_map`] knows which prices apply to a model's name, [`channel`] what an operator's channel
//! makes of that, [`pricing`] what tokens cost and [`image`] images. A [`quote`] puts them together for
//! one request: it says before what the request may cost at most ([`bound`]), and after what it does
//! cost. All of them are pure: no clock, no I/O.

pub mod balances;
pub mod bound;
pub mod channel;
pub mod image;
pub mod outbox;
pub mod price_map;
pub mod pricing;
pub mod quote;
