//! The provider: what a request costs is decided by its id, so that it is known afterwards.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tollgate::domain::Money;
use tollgate_test_support::anthropic::{self, Block, Message};
use tollgate_test_support::{Answer, Received, Usage, openai};

use crate::chance::Chance;
use crate::dialect::Dialect;

/// Tokens, or their prices: input, cached input, output, and those written to a cache for five minutes and for an hour.
pub(super) type PerToken = [u64; 5];

/// The list prices of the models of all requests, in nano-dollars.
fn prices(dialect: Dialect) -> PerToken {
    match dialect {
        Dialect::Responses => [250, 25, 2000, 0, 0],
        Dialect::Messages => [3000, 300, 15_000, 3750, 6000],
    }
}

/// The text of every delta.
const DELTA: &str = "some words of an answer ";

/// How often each request was tried.
pub(super) type Tries = Mutex<HashMap<String, u64>>;

/// What the provider does with a request.
pub(super) struct Fate {
    usage: Usage,
    /// Tokens written to a cache for five minutes and for an hour, where the dialect tells them.
    written: [u64; 2],
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
            written: [chance.below(5_000), chance.below(500)],
        }
    }

    /// The tokens that its answer reports.
    pub(super) fn reported(&self, dialect: Dialect) -> PerToken {
        let Usage {
            input,
            cached,
            output,
            ..
        } = self.usage;
        let [short, long] = match dialect {
            Dialect::Responses => [0, 0],
            Dialect::Messages => self.written,
        };
        [input - cached, cached, output, short, long]
    }

    /// All the text that may have been shown to a client, in bytes.
    pub(super) fn text_bytes(&self) -> u64 {
        (self.deltas * DELTA.len()) as u64
    }
}

/// What so many tokens cost at list price.
pub(super) fn cost(dialect: Dialect, tokens: PerToken) -> Money {
    let nanos = tokens
        .iter()
        .zip(prices(dialect))
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
    let dialect = Dialect::of(request.path());
    match fate.failure.filter(|_| is_first) {
        Some(0 | 1) => return dialect.error(500, "server_error").delayed(fate.delay),
        Some(2) => return Answer::reset(),
        Some(_) => return Answer::close(),
        None => {}
    }
    let deltas = vec![DELTA; fate.deltas];
    if request.json()["stream"] == true {
        let frames = fate.stream(dialect, id, &deltas);
        return Answer::sse(frames).every(fate.gap).delayed(fate.delay);
    }
    let body = fate.json(dialect, id, &deltas);
    Answer::body(200, "application/json", body)
        .split(&[200, 200])
        .every(fate.gap)
        .delayed(fate.delay)
}

impl Fate {
    fn stream(&self, dialect: Dialect, id: &str, deltas: &[&str]) -> Vec<Bytes> {
        match dialect {
            Dialect::Responses => {
                let id = format!("resp_{id}");
                openai::responses_stream(dialect.model(), &id, deltas, self.usage)
            }
            Dialect::Messages => self.message(id, &[Block::Text(deltas)]).stream(),
        }
    }

    fn json(&self, dialect: Dialect, id: &str, deltas: &[&str]) -> Bytes {
        match dialect {
            Dialect::Responses => {
                let id = format!("resp_{id}");
                openai::responses_json(dialect.model(), &id, &deltas.concat(), self.usage)
            }
            Dialect::Messages => self.message(id, &[Block::Text(deltas)]).json(),
        }
    }

    fn message<'a>(&self, id: &'a str, blocks: &'a [Block<'a>]) -> Message<'a> {
        let dialect = Dialect::Messages;
        let [input, cache_read, output, cache_5m, cache_1h] = self.reported(dialect);
        Message::new(dialect.model(), id, blocks).usage(anthropic::Usage {
            input,
            cache_5m,
            cache_1h,
            cache_read,
            output,
        })
    }
}
