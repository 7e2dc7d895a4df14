//! Scenarios from seeds.

use super::{Clock, EdgeShape, IngestShape, MAX_PEERS, Op, PartitionShape, Peer, Scenario, Shape, What};
use crate::model::{
    queue::{MS, Time},
    random::Random,
};

/// Of a thousand worlds so many have no fault at all, and must show neither duplicates nor gaps.
const CALM: u64 = 120;

/// In so many more of them the only fault is that one ingest peer of several dies: then nothing may wait for long.
const DEATH: u64 = 60;

/// Of a thousand worlds so many have one stream with so many events that an edge cannot hold them all.
const FLOOD: u64 = 8;

/// Faults of one world at most: more only make stories that nobody can read.
const MAX_FAULTS: u64 = 9;

/// Longest fault. Every timeout of the machines is shorter; longer faults only make worlds in which nothing happens.
const LONGEST: Time = 2500 * MS;

/// In a world without faults nothing happens before its peers know one another.
const BEGINNING: Time = 100 * MS;

/// Subscriptions of one world at most.
const MAX_CLIENTS: usize = 32;

/// The scenario of a seed.
pub fn generate(seed: u64) -> Scenario {
    let mut random = Random::of(seed, 1);
    let (calm, death) = match random.below(1000) {
        chance if chance < CALM => (true, false),
        chance => (false, chance < CALM + DEATH),
    };
    let world = Shape { settle: settle(&mut Random::of(seed, 3)), ..shape(&mut random, calm || death) };
    let length = random.spread(100 * MS, 2500 * MS);
    let begins = if calm || death { BEGINNING } else { random.spread(0, BEGINNING) };
    let mut generator = Generator { random, world: &world, ops: Vec::new(), clients: 0, begins, length };
    generator.appends();
    generator.clients();
    if death {
        generator.death();
    } else if !calm {
        for _ in 0..generator.random.between(1, MAX_FAULTS) {
            generator.fault();
        }
    }
    let mut ops = generator.ops;
    // Stable: what was made first happens first.
    ops.sort_by_key(|op| op.at);
    Scenario { noise: Random::of(seed, 2).next(), world, ops }
}

fn shape(random: &mut Random, calm: bool) -> Shape {
    let partitions = random.between(1, 3) as usize;
    let sources = random.between(1, partitions as u64);
    let partitions: Vec<_> = (0..partitions)
        .map(|_| PartitionShape {
            source: random.below(sources) as usize,
            first: if random.chance(500) { 0 } else { random.below(1000) },
            before: if random.chance(400) { 0 } else { random.below(40) as u32 },
        })
        .collect();
    let streams = (0..random.between(1, 5)).map(|_| random.below(partitions.len() as u64) as usize).collect();
    let ingests = random.weighted(&[0, 2, 5, 3, 1]).clamp(1, MAX_PEERS);
    let slow = !calm && random.chance(300);
    let ingests = (0..ingests)
        .map(|_| IngestShape {
            starts: if calm || random.chance(700) { 0 } else { random.spread(0, 800 * MS) },
            clock: clock(random),
            read_delay: if slow { random.spread(MS, 20 * MS) } else { random.spread(200, 4 * MS) },
            standby: if random.chance(700) { 0 } else { random.below(8) as u8 },
        })
        .collect();
    let edges = (0..random.between(1, 3)).map(|_| EdgeShape { clock: clock(random) }).collect();
    let least = random.spread(50, 3 * MS);
    let lossy = !calm && random.chance(350);
    Shape {
        partitions,
        streams,
        ingests,
        edges,
        delay: (least, least + random.spread(0, 3 * MS)),
        loss: if lossy { random.spread(1, 150) } else { 0 },
        doubled: if lossy { random.spread(0, 200) } else { 0 },
        inbox: if calm || random.chance(600) { 4096 } else { random.spread(2, 64) as usize },
        ring: if random.chance(500) { 100_000 } else { random.spread(4, 200) as usize },
        checkpoint_every: random.spread(100 * MS, 3000 * MS),
        from_oldest: random.chance(500),
        settle: 0,
    }
}

/// Half of all peers do not wait: so more happens in one world.
fn settle(random: &mut Random) -> Time {
    if random.chance(500) { 0 } else { random.spread(10 * MS, 2000 * MS) }
}

fn clock(random: &mut Random) -> Clock {
    let drift = random.spread(0, 200) as i64;
    Clock { ahead: random.below(1 << 40), drift: if random.chance(500) { drift } else { -drift } }
}

struct Generator<'a> {
    random: Random,
    world: &'a Shape,
    ops: Vec<Op>,
    clients: usize,
    /// When things begin to happen.
    begins: Time,
    /// How long they go on.
    length: Time,
}

