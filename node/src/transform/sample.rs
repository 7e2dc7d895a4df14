//! What routes make of a record that is shown to them, for people: nothing of it goes anywhere.

use std::{collections::HashSet, io, thread};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tickmesh_protocol::Epoch;

use super::{Made, Operators, Rejected, RouteConfig, Taken, Transform, jq};
use crate::ops::metrics::now_us;

/// A record to try.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sample {
    /// All routes are tried, whatever topic they take, if it is left out.
    #[serde(default)]
    pub topic: Option<String>,
    #[serde(default)]
    pub key: Option<String>,
    pub value: Box<RawValue>,
}

/// What a route makes of a record.
#[derive(Debug, Serialize)]
pub struct Tried {
    /// How the route is told from the others.
    pub route: String,
    /// Each event as its stream and its data, or why there is none.
    pub becomes: Vec<String>,
}

/// The log that a sample is the only record of.
const SAMPLE: Epoch = Epoch::from_u64(0);

/// Tries a sample on each of some routes.
///
/// # Errors
/// If no thread can be had, or a route does not compile.
pub fn try_routes(
    routes: &[&RouteConfig],
    private: &HashSet<String>,
    sample: Sample,
) -> io::Result<Vec<Tried>> {
    let Sample { topic, key, value } = sample;
    let (key, value) = (key.map(Bytes::from), Bytes::from(value.get().to_owned()));
    let tried = || {
        let each = routes.iter().map(|route| {
            let topic = topic.as_deref().unwrap_or(&route.topic);
            let record = Taken { topic, key: key.as_ref(), value: &value, engine_time_us: now_us() };
            let becomes = try_route(route, private, record).map_err(io::Error::other)?;
            Ok(Tried { route: route.to_string(), becomes })
        });
        each.collect()
    };
    // As at ingest: programs may need a deep stack.
    thread::scope(|scope| {
        let thread = thread::Builder::new().stack_size(jq::STACK_BYTES).spawn_scoped(scope, tried)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("a route failed")))
    })
}

fn try_route(
    route: &RouteConfig,
    private: &HashSet<String>,
    record: Taken<'_>,
) -> Result<Vec<String>, jq::JqError> {
    let routes = std::slice::from_ref(route);
    let transform = Transform::new(routes, None, private)?;
    let mut operators = Operators::new(routes);
    operators.begin(SAMPLE, true);
    let outcomes = transform.apply(record);
    if outcomes.is_empty() {
        return Ok(vec!["nothing: its filter or split leaves nothing of it".into()]);
    }
    Ok(outcomes.into_iter().flat_map(|outcome| becomes(outcome, &mut operators)).collect())
}

/// An outcome, in words.
pub fn becomes(outcome: Result<Made, Rejected>, operators: &mut Operators) -> Vec<String> {
    let events = match outcome {
        Ok(Made::Event(event)) => vec![event],
        Ok(Made::Trades { route, trades }) => match operators.take(SAMPLE, route, &trades) {
            Ok((events, _)) => events,
            Err(refused) => return vec![format!("dead letter: {refused}")],
        },
        Err(Rejected::Unrouted(topic)) => return vec![format!("nothing: it does not take topic {topic:?}")],
        Err(rejected) => return vec![format!("dead letter: {rejected}")],
    };
    events.iter().map(|event| format!("{} {}", event.stream, String::from_utf8_lossy(&event.data))).collect()
}
