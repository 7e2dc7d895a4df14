//! What a record costs on its way through a route: parse, jq, JSON out. Beside it the record that passes as it is.

#![allow(clippy::expect_used, reason = "a benchmark stops at any fault")]

use std::{collections::HashSet, hint::black_box};

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tickmesh::transform::{RouteConfig, Transform};

fn transform(c: &mut Criterion) {
    let mut group = c.benchmark_group("transform");
    group.throughput(Throughput::Elements(1));
    let none = Transform::new(&[], None, &HashSet::new()).expect("no route compiles");
    let passing = Bytes::from_static(
        br#"{"stream":"trades.btc_usdt","data":{"price":"36200.50","quantity":"1.10","side":"buy","timestamp":1724548381123}}"#,
    );
    group.bench_function("as_it_is", |b| b.iter(|| black_box(none.apply("market.trades", None, &passing))));

    let route = |data: Option<&str>| RouteConfig {
        policy: Default::default(),
        source: "engine".into(),
        topic: "market.*".into(),
        channel: "trades".into(),
        key: ".symbol | ascii_downcase".into(),
        data: data.map(str::to_owned),
    };
    let record = Bytes::from_static(
        br#"{"symbol":"BTC_USDT","p":"36200.50","q":"1.10","side":"buy","id":99123,"t":1724548381123,"fee":"0.0001"}"#,
    );
    for (name, data) in [("key_only", None), ("projection", Some("{price: .p, quantity: .q, timestamp: .t}"))]
    {
        let routed = Transform::new(&[route(data)], None, &HashSet::new()).expect("the route compiles");
        group.bench_function(name, |b| b.iter(|| black_box(routed.apply("market.trades", None, &record))));
    }
    group.finish();
}

criterion_group!(benches, transform);
criterion_main!(benches);
