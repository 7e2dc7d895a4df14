//! What is retained: by itself, and by an ingest peer that is restarted from its checkpoint.

use std::{collections::HashSet, path::Path, time::Duration};

use bytes::Bytes;
use tickmesh_protocol::{
    Epoch, Sequence, SignedBatch, SigningKey, Topic,
    feed::FeedEnd,
    head::{HeadReply, HeadRequest},
    policy::{ChannelPolicy, OnSlow},
    sequencer::Sequencer,
};
use tokio::sync::oneshot;

use super::*;
use crate::{
    ingest::{
        load_checkpoint,
        rig::{Rig, Settings},
    },
    ports::{IngestInput, Refusal, Snapshots},
    source::{Record, SourceEvent},
    transform::Policies,
};

const WHOLE: &str = r#"{"asks":[["2","1"]],"bids":[["1","1"]],"snapshot":true}"#;

fn name(name: &str) -> StreamName {
    name.parse().unwrap()
}

/// Events of one stream, numbered as ingest does it: (epoch, position, data).
fn events(records: &[(u64, u64, &str)]) -> Vec<Event> {
    let mut sequencer = Sequencer::default();
    let number = |(epoch, position, data): &(u64, u64, &str)| {
        let epoch = Epoch::from_u64(*epoch);
        sequencer.begin(epoch, Sequence::ZERO, true);
        let (sequence, previous) = sequencer.next(&name("depth.a"), epoch, *position).unwrap();
        let data = Bytes::copy_from_slice(data.as_bytes());
        Event {
            stream: name("depth.a"),
            epoch,
            sequence,
            previous,
            engine_time_us: *position,
            data,
            signature: None,
        }
    };
    records.iter().map(number).collect()
}

fn text(retained: &RetainedStreams, stream: &str) -> Option<(u64, String)> {
    let (at, retained) = retained.of(&name(stream))?;
    let data = retained.data().unwrap();
    Some((at.sequence.get(), String::from_utf8(data.to_vec()).unwrap()))
}

fn broken(registry: &Registry) -> bool {
    registry.render().lines().any(|line| line == "tickmesh_books_broken_total 1")
}

