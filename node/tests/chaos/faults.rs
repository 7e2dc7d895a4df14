//! The faults, each under load.

use std::time::{Duration, Instant};

use crate::{load::extras, rig::Rig};

/// How long the load goes on after a fault before the next step, so that what it causes is seen.
const AFTERWARDS: Duration = Duration::from_secs(1);

/// Kills in the moment of silence, at most: each is another chance for the end of a stream to be lost.
const SILENT_KILLS: usize = 10;

/// A frozen edge's connections are given up after 15 seconds without a pong; messages are dropped before that, or not at
/// all, and then it is tried again.
const LONGEST_FREEZE: Duration = Duration::from_secs(20);
const FREEZES: usize = 3;

/// Extra records per second while it stands: about as many messages, of which a queue holds some thousand.
const EXTRA_RATE: u64 = 1_600;

/// How many times the usual rate is more than two cores carry, and in how many parts that is measured.
const OVERLOAD: u64 = 8;
const OVERLOAD_PARTS: u32 = 4;

/// The first events of all streams.
pub fn begin(rig: &mut Rig) {
    rig.go_on(AFTERWARDS);
}

/// Nothing fails.
pub fn nothing(rig: &mut Rig) {
    rig.go_on(rig.form.quiet);
}

/// The leader of most topics is killed and started again, many times.
pub fn kill_leaders(rig: &mut Rig) {
    let (mut killed, mut returned) = (Vec::new(), Vec::new());
    for _ in 0..rig.form.kills {
        let leader = rig.cluster.leader();
        let kill = Instant::now();
        rig.cluster.ingest[leader].kill();
        rig.go_on(AFTERWARDS);
        rig.catch_up();
        let restart = Instant::now();
        rig.cluster.ingest[leader].restart();
        rig.cluster.ingest[leader].node.wait_ready();
        rig.go_on(AFTERWARDS);
        rig.catch_up();
        killed.push(rig.longest_pause(kill, restart));
        returned.push(rig.longest_pause(restart, Instant::now()));
    }
    rig.note(format!("pause after a kill {}, after a return {}", spread(killed), spread(returned)));
}

/// The leader stands still and goes on where it was.
pub fn freeze_leader(rig: &mut Rig) {
    let leader = rig.cluster.leader();
    let begun = Instant::now();
    rig.cluster.ingest[leader].node.freeze();
    rig.go_on(rig.form.frozen);
    let thawed = Instant::now();
    rig.cluster.ingest[leader].node.thaw();
    rig.catch_up();
    rig.go_on(AFTERWARDS);
    let (first, second) = (rig.longest_pause(begun, thawed), rig.longest_pause(thawed, Instant::now()));
    rig.note(format!("pause {first:.0?} when it stood, {second:.0?} when it went on"));
}

/// The leader is killed in the moment in which the log falls silent: no later event tells anybody what is missing.
pub fn kill_leader_in_silence(rig: &mut Rig) {
    for _ in 0..rig.form.kills.div_ceil(2).min(SILENT_KILLS) {
        let leader = rig.cluster.leader();
        rig.load.set_rate(0);
        rig.cluster.ingest[leader].kill();
        rig.catch_up();
        rig.cluster.ingest[leader].restart();
        rig.cluster.ingest[leader].node.wait_ready();
        rig.end_silence();
        rig.go_on(AFTERWARDS);
        rig.catch_up();
    }
}

/// Each ingest peer in turn is asked to end and started again, then killed and started again.
pub fn restart_ingest_in_turn(rig: &mut Rig) {
    for kill in [false, true] {
        for index in 0..rig.cluster.ingest.len() {
            let ingest = &mut rig.cluster.ingest[index];
            if kill {
                ingest.kill();
            } else {
                ingest.ask_to_end();
            }
            ingest.restart();
            ingest.node.wait_ready();
            rig.go_on(AFTERWARDS);
            rig.catch_up();
        }
    }
}

/// What ingest peers find on disk when they come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disks {
    Kept,
    /// The first has lost its own.
    OneLost,
    AllLost,
}

/// All ingest peers are killed at once, and come back after a while.
pub fn kill_all_ingest(rig: &mut Rig, disks: Disks) {
    rig.go_on(AFTERWARDS);
    if disks != Disks::Kept {
        // All of the log is read again, by who finds no sibling that knows more.
        rig.trim_log();
    }
    for ingest in &mut rig.cluster.ingest {
        ingest.kill();
    }
    rig.go_on(rig.form.outage);
    for (index, ingest) in rig.cluster.ingest.iter_mut().enumerate() {
        if disks == Disks::AllLost || (disks == Disks::OneLost && index == 0) {
            ingest.forget();
        }
        ingest.restart();
    }
    let started = Instant::now();
    for ingest in &rig.cluster.ingest {
        ingest.node.wait_ready();
    }
    let ready = started.elapsed();
    rig.catch_up();
    rig.note(format!("ready {ready:.1?} and complete {:.1?} after the start", started.elapsed()));
    rig.go_on(AFTERWARDS);
}

