//! Candles and tickers over more than a day of seeded trades, digit for digit what an independent computation makes of them
//! (`tests/python/operators.py`, Python's `decimal`).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "helpers of tests, outside test functions"
)]

mod support {
    pub mod client;
    pub mod node;
}

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::Path,
    process::Command,
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use serde_json::{Value, json};
use support::{
    client::{Client, Received, assert_linked},
    node::{Network, Node, Ports, Role},
};
use tickmesh::transform::{
    Made, Makes, OperatorConfig, Operators, RouteConfig, Routes, Taken, Transform,
    decimal::Decimal,
    operators::{Kind, candles, ticker},
};
use tickmesh_protocol::Epoch;

const HOURS: u64 = 26;
const KEYS: [&str; 3] = ["btc_usdt", "eth_usdt", "doge_usdt"];
const BEGIN_MS: u64 = 1_724_457_600_000;

/// As in Knuth's MMIX: what comes is the same everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// Trades in the order of the log: prices with differing decimal places, times that sometimes go back, and hours in which one
/// instrument is silent.
fn trades() -> Vec<String> {
    let mut random = Random(7);
    let (mut time_ms, mut cents) = (BEGIN_MS, [3_620_050_u64, 251_900, 12_472]);
    let mut trades = Vec::new();
    while time_ms < BEGIN_MS + HOURS * 3_600_000 {
        time_ms += random.below(6_000);
        let silent = (time_ms - BEGIN_MS) / 3_600_000 % 7 == 3;
        let index = random.below(if silent { 2 } else { 3 }) as usize;
        cents[index] = cents[index] + random.below(41) - 20;
        let price = match random.below(4) {
            0 => format!("{}.{:02}0", cents[index] / 100, cents[index] % 100),
            _ => format!("{}.{:02}", cents[index] / 100, cents[index] % 100),
        };
        let quantity = format!("{}.{:06}", random.below(3), 1 + random.below(999_999));
        let back = if random.below(20) == 0 { random.below(400_000) } else { 0 };
        trades.push(json!({"s": KEYS[index], "p": price, "q": quantity, "t": time_ms - back}).to_string());
    }
    trades
}

fn route(channel: &str, kind: Kind) -> RouteConfig {
    let operator =
        OperatorConfig { kind, price: ".p".into(), quantity: ".q".into(), time: Some(".t".into()) };
    RouteConfig { makes: Makes::Operator(operator), ..RouteConfig::new("engine", "*", channel, ".s") }
}

#[test]
fn candles_and_tickers_of_a_day_agree_with_an_independent_computation() {
    let trades = trades();
    let intervals = ["1m", "5m", "1h"].map(|interval| interval.parse().unwrap()).to_vec();
    let routes: Routes = [
        route("candles", Kind::Candles(candles::Config { intervals, every_ms: 5_000 })),
        route("ticker", Kind::Ticker(ticker::Config { every_ms: 60_000 })),
    ]
    .into();
    let transform = Transform::new(&routes, None, &Default::default()).unwrap();
    let epoch = Epoch::from_u64(1);
    let mut operators = Operators::new(&routes);
    operators.begin(epoch, true);

    let mut told = String::new();
    let mut late = 0;
    for (number, trade) in trades.iter().enumerate() {
        // Half a day later the peer is restarted from its checkpoint.
        if number == trades.len() / 2 {
            let states = operators.save();
            operators = Operators::new(&routes);
            operators.restore(&states);
        }
        let value = Bytes::from(trade.clone());
        let record = Taken { topic: "market", key: None, value: &value, engine_time_us: 0 };
        let mut events = Vec::new();
        for made in transform.apply(record) {
            let Ok(Made::Trades { route, trades }) = made else { panic!("{made:?}") };
            let (made, late_here) = operators.take(epoch, route, &trades).unwrap();
            events.extend(made.into_iter().map(|event| (event.stream.to_string(), event.data)));
            late += late_here;
        }
        events.sort();
        for (stream, data) in events {
            writeln!(told, "{}", json!([number, stream, std::str::from_utf8(&data).unwrap()])).unwrap();
        }
    }
    assert!(late > 0, "some are late");

    let folder = tempfile::tempdir().unwrap();
    let (trades_file, told_file) = (folder.path().join("trades"), folder.path().join("told"));
    fs::write(&trades_file, trades.join("\n")).unwrap();
    fs::write(&told_file, told).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/python/operators.py");
    let output = Command::new("python3").arg(script).arg(trades_file).arg(told_file).output().unwrap();
    println!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success());
}

/// Routes over the market of one peer that is ingest and edge: trades, and what operators make of them.
const ROUTES: &str = r#"
[ingest]
checkpoint_every = "100ms"

[[route]]
source = "market"
filter = '.stream | startswith("trades.")'
channel = "trades"
key = '.stream | split(".")[1]'
data = ".data"

