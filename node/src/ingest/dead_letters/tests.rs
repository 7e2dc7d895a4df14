//! Letters: their forms, the file, the journal, and the way to a sink that does not always take them.

mod pausing;

use std::{
    fs::{self, OpenOptions},
    io::Write,
    task::Waker,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use proptest::prelude::*;
use tickmesh_protocol::Epoch;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{letter::MAX_LETTER_VALUE_BYTES, *};
use crate::{
    config::reader::read_text,
    ingest::checkpoint::tests::Tmpfs,
    ops::{breaker::Circuit, health::Health, metrics::Registry},
    source::writing::WriteError,
};

const DEADLINE: Duration = Duration::from_secs(30);

fn record(position: u64, value: impl Into<Bytes>) -> Record {
    Record {
        topic: "market".into(),
        partition: 3,
        position,
        epoch: Epoch::from_u64(7),
        term: Some(1),
        key: None,
        value: value.into(),
        engine_time_us: 1_724_548_381_123_000,
    }
}

fn letter(position: u64, value: impl Into<Bytes>) -> Letter {
    Letter::new("engine", &record(position, value), &["no JSON".into()], 0)
}

fn positions(file: &LetterFile) -> Vec<u64> {
    let mut all = Vec::new();
    let strange = file.read(|letter| {
        all.push(letter.position);
        true
    });
    assert_eq!(strange.unwrap(), 0);
    all
}

proptest! {
    #[test]
    fn a_letter_is_the_same_as_a_line_and_as_a_message(
        key in prop::option::of(prop::collection::vec(any::<u8>(), 0..20)),
        value in prop::collection::vec(any::<u8>(), 0..200),
        (position, time, partition, events) in (any::<u64>(), any::<u64>(), any::<u32>(), 0_u64..5),
        reasons in prop::collection::vec("\\PC{0,40}", 1..5),
    ) {
        let record = Record { key: key.map(Bytes::from), partition, engine_time_us: time, ..record(position, value) };
        let letter = Letter::new("engine", &record, &reasons, events);
        let line = letter.to_line();
        prop_assert_eq!(line.matches('\n').count(), 1);
        prop_assert_eq!(Letter::from_line(&line), Some(letter.clone()));
        let message = letter.to_message("letters");
        prop_assert_eq!((&message.key, &message.value), (&record.key, &record.value), "as they were");
        prop_assert_eq!(Letter::from_message(&message), Some(letter.clone()));
        let back = letter.put_back();
        prop_assert_eq!((back.topic, back.partition), ("market".to_owned(), Some(partition)));
        prop_assert_eq!((back.key, back.value, back.time_us), (record.key, record.value, time));
    }

    #[test]
    fn what_is_no_letter_is_none(text in "\\PC{0,200}") {
        prop_assert_eq!(Letter::from_line(&text), None);
    }
}

#[test]
fn one_record_has_one_letter_whatever_refused_it() {
    let reasons = ["key: a".to_owned(), "key: a".to_owned(), "data: b".to_owned()];
    let letter = Letter::new("engine", &record(5, "x"), &reasons, 2);
    assert_eq!((letter.reason.as_str(), letter.events), ("key: a; data: b", 2));
    assert_eq!(letter.id, "engine/market/3/0000000000000007/5");
    assert_eq!(Letter::new("engine", &record(5, "x"), &["other".into()], 0).id, letter.id);
    let long = Letter::new("engine", &record(5, "x"), &["ä".repeat(1000)], 0);
    assert!(long.reason.len() <= 1024 && long.reason.starts_with('ä'));
    let large = Letter::new("engine", &record(5, vec![0; MAX_LETTER_VALUE_BYTES + 1]), &reasons, 0);
    assert_eq!((large.value.len(), large.left_out), (0, Some(MAX_LETTER_VALUE_BYTES as u64 + 1)));
    // Two entries that have no position of their own are two.
    let unplaced = |reason: &str| Letter::unplaced("engine", &record(5, "x"), reason).id;
    assert_ne!(unplaced("the id 1-9"), unplaced("the id 1-10"));
    assert_eq!(unplaced("the id 1-9"), unplaced("the id 1-9"));
}

#[test]
fn a_full_file_is_put_aside_and_what_is_deleted_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deep/letters.jsonl");
    let deleted = Registry::new().counter("deleted", "Deleted.");
    let bytes = letter(10, "x").to_line().len() as u64;
    let file = LetterFile::new(path, 3 * bytes).counting(&deleted);
    let add = |position: u64| file.append(&[Arc::new(letter(position, "x"))]).unwrap();
    (10..13).for_each(add);
    assert!(!folder.path().join("deep/letters.jsonl.1").exists());
    (13..16).for_each(add);
    assert_eq!((positions(&file), deleted.get()), ((10..16).collect(), 0));
    add(16);
    assert_eq!((positions(&file), deleted.get()), ((13..17).collect(), 3));
    // One that alone is larger than the file may be is written nevertheless.
    file.append(&[Arc::new(letter(17, vec![b'x'; 4 * bytes as usize]))]).unwrap();
    assert_eq!(positions(&file), [16, 17]);
}

