//! Faults of all kinds, one after the other, on real processes under load: Kafka → ingest peers → mesh → edges →
//! WebSocket clients that check every event. Nothing may be lost, doubled or out of order at any client.
//!
//! Prints a table: fault → lost, doubled, out of order, longest pause at a client, bytes fetched again by edges,
//! duplicates that edges dropped. Times are told and not judged. `TICKMESH_CHAOS=long` for the long form at
//! 5,000 events per second, which asks for `--release`; `TICKMESH_CHAOS_KILLS=N` and `TICKMESH_CHAOS_RATE=N` for other
//! numbers of kills and of events per second, `TICKMESH_CHAOS_ONLY=words` for the faults with these words in their name,
//! `TICKMESH_TEST_BIN` for another binary than cargo's. The peers' logs are kept if something was wrong.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "helpers of tests, and a table"
)]

#[path = "chaos/checker.rs"]
mod checker;
#[path = "chaos/cluster.rs"]
mod cluster;
#[path = "chaos/faults.rs"]
mod faults;
#[path = "support/kafka.rs"]
mod kafka;
#[path = "chaos/load.rs"]
mod load;
#[path = "support/node.rs"]
mod node;
#[path = "chaos/pauses.rs"]
mod pauses;
#[allow(clippy::duplicate_mod, reason = "the file of each server stands alone")]
#[path = "support/ports.rs"]
mod ports;
#[path = "chaos/report.rs"]
mod report;
#[path = "chaos/rig.rs"]
mod rig;
#[path = "chaos/watcher.rs"]
mod watcher;

use faults::Disks;
use rig::Rig;

#[test]
fn two_ingest_peers_lose_nothing() {
    let mut rig = Rig::start(2);
    rig.fault("no fault: the log begins", faults::begin);
    rig.fault("no fault", faults::nothing);
    rig.fault("leader killed and started again", faults::kill_leaders);
    rig.fault("edge killed, clients resume elsewhere", faults::kill_edges);
    rig.fault("all ingest peers killed", |rig| faults::kill_all_ingest(rig, Disks::Kept));
    if rig.form.long {
        rig.fault("leader killed as the log falls silent", faults::kill_leader_in_silence);
        rig.fault("all killed, one disk lost", |rig| faults::kill_all_ingest(rig, Disks::OneLost));
        rig.fault("all killed, all disks lost", |rig| faults::kill_all_ingest(rig, Disks::AllLost));
        rig.fault("leader frozen", faults::freeze_leader);
        rig.fault("ingest peers restarted in turn", faults::restart_ingest_in_turn);
        rig.fault("broker killed", faults::kill_broker);
        rig.fault("too much", faults::saturate);
    }
    rig.finish();
}

#[test]
fn three_ingest_peers_lose_nothing() {
    let mut rig = Rig::start(3);
    rig.fault("no fault: the log begins", faults::begin);
    rig.fault("leader frozen", faults::freeze_leader);
    rig.fault("edge frozen until messages are dropped", faults::freeze_edge);
    rig.fault("edge killed, clients resume elsewhere", faults::kill_edges);
    rig.fault("clients join while the leader is killed", faults::join_while_leader_is_killed);
    if rig.form.long {
        rig.fault("no fault", faults::nothing);
        rig.fault("edge restarted", faults::restart_edge);
        rig.fault("ingest peers restarted in turn", faults::restart_ingest_in_turn);
        rig.fault("broker killed", faults::kill_broker);
        rig.fault("leader killed and started again", faults::kill_leaders);
        rig.fault("all ingest peers killed", |rig| faults::kill_all_ingest(rig, Disks::Kept));
        rig.fault("all killed, one disk lost", |rig| faults::kill_all_ingest(rig, Disks::OneLost));
        rig.fault("too much", faults::saturate);
    }
    rig.finish();
}
