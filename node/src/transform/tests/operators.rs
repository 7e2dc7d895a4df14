//! Records on their way through routes with operators, read from configurations as they are written.

use std::rc::Rc;

use bytes::Bytes;
use proptest::prelude::*;
use tickmesh_protocol::Epoch;

use super::{NOW_MS, transform};
use crate::{
    config::reader::{Faults, Section},
    transform::{Making, Operators, RouteConfig, Taken, Transform},
};

/// The routes of one peer.
fn routes(toml: &str) -> Vec<RouteConfig> {
    let faults = Faults::default();
    let table = toml.parse().unwrap();
    let mut root = Section::root(table, faults.clone());
    let read = |mut section: Section| {
        let route = RouteConfig::read(&mut section);
        section.finish();
        route.unwrap()
    };
    let routes = root.sections("route").into_iter().map(read).collect::<Vec<_>>();
    assert!(faults.take().is_empty());
    routes
}

/// A peer that reads one partition.
struct Peer {
    routed: Rc<(Vec<RouteConfig>, Transform)>,
    operators: Operators,
}

const EPOCH: Epoch = Epoch::from_u64(7);

impl Peer {
    fn new(toml: &str) -> Self {
        let routes = routes(toml);
        let transform = transform(&routes);
        Self::of(Rc::new((routes, transform)))
    }

    fn of(routed: Rc<(Vec<RouteConfig>, Transform)>) -> Self {
        let mut operators = Operators::new(&routed.0);
        operators.begin(EPOCH, 0, true);
        Self { routed, operators }
    }

    fn make_at(&mut self, value: &str, log_ms: u64) -> Making {
        let value = Bytes::copy_from_slice(value.as_bytes());
        let record = Taken { topic: "market.x", key: None, value: &value, engine_time_us: log_ms * 1000 };
        self.operators.make(&self.routed.1, EPOCH, record)
    }

    /// What a record becomes: events as stream and data, and reasons where it is a dead letter.
    fn make(&mut self, value: &str) -> Vec<String> {
        texts(self.make_at(value, NOW_MS))
    }

    /// Another peer that goes on where this one is.
    fn sibling(&self) -> Self {
        let mut operators = Operators::new(&self.routed.0);
        operators.restore(&self.operators.save());
        operators.go_on(EPOCH, 0);
        Self { routed: self.routed.clone(), operators }
    }
}

fn texts(making: Making) -> Vec<String> {
    let text = |outcome: Result<Vec<_>, String>| match outcome {
        Ok(events) => events
            .iter()
            .map(|event: &super::Transformed| {
                format!("{} {}", event.stream, String::from_utf8_lossy(&event.data))
            })
            .collect(),
        Err(reason) => vec![reason],
    };
    making.outcomes.into_iter().flat_map(text).collect()
}

fn streams(texts: &[String]) -> Vec<&str> {
    texts.iter().filter_map(|text| text.split(' ').next()).collect()
}

const TRADES: &str = r#"
[[route]]
source = "engine"
channel = "candles"
key = ".s"
candles = { intervals = ["1s", "1m"], price = ".p", quantity = ".q", time = ".t", every = "0ms" }

[[route]]
source = "engine"
channel = "ticker"
key = ".s"
ticker = { price = ".p", quantity = ".q", every = "0ms" }
"#;

