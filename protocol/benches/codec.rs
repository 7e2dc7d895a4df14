//! What one batch costs on each side of the mesh, and one message on each side of a client's connection.
//!
//! `cargo bench -p tickmesh-protocol`

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot set itself up should stop")]

use std::hint::black_box;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tickmesh_protocol::{
    Batch, Epoch, Event, Previous, Sequence, SignedBatch, SigningKey, StreamName, Topic,
    client::{ClientMessage, write_data_message},
    signature::MessageKey,
};

/// Usual size of an event's data, in bytes.
const DATA_BYTES: usize = 200;

/// Events in a batch: a quiet topic, a busy millisecond, a burst.
const BATCH_SIZES: [u32; 3] = [1, 32, 256];

fn key() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

fn data() -> bytes::Bytes {
    let mut data = br#"{"price":"36200.5","filler":""#.to_vec();
    data.resize(DATA_BYTES - 2, b'x');
    data.extend_from_slice(br#""}"#);
    data.into()
}

fn batch(events: u32) -> Batch {
    let stream: StreamName = "trades.btc_usdt".parse().unwrap();
    let first = 1_000_000;
    let sequence = |number: u32| Sequence::new(u64::from(number)).unwrap();
    Batch {
        publisher: key().publisher(),
        boot: u64::MAX,
        counter: 1_000_000,
        topic: Topic::spanning(&stream),
        events: (first..first + events)
            .map(|number| Event {
                stream: stream.clone(),
                epoch: Epoch::from_u64(u64::MAX),
                sequence: sequence(number),
                previous: Previous::At(sequence(number - 1)),
                engine_time_us: 1_724_548_381_123_456,
                data: data(),
                signature: None,
            })
            .collect(),
        heads: Vec::new(),
    }
}

fn envelopes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("batch");
    for events in BATCH_SIZES {
        group.throughput(Throughput::Elements(u64::from(events)));
        let (key, batch) = (key(), batch(events));
        group.bench_with_input(BenchmarkId::new("encode and sign", events), &batch, |bencher, batch| {
            bencher.iter_batched(
                || batch.clone(),
                |batch| SignedBatch::sign(batch, &key).unwrap(),
                BatchSize::SmallInput,
            );
        });
        let envelope = SignedBatch::sign(batch, &key).unwrap().envelope().clone();
        group.bench_with_input(
            BenchmarkId::new("decode and verify", events),
            &envelope,
            |bencher, envelope| {
                bencher.iter(|| SignedBatch::open(envelope.clone()).unwrap());
            },
        );
    }
    group.finish();
}

fn client_messages(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("client");
    let subscribe = r#"{"action":"subscribe","id":1,"streams":["trades.btc_usdt","depth.btc_usdt@100ms"]}"#;
    group.bench_function("parse subscribe", |bencher| {
        bencher.iter(|| ClientMessage::parse(black_box(subscribe)).unwrap());
    });
    let event = batch(1).events.remove(0);
    let mut out = Vec::with_capacity(1024);
    group.bench_function("write data message", |bencher| {
        bencher.iter(|| {
            out.clear();
            write_data_message(&mut out, black_box(&event));
            black_box(&out);
        });
    });
    group.finish();
}

fn signatures(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("signature");
    let (key, event) = (MessageKey::from_bytes(&[7; 32]), batch(1).events.remove(0));
    group.bench_function("sign an event", |bencher| {
        bencher.iter(|| key.sign(black_box(&event.stream), event.position(), &event.data));
    });
    let (keys, signature) = (key.public(), key.sign(&event.stream, event.position(), &event.data));
    group.bench_function("verify an event", |bencher| {
        bencher.iter(|| {
            keys.verify(signature.as_str(), black_box(&event.stream), event.position(), &event.data).unwrap()
        });
    });
    group.finish();
}

criterion_group!(benches, envelopes, client_messages, signatures);
criterion_main!(benches);
