//! How fast does a stream go by that is watched for its usage?

use std::hint::black_box;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tollgate_filters::sse::{SseFramer, SseScanner};
use tollgate_filters::usage::openai::ResponsesObserver;

/// Frames without usage, as OpenAI writes them, about 300 bytes each.
fn stream(named: bool) -> Vec<u8> {
    let mut stream = Vec::new();
    for number in 0..4000 {
        if named {
            stream.extend_from_slice(b"event: response.output_text.delta\n");
        }
        let frame = format!(
            "data: {{\"type\":\"response.output_text.delta\",\"sequence_number\":{number},\
             \"item_id\":\"msg_0123456789abcdef0123456789abcdef0123456789abcdef\",\"output_index\":0,\
             \"content_index\":0,\"delta\":\" some words\",\"logprobs\":[],\"obfuscation\":\"aB3dE5gH7j\"}}\n\n"
        );
        stream.extend_from_slice(frame.as_bytes());
    }
    stream
}

/// Chunks of whole frames, about `size` bytes each.
fn whole_frames(stream: &[u8], size: usize) -> Vec<Bytes> {
    let mut chunks = vec![Vec::new()];
    SseFramer::new(usize::MAX).feed(Bytes::copy_from_slice(stream), |frame| {
        if chunks
            .last()
            .is_some_and(|chunk| chunk.len() + frame.len() > size)
        {
            chunks.push(Vec::new());
        }
        chunks.last_mut().unwrap().extend_from_slice(&frame);
    });
    chunks.into_iter().map(Bytes::from).collect()
}

fn cut_anywhere(stream: &[u8], size: usize) -> Vec<Bytes> {
    stream.chunks(size).map(Bytes::copy_from_slice).collect()
}

fn bench(c: &mut Criterion) {
    let named = stream(true);
    let unnamed = stream(false);
    for (name, chunks) in [
        ("one frame a chunk", whole_frames(&named, 0)),
        (
            "whole frames, 16 KiB chunks",
            whole_frames(&named, 16 << 10),
        ),
        (
            "unnamed frames, 16 KiB chunks",
            whole_frames(&unnamed, 16 << 10),
        ),
        (
            "cut anywhere, 1,400 byte chunks",
            cut_anywhere(&named, 1400),
        ),
    ] {
        let mut group = c.benchmark_group(name);
        group.throughput(Throughput::Bytes(
            chunks.iter().map(|chunk| chunk.len() as u64).sum(),
        ));
        group.bench_function("scan and observe", |b| {
            b.iter(|| {
                let mut scanner = SseScanner::new(1 << 20);
                let mut observer = ResponsesObserver::new();
                for chunk in &chunks {
                    let fed = scanner.feed(black_box(chunk), |event| {
                        black_box(observer.event(&event));
                    });
                    assert!(fed.is_ok());
                }
                observer.output_bytes()
            });
        });
        group.bench_function("frame", |b| {
            b.iter(|| {
                let mut framer = SseFramer::new(1 << 20);
                let mut frames = 0;
                for chunk in &chunks {
                    framer.feed(chunk.clone(), |_| frames += 1);
                }
                frames
            });
        });
        group.finish();
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
