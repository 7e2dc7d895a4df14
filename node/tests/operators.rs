//! Candles and tickers over more than a day of seeded trades, digit for digit what an independent computation makes of them
//! (`tests/python/operators.py`, Python's `decimal`).

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "helpers of tests, outside test functions"
)]

use std::{fmt::Write as _, fs, path::Path, process::Command};

use bytes::Bytes;
use serde_json::json;
use tickmesh::transform::{
    Made, Makes, OperatorConfig, Operators, RouteConfig, Routes, Taken, Transform,
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
        time_ms += random.below(3_000);
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
