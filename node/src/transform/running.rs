//! The operators of a source at work: one for each route that has one, in each partition.

use std::collections::HashMap;

use bytes::Bytes;
use tickmesh_protocol::{
    Epoch, StreamName, catalogue::Life, checkpoint::OperatorState, event::MAX_EVENT_DATA_BYTES,
};

use super::{
    Made, RouteConfig, TableRoute, Taken, Transform, Transformed,
    operators::{Inputs, Kind, Operator, Outcome, Refused, Told, depth::Gap},
    route::Makes,
    table::{self, RouteId, digest},
};
use crate::source::Record;

/// The operators of one source.
pub struct Operators {
    routes: Vec<Computing>,
    running: HashMap<(Epoch, RouteId), Operator>,
}

/// A route that has an operator.
struct Computing {
    route: RouteId,
    life: Life,
    channel: String,
    kind: Kind,
    /// What it is known by in a checkpoint.
    hash: u64,
}

/// All that becomes of a record.
#[derive(Debug, Default)]
pub struct Making {
    /// Events, or why there are none: then the record is a dead letter.
    pub outcomes: Vec<Result<Vec<Transformed>, String>>,
    /// As in [`Outcome`].
    pub late: usize,
    pub old: usize,
    pub gaps: Vec<Gap>,
}

impl Operators {
    pub fn new(routes: &[RouteConfig]) -> Self {
        Self::of(&table::fixed(routes))
    }

    /// As [`Self::new`], of routes that change.
    pub fn of(routes: &[TableRoute]) -> Self {
        let mut operators = Self { routes: Vec::new(), running: HashMap::new() };
        operators.change(routes);
        operators
    }

    /// Takes other routes. Operators of those that are in both go on as they are; for what is new, [`Self::go_on`] is to be called.
    pub fn change(&mut self, routes: &[TableRoute]) {
        let computing = |TableRoute { id, config, life }: &TableRoute| match &config.makes {
            Makes::AsItIs | Makes::Data(_) => None,
            Makes::Operator(operator) => Some(Computing {
                route: *id,
                life: life.clone(),
                channel: config.channel.clone(),
                kind: operator.kind.clone(),
                hash: state_name(*id, config),
            }),
        };
        self.routes = routes.iter().filter_map(computing).collect();
        let Self { routes, running } = self;
        running.retain(|(_, route), _| routes.iter().any(|computing| computing.route == *route));
    }

    /// A partition is read from here on: `from_first` if nothing is or ever was before.
    pub fn begin(&mut self, epoch: Epoch, partition: u32, from_first: bool) {
        for computing in &self.routes {
            let at = (epoch, computing.route);
            self.running.remove(&at);
            if computing.takes(partition) {
                // A route that came later has not seen the first.
                let from_first = from_first && computing.life.covers(epoch, 0);
                self.running.insert(at, Operator::new(&computing.kind, from_first));
            }
        }
    }

    /// A partition is read on. What has no state of it yet begins with the first record that it is for, so that it does not matter
    /// when a peer hears of the route.
    pub fn go_on(&mut self, epoch: Epoch, partition: u32) {
        for computing in self.routes.iter().filter(|computing| computing.takes(partition)) {
            let begin = || Operator::new(&computing.kind, false);
            self.running.entry((epoch, computing.route)).or_insert_with(begin);
        }
    }

    /// A partition is not read any more.
    pub fn end(&mut self, epoch: Epoch) {
        self.running.retain(|(of, _), _| *of != epoch);
    }

    /// Makes of a record of the log all that the routes make of it that are there at its position.
    pub fn make_in_place(&mut self, transform: &Transform, record: &Record) -> Making {
        let is_there = |life: &Life| life.covers(record.epoch, record.position);
        self.make_where(transform, record.epoch, record.into(), is_there)
    }

    /// Makes of a record all that the routes make of it that are there now.
    pub fn make(&mut self, transform: &Transform, epoch: Epoch, record: Taken<'_>) -> Making {
        self.make_where(transform, epoch, record, |life| !life.is_over())
    }

