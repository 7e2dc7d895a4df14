//! The operators of a source at work: one for each route that has one, in each partition.

use std::collections::HashMap;

use bytes::Bytes;
use tickmesh_protocol::{Epoch, StreamName, checkpoint::OperatorState, event::MAX_EVENT_DATA_BYTES};

use super::{
    Routes, Transformed,
    operators::{Kind, Operator, Refused, Told, Trade},
    route::Makes,
};

/// The operators of one source.
pub struct Operators {
    routes: Vec<Computing>,
    running: HashMap<(Epoch, usize), Operator>,
}

/// A route that has an operator.
struct Computing {
    /// Its place among the routes.
    route: usize,
    channel: String,
    kind: Kind,
    /// What it is known by in a checkpoint.
    hash: u64,
}

impl Operators {
    pub fn new(routes: &Routes) -> Self {
        let computing = |(route, config): (usize, &super::RouteConfig)| match &config.makes {
            Makes::AsItIs | Makes::Data(_) => None,
            Makes::Operator(operator) => {
                let hash = blake3::hash(format!("{config:?}").as_bytes());
                let hash = hash.as_bytes().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
                Some(Computing { route, channel: config.channel.clone(), kind: operator.kind.clone(), hash })
            }
        };
        Self { routes: routes.iter().enumerate().filter_map(computing).collect(), running: HashMap::new() }
    }

    /// A partition is read from here on: `from_first` if nothing is or ever was before.
    pub fn begin(&mut self, epoch: Epoch, from_first: bool) {
        for Computing { route, kind, .. } in &self.routes {
            self.running.insert((epoch, *route), Operator::new(kind, from_first));
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
        route: usize,
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

    /// The states of all operators, for a checkpoint.
    pub fn save(&self) -> Vec<OperatorState> {
        let hash = |route| self.routes.iter().find(|computing| computing.route == route).map(|of| of.hash);
        let save = |(&(epoch, route), operator): (&(Epoch, usize), &Operator)| {
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
