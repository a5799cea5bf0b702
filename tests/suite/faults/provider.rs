//! The provider: what a request costs is decided by its id, so that it is known afterwards.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tollgate::domain::Money;
use tollgate_test_support::{Answer, Received, Usage, openai};

use crate::chance::Chance;

/// The model of all requests, and its list prices in nano-dollars per token: input, cached input, output.
pub(super) const MODEL: &str = "gpt-5-mini";
const PRICES: [u64; 3] = [250, 25, 2000];

/// The text of every delta.
const DELTA: &str = "some words of an answer ";

/// How often each request was tried.
pub(super) type Tries = Mutex<HashMap<String, u64>>;

/// What the provider does with a request.
pub(super) struct Fate {
    pub(super) usage: Usage,
    /// Pieces of text in its answer.
    deltas: usize,
    /// Between the pieces.
    gap: Duration,
    /// Before the answer.
    delay: Duration,
    /// What the first try meets in place of the answer.
    failure: Option<u64>,
}

impl Fate {
    pub(super) fn of(seed: u64, id: &str) -> Fate {
        let mut chance = Chance::of((seed, "fate", id));
        let input = 1 + chance.below(20_000);
        Fate {
            usage: Usage {
                input,
                cached: chance.below(input + 1),
                output: 1 + chance.below(3_000),
                reasoning: 0,
            },
            deltas: 1 + chance.below(30) as usize,
            // Most answers come at once; some are still under way when the server is killed.
            gap: match chance.below(10) {
                0..6 => Duration::ZERO,
                6..9 => chance.ms(1, 10),
                _ => chance.ms(10, 50),
            },
            delay: match chance.below(10) {
                0..7 => Duration::ZERO,
                _ => chance.ms(1, 80),
            },
            failure: Some(chance.below(100)).filter(|draw| *draw < 4),
        }
    }

    /// All the text that may have been shown to a client, in bytes.
    pub(super) fn text_bytes(&self) -> u64 {
        (self.deltas * DELTA.len()) as u64
    }
}

/// What so many tokens cost at list price: input without the cached ones, cached, output.
pub(super) fn cost(tokens: [u64; 3]) -> Money {
    let nanos = tokens
        .iter()
        .zip(PRICES)
        .map(|(tokens, price)| tokens * price);
    Money(i64::try_from(nanos.sum::<u64>()).unwrap())
}

/// What the user pays of a cost at a multiplier in millionths: half up, to the nano-dollar.
pub(super) fn charge(cost: Money, millionths: u64) -> Money {
    let product = i128::from(cost.0) * i128::from(millionths);
    Money(i64::try_from((product + 500_000) / 1_000_000).unwrap())
}

/// The id of a request, as the provider sees it.
pub(super) fn id_of(request: &Received) -> &str {
    request.header("user-agent").unwrap_or_default()
}

/// The answer to a request.
pub(super) fn answer(seed: u64, tries: &Tries, request: &Received) -> Answer {
    let id = id_of(request);
    let is_first = {
        let mut tries = tries.lock();
        let count = tries.entry(id.to_owned()).or_default();
        *count += 1;
        *count == 1
    };
    let fate = Fate::of(seed, id);
    match fate.failure.filter(|_| is_first) {
        Some(0 | 1) => return Answer::error(500, "server_error").delayed(fate.delay),
        Some(2) => return Answer::reset(),
        Some(_) => return Answer::close(),
        None => {}
    }
    let response = format!("resp_{id}");
    if request.json()["stream"] == true {
        let deltas = vec![DELTA; fate.deltas];
        let frames = openai::responses_stream(MODEL, &response, &deltas, fate.usage);
        return Answer::sse(frames).every(fate.gap).delayed(fate.delay);
    }
    let text = DELTA.repeat(fate.deltas);
    let body = openai::responses_json(MODEL, &response, &text, fate.usage);
    Answer::body(200, "application/json", body)
        .split(&[200, 200])
        .every(fate.gap)
        .delayed(fate.delay)
}