impl Generator<'_> {
    fn push(&mut self, at: Time, what: What) {
        // Whole milliseconds for those who read it; the noise of the world moves things against one another anyway.
        let at = if at > 10 * MS { at / MS * MS } else { at };
        self.ops.push(Op { at, what });
    }

    fn at(&mut self) -> Time {
        self.begins + self.random.below(self.length)
    }

    fn appends(&mut self) {
        for _ in 0..self.random.spread(1, 14) {
            let stream = self.random.below(self.world.streams.len() as u64) as usize;
            let at = self.at();
            let count = self.random.spread(1, 50) as u32;
            let every = if self.random.chance(250) { 0 } else { self.random.spread(100, 40 * MS) };
            self.push(at, What::Append { partition: self.world.streams[stream], stream, count, every });
            if self.random.chance(100) {
                let at = self.at();
                self.push(at, What::Skip { partition: self.world.streams[stream] });
            }
        }
        if self.random.chance(FLOOD) {
            let at = self.at();
            let partition = self.world.streams[0];
            self.push(at, What::Append { partition, stream: 0, count: 1800, every: 300 });
        }
    }

    fn clients(&mut self) {
        for _ in 0..self.random.spread(1, 7) {
            let edge = self.random.below(self.world.edges.len() as u64) as usize;
            let stream = self.random.below(self.world.streams.len() as u64) as usize;
            let at = if self.random.chance(500) { 0 } else { self.at() };
            self.join(at, edge, stream);
        }
    }

    fn join(&mut self, at: Time, edge: usize, stream: usize) {
        let client = self.clients;
        self.clients += 1;
        self.push(at, What::Join { client, edge, stream });
        if self.random.chance(250) {
            let after = self.random.spread(0, 1500 * MS);
            self.push(at + after, What::Leave { client });
            if self.random.chance(500) && self.clients < MAX_CLIENTS {
                let again = self.random.spread(0, 300 * MS);
                self.join(at + after + again, edge, stream);
            }
        }
    }

    fn lasts(&mut self) -> Time {
        (self.random.spread(MS, LONGEST) / MS).max(1) * MS
    }

    fn ingest(&mut self) -> usize {
        self.random.below(self.world.ingests.len() as u64) as usize
    }

    fn peer(&mut self) -> Peer {
        if self.random.chance(700) {
            Peer::Ingest(self.ingest())
        } else {
            Peer::Edge(self.random.below(self.world.edges.len() as u64) as usize)
        }
    }

    /// Two different peers, the first an ingest peer.
    fn pair(&mut self) -> (Peer, Peer) {
        let from = self.ingest();
        let edges = self.world.edges.len();
        let other = self.random.below((edges + self.world.ingests.len() - 1) as u64) as usize;
        let to = match other.checked_sub(edges) {
            None => Peer::Edge(other),
            Some(ingest) => Peer::Ingest(if ingest >= from { ingest + 1 } else { ingest }),
        };
        (Peer::Ingest(from), to)
    }

    fn direction(&mut self) -> (Peer, Peer) {
        let (a, b) = self.pair();
        if self.random.chance(750) { (a, b) } else { (b, a) }
    }

    fn partition(&mut self) -> usize {
        self.random.below(self.world.partitions.len() as u64) as usize
    }

    fn death(&mut self) {
        let at = self.at();
        let (ingest, lasts) = (self.ingest(), self.lasts());
        self.push(at, What::Crash { peer: Peer::Ingest(ingest), lasts, disk: true });
    }

    fn fault(&mut self) {
        let at = self.at();
        let lasts = self.lasts();
        let what = match self.random.weighted(&[14, 6, 6, 14, 6, 12, 10, 16, 8, 8, 5, 9, 5]) {
            0 => What::Crash { peer: self.peer(), lasts, disk: self.random.chance(700) },
            1 => What::Outage { lasts, disk: self.random.chance(800) },
            2 => What::Stop { ingest: self.ingest(), lasts },
            3 => What::Freeze { peer: self.peer(), lasts },
            4 => {
                let every = self.random.spread(10 * MS, 300 * MS);
                let pause = self.random.between(every / 4, every);
                What::Stutter { peer: self.peer(), lasts, every, pause }
            }
            5 => {
                let (from, to) = self.direction();
                What::Cut { from, to, lasts }
            }
            6 => {
                let (a, b) = self.pair();
                What::Disconnect { a, b, lasts }
            }
            7 => {
                let (from, to) = self.direction();
                let loss = self.random.spread(0, 900);
                let doubled = self.random.spread(0, 500);
                What::Noisy { from, to, lasts, loss, doubled, late: self.random.spread(0, 300 * MS) }
            }
            8 => What::SlowRead { ingest: self.ingest(), lasts, delay: self.random.spread(5 * MS, 800 * MS) },
            9 => What::BrokenFeeds { ingest: self.ingest(), lasts, per_mille: self.random.spread(100, 1000) },
            10 => What::Lies { ingest: self.ingest(), lasts, ahead: self.random.spread(1, 1 << 30) },
            11 => What::Trim { partition: self.partition(), keep: self.random.spread(0, 30) as u32 },
            _ => What::Recreate { partition: self.partition() },
        };
        self.push(at, what);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_scenario() {
        assert_eq!(generate(7), generate(7));
        assert_ne!(generate(7), generate(8));
    }

    #[test]
    fn every_kind_of_fault_comes_and_some_worlds_are_calm() {
        let mut kinds = std::collections::BTreeSet::new();
        let mut calm = 0;
        for seed in 0..2000 {
            let scenario = generate(seed);
            calm += usize::from(scenario.is_calm());
            kinds.extend(scenario.ops.iter().map(|op| op.what.kind()));
            assert!(scenario.ops.is_sorted_by_key(|op| op.at));
            let ends = scenario.ends();
            assert!(ends < 20_000 * MS, "seed {seed} ends at {ends}");
        }
        assert_eq!(kinds.len(), 17, "{kinds:?}");
        assert!((100..400).contains(&calm), "{calm}");
    }
}