    fn make_where(
        &mut self,
        transform: &Transform,
        epoch: Epoch,
        record: Taken<'_>,
        is_there: impl Fn(&Life) -> bool,
    ) -> Making {
        let mut making = Making::default();
        for outcome in transform.apply_where(record, &is_there) {
            let outcome = outcome.map_err(|rejected| rejected.to_string());
            self.put(epoch, outcome, &mut making);
        }
        for route in transform.following(&is_there) {
            let made: Vec<_> = making.outcomes.iter().flatten().flatten().cloned().collect();
            // Whatever a record holds for an operator it takes at once: it tells a stream once.
            let mut all: Option<Inputs> = None;
            for outcome in transform.follow(route, &made, record) {
                match (outcome, &mut all) {
                    (Ok(Made::Inputs { inputs, .. }), Some(all)) => all.append(inputs),
                    (Ok(Made::Inputs { inputs, .. }), None) => all = Some(inputs),
                    (outcome, _) => {
                        self.put(epoch, outcome.map_err(|rejected| rejected.to_string()), &mut making);
                    }
                }
            }
            if let Some(inputs) = all {
                self.put(epoch, Ok(Made::Inputs { route: route.id, inputs }), &mut making);
            }
        }
        making
    }

    fn put(&mut self, epoch: Epoch, outcome: Result<Made, String>, making: &mut Making) {
        let events = outcome.and_then(|made| match made {
            Made::Event(event) => Ok(vec![event]),
            Made::Inputs { route, inputs } => {
                let (told, outcome) =
                    self.take(epoch, route, &inputs).map_err(|refused| refused.to_string())?;
                making.late += outcome.late;
                making.old += outcome.old;
                making.gaps.extend(outcome.gaps);
                Ok(told)
            }
        });
        making.outcomes.push(events);
    }

    /// What the operator of a route makes of what a record holds for it: events, and the rest of the outcome.
    ///
    /// # Errors
    /// [`Refused`] says why the record counts for nothing.
    fn take(
        &mut self,
        epoch: Epoch,
        route: RouteId,
        inputs: &Inputs,
    ) -> Result<(Vec<Transformed>, Outcome), Refused> {
        let Some(computing) = self.routes.iter().find(|computing| computing.route == route) else {
            return Ok(Default::default());
        };
        let Some(operator) = self.running.get_mut(&(epoch, route)) else {
            return if matches!(computing.kind, Kind::Combine(_)) {
                Err(Refused::Partition)
            } else {
                Ok(Default::default())
            };
        };
        let mut outcome = operator.take(inputs)?;
        let event = |Told { key, variant, data }: Told| {
            // The key was seen to make a name, and no operator tells too much.
            let stream = StreamName::new(&computing.channel, &key, variant.as_deref()).ok()?;
            (data.len() <= MAX_EVENT_DATA_BYTES).then(|| Transformed { stream, data: Bytes::from(data) })
        };
        let told = std::mem::take(&mut outcome.told);
        Ok((told.into_iter().filter_map(event).collect(), outcome))
    }

    /// Of how many keys the book is not known.
    pub fn incomplete(&self) -> usize {
        self.running.values().map(Operator::incomplete).sum()
    }

    /// Forgets operators that no record comes to any more: `next` says how far each partition has been read.
    pub fn forget_over(&mut self, next: impl Fn(Epoch) -> u64) {
        let Self { routes, running } = self;
        running.retain(|(epoch, route), _| {
            let is_over = |computing: &Computing| {
                computing.life.is_over() && !computing.life.covers(*epoch, next(*epoch))
            };
            !routes.iter().any(|computing| computing.route == *route && is_over(computing))
        });
    }

    /// The states of all operators, for a checkpoint.
    pub fn save(&self) -> Vec<OperatorState> {
        let hash = |route| self.routes.iter().find(|computing| computing.route == route).map(|of| of.hash);
        let save = |(&(epoch, route), operator): (&(Epoch, RouteId), &Operator)| {
            Some(OperatorState { epoch, route: hash(route)?, state: operator.save().into() })
        };
        self.running.iter().filter_map(save).collect()
    }

    /// Goes on from what a checkpoint holds, as far as the routes are the same.
    pub fn restore(&mut self, states: &[OperatorState]) {
        for OperatorState { epoch, route, state } in states {
            for computing in self.routes.iter().filter(|computing| computing.hash == *route) {
                if let Some(operator) = Operator::restore(&computing.kind, state) {
                    self.running.insert((*epoch, computing.route), operator);
                }
            }
        }
    }
}

impl Computing {
    /// Whether it takes records of a partition.
    const fn takes(&self, partition: u32) -> bool {
        partition == 0 || !matches!(self.kind, Kind::Combine(_))
    }
}

/// What an operator's state is known by in checkpoints: as long as its route says the same, and is the same one.
fn state_name(id: RouteId, config: &RouteConfig) -> u64 {
    // The place of a fixed route may change without any harm.
    let text = match id {
        RouteId::Fixed(_) => format!("{config:?}"),
        RouteId::Changing(hash) => format!("{hash} {config:?}"),
    };
    digest(&text)
}
