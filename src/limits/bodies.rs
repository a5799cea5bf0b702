//! A bound on the sum of all request bodies held in memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts the bytes of bodies held, up to a limit.
#[derive(Debug)]
pub struct BodyBudget {
    limit: usize,
    held: AtomicUsize,
}

/// Bytes counted for one request. Dropping it gives them back.
#[derive(Debug)]
pub struct BodyHold {
    budget: Arc<BodyBudget>,
    bytes: usize,
}

/// The bodies of running requests fill the memory set aside for them.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many request bodies are held at this moment")]
pub struct BodiesFull;

impl BodyBudget {
    /// A budget of `limit` bytes.
    pub fn new(limit: usize) -> Arc<BodyBudget> {
        Arc::new(BodyBudget {
            limit,
            held: AtomicUsize::new(0),
        })
    }

    /// Bytes held at this moment.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// An empty hold, to be grown while a body is read.
    pub fn hold(self: &Arc<BodyBudget>) -> BodyHold {
        BodyHold {
            budget: self.clone(),
            bytes: 0,
        }
    }
}

impl BodyHold {
    /// Bytes counted.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Counts `bytes` more, or nothing at all when they do not fit. A single body always fits when
    /// nothing else is held, so that the largest allowed body can never be refused for ever.
    pub fn grow(&mut self, bytes: usize) -> Result<(), BodiesFull> {
        let own = self.bytes;
        self.budget
            .held
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| {
                let after = held.checked_add(bytes)?;
                (after <= self.budget.limit || held == own).then_some(after)
            })
            .map_err(|_| BodiesFull)?;
        self.bytes += bytes;
        Ok(())
    }

    /// Counts only `bytes` from now on, if that is less.
    pub fn shrink_to(&mut self, bytes: usize) {
        if let Some(surplus) = self.bytes.checked_sub(bytes) {
            self.budget.held.fetch_sub(surplus, Ordering::Relaxed);
            self.bytes = bytes;
        }
    }
}

impl Drop for BodyHold {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_is_bounded_and_comes_back() {
        let budget = BodyBudget::new(100);
        let mut one = budget.hold();
        let mut two = budget.hold();
        assert_eq!(one.grow(60), Ok(()));
        assert_eq!(two.grow(41), Err(BodiesFull));
        assert_eq!(two.grow(40), Ok(()));
        assert_eq!(budget.held(), 100);
        one.shrink_to(10);
        assert_eq!(two.grow(50), Ok(()));
        drop(one);
        drop(two);
        assert_eq!(budget.held(), 0);
    }

    #[test]
    fn one_body_larger_than_the_budget_passes_when_alone() {
        let budget = BodyBudget::new(100);
        let mut alone = budget.hold();
        assert_eq!(alone.grow(80), Ok(()));
        assert_eq!(alone.grow(80), Ok(()));
        let mut other = budget.hold();
        assert_eq!(other.grow(1), Err(BodiesFull));
    }
}