#[test]
fn a_line_that_was_cut_off_hides_none_after_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("letters.jsonl");
    let file = LetterFile::new(path.clone(), 1 << 20);
    file.append(&[Arc::new(letter(1, "a"))]).unwrap();
    let half = letter(2, "b").to_line();
    OpenOptions::new().append(true).open(&path).unwrap().write_all(&half.as_bytes()[..40]).unwrap();
    file.append(&[Arc::new(letter(3, "c"))]).unwrap();
    let mut all = Vec::new();
    let strange = file.read(|letter| {
        all.push(letter.position);
        true
    });
    assert_eq!((strange.unwrap(), all), (1, vec![1, 3]));
}

#[test]
fn a_full_disk_leaves_the_file_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let Some(_disk) = Tmpfs::mount(folder.path(), "size=64k") else {
        eprintln!("not run: only root can mount a file system");
        return;
    };
    let file = LetterFile::new(folder.path().join("letters.jsonl"), 1 << 20);
    file.append(&[Arc::new(letter(1, "a"))]).unwrap();
    let many: Vec<_> = (2..100).map(|position| Arc::new(letter(position, vec![0; 1000]))).collect();
    file.append(&many).unwrap_err();
    assert_eq!(positions(&file), [1]);
    file.append(&many[..2]).unwrap();
    assert_eq!(positions(&file), [1, 2, 3]);
}

#[test]
fn a_journal_knows_what_was_put_back_and_has_one_owner() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new/journal");
    let mut journal = Journal::open(&path).unwrap();
    journal.note("a").unwrap();
    assert!(journal.has("a") && !journal.has("b"));
    assert!(Journal::open(&path).unwrap_err().to_string().contains("another replay"));
    journal.note("b").unwrap();
    drop(journal);
    // The process ended in the middle of a line.
    let length = fs::metadata(&path).unwrap().len();
    OpenOptions::new().write(true).open(&path).unwrap().set_len(length - 3).unwrap();
    let mut journal = Journal::open(&path).unwrap();
    assert!(journal.has("a") && !journal.has("b"));
    journal.note("c").unwrap();
    drop(journal);
    let journal = Journal::open(&path).unwrap();
    assert!(journal.has("a") && journal.has("c"));
}

#[test]
fn a_section_names_one_place() {
    let read = |text| {
        read_text(text, |section| Config::read(section, Path::new("/etc/tickmesh"), PathBuf::from("journal")))
    };
    let (config, faults) = read("file = 'letters.jsonl'\nmax_bytes = '2MiB'");
    assert_eq!(faults, Vec::<String>::new());
    let path = PathBuf::from("/etc/tickmesh/letters.jsonl");
    assert_eq!(config.unwrap().to, Destination::File { path, max_bytes: 2 << 20 });
    let (config, faults) = read("topic = 'tickmesh.dead-letters'");
    assert_eq!(faults, Vec::<String>::new());
    assert_eq!(config.unwrap().to, Destination::Topic("tickmesh.dead-letters".into()));
    for (text, part) in [
        ("", "file: write file ="),
        ("file = 'a'\ntopic = 'b'", "not both"),
        ("topic = 'a b'", "topic: "),
        ("topic = ''", "topic: "),
        ("file = 'a'\nmax_bytes = '1KiB'", "max_bytes: at least"),
        ("topic = 'a'\nmax_bytes = '2MiB'", "max_bytes: is for a file"),
    ] {
        let (_, faults) = read(text);
        assert!(faults.join("\n").contains(part), "no word about {part} in {faults:?}");
    }
}

