//! The operators of a source at work: one for each route that has one, in each partition.

use std::collections::HashMap;

use bytes::Bytes;
use tickmesh_protocol::{
    Epoch, StreamName, catalogue::Life, checkpoint::OperatorState, event::MAX_EVENT_DATA_BYTES,
};

use super::{
    RouteConfig, TableRoute, Transformed,
    operators::{Kind, Operator, Refused, Told, Trade},
    route::Makes,
    table::{self, RouteId},
};

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
    pub fn begin(&mut self, epoch: Epoch, from_first: bool) {
        for Computing { route, life, kind, .. } in &self.routes {
            // A route that came later has not seen the first.
            let from_first = from_first && life.covers(epoch, 0);
            self.running.insert((epoch, *route), Operator::new(kind, from_first));
        }
    }

    /// A partition is read on. What has no state of it yet begins with the first record that it is for, so that it does not matter
    /// when a peer hears of the route.
    pub fn go_on(&mut self, epoch: Epoch) {
        for Computing { route, kind, .. } in &self.routes {
            self.running.entry((epoch, *route)).or_insert_with(|| Operator::new(kind, false));
        }
    }

    /// A partition is not read any more.
    pub fn end(&mut self, epoch: Epoch) {
        self.running.retain(|(of, _), _| *of != epoch);
    }

    /// Takes the trades of a record, and says what the operator of the route makes of them, and how many were late.
    ///
    /// # Errors
    /// [`Refused`] says why the record counts for nothing.
    pub fn take(
        &mut self,
        epoch: Epoch,
        route: RouteId,
        trades: &[Trade],
    ) -> Result<(Vec<Transformed>, usize), Refused> {
        let computing = self.routes.iter().find(|computing| computing.route == route);
        let (Some(Computing { channel, .. }), Some(operator)) =
            (computing, self.running.get_mut(&(epoch, route)))
        else {
            return Ok((Vec::new(), 0));
        };
        let (told, late) = operator.take(trades)?;
        let event = |Told { key, variant, data }: Told| {
            // The key was seen to make a name, and the data is far from too long.
            let stream = StreamName::new(channel, &key, variant.as_deref()).ok()?;
            (data.len() <= MAX_EVENT_DATA_BYTES).then(|| Transformed { stream, data: Bytes::from(data) })
        };
        Ok((told.into_iter().filter_map(event).collect(), late))
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

/// What an operator's state is known by in checkpoints: as long as its route says the same, and is the same one.
fn state_name(id: RouteId, config: &RouteConfig) -> u64 {
    // The place of a fixed route may change without any harm.
    let text = match id {
        RouteId::Fixed(_) => format!("{config:?}"),
        RouteId::Changing(hash) => format!("{hash} {config:?}"),
    };
    blake3::hash(text.as_bytes()).as_bytes().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}
