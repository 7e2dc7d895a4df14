//! What routes make of a record that is shown to them, for people: nothing of it goes anywhere.

use std::{collections::HashSet, io};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tickmesh_protocol::Epoch;

use super::{Making, Operators, RouteConfig, Taken, Transform, Transformed, feeding, jq};
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
        let each = routes.iter().enumerate().map(|(index, route)| {
            let topic = topic.as_deref().unwrap_or(&route.topic);
            let becomes = if wildmatch::WildMatch::new(&route.topic).matches(topic) {
                let record = Taken { topic, key: key.as_ref(), value: &value, engine_time_us: now_us() };
                try_route(routes, index, private, record).map_err(io::Error::other)?
            } else {
                vec![format!("nothing: it does not take topic {topic:?}")]
            };
            Ok(Tried { route: route.to_string(), becomes })
        });
        each.collect()
    };
    jq::on_deep_stack(tried)?
}

fn try_route(
    routes: &[&RouteConfig],
    index: usize,
    private: &HashSet<String>,
    record: Taken<'_>,
) -> Result<Vec<String>, jq::JqError> {
    let of_any_topic = |route: &RouteConfig| RouteConfig { topic: "*".to_owned(), ..route.clone() };
    let route = routes[index];
    let mut above: Vec<_> = feeding(routes, index).into_iter().map(|at| of_any_topic(routes[at])).collect();
    // What is made without it comes first.
    let others = if above.is_empty() { 0 } else { make(&above, private, record)?.outcomes.len() };
    above.push(of_any_topic(route));
    let outcomes: Vec<_> = make(&above, private, record)?.outcomes.into_iter().skip(others).collect();
    if outcomes.is_empty() {
        return Ok(vec![match &route.from {
            Some(from) => {
                format!("nothing: there is nothing of {from}, or its filter or split leaves nothing")
            }
            None => "nothing: its filter or split leaves nothing of it".into(),
        }]);
    }
    Ok(outcomes.into_iter().flat_map(becomes).collect())
}

/// What routes make of the only record of a log.
fn make(routes: &[RouteConfig], private: &HashSet<String>, record: Taken<'_>) -> Result<Making, jq::JqError> {
    let transform = Transform::new(routes, None, private)?;
    let mut operators = Operators::new(routes);
    operators.begin(SAMPLE, 0, true);
    Ok(operators.make(&transform, SAMPLE, record))
}

/// An outcome, in words.
pub fn becomes(outcome: Result<Vec<Transformed>, String>) -> Vec<String> {
    match outcome {
        Ok(events) if events.is_empty() => vec!["nothing yet: its operator waits for more records".into()],
        Ok(events) => {
            let text =
                |event: &Transformed| format!("{} {}", event.stream, String::from_utf8_lossy(&event.data));
            events.iter().map(text).collect()
        }
        Err(reason) => vec![format!("dead letter: {reason}")],
    }
}
