//! Panics stay inside the request they happen in.
//!
//! Pingora would drop the request's task, and with it the connection. What is held is given back
//! either way (guards); here the client is told as well, and its next request on the connection is
//! served.

use std::panic::AssertUnwindSafe;

use futures::FutureExt;

/// Something in a request panicked. The log has the place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Panicked;

/// Runs a stage of a request.
pub async fn contain<T>(stage: impl Future<Output = T>) -> Result<T, Panicked> {
    // What a stage was changing is the request's own; it is ended next and not used again.
    AssertUnwindSafe(stage)
        .catch_unwind()
        .await
        .map_err(|_| Panicked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_becomes_an_error_and_a_value_passes() {
        assert_eq!(contain(async { 7 }).await, Ok(7));
        let panicking = async { panic!("a test's panic") };
        assert_eq!(contain::<()>(panicking).await, Err(Panicked));
    }
}
