//! Operators over more than a day of seeded trades and books, digit for digit what an independent computation makes of them
//! (`tests/python/operators.py`, Python's `decimal` and `zlib`).

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
use tickmesh::{
    config::reader::{Faults, Section},
    transform::{Operators, RouteConfig, Taken, Transform, decimal::Decimal},
};
use tickmesh_protocol::{Epoch, book::Book};

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

/// Two books whose updates are told about six times a minute: levels that come and go on both sides of a middle, the same price in several
/// spellings, snapshots now and then. Some updates the engine has lost, some it says twice, and some make no sense.
fn updates() -> Vec<(u64, String)> {
    let mut random = Random(11);
    let mut time_ms = BEGIN_MS;
    let mut ids = [1_u64; 2];
    let mut updates: Vec<(u64, String)> = Vec::new();
    while time_ms < BEGIN_MS + HOURS * 3_600_000 {
        time_ms += random.below(20_000);
        let index = random.below(2) as usize;
        let whole = random.below(60) == 0;
        let mut side = |sign: i64, levels: u64| -> Vec<Value> {
            let level = |_| {
                let cents = 1_234_500 + sign * random.below(400).cast_signed();
                let zero = ["", "0", "00"][random.below(3) as usize];
                let price = format!("{}.{:02}{zero}", cents / 100, cents % 100);
                let gone = !whole && random.below(3) == 0;
                let quantity = if gone {
                    "0.000".into()
                } else {
                    format!("{}.{:03}", random.below(9), 1 + random.below(999))
                };
                if random.below(5) == 0 && !gone {
                    json!([price, 1 + random.below(50)])
                } else {
                    json!([price, quantity])
                }
            };
            (0..levels).map(level).collect()
        };
        let most = if whole { 60 } else { 8 };
        // Asks from one cent above the middle on.
        let (mut asks, bids) = (side(1, most), side(-1, most / 2));
        asks.retain(|level| level[0].as_str().unwrap().parse::<f64>().unwrap() > 12_345.001);
        let crossing = random.below(300) == 0;
        if crossing {
            asks.push(json!(["12000", "1"]));
        }
        let (first, last) = (ids[index], ids[index] + random.below(3));
        ids[index] = last + 1;
        if random.below(100) == 0 {
            continue;
        }
        let key = KEYS[index];
        let update =
            json!({"d": key, "asks": asks, "bids": bids, "U": first, "u": last, "all": whole, "t": time_ms});
        updates.push((time_ms, update.to_string()));
        if random.below(50) == 0 {
            updates.push((time_ms, update.to_string().replace("\"all\":true", "\"all\":false")));
        }
    }
    updates
}

/// Trades and updates of books in one log.
fn records() -> Vec<String> {
    let time = |trade: &str| serde_json::from_str::<Value>(trade).unwrap()["t"].as_u64().unwrap();
    let mut records: Vec<_> = trades().into_iter().map(|trade| (time(&trade), trade)).collect();
    // Times of trades go back: they stay where they are, and updates come between.
    let mut latest = 0;
    for (time, _) in &mut records {
        latest = latest.max(*time);
        *time = latest;
    }
    records.extend(updates());
    records.sort_by_key(|(time, _)| *time);
    records.into_iter().map(|(_, record)| record).collect()
}

/// All operators of a day.
const OPERATORS: &str = r#"
[[route]]
source = "engine"
topic = "trades"
channel = "candles"
key = ".s"
candles = { intervals = ["1m", "5m", "1h"], price = ".p", quantity = ".q", time = ".t", every = "5s" }

[[route]]
source = "engine"
topic = "trades"
channel = "ticker"
key = ".s"
ticker = { price = ".p", quantity = ".q", time = ".t", every = "60s" }

[[route]]
source = "engine"
topic = "trades"
from = "ticker"
channel = "ticker"
key = '"global"'
combine = { every = "60s", time = ".closeTime", data = "{last, volume}" }

[[route]]
source = "engine"
topic = "trades"
channel = "calm"
key = ".s"
conflate = { every = "10s", time = ".t", data = "{price: .p}" }

[[route]]
source = "engine"
topic = "books"
channel = "depth"
key = ".d"
depth = { asks = ".asks", bids = ".bids", first = ".U", last = ".u", snapshot = ".all", time = ".t", levels = [5, 20], every = "1s", checksum = true }
"#;

fn routes(toml: &str) -> Vec<RouteConfig> {
    let faults = Faults::default();
    let mut root = Section::root(toml.parse().unwrap(), faults.clone());
    let routes: Vec<_> =
        root.sections("route").iter_mut().map(|section| RouteConfig::read(section).unwrap()).collect();
    assert!(faults.take().is_empty());
    routes
}

