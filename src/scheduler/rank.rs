//! The order in which accounts of one tier are tried (SPEC 6.6, without its priority factor: tiers are
//! strict here, Change 10). Numbers in, numbers out.
//!
//! The best K by score are put into a weighted random order, so that equals share the work; the others
//! follow by score (Change 9: nobody is left out). The chance of an account comes from the request's seed
//! and its own id alone: the same conversation meets the same order as long as the scores stay, and
//! nearly the same when a score changes a little, or when an account comes or goes.

use std::cmp::Ordering;

use crate::config::SchedulingWeights;
use crate::domain::{AccountId, GroupId};
use crate::state::Load;

/// What a request's order depends on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seed(pub u64);

/// FNV-1a, 64 bits.
const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

impl Seed {
    /// Of the conversation's key, the response that the request goes on from, the model and the
    /// group. Without the first two, which would give every request for a model the same order,
    /// `entropy` is mixed in.
    pub fn of(
        session: Option<&[u8]>,
        previous_response: Option<&[u8]>,
        model: &str,
        group: GroupId,
        entropy: u64,
    ) -> Seed {
        let mut hash = FNV_OFFSET;
        let mut eat = |bytes: &[u8]| {
            for byte in bytes {
                hash = (hash ^ u64::from(*byte)).wrapping_mul(FNV_PRIME);
            }
        };
        let known = |part: Option<&'_ [u8]>| part.is_some_and(|bytes| !bytes.is_empty());
        for part in [session, previous_response, Some(model.as_bytes())] {
            if let Some(bytes) = part.filter(|bytes| !bytes.is_empty()) {
                eat(bytes);
                eat(&[0]);
            }
        }
        let mut digits = [0_u8; 20];
        let mut start = digits.len();
        let mut rest = group.0.unsigned_abs();
        loop {
            start -= 1;
            digits[start] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        if group.0 < 0 {
            eat(b"-");
        }
        eat(&digits[start..]);
        if !known(session) && !known(previous_response) {
            hash ^= entropy;
        }
        Seed(hash)
    }
}

/// xorshift64*.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rng(u64);

impl Rng {
    pub(super) fn new(seed: Seed) -> Rng {
        // Neighbouring seeds (ids, times) must not give neighbouring streams, and zero gives none.
        let mut x = seed.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Rng((x ^ (x >> 31)).max(1))
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Above 0, at most 1.
    fn unit(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }

    /// Below `bound`; 0 when that is 0.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }
}

/// Held and waiting requests in percent of what the account should carry. May exceed 100.
pub fn load_rate(load: Load, capacity: u32) -> f64 {
    (f64::from(load.held) + f64::from(load.waiting)) * 100.0 / f64::from(capacity.max(1))
}

/// An account as the score sees it.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Contender {
    /// Which.
    pub id: AccountId,
    /// See [`load_rate`].
    pub load: f64,
    /// Requests in line for it.
    pub waiting: u32,
    /// Average of failures, 0 to 1.
    pub errors: f64,
    /// Average time to the first token; `None` = not known.
    pub first_token_ms: Option<f64>,
}

/// What the scores compare the accounts with.
#[derive(Clone, Copy, Debug)]
struct Field {
    most_waiting: f64,
    quickest_ms: f64,
    slowest_ms: f64,
    skew: f64,
}

impl Field {
    fn of(contenders: &[Contender]) -> Field {
        let mut most_waiting = 1;
        let (mut quickest_ms, mut slowest_ms) = (f64::INFINITY, f64::NEG_INFINITY);
        let mut sum = 0.0;
        for contender in contenders {
            most_waiting = most_waiting.max(contender.waiting);
            sum += contender.load;
            if let Some(ms) = contender.first_token_ms {
                quickest_ms = quickest_ms.min(ms);
                slowest_ms = slowest_ms.max(ms);
            }
        }
        let count = contenders.len().max(1) as f64;
        let mean = sum / count;
        let squares: f64 = contenders.iter().map(|c| (c.load - mean).powi(2)).sum();
        Field {
            most_waiting: f64::from(most_waiting),
            quickest_ms,
            slowest_ms,
            skew: (squares / count).sqrt(),
        }
    }

