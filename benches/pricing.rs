//! What does it take to price one record? Looking a model up (known, dated, unknown), pricing its
//! tokens, and reading the built-in map at start.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use tollgate::billing::price_map::Prices;
use tollgate::billing::pricing::{ServiceTier, price};
use tollgate::domain::Multiplier;
use tollgate_filters::usage::TokenUsage;

fn pricing(c: &mut Criterion) {
    let prices = Prices::built_in();
    for (name, model) in [
        ("lookup/exact", "gpt-5.4"),
        ("lookup/variant", "gpt-5.2-codex-2099-01-01-xhigh"),
        ("lookup/claude_family", "anthropic.claude-opus-4-6-v1:0"),
        ("lookup/unknown", "llama-4-maverick-17b"),
    ] {
        c.bench_function(name, |b| b.iter(|| prices.lookup(black_box(model))));
    }

    let usage = TokenUsage {
        input: 200_000,
        output: 1_000,
        cache_read: 100_000,
        ..TokenUsage::default()
    };
    let multiplier = Multiplier(850_000);
    c.bench_function("price/record", |b| {
        b.iter(|| {
            let model = prices.lookup(black_box("gpt-5.4"));
            let tier = ServiceTier::parse(black_box("priority"));
            price(black_box(&usage), 0, model, tier, multiplier)
        });
    });
    c.bench_function("built_in", |b| b.iter(Prices::built_in));
}

criterion_group!(benches, pricing);
criterion_main!(benches);
