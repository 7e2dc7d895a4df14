//! The source and its reader, by the wall clock.

use std::collections::BTreeMap;

use tickmesh_protocol::{Sequence, checkpoint::PartitionState};

use super::*;
use crate::ops::{health::Health, metrics::Registry};

const DEADLINE: Duration = Duration::from_secs(20);

fn config(age_ms: u64) -> Config {
    let symbols = ["btc_usdt", "eth_usdt"].map(str::to_owned).to_vec();
    Config { setting: Setting { seed: 9, symbols, rate: 5_000, origin_ms: now_us() / 1000 - age_ms } }
}

struct Running {
    events: mpsc::Receiver<SourceEvent>,
    reader: Arc<dyn LogReader>,
    registry: Registry,
    health: Health,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
    begins: Vec<(Epoch, u64)>,
    reached: Vec<(Epoch, u64)>,
    records: Vec<Record>,
}

impl Running {
    fn start(config: Config) -> Self {
        Self::start_at(config, Starts::default())
    }

    fn start_at(config: Config, starts: Starts) -> Self {
        let (registry, health) = (Registry::new(), Health::default());
        let metrics = SourceMetrics::new(&registry);
        let source = Embedded::new("demo", config, &metrics, health.condition("source demo"));
        let (sender, events) = mpsc::channel(4);
        let (reader, stop) = (source.reader(), CancellationToken::new());
        let task = tokio::spawn(Box::new(source).run(starts, sender, stop.clone()));
        Self {
            events,
            reader,
            registry,
            health,
            stop,
            task,
            begins: Vec::new(),
            reached: Vec::new(),
            records: Vec::new(),
        }
    }

