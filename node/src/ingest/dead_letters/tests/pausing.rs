//! An ingest peer whose dead letters are not taken: no checkpoint passes them, and with too many of them it pauses.

use std::collections::HashSet;

use tickmesh_protocol::SigningKey;

use super::*;
use crate::{
    ingest::{
        checkpoint,
        rig::{Rig, Settings},
    },
    source::SourceEvent,
    transform::Policies,
};

struct Peer(Rig);

fn start(outbox: Outbox, file: &Path) -> Peer {
    let settings = Settings {
        key: SigningKey::from_bytes(&[7; 32]),
        policies: Policies::default(),
        private: HashSet::new(),
        outbox: Some(outbox),
        ahead: 1,
        state: None,
    };
    Peer(Rig::start(file, settings))
}

impl Peer {
    async fn send(&self, event: SourceEvent) {
        tokio::time::timeout(DEADLINE, self.0.events.send(event)).await.expect("ingest takes it").unwrap();
    }

    async fn begin(&self) {
        let epoch = Epoch::from_u64(7);
        let topic = "market".into();
        self.send(SourceEvent::Begin { topic, partition: 3, epoch, position: 0, first: true, term: None })
            .await;
        self.send(SourceEvent::Reached { epoch, position: 0 }).await;
    }

    async fn records(&self, positions: std::ops::Range<u64>, value: &str) {
        let records = positions.map(|position| record(position, value.to_owned())).collect();
        self.send(SourceEvent::Records(records)).await;
    }

    async fn end(self) {
        self.0.end().await;
    }
}

/// Where the checkpoint says that reading goes on.
fn next(file: &Path) -> Option<u64> {
    checkpoint::read(file).unwrap()?.sources[0].partitions.first().map(|partition| partition.next)
}

const GOOD: &str = r#"{"stream":"trades.btc","data":1}"#;

#[tokio::test]
async fn no_checkpoint_passes_a_letter_that_its_sink_does_not_have() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("checkpoint");
    let sent = carry(true, usize::MAX);
    let peer = start(sent.outbox.clone(), &file);
    peer.begin().await;
    peer.records(0..5, GOOD).await;
    sent.until("a checkpoint", |_| next(&file) == Some(5)).await;
    sent.gate.send(false).unwrap();
    peer.records(5..6, "poison").await;
    peer.records(6..9, GOOD).await;
    sent.until("a try in vain", |sent| sent.shows("dead_letters_failures_total{source=\"engine\"} 3")).await;
    assert!(next(&file) <= Some(5), "{:?} is behind the letter", next(&file));
    // The end of the process waits a moment for the sink, and then keeps what is true.
    peer.end().await;
    assert!(next(&file) <= Some(5), "{:?} is behind the letter", next(&file));
    drop(sent);

    // The next process reads the record again, and its sink takes the same letter.
    let sent = carry(true, usize::MAX);
    let peer = start(sent.outbox.clone(), &file);
    peer.begin().await;
    peer.records(5..6, "poison").await;
    peer.records(6..9, GOOD).await;
    sent.until("a checkpoint behind the letter", |_| next(&file) == Some(9)).await;
    assert_eq!(sent.taken.lock().unwrap()[0].id, "engine/market/3/0000000000000007/5");
    peer.end().await;
}

#[tokio::test]
async fn too_many_letters_pause_ingest_and_lose_nothing() {
    const GROUP: u64 = 100;
    const GROUPS: u64 = 30;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("checkpoint");
    let sent = carry(false, usize::MAX);
    let peer = start(sent.outbox.clone(), &file);
    peer.begin().await;
    let feeding = async {
        for group in 0..GROUPS {
            peer.records(group * GROUP..(group + 1) * GROUP, "poison").await;
        }
    };
    let opening = async {
        sent.until("a full outbox", |sent| !sent.health.readiness().ready).await;
        // No group is taken beyond the one that filled it.
        assert_eq!(sent.outbox.put_so_far(), 1000);
        sent.gate.send(true).unwrap();
    };
    tokio::join!(feeding, opening);
    sent.until("all letters", |sent| sent.outbox.kept() == GROUP * GROUPS).await;
    let taken: Vec<u64> = sent.taken.lock().unwrap().iter().map(|letter| letter.position).collect();
    assert_eq!(taken, Vec::from_iter(0..GROUP * GROUPS), "each once, in order");
    sent.until("a checkpoint", |_| next(&file) == Some(GROUP * GROUPS)).await;
    peer.end().await;
}