/// A sink that takes what it is let to.
struct Gate {
    open: watch::Receiver<bool>,
    taken: Arc<Mutex<Vec<Arc<Letter>>>>,
    /// Bytes of a letter that it takes at most.
    most: usize,
}

impl Sink for Gate {
    fn write<'a>(&'a mut self, letters: &'a [Arc<Letter>]) -> BoxFuture<'a, Result<(), WriteError>> {
        Box::pin(async move {
            if !*self.open.borrow() {
                return Err(WriteError::Failed("the gate is shut".into()));
            }
            if letters.iter().any(|letter| letter.bytes() > self.most) {
                return Err(WriteError::TooLarge("no".into()));
            }
            self.taken.lock().unwrap().extend_from_slice(letters);
            Ok(())
        })
    }
}

struct Sent {
    outbox: Outbox,
    gate: watch::Sender<bool>,
    taken: Arc<Mutex<Vec<Arc<Letter>>>>,
    registry: Registry,
    health: Health,
    stop: CancellationToken,
}

fn carry(open: bool, most: usize) -> Sent {
    let (registry, health, stop) = (Registry::new(), Health::default(), CancellationToken::new());
    let (gate, open) = watch::channel(open);
    let taken = Arc::<Mutex<Vec<_>>>::default();
    let sink = Box::new(Gate { open, taken: taken.clone(), most });
    let circuit = Arc::new(Circuit::new(&registry, "dead_letters", Carrier::PAUSE));
    let metrics = SinkMetrics::new(&registry);
    let condition = health.condition("dead letters engine");
    let (outbox, carrier) = Carrier::new("engine", sink, Some("own".into()), &metrics, circuit, condition);
    tokio::spawn(carrier.run(stop.clone()));
    Sent { outbox, gate, taken, registry, health, stop }
}

impl Sent {
    async fn until(&self, what: &str, done: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !done(self) {
            assert!(Instant::now() < deadline, "waited in vain for {what}:\n{}", self.registry.render());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    fn shows(&self, line: &str) -> bool {
        self.registry.render().lines().any(|shown| shown == format!("tickmesh_{line}"))
    }
}

#[tokio::test]
async fn a_sink_that_takes_nothing_fills_the_outbox_and_is_tried_until_it_does() {
    let sent = carry(false, usize::MAX);
    let context = std::task::Context::from_waker(Waker::noop());
    assert!(sent.outbox.takes("market") && !sent.outbox.takes("own"), "no letters of letters");
    let mut put = 0;
    while sent.outbox.has_room(&context) {
        sent.outbox.put(letter(put, "x"));
        put += 1;
    }
    sent.until("an open circuit", |sent| {
        sent.shows("circuit_state{target=\"dead_letters\"} 2")
            || sent.shows("circuit_state{target=\"dead_letters\"} 1")
    })
    .await;
    assert!(sent.shows(&format!("dead_letters_waiting{{source=\"engine\"}} {put}")));
    assert!(!sent.health.readiness().ready, "ingest waits, and that is said");
    assert_eq!((sent.outbox.put_so_far(), sent.outbox.kept()), (put, 0));
    sent.gate.send(true).unwrap();
    sent.outbox.emptied().await;
    assert!(sent.outbox.has_room(&context) && sent.health.readiness().ready);
    assert_eq!((sent.outbox.put_so_far(), sent.outbox.kept()), (put, put));
    let taken: Vec<u64> = sent.taken.lock().unwrap().iter().map(|letter| letter.position).collect();
    assert_eq!(taken, (0..put).collect::<Vec<_>>(), "each, in order");
    assert!(sent.shows(&format!("dead_letters_written_total{{source=\"engine\"}} {put}")));
    assert!(sent.shows("circuit_state{target=\"dead_letters\"} 0"));
}

#[tokio::test]
async fn what_is_too_large_for_a_sink_goes_without_its_record_and_holds_up_nothing() {
    let sent = carry(true, 100);
    for position in 0..10 {
        sent.outbox.put(letter(position, vec![b'x'; if position == 4 { 101 } else { 100 }]));
    }
    sent.outbox.emptied().await;
    let taken = sent.taken.lock().unwrap().clone();
    assert_eq!(taken.iter().map(|letter| letter.position).collect::<Vec<_>>(), Vec::from_iter(0..10));
    for letter in taken {
        let whole = letter.position != 4;
        assert_eq!((letter.value.len(), letter.left_out), if whole { (100, None) } else { (0, Some(101)) });
    }
    sent.stop.cancel();
}