#[test]
fn operators_over_a_day_agree_with_an_independent_computation() {
    let records = records();
    let routes = routes(OPERATORS);
    let transform = Transform::new(&routes, None, &Default::default()).unwrap();
    let epoch = Epoch::from_u64(1);
    let mut operators = Operators::new(&routes);
    operators.begin(epoch, 0, true);

    let mut told = String::new();
    let (mut late, mut old, mut gaps) = (0, 0, 0);
    for (number, record) in records.iter().enumerate() {
        // Half a day later the peer is restarted from its checkpoint.
        if number == records.len() / 2 {
            let states = operators.save();
            operators = Operators::new(&routes);
            operators.restore(&states);
        }
        let value = Bytes::from(record.clone());
        let topic = if record.contains("\"asks\"") { "books" } else { "trades" };
        let record = Taken { topic, key: None, value: &value, engine_time_us: 0 };
        let making = operators.make(&transform, epoch, record);
        (late, old, gaps) = (late + making.late, old + making.old, gaps + making.gaps.len());
        let mut events: Vec<_> = making.outcomes.into_iter().flat_map(Result::unwrap).collect();
        events.sort_by(|a, b| a.stream.cmp(&b.stream));
        for event in events {
            let event = json!([number, event.stream, std::str::from_utf8(&event.data).unwrap()]);
            writeln!(told, "{event}").unwrap();
        }
    }
    assert!(late > 0 && old > 0 && gaps > 0, "{late} late, {old} old, {gaps} gaps");

    let folder = tempfile::tempdir().unwrap();
    let (records_file, told_file) = (folder.path().join("records"), folder.path().join("told"));
    fs::write(&records_file, records.join("\n")).unwrap();
    fs::write(&told_file, told).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/python/operators.py");
    let output = Command::new("python3").arg(script).arg(records_file).arg(told_file).output().unwrap();
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

/// Routes over the books of the market, which tells all of a book once a second.
const BOOKS: &str = r#"
[ingest]
checkpoint_every = "100ms"

[[route]]
source = "market"
filter = '.stream | startswith("depth.")'
channel = "depth"
key = '.stream | split(".")[1]'
depth = { asks = ".data.asks", bids = ".data.bids", snapshot = ".data.snapshot // false", time = ".data.timestamp", levels = [3], every = "0ms", checksum = true }

[[route]]
source = "market"
from = "depth"
filter = '$topic | endswith("@0ms")'
channel = "quotes"
key = '"all"'
combine = { every = "0ms", data = "{ask: .asks[0][0], bid: .bids[0][0]}" }
"#;

const DEPTH: &str = "depth.btc_usdt";
const TOP: &str = "depth.btc_usdt@0ms";
const QUOTES: &str = "quotes.all";

#[tokio::test(flavor = "multi_thread")]
async fn the_top_of_a_book_is_what_its_changes_add_up_to_and_goes_on_after_a_kill() {
    let network = Network::new();
    let key = network.key("solo");
    let source = "[[source]]\nname = \"market\"\nkind = \"embedded\"\nrate = 200\n";
    let role = Role {
        name: "solo",
        region: "eu-west",
        roles: "[\"ingest\", \"edge\"]",
        ports: Ports::default(),
        node: "",
        ops: "",
        more: &format!("{source}{BOOKS}"),
    };
    let mut peer = network.start(&role, &[key], &[]);
    for _ in 0..2 {
        peer.wait_ready();
        let mut client = Client::connect(&peer.url()).await;
        client.subscribe_until_confirmed(&[DEPTH, TOP, QUOTES]).await;
        let enough = |events: &BTreeMap<String, Vec<Received>>| {
            [DEPTH, TOP, QUOTES]
                .iter()
                .all(|stream| events.get(*stream).is_some_and(|events| events.len() > 50))
        };
        client.receive_until("the book has changed", enough).await;
        assert_top(&client.events);
        peer.kill();
        peer.restart();
    }
    peer.wait_ready();
    assert!(peer.terminate().success());
}

/// Wherever a top was told, it is the top of what all changes up to there add up to.
fn assert_top(events: &BTreeMap<String, Vec<Received>>) {
    let mut book = Book::default();
    let mut changes = events[DEPTH].iter().peekable();
    let mut compared = 0;
    for top in &events[TOP] {
        while let Some(change) = changes.next_if(|change| change.sequence <= top.sequence) {
            book.apply(change.data.as_bytes()).unwrap();
        }
        if changes.peek().is_none() {
            break;
        }
        if book.is_whole() {
            assert!(top.data.starts_with(&format!("{{{},", book.top(3))), "{} {book:?}", top.data);
            // A snapshot that a client begins with is of the three levels alone, and has no checksum.
            if let Some((_, rest)) = top.data.split_once("\"checksum\":") {
                assert!(rest.starts_with(&format!("{},", book.checksum())), "{rest}");
            }
            compared += 1;
        }
    }
    assert!(compared > 20, "{compared}");
}
