//! Makes a failing scenario short: takes away and simplifies whatever is not needed to fail in the same way.

use super::{
    mutation::Mutation,
    queue::MS,
    scenario::{Clock, Op, Scenario, What},
    world::{self, Failure},
};

/// Worlds tried for one story at most: some seconds.
const MAX_TRIES: u32 = 3000;

/// The shortest scenario found that fails in the same way, and how it fails.
pub fn shrink(scenario: Scenario, failure: Failure, mutation: Option<Mutation>) -> (Scenario, Failure) {
    let mut shrinking = Shrinking { best: scenario, failure, mutation, tries: 0 };
    loop {
        let before = shrinking.best.clone();
        shrinking.drop_ops();
        shrinking.drop_noise();
        shrinking.simplify_ops();
        shrinking.simplify_world();
        if shrinking.best == before || shrinking.tries >= MAX_TRIES {
            return (shrinking.best, shrinking.failure);
        }
    }
}

struct Shrinking {
    best: Scenario,
    failure: Failure,
    mutation: Option<Mutation>,
    tries: u32,
}

impl Shrinking {
    /// Takes a candidate if it still fails in the same way.
    fn try_with(&mut self, change: impl FnOnce(&mut Scenario)) -> bool {
        let mut candidate = self.best.clone();
        change(&mut candidate);
        if candidate == self.best || self.tries >= MAX_TRIES {
            return false;
        }
        self.tries += 1;
        candidate.ops.sort_by_key(|op| op.at);
        match world::run(&candidate, self.mutation, false).failure {
            Some(failure) if failure.fault == self.failure.fault => {
                self.best = candidate;
                self.failure = failure;
                true
            }
            _ => false,
        }
    }

    /// Halves first, then one by one.
    fn drop_ops(&mut self) {
        let mut size = self.best.ops.len().div_ceil(2);
        while size > 0 {
            let mut at = 0;
            while at < self.best.ops.len() {
                let end = (at + size).min(self.best.ops.len());
                if !self.try_with(|scenario| drop(scenario.ops.drain(at..end))) {
                    at = end;
                }
            }
            size /= 2;
        }
    }

    fn drop_noise(&mut self) {
        self.try_with(|scenario| scenario.world.loss = 0);
        self.try_with(|scenario| scenario.world.doubled = 0);
        self.try_with(|scenario| scenario.world.delay = (MS, MS));
        self.try_with(|scenario| scenario.world.inbox = 4096);
        self.try_with(|scenario| scenario.world.ring = 100_000);
        self.try_with(|scenario| scenario.world.checkpoint_every = 1000 * MS);
        self.try_with(|scenario| scenario.world.settle = 0);
    }

    fn simplify_ops(&mut self) {
        for number in 0..self.best.ops.len() {
            self.simplify_op(number, |op| {
                if let What::Append { count, .. } = &mut op.what {
                    *count = 1;
                }
            });
            for _ in 0..6 {
                self.simplify_op(number, |op| {
                    if let What::Append { count, .. } = &mut op.what {
                        *count = (*count / 2).max(1);
                    }
                });
                self.simplify_op(number, |op| {
                    if let Some(lasts) = lasts_of(&mut op.what)
                        && *lasts > 20 * MS
                    {
                        *lasts /= 2;
                    }
                });
            }
            self.simplify_op(number, |op| {
                if let What::Append { every, .. } = &mut op.what {
                    *every = 10 * MS;
                }
            });
            self.simplify_op(number, |op| op.at = op.at / (100 * MS) * (100 * MS));
            self.simplify_op(number, |op| op.at = op.at / (10 * MS) * (10 * MS));
            self.simplify_op(number, |op| {
                if let Some(lasts) = lasts_of(&mut op.what) {
                    *lasts = (*lasts / (10 * MS)).max(1) * (10 * MS);
                }
            });
            self.simplify_op(number, |op| {
                if let What::Noisy { loss, doubled, .. } = &mut op.what {
                    (*loss, *doubled) = (1000, 0);
                }
            });
            self.simplify_op(number, |op| {
                if let What::Noisy { late, .. } = &mut op.what {
                    *late = 0;
                }
            });
        }
    }

    fn simplify_op(&mut self, number: usize, change: impl FnOnce(&mut Op)) {
        self.try_with(|scenario| scenario.ops.get_mut(number).map_or((), change));
    }

    fn simplify_world(&mut self) {
        for number in 0..self.best.world.ingests.len() {
            self.try_with(|scenario| scenario.world.ingests[number].clock = Clock::default());
            self.try_with(|scenario| scenario.world.ingests[number].starts = 0);
            self.try_with(|scenario| scenario.world.ingests[number].standby = 0);
            self.try_with(|scenario| scenario.world.ingests[number].read_delay = MS);
        }
        for number in 0..self.best.world.edges.len() {
            self.try_with(|scenario| scenario.world.edges[number].clock = Clock::default());
        }
        for number in 0..self.best.world.partitions.len() {
            self.try_with(|scenario| scenario.world.partitions[number].before = 0);
            self.try_with(|scenario| scenario.world.partitions[number].first = 0);
            self.try_with(|scenario| scenario.world.partitions[number].source = 0);
        }
        // The last of each kind, if nothing needs it.
        self.try_with(|scenario| {
            if scenario.world.ingests.len() > 1 && !scenario.names_last_ingest() {
                scenario.world.ingests.pop();
            }
        });
        self.try_with(|scenario| {
            if scenario.world.edges.len() > 1 && !scenario.names_last_edge() {
                scenario.world.edges.pop();
            }
        });
        self.try_with(|scenario| {
            if scenario.world.streams.len() > 1 && !scenario.names_last_stream() {
                scenario.world.streams.pop();
            }
        });
        self.try_with(|scenario| {
            if scenario.world.partitions.len() > 1 && !scenario.names_last_partition() {
                scenario.world.partitions.pop();
            }
        });
    }
}

fn lasts_of(what: &mut What) -> Option<&mut u64> {
    match what {
        What::Crash { lasts, .. }
        | What::Outage { lasts, .. }
        | What::Stop { lasts, .. }
        | What::Freeze { lasts, .. }
        | What::Stutter { lasts, .. }
        | What::Cut { lasts, .. }
        | What::Disconnect { lasts, .. }
        | What::Noisy { lasts, .. }
        | What::SlowRead { lasts, .. }
        | What::BrokenFeeds { lasts, .. }
        | What::Lies { lasts, .. } => Some(lasts),
        What::Append { .. }
        | What::Skip { .. }
        | What::Trim { .. }
        | What::Recreate { .. }
        | What::Join { .. }
        | What::Leave { .. } => None,
    }
}
