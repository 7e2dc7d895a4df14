//! A scenario in words.

use std::fmt;

use super::{Op, Peer, Scenario, What};
use crate::model::queue::{MS, Time};

/// A span of time as people write it: `120ms`, `1.5ms`, `40us`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Time);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("0ms"),
            us if us < MS => write!(f, "{us}us"),
            us if us % MS == 0 => write!(f, "{}ms", us / MS),
            us => write!(f, "{}.{:03}ms", us / MS, us % MS),
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ingest(number) => write!(f, "ingest {}", number + 1),
            Self::Edge(number) => write!(f, "edge {}", number + 1),
        }
    }
}

/// What stream `number` is called, in stories and in the world.
pub fn stream_name(number: usize) -> String {
    // Two streams of every three share a channel, and so perhaps a topic.
    format!("{}.s{}", if number % 3 == 2 { "depth" } else { "trades" }, number + 1)
}

/// The whole scenario, line by line: first how the world is made, then what happens.
pub fn story(scenario: &Scenario) -> Vec<String> {
    let mut lines = world(scenario);
    lines.extend(scenario.ops.iter().map(|op| op.to_string()));
    lines.push(format!("t={}  everything is healed", Span(scenario.ends())));
    lines
}

fn world(scenario: &Scenario) -> Vec<String> {
    let world = &scenario.world;
    let mut lines = Vec::new();
    for (number, partition) in world.partitions.iter().enumerate() {
        let streams = world.streams.iter().enumerate().filter(|(_, home)| **home == number);
        let streams: Vec<_> = streams.map(|(stream, _)| stream_name(stream)).collect();
        lines.push(format!(
            "partition {} of source {}: {}; begins at {} with {} records",
            number + 1,
            partition.source + 1,
            if streams.is_empty() { "no stream".to_owned() } else { streams.join(" ") },
            partition.first,
            partition.before
        ));
    }
    for (number, ingest) in world.ingests.iter().enumerate() {
        lines.push(format!(
            "ingest {}: starts at {}, reads up to {} late{}{}",
            number + 1,
            Span(ingest.starts),
            Span(ingest.read_delay),
            standby(ingest.standby),
            ingest.clock
        ));
    }
    for (number, edge) in world.edges.iter().enumerate() {
        lines.push(format!("edge {}{}", number + 1, edge.clock));
    }
    lines.push(format!(
        "messages take {} to {}; {} of 1000 lost, {} doubled; at most {} batches wait for a receiver",
        Span(world.delay.0),
        Span(world.delay.1),
        world.loss,
        world.doubled,
        world.inbox
    ));
    lines.push(format!(
        "history of {} events, checkpoint each {}, who knows nothing begins at the {} of the log, who comes to others ranks {} \
         later",
        world.ring,
        Span(world.checkpoint_every),
        if world.from_oldest { "beginning" } else { "end" },
        Span(world.settle)
    ));
    lines
}

fn standby(sources: u8) -> String {
    let sources: Vec<_> =
        (0..8).filter(|bit| sources >> bit & 1 == 1).map(|bit| (bit + 1).to_string()).collect();
    if sources.is_empty() { String::new() } else { format!(", standby for source {}", sources.join(", ")) }
}

impl fmt::Display for super::Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::default() {
            return Ok(());
        }
        write!(f, ", clock {} ahead, {} us/s off", Span(self.ahead), self.drift)
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "t={}  {}", Span(self.at), self.what)
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Append { partition, stream, count: 1, .. } => {
                write!(f, "partition {}: a record of {}", partition + 1, stream_name(stream))
            }
            Self::Append { partition, stream, count, every } => write!(
                f,
                "partition {}: {count} records of its streams in turn, from {} on, one each {}",
                partition + 1,
                stream_name(stream),
                Span(every)
            ),
            Self::Skip { partition } => write!(f, "partition {}: a position without a record", partition + 1),
            Self::Trim { partition, keep } => {
                write!(f, "partition {} forgets all but its last {keep} records", partition + 1)
            }
            Self::Recreate { partition } => write!(f, "partition {} is deleted and made anew", partition + 1),
            Self::Join { client, edge, stream } => {
                write!(f, "client {} subscribes to {} at edge {}", client + 1, stream_name(stream), edge + 1)
            }
            Self::Leave { client } => write!(f, "client {} unsubscribes", client + 1),
            Self::Crash { peer, lasts, disk } => {
                write!(f, "{peer} dies, comes back {} after {}", with_disk(disk), Span(lasts))
            }
            Self::Outage { lasts, disk } => {
                write!(f, "all ingest peers die, come back {} after {}", with_disk(disk), Span(lasts))
            }
            Self::Stop { ingest, lasts } => {
                write!(f, "ingest {} is told to end, comes back after {}", ingest + 1, Span(lasts))
            }
            Self::Freeze { peer, lasts } => write!(f, "{peer} freezes for {}", Span(lasts)),
            Self::Stutter { peer, lasts, every, pause } => write!(
                f,
                "{peer} stands still for {} of each {}, during {}",
                Span(pause),
                Span(every),
                Span(lasts)
            ),
            Self::Cut { from, to, lasts } => {
                write!(f, "what {from} sends to {to} vanishes for {}", Span(lasts))
            }
            Self::Disconnect { a, b, lasts } => {
                write!(f, "{a} and {b} lose their connection for {}", Span(lasts))
            }
            Self::Noisy { from, to, lasts, loss, doubled, late } => write!(
                f,
                "{from} to {to}: {loss} of 1000 lost, {doubled} doubled, up to {} late, for {}",
                Span(late),
                Span(lasts)
            ),
            Self::SlowRead { ingest, lasts, delay } => {
                write!(
                    f,
                    "ingest {} reads the log up to {} late for {}",
                    ingest + 1,
                    Span(delay),
                    Span(lasts)
                )
            }
            Self::BrokenFeeds { ingest, lasts, per_mille } => write!(
                f,
                "{per_mille} of 1000 answers of ingest {}'s feeds break off, for {}",
                ingest + 1,
                Span(lasts)
            ),
            Self::Lies { ingest, lasts, ahead } => {
                write!(f, "ingest {} claims heads that are {ahead} too far, for {}", ingest + 1, Span(lasts))
            }
        }
    }
}

fn with_disk(disk: bool) -> &'static str {
    if disk { "with its disk" } else { "without its disk" }
}
