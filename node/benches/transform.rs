//! What a record costs on its way through a route: parse, jq, JSON out, for each stage that a route may have. Beside it the record that
//! passes as it is, and what operators alone cost of it.

#![allow(clippy::expect_used, reason = "a benchmark stops at any fault")]

use std::{collections::HashSet, hint::black_box};

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use tickmesh::{
    config::reader::{Faults, Section},
    transform::{
        Makes, Operators, RouteConfig, Taken, Transform,
        operators::{Inputs, Item, Kind, Operator, Trade, candles, combine, conflate, depth, ticker},
    },
};
use tickmesh_protocol::{Epoch, book::Change};

const EPOCH: Epoch = Epoch::from_u64(1);
const NOW_MS: u64 = 1_724_548_381_000;

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

/// What an operator takes of the n-th record.
type Reads<'a> = &'a dyn Fn(u64) -> Inputs;

/// Prices and quantities.
type Levels = Vec<(u32, u32)>;

/// Each stage of a route, with what it needs: a record a millisecond, of one of a hundred keys.
fn stages(c: &mut Criterion) {
    let mut group = c.benchmark_group("stage");
    group.throughput(Throughput::Elements(1));
    let trades: Vec<_> = (0..1000_u32)
        .map(|n| {
            format!(r#"{{"s":"k{}","p":"36{:03}.5","q":"1.{n:03}","side":"buy"}}"#, n % 100, n * 7 % 1000)
                .into()
        })
        .collect::<Vec<Bytes>>();
    let books = (0..1000_u32).map(|n| Bytes::from(book_record(n))).collect::<Vec<_>>();
    let batch = Bytes::from(format!("[{}]", [r#"{"s":"k1","p":"36200.5","q":"1.5"}"#; 4].join(",")));
    for (name, says, records) in [
        ("filter_no", "key = '.s'\nfilter = '.side == \"sell\"'", &trades),
        ("filter_yes", "key = '.s'\nfilter = '.side == \"buy\"'", &trades),
        ("map", "key = '.s'\ndata = '{price: .p, quantity: .q}'", &trades),
        ("split_in_4", "key = '.s'\nsplit = '.[]'\ndata = '{price: .p, quantity: .q}'", &vec![batch]),
        (
            "candles_1m_1h",
            "key = '.s'\ncandles = { intervals = ['1m', '1h'], price = '.p', quantity = '.q' }",
            &trades,
        ),
        ("ticker", "key = '.s'\nticker = { price = '.p', quantity = '.q' }", &trades),
        (
            "depth_4_levels_top_10",
            "key = '.s'\ndepth = { asks = '.a', bids = '.b', snapshot = '.all', levels = [10] }",
            &books,
        ),
        ("conflate", "key = '.s'\nconflate = { data = '{price: .p}' }", &trades),
        ("combine_100", "key = '\"all\"'\ncombine = { member = '.s', data = '{price: .p}' }", &trades),
    ] {
        let routes = routes(&format!("[[route]]\nsource = 'engine'\nchannel = 'made'\n{says}"));
        let transform = Transform::new(&routes, None, &HashSet::new()).expect("the route compiles");
        let mut operators = Operators::new(&routes);
        operators.begin(EPOCH, 0, true);
        let mut time_ms = NOW_MS;
        let mut records = records.iter().cycle();
        group.bench_function(name, |b| {
            b.iter(|| {
                time_ms += 1;
                let value = records.next().expect("there are some");
                let record = Taken { topic: "market", key: None, value, engine_time_us: time_ms * 1000 };
                black_box(operators.make(&transform, EPOCH, record))
            });
        });
    }
    group.finish();
}

/// The operators alone, with what was read of the same records.
fn operators(c: &mut Criterion) {
    let mut group = c.benchmark_group("operator");
    group.throughput(Throughput::Elements(1));
    let intervals = ["1m", "1h"].map(|interval| interval.parse().expect("an interval")).to_vec();
    let every_ms = 1000;
    let trade = |n: u64| {
        let price = format!("36{:03}.5", n * 7 % 1000).parse().expect("a number");
        let quantity = format!("1.{:03}", n % 1000).parse().expect("a number");
        Inputs::Trades(vec![Trade { key: format!("k{}", n % 100), price, quantity, time_ms: NOW_MS + n }])
    };
    let item = |n: u64| {
        let data = format!(r#"{{"price":"36{:03}.5"}}"#, n * 7 % 1000);
        Inputs::Items(vec![Item {
            key: "all".into(),
            member: format!("k{}", n % 100),
            data,
            time_ms: NOW_MS + n,
        }])
    };
    let update = |n: u64| {
        let change = |(price, quantity): (u32, u32)| {
            Change::parse(&format!("{price}.5"), &format!("{quantity}.25")).expect("numbers")
        };
        let (whole, asks, bids) = levels(u32::try_from(n % 1000).unwrap_or_default());
        let [asks, bids] = [asks, bids].map(|side| side.into_iter().map(change).collect());
        let (key, time_ms) = (format!("k{}", n % 10), NOW_MS + n);
        Inputs::Updates(vec![depth::Update {
            key,
            whole,
            asks,
            bids,
            first: None,
            last: None,
            previous: None,
            time_ms,
        }])
    };
    let of_depth = depth::Config { levels: vec![10], every_ms: 100, checksum: false };
    let with_checksum = depth::Config { checksum: true, ..of_depth.clone() };
    let inputs: [(&str, Kind, Reads<'_>); 6] = [
        ("candles_1m_1h", Kind::Candles(candles::Config { intervals, every_ms }), &trade),
        ("ticker", Kind::Ticker(ticker::Config { every_ms }), &trade),
        ("depth_4_levels_top_10", Kind::Depth(of_depth), &update),
        ("depth_with_checksum", Kind::Depth(with_checksum), &update),
        ("conflate", Kind::Conflate(conflate::Config { every_ms }), &item),
        ("combine_100", Kind::Combine(combine::Config { every_ms }), &item),
    ];
    for (name, kind, inputs) in inputs {
        let mut operator = Operator::new(&kind, true);
        let mut number = 0;
        group.bench_function(name, |b| {
            b.iter_batched(
                || {
                    number += 1;
                    inputs(number - 1)
                },
                |inputs| black_box(operator.take(&inputs)),
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

/// Whether the n-th update of a thousand is a snapshot, as the first of each of ten books is, and its levels: prices and quantities.
fn levels(n: u32) -> (bool, Levels, Levels) {
    let whole = n < 10;
    let count = if whole { 100 } else { 2 };
    let side = |from: u32| (0..count).map(|level| (from + (level + n * 7) % 100, 1 + n % 9)).collect();
    (whole, side(36_200), side(36_000))
}

fn book_record(n: u32) -> String {
    let (whole, asks, bids) = levels(n);
    let text = |side: Levels| {
        let level = |(price, quantity): &(u32, u32)| format!(r#"["{price}.5","{quantity}.25"]"#);
        side.iter().map(level).collect::<Vec<_>>().join(",")
    };
    format!(r#"{{"s":"k{}","a":[{}],"b":[{}],"all":{whole}}}"#, n % 10, text(asks), text(bids))
}

fn routes(toml: &str) -> Vec<RouteConfig> {
    let mut root = Section::root(toml.parse().expect("TOML"), Faults::default());
    root.sections("route").iter_mut().map(|section| RouteConfig::read(section).expect("a route")).collect()
}

criterion_group!(benches, transform, stages, operators);
criterion_main!(benches);
