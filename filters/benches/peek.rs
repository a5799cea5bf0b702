//! How fast is a request body read, compared with parsing it?

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tollgate_filters::{peek, validate};

/// A conversation of 400 KiB: long texts with a line break and a quote now and then.
fn conversation(text: &str) -> Vec<u8> {
    let mut items = Vec::new();
    let mut size = 0;
    while size < 400 * 1024 {
        let item = serde_json::json!({
            "type": "message", "role": "user", "content": [{"type": "input_text", "text": text}],
        })
        .to_string();
        size += item.len();
        items.push(item);
    }
    format!(
        r#"{{"model":"gpt-5","stream":true,"prompt_cache_key":"k","input":[{}]}}"#,
        items.join(",")
    )
    .into_bytes()
}

fn bench(c: &mut Criterion) {
    let long = "The quick brown fox jumps over the lazy dog. ".repeat(200);
    let code = "    let x = map.get(\"key\").unwrap_or(&0);\n".repeat(200);
    let unicode = "Größe und Übermaß – 你好世界。".repeat(200);
    for (name, text) in [("long strings", long), ("code", code), ("unicode", unicode)] {
        let body = conversation(&text);
        let mut group = c.benchmark_group(name);
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_function("peek", |b| b.iter(|| peek::peek(black_box(&body)).is_ok()));
        group.bench_function("validate", |b| {
            b.iter(|| validate::responses(black_box(&body)).is_ok())
        });
        group.bench_function("serde_json tree", |b| {
            b.iter(|| serde_json::from_slice::<serde_json::Value>(black_box(&body)).is_ok());
        });
        group.finish();
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