/// The log's only broker is killed, and comes back on the same disk.
pub fn kill_broker(rig: &mut Rig) {
    rig.go_on(AFTERWARDS);
    rig.broker.kill();
    rig.go_on(rig.form.outage);
    rig.broker.restart();
    let started = Instant::now();
    rig.catch_up();
    rig.note(format!("complete {:.1?} after the broker's start", started.elapsed()));
    rig.go_on(AFTERWARDS);
}

/// An edge stands still until messages to it are dropped, then goes on.
pub fn freeze_edge(rig: &mut Rig) {
    const EDGE: usize = 0;
    // Messages fill a queue, not events: many topics that only this edge has joined.
    rig.new_client_of(EDGE, extras());
    rig.wait_subscribed();
    let before = queue_drops(rig);
    for _ in 0..FREEZES {
        rig.load.set_extra_rate(EXTRA_RATE);
        rig.go_on(AFTERWARDS);
        let begun = Instant::now();
        rig.cluster.edges[EDGE].node.freeze();
        while queue_drops(rig) == before && begun.elapsed() < LONGEST_FREEZE {
            rig.go_on(Duration::from_millis(20));
        }
        let frozen = begun.elapsed();
        rig.load.set_extra_rate(0);
        rig.cluster.edges[EDGE].node.thaw();
        let thawed = Instant::now();
        rig.catch_up();
        let complete = thawed.elapsed();
        rig.go_on(AFTERWARDS);
        // What waited too long is dropped after the thaw.
        let dropped = queue_drops(rig) - before;
        rig.note(format!("{dropped} messages dropped in {frozen:.1?}, complete {complete:.1?} later"));
        if dropped > 0.0 {
            return rig.drop_clients();
        }
    }
    panic!("no message to a frozen edge was dropped, {FREEZES} times");
}

fn queue_drops(rig: &mut Rig) -> f64 {
    rig.cluster.ingest.iter_mut().map(|ingest| ingest.counts().get("queue drops")).sum()
}

/// An edge is asked to end and started again, then killed and started again; its clients come back by themselves.
pub fn restart_edge(rig: &mut Rig) {
    const EDGE: usize = 1;
    rig.expect_disconnects(EDGE);
    for kill in [false, true] {
        rig.go_on(AFTERWARDS);
        let edge = &mut rig.cluster.edges[EDGE];
        if kill {
            edge.kill();
        } else {
            edge.ask_to_end();
        }
        edge.restart();
        rig.wait_subscribed();
        rig.catch_up();
    }
}

/// The edge of clients that resume elsewhere, in another region, is killed, many times; their private streams go with them.
pub fn kill_edges(rig: &mut Rig) {
    rig.new_roamers();
    rig.wait_subscribed();
    let mut away = Vec::new();
    for _ in 0..rig.form.kills {
        rig.go_on(AFTERWARDS);
        let edge = rig.edge_of_roamers().expect("a client that roams");
        rig.expect_disconnects(edge);
        let killed = Instant::now();
        rig.cluster.edges[edge].kill();
        rig.wait_resumed(edge);
        away.push(killed.elapsed());
        rig.catch_up_of_roamers();
        rig.cluster.edges[edge].restart();
        rig.wait_subscribed();
        rig.catch_up();
    }
    rig.note(format!("until all had resumed {}", spread(away)));
    rig.drop_clients();
}

/// Clients join while the leader is being killed.
pub fn join_while_leader_is_killed(rig: &mut Rig) {
    for edge in 0..rig.cluster.edges.len() {
        let leader = rig.cluster.leader();
        rig.new_client(edge);
        rig.cluster.ingest[leader].kill();
        rig.new_client(edge);
        rig.wait_subscribed();
        rig.catch_up();
        rig.cluster.ingest[leader].restart();
        rig.new_client(edge);
        rig.cluster.ingest[leader].node.wait_ready();
        rig.wait_subscribed();
        rig.catch_up();
        rig.drop_clients();
    }
}

/// More than the machine can carry, for a while: what is published twice must not grow by itself.
pub fn saturate(rig: &mut Rig) {
    // A client whose queue at the edge is full is closed.
    for edge in 0..rig.cluster.edges.len() {
        rig.expect_disconnects(edge);
    }
    rig.load.set_rate(rig.form.rate * OVERLOAD);
    let mut shares = Vec::new();
    for _ in 0..OVERLOAD_PARTS {
        let before = rig.cluster.edge_counts();
        rig.go_on(rig.form.quiet / OVERLOAD_PARTS);
        let part = rig.cluster.edge_counts().since(&before);
        shares.push(format!("{:.2} %", 100.0 * part.get("duplicates") / part.get("received").max(1.0)));
    }
    rig.load.set_rate(rig.form.rate);
    rig.note(format!("duplicates in its parts {}", shares.join(", ")));
}

fn spread(mut pauses: Vec<Duration>) -> String {
    pauses.sort_unstable();
    match (pauses.get(pauses.len() / 2), pauses.last()) {
        (Some(median), Some(longest)) => format!("p50 {median:.0?} max {longest:.0?} of {}", pauses.len()),
        _ => "of none".into(),
    }
}
