//! How fast is a request found to need no tidying, or tidied, compared with parsing it?

use std::hint::black_box;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tollgate_filters::edits::anthropic::tidy;

/// A conversation of 400 KiB with this many cache marks.
fn conversation(marks: usize) -> Bytes {
    let text = "    let x = map.get(\"key\").unwrap_or(&0);\n".repeat(50);
    let mut messages = Vec::new();
    let mut size = 0;
    while size < 400 * 1024 {
        let mut block = serde_json::json!({"type": "text", "text": text});
        if messages.len() < marks {
            block["cache_control"] = serde_json::json!({"type": "ephemeral"});
        }
        let message = serde_json::json!({"role": "user", "content": [block]}).to_string();
        size += message.len();
        messages.push(message);
    }
    format!(
        r#"{{"model":"claude-x","max_tokens":1024,"messages":[{}]}}"#,
        messages.join(",")
    )
    .into()
}

fn bench(c: &mut Criterion) {
    for (name, marks) in [("nothing to do", 4), ("a mark too many", 5)] {
        let body = conversation(marks);
        let mut group = c.benchmark_group(name);
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_function("tidy", |b| {
            b.iter(|| tidy(black_box(&body)).pieces(&body).len());
        });
        group.bench_function("serde_json tree", |b| {
            b.iter(|| serde_json::from_slice::<serde_json::Value>(black_box(&body)).is_ok());
        });
        group.finish();
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