#[test]
fn operators_take_trades_and_tell_events() {
    let mut peer = Peer::new(TRADES);
    let at = |ms: i64| format!(r#"{{"s":"btc","p":"1.50","q":2,"t":{}}}"#, NOW_MS.cast_signed() + ms);
    assert_eq!(streams(&peer.make(&at(0))), ["candles.btc@1s", "candles.btc@1m", "ticker.btc"]);
    // Clocks that are wrong, and what is no trade.
    for (bad, reason) in [
        (at(60_001), "is too far from the log's own"),
        (at(-3_600_001), "is too far from the log's own"),
        (at(0).replace("1.50", "x"), "price must be a number"),
        (at(0).replace("\"q\":2", "\"q\":null"), "quantity must be a number"),
        (at(0).replace("btc", "B!"), "key may hold only"),
        (r#"{"s":"btc","p":"1.50","q":2,"t":1.5}"#.to_owned(), "time must be a number"),
    ] {
        let made = peer.make(&bad);
        assert!(made[0].contains(reason), "{bad}: {made:?}");
    }
    let without_time = texts(peer.make_at(&at(0), 0));
    assert!(without_time.last().unwrap().contains("says nothing of its time"), "{without_time:?}");
}

/// As three exchanges write their books.
#[test]
fn books_are_read_as_exchanges_write_them() {
    let book = |reads: &str| {
        Peer::new(&format!(
            "[[route]]\nsource = \"engine\"\nchannel = \"depth\"\nkey = '.s // .arg.instId // .data[0].symbol | ascii_downcase | gsub(\"[^a-z]\"; \"_\")'\n\
             depth = {{ {reads} }}\n"
        ))
    };
    let mut binance = book(
        "asks = '.a', bids = '.b', snapshot = '.lastUpdateId != null', first = '.U', last = '.u // .lastUpdateId', previous = '.pu', levels = [10], time = '.E'",
    );
    assert!(binance.make(&format!(r#"{{"e":"depthUpdate","E":{NOW_MS},"s":"BTCUSDT","U":1,"u":4,"pu":0,"b":[],"a":[["0.0026","100"]]}}"#)).is_empty());
    let snapshot = format!(
        r#"{{"s":"BTCUSDT","lastUpdateId":160,"E":{NOW_MS},"b":[["0.0024","10"]],"a":[["0.0026","100"]]}}"#
    );
    let told = binance.make(&snapshot);
    assert_eq!(streams(&told), ["depth.btcusdt", "depth.btcusdt@100ms"]);
    assert_eq!(
        told[0],
        format!(
            "depth.btcusdt {{\"asks\":[[\"0.0026\",\"100\"]],\"bids\":[[\"0.0024\",\"10\"]],\"snapshot\":true,\"timestamp\":{NOW_MS}}}"
        )
    );
    let update = format!(
        r#"{{"e":"depthUpdate","E":{NOW_MS},"s":"BTCUSDT","U":157,"u":162,"pu":149,"b":[["0.0024","0"]],"a":[]}}"#
    );
    assert_eq!(
        binance.make(&update),
        [format!("depth.btcusdt {{\"asks\":[],\"bids\":[[\"0.0024\",\"0\"]],\"timestamp\":{NOW_MS}}}")]
    );

    let mut okx = book(
        "asks = '.data[0].asks', bids = '.data[0].bids', snapshot = '.action == \"snapshot\"', last = '.data[0].seqId', previous = '.data[0].prevSeqId', time = '.data[0].ts'",
    );
    let message = |action: &str, previous: i64, last: u64| {
        format!(
            r#"{{"arg":{{"channel":"books","instId":"BTC-USDT"}},"action":"{action}","data":[{{"asks":[["8476.98","415","0","13"]],"bids":[["8476.97","256","0","12"]],"ts":"{NOW_MS}","checksum":0,"prevSeqId":{previous},"seqId":{last}}}]}}"#
        )
    };
    assert_eq!(streams(&okx.make(&message("snapshot", -1, 10))), ["depth.btc_usdt"]);
    assert_eq!(streams(&okx.make(&message("update", 10, 57))), ["depth.btc_usdt"]);
    assert!(okx.make(&message("update", 58, 60))[0].contains("\"incomplete\":true"));

    let mut kraken = book(
        "asks = '[.data[0].asks[] | [.price, .qty]]', bids = '[.data[0].bids[] | [.price, .qty]]', snapshot = '.type == \"snapshot\"', checksum = true",
    );
    let told = kraken.make(r#"{"channel":"book","type":"snapshot","data":[{"symbol":"MATIC/USD","bids":[{"price":0.5666,"qty":4831.75496356}],"asks":[{"price":0.5668,"qty":4410.79769741}],"checksum":2439117997}]}"#);
    assert!(told[0].starts_with("depth.matic_usd {\"asks\":[[\"0.5668\",\"4410.79769741\"]],\"bids\":[[\"0.5666\",\"4831.75496356\"]],\"checksum\":"), "{told:?}");
}

const DEPTH: &str = r#"
[[route]]
source = "engine"
channel = "depth"
key = '"a"'
depth = { asks = ".a", bids = ".b", last = ".u", snapshot = ".all // false", checksum = false }
"#;

#[test]
fn levels_that_are_none_are_dead_letters_and_change_nothing() {
    let mut peer = Peer::new(DEPTH);
    let told = peer.make(r#"{"all":true,"a":[[1e1,"1.50"],["1.2E+1",2]],"b":null,"u":1}"#);
    assert!(
        told[0].contains(r#""asks":[["10","1.50"],["12","2"]],"bids":[],"#),
        "without exponents: {told:?}"
    );
    for (bad, reason) in [
        (r#"{"a":{},"u":2}"#, "asks must be levels"),
        (r#"{"a":[1],"u":2}"#, "asks must be levels"),
        (r#"{"a":[["1"]],"u":2}"#, "asks must be levels"),
        (r#"{"a":[["1",null]],"u":2}"#, "asks must be levels"),
        (r#"{"a":[["1","-2"]],"u":2}"#, "asks must be levels"),
        (r#"{"a":[["1e99","2"]],"u":2}"#, "asks must be levels"),
        (r#"{"b":[["one","2"]],"u":2}"#, "bids must be levels"),
        (r#"{"b":[["1","2\u0022]"]],"u":2}"#, "bids must be levels"),
        (r#"{"a":[],"u":-2}"#, "last must be a number"),
        (r#"{"a":[],"u":18446744073709551616}"#, "last must be a number"),
        (r#"{"a":[]}"#, "last must be a number"),
        (r#"{"a":[],"u":2,"all":"yes"}"#, "snapshot must be true or false"),
    ] {
        let made = peer.make(bad);
        assert!(made.len() == 1 && made[0].contains(reason), "{bad}: {made:?}");
    }
    let many = format!(r#"{{"a":[{}["1","1"]],"u":2}}"#, r#"["1","1"],"#.repeat(20_000));
    assert!(peer.make(&many)[0].contains("at most 20000"));
    assert_eq!(streams(&peer.make(r#"{"a":[["9","1"]],"u":2}"#)), ["depth.a"], "it follows");
}

/// Trades → tickers → all of them in one stream, which is told less often; and by another way, conflated.
const CHAIN: &str = r#"
[[route]]
source = "engine"
channel = "ticker"
key = ".s"
ticker = { price = ".p", quantity = ".q", time = ".t", every = "0ms" }

[[route]]
source = "engine"
topic = "market.x"
from = "ticker"
channel = "ticker"
key = '"global"'
combine = { every = "0ms", time = ".closeTime", data = '{last, topic: $topic}' }

[[route]]
source = "engine"
from = "ticker"
filter = '$key == "global"'
channel = "slow"
key = "$key"
conflate = { every = "1s", data = "keys" }
"#;

#[test]
fn a_route_takes_what_others_make() {
    let mut peer = Peer::new(CHAIN);
    let trade = |key: &str, price: u32| format!(r#"{{"s":"{key}","p":{price},"q":2,"t":{NOW_MS}}}"#);
    let told = peer.make(&trade("btc", 5));
    assert_eq!(streams(&told), ["ticker.btc", "ticker.global", "slow.global"]);
    assert_eq!(told[1], r#"ticker.global {"btc":{"last":"5","topic":"ticker.btc"}}"#);
    let told = peer.make(&trade("eth", 7));
    assert_eq!(streams(&told), ["ticker.eth", "ticker.global"], "the other one waits");
    assert_eq!(
        told[1],
        r#"ticker.global {"btc":{"last":"5","topic":"ticker.btc"},"eth":{"last":"7","topic":"ticker.eth"}}"#
    );
    let told = texts(peer.make_at(r#"{"s":"B!"}"#, NOW_MS + 2000));
    assert_eq!(told.len(), 1, "a dead letter feeds nothing: {told:?}");
    // Both tickers are due when a minute goes; the combination has both, and is told once.
    let mut told = Vec::new();
    for minutes in [2, 1441] {
        let late = NOW_MS + minutes * 60_000;
        told = texts(peer.make_at(&format!(r#"{{"s":"btc","p":{minutes},"q":2,"t":{late}}}"#), late));
    }
    assert_eq!(streams(&told), ["ticker.btc", "ticker.eth", "ticker.global", "slow.global"], "{told:?}");
}

#[test]
fn records_of_another_partition_are_not_combined() {
    let mut peer = Peer::new(CHAIN);
    let other = Epoch::from_u64(8);
    peer.operators.begin(other, 1, true);
    let value = Bytes::from(format!(r#"{{"s":"btc","p":5,"q":2,"t":{NOW_MS}}}"#));
    let record = Taken { topic: "market.x", key: None, value: &value, engine_time_us: NOW_MS * 1000 };
    let made = texts(peer.operators.make(&peer.routed.1, other, record));
    assert_eq!(streams(&made)[0], "ticker.btc");
    assert!(made[1].contains("only those of partition 0"), "{made:?}");
}

#[test]
fn an_operator_that_no_checkpoint_knows_begins() {
    let mut peer = Peer::new(TRADES);
    peer.operators = Operators::new(&peer.routed.0);
    peer.operators.restore(&[]);
    let trade = format!(r#"{{"s":"btc","p":5,"q":2,"t":{NOW_MS}}}"#);
    assert!(peer.make(&trade).is_empty());
    peer.operators.go_on(EPOCH, 0);
    assert_eq!(streams(&peer.make(&trade)), ["ticker.btc"], "of candles the first ones are not whole");
}

thread_local! {
    /// Compiled once: that takes longer than all records do.
    static ALL: Rc<(Vec<RouteConfig>, Transform)> = Peer::new(&all_operators()).routed;
}

/// Every operator, and chains of them.
fn all_operators() -> String {
    let more = r#"
[[route]]
source = "engine"
channel = "candles"
key = ".s"
candles = { intervals = ["1s"], price = ".p", quantity = ".q", time = ".t", every = "300ms" }

[[route]]
source = "engine"
channel = "depth"
key = ".s"
depth = { asks = "[[.ask, .q]]", bids = "[[.bid, .q]]", last = ".u", snapshot = ".all", time = ".t", levels = [1, 2], checksum = true }

[[route]]
source = "engine"
from = "depth"
filter = 'has("checksum")'
channel = "quotes"
key = "$key"
conflate = { every = "500ms" }
"#;
    format!("{}{more}", CHAIN.replace("0ms", "700ms"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Of two peers that read the same log the second starts later, by the state of the first, and is restarted again and again: they
    /// make the same of every record.
    #[test]
    fn replicas_make_the_same_of_every_record(
        records in prop::collection::vec((0..3_usize, 1..200_u32, 0..900_u64, 0..9_u8), 1..60),
        start in 0..40_usize,
        restarts in any::<u64>(),
    ) {
        let mut first = Peer::of(ALL.with(Rc::clone));
        let mut second: Option<Peer> = None;
        let (mut time_ms, mut ids) = (NOW_MS, [0_u64; 3]);
        for (number, (key, price, step, odd)) in records.into_iter().enumerate() {
            time_ms += step;
            ids[key] += if odd == 0 { 2 } else { 1 };
            let (all, id) = (odd < 3, ids[key]);
            let record = format!(
                r#"{{"s":"k{key}","p":{price}.5,"q":"0.{odd}","t":{time_ms},"ask":{},"bid":{},"u":{id},"all":{all}}}"#,
                300 + price % 7, 200 - price % 7,
            );
            if number == start || second.is_some() && restarts.rotate_right(number as u32) & 1 == 1 {
                second = Some(second.as_ref().unwrap_or(&first).sibling());
            }
            let made = texts(first.make_at(&record, time_ms));
            if let Some(second) = &mut second {
                prop_assert_eq!(made, texts(second.make_at(&record, time_ms)));
            }
        }
    }
}
