//! The other side of Tollgate, for its tests: a fake provider on a real socket, and raw clients
//! that can misbehave in every way a real one does. Knows nothing of Tollgate itself.
//!
//! - [`FakeUpstream`] listens on `127.0.0.1`, answers what it was told to ([`Answer`], [`Plans`])
//!   and remembers everything it received ([`Received`]).
//! - [`openai`] and [`anthropic`] render answers the official SDKs accept; [`echo`] chooses one by
//!   looking at the request, which is what a fake upstream does when it was told nothing. One fake
//!   speaks both dialects, each on its own paths.
//! - [`H1Client`] and [`H2Client`] send exact bytes and read answers piece by piece.
//! - [`TestCa`] makes the certificates for the TLS sides.
//!
//! Nothing here sleeps to wait for something to happen: conditions wait on a notification, and
//! every wait ends after [`LIMIT`] with an error that says what was seen.
//!
//! The same fake runs as a program, `fake-upstream`, for the SDK tests and the load comparison.

pub mod answer;
pub mod anthropic;
pub mod client;
pub mod echo;
pub mod gate;
mod link;
pub mod openai;
pub mod received;
pub mod sse;
pub mod tls;
pub mod upstream;
mod wire;

use std::time::Duration;

pub use answer::{Answer, Early, Ending, Framing, Pace, Plans, Reply, Response};
pub use client::{H1Client, H2Client, Reply as ClientReply, Request, post_json};
pub use gate::Gate;
pub use openai::Usage;
pub use received::Received;
pub use tls::TestCa;
pub use upstream::{Alpn, FakeUpstream};

/// The longest any wait in this crate lasts before it fails with what it saw.
pub const LIMIT: Duration = Duration::from_secs(20);