[[route]]
source = "market"
filter = '.stream | startswith("trades.")'
channel = "candles"
key = '.stream | split(".")[1]'
candles = { intervals = ["1s"], price = ".data.price", quantity = ".data.quantity", time = ".data.timestamp", every = "0ms" }

[[route]]
source = "market"
filter = '.stream | startswith("trades.")'
channel = "ticker"
key = '.stream | split(".")[1]'
ticker = { price = ".data.price", quantity = ".data.quantity", every = "0ms" }
"#;

const TRADES: &str = "trades.btc_usdt";
const SECONDS: &str = "candles.btc_usdt@1s";
const TICKER: &str = "ticker.btc_usdt";

/// All candles told on a stream, in order.
fn candles_of(events: &[Received]) -> Vec<Value> {
    let candles = |event: &Received| serde_json::from_str::<Value>(&event.data).unwrap()["candles"].clone();
    events.iter().flat_map(|event| candles(event).as_array().cloned().unwrap()).collect()
}

/// When the first trade was that was seen: seconds that began later were seen as a whole.
fn first_ms(events: &BTreeMap<String, Vec<Received>>) -> u64 {
    let first = events.get(TRADES).and_then(|trades| trades.first());
    first.map_or(u64::MAX, |trade| {
        serde_json::from_str::<Value>(&trade.data).unwrap()["timestamp"].as_u64().unwrap()
    })
}

/// Candles of seconds that were seen as a whole.
fn whole_seconds(events: &BTreeMap<String, Vec<Received>>) -> Vec<Value> {
    let candles = events.get(SECONDS).map(|events| candles_of(events)).unwrap_or_default();
    let whole =
        |candle: &Value| candle["closed"] == true && candle["start"].as_u64().unwrap() > first_ms(events);
    candles.into_iter().filter(whole).collect()
}

/// Receives until a few seconds were closed.
async fn receive(peer: &Node) -> BTreeMap<String, Vec<Received>> {
    let mut client = Client::connect(&peer.url()).await;
    client.subscribe_until_confirmed(&[TRADES, SECONDS, TICKER]).await;
    client
        .receive_until("seconds are closed", |events| {
            whole_seconds(events).len() >= 3 && events.contains_key(TICKER)
        })
        .await;
    client.events
}

#[tokio::test(flavor = "multi_thread")]
async fn candles_are_what_the_trades_come_to_and_go_on_after_a_kill() {
    let network = Network::new();
    let key = network.key("solo");
    let origin_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
    let source =
        format!("[[source]]\nname = \"market\"\nkind = \"embedded\"\nrate = 200\norigin = {origin_ms}\n");
    let role = Role {
        name: "solo",
        region: "eu-west",
        roles: "[\"ingest\", \"edge\"]",
        ports: Ports::default(),
        node: "",
        ops: "",
        more: &format!("{source}{ROUTES}"),
    };
    let mut peer = network.start(&role, &[key], &[]);
    peer.wait_ready();
    let before = receive(&peer).await;
    peer.kill();
    peer.restart();
    peer.wait_ready();
    let after = receive(&peer).await;

    for events in [&before, &after] {
        let trades: Vec<Value> =
            events[TRADES].iter().map(|event| serde_json::from_str(&event.data).unwrap()).collect();
        let time = |trade: &Value| trade["timestamp"].as_u64().unwrap();
        for candle in whole_seconds(events) {
            let start = candle["start"].as_u64().unwrap();
            let within: Vec<_> =
                trades.iter().filter(|trade| (start..start + 1000).contains(&time(trade))).collect();
            let decimal = |value: &Value| value.as_str().unwrap().parse::<Decimal>().unwrap();
            let prices: Vec<_> = within.iter().map(|trade| decimal(&trade["price"])).collect();
            let volume =
                within.iter().fold(Decimal::default(), |sum, trade| sum.sum(&decimal(&trade["quantity"])));
            assert_eq!(candle["trades"], within.len(), "{candle}");
            assert_eq!(&decimal(&candle["open"]), prices.first().unwrap());
            assert_eq!(&decimal(&candle["close"]), prices.last().unwrap());
            assert_eq!(&decimal(&candle["high"]), prices.iter().max().unwrap());
            assert_eq!(&decimal(&candle["low"]), prices.iter().min().unwrap());
            assert_eq!(decimal(&candle["volume"]), volume);
        }
        assert_linked(SECONDS, &events[SECONDS]);
    }
    // Since when trades are counted is known from before the kill, as the trades are.
    let last = |events: &BTreeMap<String, Vec<Received>>| {
        serde_json::from_str::<Value>(&events[TICKER].last().unwrap().data).unwrap()
    };
    let (before, after) = (last(&before), last(&after));
    assert_eq!(before["openTime"], after["openTime"]);
    assert_eq!(before["open"], after["open"]);
    assert!(after["trades"].as_u64() > before["trades"].as_u64(), "{before} {after}");
    assert!(peer.terminate().success());
}
