//! What an order book costs: an event taken in, and the whole given out.

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on should stop")]

use std::{fmt::Write, hint::black_box};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use tickmesh_protocol::book::Book;

const EVENTS: u64 = 1000;

/// Levels around a price, as an exchange writes them.
fn levels(from: u64, count: u64, quantity: u64) -> String {
    let mut text = String::new();
    for price in from..from + count {
        let comma = if price == from { "" } else { "," };
        write!(text, "{comma}[\"{}.{}\",\"{quantity}.0025\"]", price / 10, price % 10).unwrap();
    }
    text
}

fn depth(asks: &str, bids: &str, snapshot: bool) -> String {
    format!(r#"{{"asks":[{asks}],"bids":[{bids}],"snapshot":{snapshot},"timestamp":1724548345123}}"#)
}

fn whole(levels_a_side: u64) -> Book {
    let mut book = Book::default();
    let (asks, bids) = (levels(362_000, levels_a_side, 7), levels(362_000 - levels_a_side, levels_a_side, 7));
    book.apply(depth(&asks, &bids, true).as_bytes()).unwrap();
    book
}

fn books(criterion: &mut Criterion) {
    for levels_a_side in [100, 5_000] {
        let mut group = criterion.benchmark_group(format!("book of {levels_a_side} levels a side"));
        let book = whole(levels_a_side);
        group.throughput(Throughput::Elements(EVENTS));
        group.bench_function("1000 events of four levels", |bencher| {
            let events: Vec<String> = (0..EVENTS)
                .map(|number| {
                    let at = number % (levels_a_side - 2);
                    // A level goes and comes back, others change.
                    let quantity = if number % 2 == 0 { 0 } else { number };
                    depth(&levels(362_000 + at, 2, quantity), &levels(361_998 - at, 2, quantity + 1), false)
                })
                .collect();
            bencher.iter_batched(
                || book.clone(),
                |mut book| {
                    for event in &events {
                        book.apply(event.as_bytes()).unwrap();
                    }
                    book
                },
                BatchSize::LargeInput,
            );
        });
        group.throughput(Throughput::Elements(1));
        group.bench_function("given out whole", |bencher| {
            bencher.iter(|| black_box(book.to_data()));
        });
        group.bench_function("copied", |bencher| bencher.iter(|| black_box(book.clone())));
        group.finish();
    }
}

criterion_group!(benches, books);
criterion_main!(benches);