    async fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let deadline = tokio::time::Instant::now() + DEADLINE;
        while !done(self) {
            match tokio::time::timeout_at(deadline, self.events.recv()).await {
                Ok(Some(SourceEvent::Begin { epoch, position, first, .. })) => {
                    assert_eq!(first, position == 0);
                    self.begins.push((epoch, position));
                }
                Ok(Some(SourceEvent::Reached { epoch, position })) => self.reached.push((epoch, position)),
                Ok(Some(SourceEvent::Records(records))) => {
                    assert!(!records.is_empty(), "records are never empty");
                    let now_us = now_us();
                    assert!(records.iter().all(|r| r.engine_time_us <= now_us), "a record before its time");
                    self.records.extend(records);
                }
                Ok(None) => panic!("the source ended while waiting for {what}"),
                Ok(Some(SourceEvent::Refused { reason, .. })) => panic!("refused a record: {reason}"),
                Err(_) => panic!("waited in vain for {what}; {} records", self.records.len()),
            }
        }
    }

    fn by_place(&self) -> BTreeMap<(u32, u64), Record> {
        let place = |record: &Record| ((record.partition, record.position), record.clone());
        self.records.iter().map(place).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn early_late_and_again_are_the_same_log() {
    let config = config(500);
    let mut early = Running::start(config.clone());
    early.until("600 records", |running| running.records.len() >= 600).await;
    let mut late = Running::start(config);
    late.until("600 records", |running| running.records.len() >= 600).await;
    let last_us = late.records[599].engine_time_us;
    early
        .until("what the later one has", |running| {
            running.records.last().is_some_and(|last| last.engine_time_us > last_us)
        })
        .await;

    assert!(early.health.readiness().ready);
    assert_eq!(early.begins.len(), 4, "two symbols, tickers, orders");
    let epochs: Vec<Epoch> = early.begins.iter().map(|(epoch, _)| *epoch).collect();
    assert_eq!(epochs, late.begins.iter().map(|(epoch, _)| *epoch).collect::<Vec<_>>());
    let (of_early, of_late) = (early.by_place(), late.by_place());
    let of_late: Vec<_> = of_late.values().filter(|record| record.engine_time_us <= last_us).collect();
    assert!(of_late.len() >= 600);
    for record in of_late {
        let same = &of_early[&(record.partition, record.position)];
        assert_eq!(format!("{record:?}"), format!("{same:?}"));
    }

    for (partition, (epoch, begin)) in early.begins.clone().into_iter().enumerate() {
        let live: Vec<&Record> = early.records.iter().filter(|r| r.epoch == epoch).collect();
        let positions: Vec<u64> = live.iter().map(|record| record.position).collect();
        assert_eq!(
            positions,
            (begin..begin + positions.len() as u64).collect::<Vec<_>>(),
            "no gap, no double"
        );
        let until = begin + positions.len() as u64;
        let again = early.reader.read(TOPIC, number_of(partition), begin, until).await.unwrap();
        assert_eq!((again.epoch, again.until), (epoch, until));
        let again = again.records;
        assert_eq!(format!("{again:?}"), format!("{live:?}"), "partition {partition} is read again");
        let before = early.reader.read(TOPIC, number_of(partition), 0, begin).await.unwrap();
        assert_eq!(before.records.len() as u64, begin, "what came before the source was up can be read");
    }
    let counted = format!("tickmesh_source_records_total{{source=\"demo\"}} {}", early.records.len());
    let shown = early.registry.render();
    let line = shown.lines().find(|line| line.starts_with("tickmesh_source_records_total")).unwrap();
    // Records on their way are counted too.
    let number = |line: &str| line.rsplit(' ').next().unwrap().parse::<usize>().unwrap();
    assert!(number(line) >= number(&counted), "{line} beside {counted}");
    for running in [early, late] {
        running.stop.cancel();
        tokio::time::timeout(DEADLINE, running.task).await.expect("the source ends").unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reading_goes_on_where_it_is_told() {
    let config = config(500);
    let mut before = Running::start(config.clone());
    before.until("600 records", |running| running.records.len() >= 600).await;
    before.until("the end of the log", |running| running.reached.len() == 4).await;
    let state = |partition: usize, next| PartitionState {
        epoch: before.begins[partition].0,
        topic: TOPIC.into(),
        partition: number_of(partition),
        next,
        read_from: Sequence::ZERO,
        term: None,
    };
    // Partitions that were read differently far; one as far as the clock is not yet.
    let ahead = 2_000_000;
    let starts: Starts = [state(0, 3), state(1, 60), state(3, ahead)].iter().collect();
    let mut after = Running::start_at(config, starts);
    after.until("the end of the log", |running| running.reached.len() == 4).await;
    let begins: Vec<u64> = after.begins.iter().map(|(_, position)| *position).collect();
    assert_eq!((begins[0], begins[1], begins[3]), (3, 60, ahead));
    let (first, again) = (before.by_place(), after.by_place());
    for partition in [0, 1] {
        let next = after.reached[partition].1;
        let begin = begins[partition];
        assert!(next > begin, "there was something to replay");
        let positions: Vec<u64> = after
            .records
            .iter()
            .filter(|r| r.partition == number_of(partition))
            .map(|r| r.position)
            .collect();
        assert_eq!(positions[..usize::try_from(next - begin).unwrap()], (begin..next).collect::<Vec<_>>());
    }
    let both: Vec<_> = again.iter().filter_map(|(place, record)| Some((record, first.get(place)?))).collect();
    assert!(both.len() > 100, "{} records in both", both.len());
    assert!(both.iter().all(|(one, other)| format!("{one:?}") == format!("{other:?}")));
    assert!(after.records.iter().all(|record| record.partition != 3), "nothing is given twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_ends_where_the_clock_is() {
    let running = Running::start(config(200));
    let ahead = running.reader.read(TOPIC, 0, 50_000, 60_000).await.unwrap();
    assert!(ahead.records.is_empty(), "records of the future: {}", ahead.records.len());
    assert_eq!(ahead.until, 50_000, "nothing is known to be there or not");
    let unknown =
        |result: Result<Stretch, ReadError>| matches!(result, Err(ReadError::UnknownPartition { .. }));
    assert!(unknown(running.reader.read(TOPIC, 4, 0, 1).await));
    assert!(unknown(running.reader.read("other", 0, 0, 1).await));
    let long = running.reader.read(TOPIC, 0, 0, MAX_READ_POSITIONS + 1).await;
    assert!(matches!(long, Err(ReadError::TooLarge { .. })));
    let mut coming = config(0);
    coming.setting.origin_ms += 300;
    let origin_us = coming.setting.origin_ms * 1000;
    let mut running = Running::start(coming);
    running.until("the opening", |running| !running.records.is_empty()).await;
    assert_eq!(running.records[0].engine_time_us, origin_us, "a market may open later");
    assert!(running.begins.iter().all(|(_, position)| *position == 0));
    let mut never = config(0);
    never.setting.origin_ms = u64::MAX;
    let mut running = Running::start(never);
    running.until("a market that never opens", |running| running.begins.len() == 4).await;
    running.stop.cancel();
    tokio::time::timeout(DEADLINE, running.task).await.expect("the source ends").unwrap();
}

#[test]
fn any_other_setting_is_another_epoch() {
    let setting = config(0).setting;
    let other = [
        Setting { seed: 10, ..setting.clone() },
        Setting { rate: 5_001, ..setting.clone() },
        Setting { origin_ms: setting.origin_ms + 1, ..setting.clone() },
        Setting { symbols: vec!["btc_usdt".into(), "sol_usdt".into()], ..setting },
    ];
    for other in other {
        assert_ne!(epoch_of(&setting, 0), epoch_of(&other, 0), "{other:?}");
    }
    assert_ne!(epoch_of(&setting, 0), epoch_of(&setting, 1));
}
