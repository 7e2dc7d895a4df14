use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use serde_json::Value;
use tickmesh_protocol::book::Book;

use super::{super::book::MAX_LEVELS, *};

fn setting(seed: u64) -> Setting {
    let symbols = ["btc_usdt", "doge_usdt", "unheard_of"].map(str::to_owned).to_vec();
    Setting { seed, symbols, rate: 2_000, origin_ms: 1_700_000_000_000 }
}

fn run(market: &mut Market, want: Want, ticks: u64) -> Vec<Written> {
    let mut collector = Collector::new(want);
    for _ in 0..ticks {
        market.step(&mut collector);
    }
    collector.records
}

fn parse(written: &Written) -> (String, Value) {
    let mut value: Value = serde_json::from_str(&written.value).expect("valid JSON");
    let stream = value["stream"].as_str().expect("a stream").to_owned();
    let name: tickmesh_protocol::StreamName = stream.parse().expect("a valid stream name");
    assert_eq!(value.as_object().unwrap().len(), 2, "stream and data, nothing else");
    (name.as_str().to_owned(), value["data"].take())
}

fn number(value: &Value) -> f64 {
    value.as_str().expect("numbers are strings").parse().expect("a number")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// Two instances, one of which only starts to write later or is continued from a clone, write the same bytes.
    #[test]
    fn a_record_depends_on_nothing_but_its_place(seed: u64, late in 1..900_u64) {
        let all = run(&mut Market::new(&setting(seed)), Want::Everything, 1_000);
        let mut market = Market::new(&setting(seed));
        run(&mut market, Want::Nothing, late);
        let positions = market.positions().to_vec();
        let suffix = run(&mut market.clone(), Want::Everything, 1_000 - late);
        let expected: Vec<_> = all.iter().filter(|w| w.position >= positions[w.partition]).cloned().collect();
        prop_assert_eq!(&suffix, &expected);
        let range = Want::Range { partition: 1, from: positions[1], until: positions[1] + 20 };
        let ranged = run(&mut market, range, 1_000 - late);
        let of_one: Vec<_> = expected.into_iter().filter(|w| w.partition == 1).take(20).collect();
        prop_assert_eq!(ranged, of_one);
    }

    #[test]
    fn positions_count_up_and_time_does_not_go_back(seed: u64) {
        let mut next = BTreeMap::new();
        let mut time_ms = 0;
        for written in run(&mut Market::new(&setting(seed)), Want::Everything, 2_000) {
            let next = next.entry(written.partition).or_insert(0);
            prop_assert_eq!(written.position, *next);
            *next += 1;
            prop_assert!(written.time_ms >= time_ms);
            time_ms = written.time_ms;
        }
        prop_assert_eq!(next.len(), setting(seed).partitions(), "every partition is written to");
    }

    /// What a client does: takes a book, applies the differences after it, and has the next book exactly.
    #[test]
    fn differences_lead_from_book_to_book(seed: u64) {
        let mut copies: BTreeMap<usize, [BTreeMap<String, String>; 2]> = BTreeMap::new();
        let mut compared = 0;
        for written in run(&mut Market::new(&setting(seed)), Want::Everything, 1_300) {
            let (stream, data) = parse(&written);
            let sides = ["asks", "bids"].map(|side| levels_of(&data[side]));
            if stream.starts_with("book.") {
                let book = sides.clone().map(|side| side.into_iter().collect::<BTreeMap<_, _>>());
                check_book(&sides);
                if let Some(copy) = copies.insert(written.partition, book.clone()) {
                    prop_assert_eq!(copy, book, "{} at {}", stream, written.position);
                    compared += 1;
                }
            } else if stream.starts_with("depth.")
                && let Some(copy) = copies.get_mut(&written.partition)
            {
                for (side, changes) in copy.iter_mut().zip(sides) {
                    for (price, quantity) in changes {
                        if quantity == "0" { side.remove(&price); } else { side.insert(price, quantity); }
                    }
                }
            }
        }
        prop_assert!(compared >= 3 * 6, "{compared} books were compared");
    }

    /// What ingest does: keeps the book from the depth events alone, which say themselves when they hold all of it.
    #[test]
    fn depth_alone_makes_the_book(seed: u64) {
        let mut books: BTreeMap<usize, Book> = BTreeMap::new();
        let (mut wholes, mut compared) = (0, 0);
        for written in run(&mut Market::new(&setting(seed)), Want::Everything, 1_300) {
            let (stream, data) = parse(&written);
            let book = books.entry(written.partition).or_default();
            if stream.starts_with("depth.") {
                wholes += usize::from(data["snapshot"] == true);
                book.apply(data.to_string().as_bytes()).unwrap();
            } else if stream.starts_with("book.") {
                let kept: Value = serde_json::from_str(&book.to_data().expect("a whole book")).unwrap();
                for field in ["asks", "bids", "timestamp"] {
                    prop_assert_eq!(&kept[field], &data[field], "{} at {}", stream, written.position);
                }
                compared += 1;
            }
        }
        prop_assert!(wholes == compared && compared >= 3 * 6, "{wholes} were whole, {compared} books were compared");
    }

    #[test]
    fn one_stream_is_in_one_partition(seed: u64) {
        let mut homes = BTreeMap::new();
        for written in run(&mut Market::new(&setting(seed)), Want::Everything, 4_000) {
            let (stream, _) = parse(&written);
            let home = *homes.entry(stream.clone()).or_insert(written.partition);
            prop_assert_eq!(home, written.partition, "{}", stream);
        }
        let channels = ["trades", "depth", "book", "ticker"];
        let mut expected: BTreeSet<String> = setting(seed).symbols.iter()
            .flat_map(|symbol| channels.map(|channel| format!("{channel}.{symbol}"))).collect();
        expected.extend(["ticker.global", "orders.alice", "orders.bob"].map(str::to_owned));
        prop_assert_eq!(homes.into_keys().collect::<BTreeSet<_>>(), expected);
    }

    /// Orders go accepted → partially filled → filled or cancelled, and nothing comes after the end.
    #[test]
    fn orders_of_users_live_one_life(seed: u64) {
        let mut lives: BTreeMap<(String, u64), (String, f64)> = BTreeMap::new();
        for written in run(&mut Market::new(&setting(seed)), Want::Everything, 3_000) {
            if written.partition != setting(seed).symbols.len() + 1 { continue; }
            let (stream, order) = parse(&written);
            let (status, filled) = (order["status"].as_str().unwrap(), number(&order["filled"]));
            let quantity = number(&order["quantity"]);
            let key = (stream, order["id"].as_u64().unwrap());
            let before = lives.insert(key.clone(), (status.to_owned(), filled));
            match (before, status) {
                (None, "accepted") => prop_assert_eq!(filled, 0.0),
                (Some((was, had)), "partially_filled" | "filled" | "cancelled") => {
                    prop_assert!(was == "accepted" || was == "partially_filled", "{key:?}: {was} then {status}");
                    let right = if status == "cancelled" { filled == had } else { filled > had };
                    prop_assert!(right, "{key:?}: {had} then {filled}, {status}");
                    prop_assert_eq!(status == "filled", filled == quantity);
                }
                other => prop_assert!(false, "{key:?}: {other:?}"),
            }
        }
    }
}