    fn score(&self, contender: &Contender, weights: &SchedulingWeights) -> f64 {
        let free = |used: f64| 1.0 - used.clamp(0.0, 1.0);
        let spread_ms = self.slowest_ms - self.quickest_ms;
        let first_token = match contender.first_token_ms {
            Some(ms) if spread_ms > 0.0 => free((ms - self.quickest_ms) / spread_ms),
            _ => 0.5,
        };
        weights.load * free(contender.load / 100.0)
            + weights.queue * free(f64::from(contender.waiting) / self.most_waiting)
            + weights.error * free(contender.errors)
            + weights.first_token * first_token
    }
}

/// A contender with its place before the draw.
#[derive(Clone, Copy, Debug)]
struct Scored {
    score: f64,
    load: f64,
    waiting: u32,
    id: AccountId,
    index: u32,
}

impl Scored {
    /// Better first.
    fn compare(&self, other: &Scored) -> Ordering {
        other
            .score
            .total_cmp(&self.score)
            .then(self.load.total_cmp(&other.load))
            .then(self.waiting.cmp(&other.waiting))
            .then(self.id.cmp(&other.id))
    }
}

/// Accounts in the order in which they are to be tried.
#[derive(Clone, Debug)]
pub struct Ranked {
    first: Vec<u32>,
    rest: Vec<Scored>,
    /// Population standard deviation of the load rates.
    pub skew: f64,
}

impl Ranked {
    /// The best ones, in weighted random order, as indices into what was ranked. Mostly one of them
    /// has room.
    pub fn first(&self) -> &[u32] {
        &self.first
    }

    /// All the others, by score. Sorted here, when they are needed.
    pub fn rest(&self) -> Vec<u32> {
        let mut rest = self.rest.clone();
        rest.sort_unstable_by(Scored::compare);
        rest.into_iter().map(|scored| scored.index).collect()
    }

    /// Everybody.
    pub fn order(&self) -> Vec<u32> {
        let mut order = self.first.clone();
        order.extend(self.rest());
        order
    }

    /// How many the weighted choice was among.
    pub fn top_k(&self) -> usize {
        self.first.len()
    }
}

/// Orders accounts of one tier.
pub fn rank(
    contenders: impl Iterator<Item = Contender>,
    weights: &SchedulingWeights,
    top_k: usize,
    seed: Seed,
) -> Ranked {
    let contenders: Vec<Contender> = contenders.collect();
    let field = Field::of(&contenders);
    let mut scored: Vec<Scored> = contenders
        .iter()
        .zip(0..)
        .map(|(contender, index)| Scored {
            score: field.score(contender, weights),
            load: contender.load,
            waiting: contender.waiting,
            id: contender.id,
            index,
        })
        .collect();
    let top_k = top_k.clamp(1, scored.len().max(1)).min(scored.len());
    let rest = if top_k < scored.len() {
        scored.select_nth_unstable_by(top_k - 1, Scored::compare);
        scored.split_off(top_k)
    } else {
        Vec::new()
    };
    Ranked {
        first: draw(&scored, seed),
        rest,
        skew: field.skew,
    }
}

/// Weighted sampling without replacement: the same law as drawing one after the other with chances in
/// proportion to the weights, but each account's number depends on nobody else (Efraimidis and
/// Spirakis: order by uᵂ⁻¹, here by −ln(u)/w, least first).
fn draw(best: &[Scored], seed: Seed) -> Vec<u32> {
    let worst = best.iter().map(|s| s.score).fold(f64::INFINITY, f64::min);
    let mut keyed: Vec<(f64, AccountId, u32)> = best
        .iter()
        .map(|scored| {
            let weight = scored.score - worst + 1.0;
            let weight = if weight.is_finite() && weight > 0.0 {
                weight
            } else {
                1.0
            };
            let own = (scored.id.0 as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let mut rng = Rng::new(Seed(seed.0 ^ own));
            (-rng.unit().ln() / weight, scored.id, scored.index)
        })
        .collect();
    keyed.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    keyed.into_iter().map(|(.., index)| index).collect()
}
