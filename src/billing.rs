//! Money: what a request costs, who may spend it, and how it is never lost.
//!
//! [`price_map`] knows which prices apply to a model's name, [`channel`] what an operator's channel
//! makes of that, [`pricing`] what tokens cost and [`image`] images. A [`quote`] puts them together for
//! one request: it says before what the request may cost at most ([`bound`]), and after what it does
//! cost; [`estimate`] what is taken where a provider did not say. All of them are pure: no clock, no I/O.
//!
//! [`book`] decides whether it may be spent and holds it meanwhile. [`journal`] is where what was used is
//! written first. [`account_quota`] and [`window_cost`] know what accounts have cost.

pub mod account_quota;
pub mod book;
pub mod bound;
pub mod channel;
pub mod estimate;
pub mod image;
pub mod journal;
pub mod price_map;
pub mod pricing;
pub mod quote;
pub mod window_cost;