fn levels_of(side: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().expect("numbers are strings").to_owned();
    side.as_array().into_iter().flatten().map(|level| (text(&level[0]), text(&level[1]))).collect()
}

/// A whole book is best first, not crossed, and has no empty level.
fn check_book([asks, bids]: &[Vec<(String, String)>; 2]) {
    let prices =
        |side: &[(String, String)]| -> Vec<f64> { side.iter().map(|l| l.0.parse().unwrap()).collect() };
    let (asks_at, bids_at) = (prices(asks), prices(bids));
    assert!(asks_at.is_sorted_by(|a, b| a < b) && bids_at.is_sorted_by(|a, b| a > b), "best first");
    if let (Some(bid), Some(ask)) = (bids_at.first(), asks_at.first()) {
        assert!(bid < ask, "crossed: {bid} {ask}");
    }
    assert!(asks.len() <= MAX_LEVELS && bids.len() <= MAX_LEVELS);
    assert!(asks.iter().chain(bids).all(|(_, quantity)| quantity != "0"), "an empty level");
}

/// What a user is told covers every status, for both users.
#[test]
fn orders_of_users_end_in_every_way() {
    let mut setting = setting(3);
    setting.rate = 200;
    let partition = setting.symbols.len() + 1;
    let range = Want::Range { partition, from: 0, until: u64::MAX };
    let told: BTreeSet<(String, String)> = run(&mut Market::new(&setting), range, 60_000)
        .iter()
        .map(|written| {
            let (stream, order) = parse(written);
            (stream, order["status"].as_str().unwrap().to_owned())
        })
        .collect();
    for stream in ["orders.alice", "orders.bob"] {
        for status in ["accepted", "partially_filled", "filled", "cancelled"] {
            assert!(told.contains(&(stream.to_owned(), status.to_owned())), "{stream} {status}");
        }
    }
}

/// Trades, seen in the log, explain the ticker exactly; prices stay where an exchange would have them.
#[test]
fn tickers_follow_from_trades() {
    let mut market = Market::new(&setting(7));
    let mut seen: BTreeMap<String, (f64, f64, f64)> = BTreeMap::new();
    let mut tickers = 0;
    for written in run(&mut market, Want::Everything, 20_000) {
        let (stream, data) = parse(&written);
        if let Some(symbol) = stream.strip_prefix("trades.") {
            let price = number(&data["price"]);
            let (last, high, low) = seen.entry(symbol.to_owned()).or_insert((price, price, price));
            (*last, *high, *low) = (price, high.max(price), low.min(price));
        } else if stream.starts_with("ticker.") && stream != "ticker.global" {
            let (last, high, low) = seen[stream.trim_start_matches("ticker.")];
            let told = ["price", "high", "low"].map(|key| number(&data[key]));
            assert_eq!(told, [last, high, low], "{stream} at {}", written.position);
            tickers += 1;
        }
    }
    assert!(tickers > 100, "{tickers} tickers");
    let (_, high, low) = seen["btc_usdt"];
    assert!(high < 67_420.5 * 1.1 && low > 67_420.5 * 0.9 && high > low * 1.0005, "btc from {low} to {high}");
}

/// The first bytes of the log, pinned: a change here is a change of what every position means, and wants a new version
/// in the epoch.
#[test]
fn the_log_is_pinned() {
    let market = &mut Market::new(&setting(1));
    let records = run(market, Want::Everything, 2_000);
    let mut hashes = BTreeMap::new();
    for written in &records {
        let hash = hashes.entry(written.partition).or_insert(0xcbf2_9ce4_8422_2325_u64);
        for byte in written.value.bytes() {
            *hash = (*hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    let pinned: Vec<String> = hashes.values().map(|hash| format!("{hash:016x}")).collect();
    assert_eq!(
        pinned,
        ["ed13ab704dcc4acd", "0fa487b8cbd472e6", "1dea2b8e6eadcaed", "93ed61426380ed7e", "6f2ed5829d7853dd"]
    );
}