#[test]
fn a_book_is_kept_until_something_is_wrong_with_its_events() {
    let diff = r#"{"asks":[["2","0"],["3","5"]]}"#;
    let after = r#"{"asks":[["3","5"]],"bids":[["1","1"]],"snapshot":true}"#;
    let good = events(&[(1, 1, diff), (1, 4, WHOLE), (1, 6, diff)]);
    let first = good[2].position();
    // An event that is none, one that is missing, and one of another epoch.
    let bad = events(&[(1, 1, WHOLE), (1, 7, r#"{"price":"1"}"#)]);
    let missed =
        Event { previous: Previous::At(Sequence::new(7).unwrap()), ..events(&[(1, 8, diff)]).remove(0) };
    let unknown = Event {
        previous: Previous::Unknown { read_from: first.sequence },
        ..events(&[(1, 7, diff)]).remove(0)
    };
    let reset = Event {
        epoch: Epoch::from_u64(2),
        previous: Previous::Reset { after: first },
        ..events(&[(2, 7, diff)]).remove(0)
    };
    let follows = |event: &Event| Event { previous: Previous::At(first.sequence), ..event.clone() };
    for wrong in [follows(&bad[1]), missed, unknown, reset] {
        let registry = Registry::new();
        let retained = RetainedStreams::new(&registry);
        retained.keep(&good[0], Retain::Book);
        assert_eq!(text(&retained, "depth.a"), None, "differences of what nobody knows");
        retained.keep(&good[1], Retain::Book);
        retained.keep(&good[2], Retain::Book);
        assert_eq!(text(&retained, "depth.a"), Some((6, after.to_owned())));
        assert!(!broken(&registry));
        retained.keep(&wrong, Retain::Book);
        assert_eq!(text(&retained, "depth.a"), None, "{wrong:?}");
        assert!(broken(&registry));
        let next = Sequence::new(wrong.sequence.get() + 1).unwrap();
        let follows = Event { sequence: next, previous: Previous::At(wrong.sequence), ..wrong.clone() };
        let difference = Event { data: diff.into(), ..follows.clone() };
        retained.keep(&difference, Retain::Book);
        assert_eq!(text(&retained, "depth.a"), None);
        let whole = Event { data: WHOLE.into(), ..follows };
        retained.keep(&whole, Retain::Book);
        assert_eq!(text(&retained, "depth.a"), Some((next.get(), WHOLE.to_owned())));
    }
}

#[test]
fn what_is_read_of_a_book_is_not_changed_by_later_events() {
    let retained = RetainedStreams::new(&Registry::new());
    let events = events(&[(1, 1, WHOLE), (1, 2, r#"{"bids":[["1","9"]]}"#)]);
    retained.keep(&events[0], Retain::Book);
    let (at, read) = retained.of(&name("depth.a")).unwrap();
    retained.keep(&events[1], Retain::Book);
    assert_eq!((at, read.data().unwrap()), (events[0].position(), Bytes::from(WHOLE)));
    assert!(text(&retained, "depth.a").unwrap().1.contains(r#"["1","9"]"#));
}

#[test]
fn only_what_fits_into_memory_is_retained() {
    let registry = Registry::new();
    let retained = RetainedStreams::bounded(&registry, 3 * (STREAM_BYTES + 100));
    let event = |stream: &str, bytes: usize| Event {
        stream: name(stream),
        data: vec![b'1'; bytes].into(),
        ..events(&[(1, 1, "1")]).remove(0)
    };
    for stream in ["ticker.a", "ticker.b", "ticker.c", "ticker.d"] {
        retained.keep(&event(stream, 100), Retain::Last);
    }
    let kept = |stream: &str| text(&retained, stream).map(|(_, data)| data.len());
    assert_eq!(
        ["ticker.a", "ticker.b", "ticker.c", "ticker.d"].map(kept),
        [Some(100), Some(100), Some(100), None]
    );
    retained.keep(&event("ticker.a", 101), Retain::Last);
    assert_eq!(kept("ticker.a"), None, "an old event is not given out in place of the last");
    retained.keep(&event("ticker.b", 2), Retain::Last);
    retained.keep(&event("ticker.d", 100), Retain::Last);
    assert_eq!(["ticker.b", "ticker.d"].map(kept), [Some(2), Some(100)]);
    let shown = format!("tickmesh_retained_bytes {}", 3 * STREAM_BYTES + 202);
    assert!(registry.render().lines().any(|line| line == shown), "{}", registry.render());
    retained.keep(&event("trades.a", 1), Retain::None);
    assert_eq!(kept("trades.a"), None);
}

// An ingest peer.

struct Peer {
    rig: Rig,
    key: SigningKey,
}

fn policies() -> Policies {
    let (mut policies, private) = (Policies::default(), HashSet::new());
    for (channel, retain) in [("depth", Retain::Book), ("ticker", Retain::Last)] {
        let policy = ChannelPolicy { retain, on_slow: OnSlow::Resync };
        policies.name(channel, policy, &private, "the test".into()).unwrap();
    }
    policies
}

impl Peer {
    /// Starts where the checkpoint says.
    fn start(checkpoint: &Path) -> Self {
        let key = SigningKey::from_bytes(&[7; 32]);
        let settings = Settings {
            key: key.clone(),
            policies: policies(),
            private: HashSet::from(["orders".to_owned()]),
            outbox: None,
            ahead: 16,
            state: load_checkpoint(checkpoint),
        };
        Self { rig: Rig::start(checkpoint, settings), key }
    }

    /// Gives it records of a partition from this position on, and says that this is all.
    async fn read(&self, epoch: u64, from: u64, records: &[(&str, &str)]) {
        let (topic, epoch) = (Arc::<str>::from("market"), Epoch::from_u64(epoch));
        let first = from == 0;
        let begin = SourceEvent::Begin {
            topic: topic.clone(),
            partition: 0,
            epoch,
            position: from,
            first,
            term: None,
        };
        self.rig.events.send(begin).await.unwrap();
        let record = |(position, (stream, data)): (u64, &(&str, &str))| Record {
            topic: topic.clone(),
            partition: 0,
            position,
            epoch,
            term: None,
            key: None,
            value: format!(r#"{{"stream":"{stream}","data":{data}}}"#).into(),
            engine_time_us: 1000 + position,
        };
        let records: Vec<_> = (from..).zip(records).map(record).collect();
        let position = from + records.len() as u64;
        if !records.is_empty() {
            self.rig.events.send(SourceEvent::Records(records)).await.unwrap();
        }
        self.rig.events.send(SourceEvent::Reached { epoch, position }).await.unwrap();
    }

    async fn warm(&self) {
        let mut status = self.rig.feeds.status();
        let warm = status.wait_for(|status| status.sources.iter().all(|source| source.warm));
        tokio::time::timeout(Duration::from_secs(20), warm).await.expect("it gets warm").unwrap();
    }

    fn snapshots(&self, streams: &[&str]) -> Result<Snapshots, Refusal> {
        let streams: Vec<_> = streams.iter().map(|stream| name(stream)).collect();
        self.rig.feeds.snapshots(&Topic::spanning(&streams[0]), &streams)
    }

    /// What is retained of one stream: its position, its time and its data.
    fn snapshot(&self, stream: &str) -> Option<(u64, u64, String)> {
        let given = self.snapshots(&[stream]).unwrap();
        let Some(page) = given.page else {
            assert_eq!(given.ends, [FeedEnd::Refused { oldest: None }]);
            return None;
        };
        let opened = SignedBatch::open_snapshots(page.envelope().clone()).unwrap();
        assert_eq!(opened.batch().publisher, self.key.publisher());
        let [event] = &opened.batch().events[..] else { panic!("{opened:?}") };
        assert_eq!(
            (&event.stream, event.previous),
            (&name(stream), Previous::Unknown { read_from: event.sequence })
        );
        assert_eq!(given.ends, [FeedEnd::Complete { head: Some(event.position()) }]);
        let data = String::from_utf8(event.data.to_vec()).unwrap();
        Some((event.sequence.get(), event.engine_time_us, data))
    }

    async fn head(&self, stream: &str) -> HeadReply {
        let stream = name(stream);
        let request = HeadRequest { topic: Topic::spanning(&stream), streams: vec![stream] };
        let (answer, answered) = oneshot::channel();
        self.rig.mesh.send(IngestInput::Head { request, answer }).await.unwrap();
        answered.await.unwrap()
    }

    async fn end(self) {
        self.rig.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_peer_has_the_same_books_and_last_values() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = folder.path().join("checkpoint");
    let peer = Peer::start(&checkpoint);
    assert!(peer.snapshots(&["depth.a"]).unwrap_err().0.contains("to the end"), "it is not warm");
    peer.read(
        1,
        0,
        &[
            ("ticker.a", r#"{"price":"1"}"#),
            ("depth.a", WHOLE),
            ("depth.b", r#"{"asks":[["2","1"]]}"#),
            ("ticker.a", r#"{"price":"2.0"}"#),
            ("depth.a", r#"{"bids":[["1.0","3"]],"timestamp":5}"#),
            ("trades.a", "1"),
        ],
    )
    .await;
    peer.warm().await;
    let whole = r#"{"asks":[["2","1"]],"bids":[["1.0","3"]],"snapshot":true,"timestamp":5}"#.to_owned();
    let check = |peer: &Peer| {
        assert_eq!(peer.snapshot("depth.a"), Some((4, 1004, whole.clone())));
        assert_eq!(peer.snapshot("ticker.a"), Some((3, 1003, r#"{"price":"2.0"}"#.to_owned())));
        assert_eq!(
            ["depth.b", "trades.a", "ticker.unknown", "orders.alice"].map(|stream| peer.snapshot(stream)),
            [None, None, None, None]
        );
    };
    check(&peer);
    assert_eq!(peer.head("depth.a").await.policy, policies().of("depth"));
    assert_eq!(peer.head("trades.a").await.policy, ChannelPolicy::default());
    peer.end().await;

    let peer = Peer::start(&checkpoint);
    peer.read(1, 6, &[]).await;
    peer.warm().await;
    check(&peer);
    // It goes on from there: the book by a difference.
    peer.read(1, 6, &[("depth.a", r#"{"asks":[["2","0"]],"timestamp":6}"#), ("ticker.a", "3")]).await;
    let expected = r#"{"asks":[],"bids":[["1.0","3"]],"snapshot":true,"timestamp":6}"#.to_owned();
    until(|| peer.snapshot("ticker.a").is_some_and(|(at, ..)| at == 7)).await;
    assert_eq!(peer.snapshot("depth.a"), Some((6, 1006, expected)));
    peer.end().await;

    // The log lost what lies between: the last value is one all the same, the book is not.
    let peer = Peer::start(&checkpoint);
    peer.read(1, 20, &[("depth.a", r#"{"asks":[["2","7"]]}"#), ("ticker.a", "4")]).await;
    peer.warm().await;
    assert_eq!(peer.snapshot("depth.a"), None);
    assert_eq!(peer.snapshot("ticker.a"), Some((21, 1021, "4".to_owned())));
    peer.read(1, 22, &[("depth.a", WHOLE), ("ticker.a", "5")]).await;
    until(|| peer.snapshot("ticker.a").is_some_and(|(at, ..)| at == 23)).await;
    assert_eq!(peer.snapshot("depth.a"), Some((22, 1022, WHOLE.to_owned())));
    // The log is made anew.
    peer.read(2, 0, &[("depth.a", r#"{"asks":[["2","7"]]}"#), ("ticker.a", "6")]).await;
    until(|| peer.snapshot("ticker.a").is_some_and(|(at, ..)| at == 1)).await;
    assert_eq!(peer.snapshot("depth.a"), None);
    peer.end().await;
}

async fn until(done: impl Fn() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(20), async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    waited.await.expect("it takes in what it is given");
}

#[tokio::test(flavor = "multi_thread")]
async fn large_snapshots_come_in_portions_that_fit_a_frame() {
    let folder = tempfile::tempdir().unwrap();
    let peer = Peer::start(&folder.path().join("checkpoint"));
    // Books as large as they may be, of one topic.
    let level = |price: usize| format!(r#"["{price}.{0}","{price}.{0}"]"#, "1".repeat(20));
    let levels = |from: usize| (from..from + 4000).map(level).collect::<Vec<_>>().join(",");
    let whole = format!(r#"{{"asks":[{}],"bids":[],"snapshot":true}}"#, levels(10_000));
    let more = format!(r#"{{"bids":[{}]}}"#, levels(50_000));
    let streams = ["depth.a@1", "depth.a@2", "depth.a@3"];
    let records: Vec<(&str, &str)> = streams.iter().flat_map(|of| [(*of, &*whole), (*of, &*more)]).collect();
    peer.read(1, 0, &records).await;
    peer.warm().await;
    let mut asked = &streams[..];
    let mut sizes = Vec::new();
    while !asked.is_empty() {
        let Snapshots { page, ends } = peer.snapshots(asked).unwrap();
        let page = page.unwrap();
        assert_eq!(page.batch().events.len(), ends.len());
        sizes.push(page.envelope().len());
        asked = &asked[ends.len()..];
    }
    assert!(sizes.len() == 3 && sizes.iter().all(|size| *size > 450 << 10), "{sizes:?}");
    peer.end().await;
}
