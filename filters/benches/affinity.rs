//! What does it cost to tell a conversation by its content, next to the peek that comes before it?

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use serde_json::{Value, json};
use tollgate_filters::affinity::Seed;
use tollgate_filters::peek;

fn message(role: &str, bytes: usize) -> Value {
    let text = "    let x = map.get(\"key\").unwrap_or(&0);\n".repeat(bytes / 43 + 1);
    json!({"type": "message", "role": role, "content": [{"type": "input_text", "text": text}]})
}

/// A body of about `bytes`; of these so many in tools, instructions, and each message.
fn body(bytes: usize, fixed: usize, each: usize) -> Vec<u8> {
    let mut input = vec![message("developer", each / 2)];
    let mut size = 2 * fixed + each / 2;
    while size < bytes {
        let role = ["user", "assistant"][(input.len() + 1) % 2];
        input.push(message(role, each));
        size += each;
    }
    let text = "Be kind. ".repeat(fixed / 9);
    let tools = [json!({"type": "function", "name": "f", "description": text})];
    json!({
        "model": "gpt-5", "stream": true, "instructions": text, "tools": tools, "input": input,
    })
    .to_string()
    .into_bytes()
}

fn bench(c: &mut Criterion) {
    const KIB: usize = 1024;
    for (name, body) in [
        ("1 KiB", body(KIB, 200, 300)),
        ("64 KiB", body(64 * KIB, 8 * KIB, 2 * KIB)),
        ("400 KiB", body(400 * KIB, 20 * KIB, 4 * KIB)),
        ("400 KiB in one message", body(400 * KIB, 0, 400 * KIB)),
    ] {
        let mut group = c.benchmark_group("affinity");
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_function(BenchmarkId::new("peek", name), |b| {
            b.iter(|| peek::peek(black_box(&body)).is_ok());
        });
        let seen = peek::peek(&body).expect("a body made here");
        group.bench_function(BenchmarkId::new("seed", name), |b| {
            b.iter(|| Seed::of(black_box(&seen)).key());
        });
        group.finish();
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
