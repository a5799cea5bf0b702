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
pub(super) struct Xorshift(u64);

impl Xorshift {
    pub(super) fn new(seed: Seed) -> Xorshift {
        // Neighbouring seeds (ids, times) must not give neighbouring streams, and zero gives none.
        let mut x = seed.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Xorshift((x ^ (x >> 31)).max(1))
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
    /// To be tried only after those that are not, whatever the score.
    pub behind: bool,
}

/// What the scores compare the accounts with.
#[derive(Clone, Copy, Debug)]
struct Field {
    per_waiting: f64,
    quickest_ms: f64,
    /// 0 where all are equally quick.
    per_spread_ms: f64,
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
            per_waiting: f64::from(most_waiting).recip(),
            quickest_ms,
            per_spread_ms: match slowest_ms - quickest_ms {
                spread_ms if spread_ms > 0.0 => spread_ms.recip(),
                _ => 0.0,
            },
            skew: (squares / count).sqrt(),
        }
    }

    fn score(&self, contender: &Contender, weights: &SchedulingWeights) -> f64 {
        let free = |used: f64| 1.0 - used.clamp(0.0, 1.0);
        let first_token = match contender.first_token_ms {
            Some(ms) if self.per_spread_ms > 0.0 => {
                free((ms - self.quickest_ms) * self.per_spread_ms)
            }
            _ => 0.5,
        };
        weights.load * free(contender.load * 0.01)
            + weights.queue * free(f64::from(contender.waiting) * self.per_waiting)
            + weights.error * free(contender.errors)
            + weights.first_token * first_token
    }
}

/// A contender's place in an order: the least first, equals by what breaks ties.
#[derive(Clone, Copy, Debug)]
struct Placed {
    key: u64,
    index: u32,
}

/// Set in the key of a contender that is behind.
const BEHIND: u64 = 1 << 63;

impl Placed {
    /// By score, the highest first.
    fn by_score(score: f64, behind: bool, index: u32) -> Placed {
        // Of numbers that are not negative the bits are in the order of the numbers.
        let key = !score.max(0.0).to_bits() & !BEHIND;
        Placed {
            key: if behind { key | BEHIND } else { key },
            index,
        }
    }

    fn score(self) -> f64 {
        f64::from_bits(!self.key & !BEHIND)
    }

    fn compare(&self, other: &Placed, contenders: &[Contender]) -> Ordering {
        self.key.cmp(&other.key).then_with(|| {
            let (a, b) = (
                &contenders[self.index as usize],
                &contenders[other.index as usize],
            );
            a.load
                .total_cmp(&b.load)
                .then(a.waiting.cmp(&b.waiting))
                .then(a.id.cmp(&b.id))
        })
    }
}

/// Accounts in the order in which they are to be tried.
#[derive(Clone, Debug)]
pub struct Ranked {
    first: Vec<u32>,
    rest: Vec<Placed>,
    contenders: Vec<Contender>,
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
        rest.sort_unstable_by(|a, b| a.compare(b, &self.contenders));
        rest.into_iter().map(|placed| placed.index).collect()
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
    contenders: Vec<Contender>,
    weights: &SchedulingWeights,
    top_k: usize,
    seed: Seed,
) -> Ranked {
    let field = Field::of(&contenders);
    let mut placed: Vec<Placed> = Vec::with_capacity(contenders.len());
    let mut before = 0;
    for (contender, index) in contenders.iter().zip(0..) {
        before += usize::from(!contender.behind);
        let score = field.score(contender, weights);
        placed.push(Placed::by_score(score, contender.behind, index));
    }
    if before == 0 {
        before = contenders.len();
    }
    let top_k = top_k.max(1).min(before);
    if top_k < placed.len() {
        let compare = |a: &Placed, b: &Placed| a.compare(b, &contenders);
        placed.select_nth_unstable_by(top_k - 1, compare);
    }
    let first = draw(&mut placed[..top_k], &contenders, seed);
    placed.drain(..top_k);
    Ranked {
        first,
        rest: placed,
        contenders,
        skew: field.skew,
    }
}

