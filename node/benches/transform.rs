//! What a record costs on its way through a route: parse, jq, JSON out. Beside it the record that passes as it is.

#![allow(clippy::expect_used, reason = "a benchmark stops at any fault")]

use std::{collections::HashSet, hint::black_box};

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tickmesh::transform::{Makes, RouteConfig, Taken, Transform};

fn transform(c: &mut Criterion) {
    let mut group = c.benchmark_group("transform");
    group.throughput(Throughput::Elements(1));
    let none = Transform::new(&[], None, &HashSet::new()).expect("no route compiles");
    let passing = Bytes::from_static(
        br#"{"stream":"trades.btc_usdt","data":{"price":"36200.50","quantity":"1.10","side":"buy","timestamp":1724548381123}}"#,
    );
    let taken = |value| Taken { topic: "market.trades", key: None, value, engine_time_us: 0 };
    group.bench_function("as_it_is", |b| b.iter(|| black_box(none.apply(taken(&passing)))));

    let route = |data: Option<&str>| RouteConfig {
        makes: data.map_or(Makes::AsItIs, |data| Makes::Data(data.into())),
        ..RouteConfig::new("engine", "market.*", "trades", ".symbol | ascii_downcase")
    };
    let record = Bytes::from_static(
        br#"{"symbol":"BTC_USDT","p":"36200.50","q":"1.10","side":"buy","id":99123,"t":1724548381123,"fee":"0.0001"}"#,
    );
    for (name, data) in [("key_only", None), ("projection", Some("{price: .p, quantity: .q, timestamp: .t}"))]
    {
        let routed = Transform::new(&[route(data)], None, &HashSet::new()).expect("the route compiles");
        group.bench_function(name, |b| b.iter(|| black_box(routed.apply(taken(&record)))));
    }
    group.finish();
}

criterion_group!(benches, transform);
criterion_main!(benches);
