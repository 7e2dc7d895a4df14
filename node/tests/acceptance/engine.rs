//! The engine's log, real or embedded: what is written, and what clients must get of it.

use std::{
    ops::Range,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use crate::{
    client::{Received, assert_linked},
    kafka::{KafkaBroker, KafkaProducer},
};

pub const TRADES: &str = "trades.btc_usdt";
pub const TICKER: &str = "ticker.btc_usdt";
pub const DEPTH: &str = "depth.btc_usdt";
/// Of the user Alice; alice is another one.
pub const ORDERS_OF_ALICE: &str = "orders.--_41lice";

/// Trades and tickers of one record; depth as it is; orders in both layouts that exchanges have: a topic per user, and one
/// keyed by user.
const ENGINE: &str = r#"
[[source]]
name = "engine"
kind = "kafka"
brokers = "BROKERS"
topics = ["market", "depth", "orders", "^orders\\..*"]
start = "beginning"

[[route]]
source = "engine"
topic = "market"
channel = "trades"
key = '.s | ascii_downcase'
data = '{price: .p, quantity: .q}'

[[route]]
source = "engine"
topic = "market"
channel = "ticker"
key = '.s | ascii_downcase'
data = '{price: .p}'

[[route]]
source = "engine"
topic = "depth"
channel = "depth"
key = '.s | ascii_downcase'

[[route]]
source = "engine"
topic = "orders.*"
channel = "orders"
key = '$topic | ltrimstr("orders.")'

[[route]]
source = "engine"
topic = "orders"
channel = "orders"
key = '$key'
"#;

/// A market without a broker, which begins now.
pub fn market() -> String {
    let origin_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
    format!("[[source]]\nname = \"market\"\nkind = \"embedded\"\nrate = 200\norigin = {origin_ms}\n")
}

/// The engine's log, empty, with a source that reads it.
pub async fn engine() -> (Arc<KafkaBroker>, KafkaProducer, String) {
    let broker = KafkaBroker::shared();
    for topic in ["market", "depth", "orders"] {
        broker.delete_topics(topic).await;
        broker.create_topic(topic, 1).await;
    }
    let (producer, source) = (broker.producer(), ENGINE.replace("BROKERS", &broker.bootstrap()));
    (broker, producer, source)
}

/// Trades as the engine writes them, digits and all.
pub fn produce_trades(producer: &KafkaProducer, numbers: Range<u64>) {
    for number in numbers {
        let record =
            format!(r#"{{"s":"BTC_USDT","p":"{number}.50","q":{number}.10,"note":"of no interest"}}"#);
        producer.send("market", 0, Some(&record));
    }
    producer.flush();
}

/// That events are what [`produce_trades`] wrote, from a number on: nothing else, nothing twice, nothing left out.
pub fn assert_trades(events: &[Received], numbers: Range<u64>) {
    let expected =
        numbers.map(|number| (number, format!(r#"{{"price":"{number}.50","quantity":{number}.10}}"#)));
    assert!(events.iter().map(|event| (event.sequence, event.data.clone())).eq(expected), "{events:?}");
    assert_linked(TRADES, events);
}

/// What takes room, and no time to parse.
pub fn depth(number: u64) -> String {
    format!(r#"{{"s":"BTC_USDT","id":{number},"padding":"{}"}}"#, "x".repeat(4000))
}

pub fn produce_depth(producer: &KafkaProducer, numbers: Range<u64>) {
    numbers.for_each(|number| producer.send("depth", 0, Some(&depth(number))));
    producer.flush();
}

/// Orders of Alice and alice by the key of their records, of user123 by the name of its topic.
pub fn produce_orders(producer: &KafkaProducer, numbers: Range<u64>) {
    for number in numbers {
        let order = format!(r#"{{"id":{number},"price":"36200.50"}}"#);
        let user = if number % 2 == 0 { "Alice" } else { "alice" };
        producer.send_keyed("orders", 0, Some(user), Some(&order));
        producer.send("orders.user123", 0, Some(&order));
    }
    producer.flush();
}

/// That orders are those of [`produce_orders`] with these numbers.
pub fn assert_orders(events: &[Received], numbers: impl Iterator<Item = u64>) {
    let expected = numbers.map(|number| (number, format!(r#"{{"id":{number},"price":"36200.50"}}"#)));
    assert!(events.iter().map(|event| (event.sequence, event.data.clone())).eq(expected), "{events:?}");
    assert_linked("orders", events);
}