/// Weighted sampling without replacement: the same law as drawing one after the other with chances in
/// proportion to the weights, but each account's number depends on nobody else (Efraimidis and
/// Spirakis: order by uᵂ⁻¹, here by −ln(u)/w, least first).
fn draw(best: &mut [Placed], contenders: &[Contender], seed: Seed) -> Vec<u32> {
    let worst = best
        .iter()
        .map(|placed| placed.score())
        .fold(f64::INFINITY, f64::min);
    for placed in &mut *best {
        let weight = placed.score() - worst + 1.0;
        let weight = if weight.is_finite() { weight } else { 1.0 };
        let id = contenders[placed.index as usize].id.0 as u64;
        let own = id.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let number = Xorshift::new(Seed(seed.0 ^ own)).unit();
        placed.key = (-number.ln() / weight).max(0.0).to_bits();
    }
    best.sort_unstable_by(|a, b| a.compare(b, contenders));
    best.iter().map(|placed| placed.index).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WEIGHTS: SchedulingWeights = SchedulingWeights {
        load: 1.0,
        queue: 0.7,
        error: 0.8,
        first_token: 0.5,
    };

    fn contender(id: i64, load: f64, waiting: u32, errors: f64, ms: Option<f64>) -> Contender {
        Contender {
            id: AccountId(id),
            load,
            waiting,
            errors,
            first_token_ms: ms,
            behind: false,
        }
    }

    /// Appendix C's two accounts. There they differ in priority as well, which would put them into two
    /// tiers here; so the scores lack its part: 3.0 for 4.0, and 1.14 as it is.
    fn appendix_c() -> [Contender; 2] {
        [
            contender(1, 0.0, 0, 0.0, Some(500.0)),
            contender(2, 50.0, 1, 0.2, Some(1500.0)),
        ]
    }

    fn order(contenders: &[Contender], top_k: usize, seed: u64) -> Vec<u32> {
        rank(contenders.to_vec(), &WEIGHTS, top_k, Seed(seed)).order()
    }

    #[test]
    fn load_rates() {
        for (held, waiting, capacity, expected) in [
            (2, 1, 3, 100.0),
            (1, 0, 4, 25.0),
            (0, 0, 4, 0.0),
            (3, 3, 3, 200.0),
            (1, 0, 1_000, 0.1),
            (1, 0, 0, 100.0),
        ] {
            assert_eq!(load_rate(Load { held, waiting }, capacity), expected);
        }
    }

    #[test]
    fn the_scores_of_appendix_c() {
        let two = appendix_c();
        let field = Field::of(&two);
        let scores = two.map(|c| field.score(&c, &WEIGHTS));
        assert!(
            (scores[0] - 3.0).abs() < 1e-9 && (scores[1] - 1.14).abs() < 1e-9,
            "{scores:?}"
        );
        assert_eq!(rank(two.to_vec(), &WEIGHTS, 7, Seed(1)).skew, 25.0);
        // Weights 2.86 and 1: the first comes first in 74.09 % (79.42 % with the part of priority).
        let firsts = (0..100_000)
            .filter(|seed| order(&two, 7, *seed)[0] == 0)
            .count();
        let expected = 2.86 / 3.86;
        assert!(
            (firsts as f64 / 100_000.0 - expected).abs() < 0.005,
            "{firsts}"
        );
    }

    #[test]
    fn factors_at_their_bounds() {
        let score = |contenders: &[Contender]| {
            let field = Field::of(contenders);
            field.score(&contenders[0], &WEIGHTS)
        };
        let other = contender(2, 0.0, 4, 0.0, Some(1_000.0));
        let c = |load, waiting, errors, ms| contender(1, load, waiting, errors, ms);
        #[rustfmt::skip]
        let rows = [
            // nothing known of the first token: half
            (vec![c(0.0, 0, 0.0, None)], 2.75),
            (vec![c(0.0, 0, 0.0, None), other], 2.75),
            // all equal: half
            (vec![c(0.0, 0, 0.0, Some(1_000.0)), other], 2.75),
            (vec![c(0.0, 0, 0.0, Some(1_000.0))], 2.75),
            // the quickest, the slowest, between
            (vec![c(0.0, 0, 0.0, Some(500.0)), other], 3.0),
            (vec![c(0.0, 0, 0.0, Some(2_000.0)), other], 2.5),
            // full and more than full
            (vec![c(100.0, 0, 0.0, None)], 1.75),
            (vec![c(500.0, 0, 0.0, None)], 1.75),
            // the longest line, a quarter of it, the only one
            (vec![c(0.0, 4, 0.0, None), other], 2.05),
            (vec![c(0.0, 1, 0.0, None), other], 2.575),
            (vec![c(0.0, 1, 0.0, None)], 2.05),
            // failures
            (vec![c(0.0, 0, 1.0, None)], 1.95),
            (vec![c(0.0, 0, 0.5, None)], 2.35),
        ];
        for (contenders, expected) in rows {
            let got = score(&contenders);
            assert!(
                (got - expected).abs() < 1e-9,
                "{got} {expected} {contenders:?}"
            );
        }
    }

    #[test]
    fn chances_follow_the_weights() {
        // Three with weights 3, 2 and 1 (loads weighted 2: scores 2, 1 and 0 and equal parts beyond).
        let weights = SchedulingWeights {
            load: 2.0,
            queue: 0.0,
            error: 0.0,
            first_token: 0.0,
        };
        let three = [0.0, 50.0, 100.0].into_iter().zip(1..);
        let three: Vec<_> = three
            .map(|(load, id)| contender(id, load, 0, 0.0, None))
            .collect();
        let mut seen = std::collections::HashMap::new();
        const DRAWS: u64 = 60_000;
        for number in 0..DRAWS {
            // As requests of conversations are seeded.
            let key = number.to_be_bytes();
            let seed = Seed::of(Some(&key), None, "gpt-5", GroupId(1), 0);
            let ranked = rank(three.clone(), &weights, 3, seed);
            *seen.entry(ranked.order()).or_insert(0_u32) += 1;
        }
        for (order, expected) in [
            ([0, 1, 2], 3.0 / 6.0 * 2.0 / 3.0),
            ([0, 2, 1], 3.0 / 6.0 * 1.0 / 3.0),
            ([1, 0, 2], 2.0 / 6.0 * 3.0 / 4.0),
            ([1, 2, 0], 2.0 / 6.0 * 1.0 / 4.0),
            ([2, 0, 1], 1.0 / 6.0 * 3.0 / 5.0),
            ([2, 1, 0], 1.0 / 6.0 * 2.0 / 5.0),
        ] {
            let share = f64::from(seen[&order.to_vec()]) / DRAWS as f64;
            assert!(
                (share - expected).abs() < 0.01,
                "{order:?}: {share} {expected}"
            );
        }
    }

    #[test]
    fn behind_the_best_all_others_by_score() {
        // Equal scores: by load (weightless here), line, id.
        let weights = SchedulingWeights {
            load: 0.0,
            queue: 0.0,
            error: 1.0,
            first_token: 0.0,
        };
        let contenders = [
            contender(6, 0.0, 0, 0.9, None),
            contender(5, 2.0, 0, 0.5, None),
            contender(4, 1.0, 2, 0.5, None),
            contender(3, 1.0, 1, 0.5, None),
            contender(2, 1.0, 1, 0.5, None),
            contender(1, 0.0, 0, 0.0, None),
        ];
        let ranked = rank(contenders.to_vec(), &weights, 1, Seed(7));
        assert_eq!(ranked.order(), [5, 4, 3, 2, 1, 0]);
        assert_eq!((ranked.top_k(), ranked.first()), (1, &[5][..]));
        assert!(order(&[], 7, 1).is_empty());
        assert_eq!(order(&contenders[..1], 0, 1), [0]);
    }

    #[test]
    fn seeds() {
        // FNV-1a of "s\0m\07", of "m\07": published constants, computed by hand of others.
        let fnv = |bytes: &[u8]| {
            bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
            })
        };
        assert_eq!(fnv(b"a"), 0xaf63_dc4c_8601_ec8c);
        let none: Option<&[u8]> = None;
        #[rustfmt::skip]
        let rows = [
            (Some(&b"s"[..]), none, 7, fnv(b"s\0m\x007")),
            (Some(b"s"), Some(&b"p"[..]), 0, fnv(b"s\0p\0m\x000")),
            (None, Some(b"p"), i64::MAX, fnv(b"p\0m\09223372036854775807")),
            (Some(b""), Some(b"p"), -12, fnv(b"p\0m\0-12")),
            (None, None, 10, fnv(b"m\x0010") ^ 99),
            (Some(b""), Some(b""), 10, fnv(b"m\x0010") ^ 99),
        ];
        for (session, previous, group, expected) in rows {
            let seed = Seed::of(session, previous, "m", GroupId(group), 99);
            assert_eq!(seed.0, expected, "{session:?} {previous:?} {group}");
        }
        assert_eq!(Seed::of(None, None, "", GroupId(1), 0).0, fnv(b"1"));
    }

    proptest! {
        #[test]
        fn the_same_session_keeps_its_order_when_another_account_leaves(
            seed in any::<u64>(),
            count in 2..40_usize,
            gone in any::<prop::sample::Index>(),
        ) {
            let all: Vec<_> = (0..count as i64).map(|id| contender(id, 10.0, 0, 0.0, None)).collect();
            let gone = gone.index(count) as u32;
            let mut fewer = all.clone();
            fewer.remove(gone as usize);
            let ids = |contenders: &[Contender]| -> Vec<i64> {
                order(contenders, 99, seed).iter().map(|i| contenders[*i as usize].id.0).collect()
            };
            let mut expected = ids(&all);
            expected.retain(|id| *id != i64::from(gone));
            prop_assert_eq!(ids(&fewer), expected);
        }

        #[test]
        fn any_numbers_give_everybody_once(
            numbers in prop::collection::vec((any::<f64>(), any::<u32>(), any::<f64>(), any::<Option<f64>>()), 0..60),
            top_k in 0..80_usize,
            seed in any::<u64>(),
        ) {
            let contenders: Vec<_> = numbers.iter().zip(0..)
                .map(|((load, waiting, errors, ms), id)| contender(id, *load, *waiting, *errors, *ms))
                .collect();
            let mut got = order(&contenders, top_k, seed);
            got.sort_unstable();
            prop_assert_eq!(got, (0..numbers.len() as u32).collect::<Vec<_>>());
        }

        #[test]
        fn below_is_below(seed in any::<u64>(), bound in 1..usize::MAX) {
            prop_assert!(Xorshift::new(Seed(seed)).below(bound) < bound);
        }
    }
}
