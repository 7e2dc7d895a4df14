//! Routes: which record becomes an event of which stream, and with what data.
//!
//! A route names a source and a glob of its topics, and says in jq how `key` and `data` come out of the record.
//! A source without any route passes records of the form `{"stream": ..., "data": ...}` as they are. Everything here is
//! a pure function of the record, so all ingest peers make the same events.

pub mod jq;
mod policies;
mod route;

use std::{collections::HashSet, sync::Arc};

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use tickmesh_protocol::{
    StreamName, UserId, event::MAX_EVENT_DATA_BYTES, stream::InvalidStreamName, user::InvalidUserId,
};

use self::jq::{Filter, JqError};
pub use self::{policies::Policies, route::RouteConfig};
use crate::source::MAX_RECORD_BYTES;

/// The routes of one source, compiled. Not `Send`: it lives on the ingest thread.
pub struct Transform {
    routes: Vec<Route>,
    /// Channels of records that pass without a route, if the source knows them.
    passing: Option<&'static [&'static str]>,
    /// Channels whose keys are user ids and are escaped rather than refused.
    private: HashSet<String>,
}

struct Route {
    topic: wildmatch::WildMatch,
    channel: Channel,
    key: Filter,
    data: Option<Filter>,
}

enum Channel {
    Fixed(String),
    Computed(Filter),
}

/// What a record became.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transformed {
    pub stream: StreamName,
    /// Exact JSON text.
    pub data: Bytes,
}

/// Why a record did not become an event. It is a dead letter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    #[error("not valid JSON: {0}")]
    Json(String),
    #[error("not of the form {{\"stream\": ..., \"data\": ...}}, and the source has no route: {0}")]
    PassThrough(String),
    #[error("no route of the source takes topic {0:?}")]
    Unrouted(String),
    #[error("{part}: {error}")]
    Jq { part: &'static str, error: JqError },
    #[error("{part} must be a string, not {value}")]
    NotText { part: &'static str, value: String },
    #[error(transparent)]
    Stream(#[from] InvalidStreamName),
    #[error(transparent)]
    User(#[from] InvalidUserId),
    #[error("data of {0} bytes; one event has at most {MAX_EVENT_DATA_BYTES}")]
    DataTooLarge(usize),
    #[error("a record of {0} bytes; at most {MAX_RECORD_BYTES} are taken")]
    RecordTooLarge(usize),
}

impl Transform {
    /// Compiles the routes of one source.
    ///
    /// # Errors
    /// The first jq program that does not compile; [`RouteConfig::read`] has found all of them before.
    pub fn new(
        routes: &[RouteConfig],
        passing: Option<&'static [&'static str]>,
        private: &HashSet<String>,
    ) -> Result<Self, JqError> {
        let routes = routes.iter().map(Route::compile).collect::<Result<_, _>>()?;
        Ok(Self { routes, passing, private: private.clone() })
    }

    /// Whether some record may become an event of this channel.
    pub fn makes(&self, channel: &str) -> bool {
        if self.routes.is_empty() {
            return self.passing.is_none_or(|channels| channels.contains(&channel));
        }
        self.routes.iter().any(|route| match &route.channel {
            Channel::Fixed(name) => name == channel,
            Channel::Computed(_) => true,
        })
    }

    /// What a record becomes: one outcome for each route that takes its topic.
    pub fn apply(
        &self,
        topic: &str,
        key: Option<&Bytes>,
        value: &Bytes,
    ) -> Vec<Result<Transformed, Rejected>> {
        let bytes = key.map_or(0, Bytes::len) + value.len();
        if bytes > MAX_RECORD_BYTES {
            return vec![Err(Rejected::RecordTooLarge(bytes))];
        }
        if self.routes.is_empty() {
            return vec![pass_through(value)];
        }
        let input = match jq::parse(topic, key, value) {
            Ok(input) => input,
            Err(error) => return vec![Err(Rejected::Json(error))],
        };
        let outcomes: Vec<_> = self
            .routes
            .iter()
            .filter(|route| route.topic.matches(topic))
            .map(|route| self.apply_route(route, &input, value))
            .collect();
        if outcomes.is_empty() { vec![Err(Rejected::Unrouted(topic.to_owned()))] } else { outcomes }
    }

    fn apply_route(&self, route: &Route, input: &jq::Input, value: &Bytes) -> Result<Transformed, Rejected> {
        let channel = match &route.channel {
            Channel::Fixed(name) => name.clone(),
            Channel::Computed(filter) => text_of("channel", filter, input)?,
        };
        let mut key = text_of("key", &route.key, input)?;
        if self.private.contains(&channel) {
            key = UserId::new(&key)?.key().to_owned();
        }
        let data = match &route.data {
            Some(filter) => {
                filter.run_to_json(input).map_err(|error| Rejected::Jq { part: "data", error })?.into()
            }
            None => value.slice_ref(value.trim_ascii()),
        };
        transformed(StreamName::new(&channel, &key, None)?, data)
    }
}

impl Route {
    fn compile(config: &RouteConfig) -> Result<Self, JqError> {
        Ok(Self {
            topic: wildmatch::WildMatch::new(&config.topic),
            channel: if tickmesh_protocol::stream::is_part(&config.channel) {
                Channel::Fixed(config.channel.clone())
            } else {
                Channel::Computed(Filter::compile(&config.channel)?)
            },
            key: Filter::compile(&config.key)?,
            data: config.data.as_deref().map(Filter::compile).transpose()?,
        })
    }
}

fn text_of(part: &'static str, filter: &Filter, input: &jq::Input) -> Result<String, Rejected> {
    match filter.run_to_text(input) {
        Ok(Ok(text)) => Ok(text),
        Ok(Err(value)) => Err(Rejected::NotText { part, value }),
        Err(error) => Err(Rejected::Jq { part, error }),
    }
}

fn pass_through(value: &Bytes) -> Result<Transformed, Rejected> {
    #[derive(Deserialize)]
    struct Passing<'a> {
        stream: std::borrow::Cow<'a, str>,
        #[serde(borrow)]
        data: &'a RawValue,
    }
    jq::check_depth(value).map_err(Rejected::Json)?;
    let passing: Passing<'_> = serde_json::from_slice(value).map_err(|error| {
        if error.is_data() {
            Rejected::PassThrough(error.to_string())
        } else {
            Rejected::Json(error.to_string())
        }
    })?;
    transformed(passing.stream.parse()?, value.slice_ref(passing.data.get().as_bytes()))
}

fn transformed(stream: StreamName, data: Bytes) -> Result<Transformed, Rejected> {
    if data.len() > MAX_EVENT_DATA_BYTES {
        return Err(Rejected::DataTooLarge(data.len()));
    }
    Ok(Transformed { stream, data })
}

/// The routes of one source, shared with whoever compiles them.
pub type Routes = Arc<[RouteConfig]>;

#[cfg(test)]
mod tests;
