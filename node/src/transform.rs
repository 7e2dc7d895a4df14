//! Routes: which record becomes an event of which stream, and with what data.
//!
//! A route names a source and a glob of its topics, and says in jq how `key` and `data` come out of the record.
//! A source without any route passes records of the form `{"stream": ..., "data": ...}` as they are. Everything here is
//! a pure function of the record, so all ingest peers make the same events.

pub mod decimal;
pub mod jq;
pub mod operators;
mod policies;
mod reader;
mod route;
mod running;
mod sample;
pub mod table;

use std::collections::HashSet;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use tickmesh_protocol::{
    StreamName, UserId, catalogue::Life, event::MAX_EVENT_DATA_BYTES, stream::InvalidStreamName,
    user::InvalidUserId,
};

use self::{
    jq::{Filter, JqError},
    operators::Inputs,
    reader::{Reader, bool_of, data_of},
};
pub use self::{
    policies::Policies,
    route::{Makes, OperatorConfig, Reads, RouteConfig, feeding},
    running::{Making, Operators},
    sample::{Sample, Tried, becomes, try_routes},
    table::{RouteId, RouteTable, TableRoute},
};
use crate::source::{MAX_RECORD_BYTES, Record};

/// The routes of one source, compiled. Not `Send`: it lives on the ingest thread.
pub struct Transform {
    routes: Vec<Route>,
    /// Channels of records that pass without a route, if the source knows them.
    passing: Option<&'static [&'static str]>,
    /// Channels whose keys are user ids and are escaped rather than refused.
    private: HashSet<String>,
}

/// Most parts of one record: one that is as large as may be, with parts of a kilobyte.
pub const MAX_PARTS: usize = 1024;

struct Route {
    id: RouteId,
    life: Life,
    topic: wildmatch::WildMatch,
    /// The channel whose events it takes, in place of records.
    from: Option<String>,
    filter: Option<Filter>,
    split: Option<Filter>,
    channel: Channel,
    key: Filter,
    maker: Maker,
}

enum Channel {
    Fixed(String),
    Computed(Filter),
}

enum Maker {
    AsItIs,
    Data(Filter),
    Operator(Reader),
}

/// What a record became by one route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Made {
    Event(Transformed),
    /// What the operator of a route takes: see [`Operators`].
    Inputs {
        route: RouteId,
        inputs: Inputs,
    },
}

/// An event that is not numbered yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transformed {
    pub stream: StreamName,
    /// Exact JSON text.
    pub data: Bytes,
}

/// A record, as routes look at it.
#[derive(Clone, Copy, Debug)]
pub struct Taken<'a> {
    pub topic: &'a str,
    pub key: Option<&'a Bytes>,
    pub value: &'a Bytes,
    /// The log's own time of it, in microseconds since 1970 UTC; zero where it says nothing.
    pub engine_time_us: u64,
}

impl<'a> From<&'a Record> for Taken<'a> {
    fn from(record: &'a Record) -> Self {
        let Record { topic, key, value, engine_time_us, .. } = record;
        Self { topic, key: key.as_ref(), value, engine_time_us: *engine_time_us }
    }
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
    #[error("{part} must be true or false, not {value}")]
    NoBool { part: &'static str, value: String },
    #[error("{part} must be levels, [[price, quantity], ...]: {value}")]
    NoLevels { part: &'static str, value: String },
    #[error("{part} must be a number, not {value}")]
    NoNumber { part: &'static str, value: String },
    #[error("the log says nothing of its time; name one in the route: time = '.timestamp'")]
    NoTime,
    #[error("its time, {time_ms} ms since 1970, is too far from the log's own, {log_ms}")]
    Time { time_ms: u64, log_ms: u64 },
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
        Self::of(&table::fixed(routes), passing, private)
    }

    /// As [`Self::new`], of routes that change.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn of(
        routes: &[TableRoute],
        passing: Option<&'static [&'static str]>,
        private: &HashSet<String>,
    ) -> Result<Self, JqError> {
        let mut transform = Self { routes: Vec::new(), passing, private: private.clone() };
        transform.change(routes)?;
        Ok(transform)
    }

    /// Takes other routes. Those that are in both go on as they are, but for their lives.
    ///
    /// # Errors
    /// As [`Self::new`]; nothing is changed then.
    pub fn change(&mut self, routes: &[TableRoute]) -> Result<(), JqError> {
        let known = |id: RouteId| self.routes.iter().any(|route| route.id == id);
        let new = routes.iter().filter(|route| !known(route.id));
        let mut new = new.map(Route::compile).collect::<Result<Vec<_>, _>>()?;
        let mut before = std::mem::take(&mut self.routes);
        before.append(&mut new);
        // In the order of the table, so that what one record becomes has one order at all peers.
        for TableRoute { id, life, .. } in routes {
            if let Some(at) = before.iter().position(|route| route.id == *id) {
                self.routes.push(Route { life: life.clone(), ..before.swap_remove(at) });
            }
        }
        Ok(())
    }

    /// Whether some record may become an event of this channel.
    pub fn makes(&self, channel: &str) -> bool {
        if self.routes.is_empty() {
            return self.passing.is_none_or(|channels| channels.contains(&channel));
        }
        self.routes.iter().filter(|route| !route.life.is_over()).any(|route| match &route.channel {
            Channel::Fixed(name) => name == channel,
            Channel::Computed(_) => true,
        })
    }

    /// What a record of the log becomes by the routes that are there at its position: an outcome for each that takes its topic, or
    /// for each part that the route makes of it.
    pub fn apply_in_place(&self, record: &Record) -> Vec<Result<Made, Rejected>> {
        self.apply_where(record.into(), |life| life.covers(record.epoch, record.position))
    }

    /// What a record becomes by all routes that are there now, wherever it stands.
    pub fn apply(&self, record: Taken<'_>) -> Vec<Result<Made, Rejected>> {
        self.apply_where(record, |life| !life.is_over())
    }

    fn apply_where(
        &self,
        record: Taken<'_>,
        is_there: impl Fn(&Life) -> bool,
    ) -> Vec<Result<Made, Rejected>> {
        let bytes = record.key.map_or(0, Bytes::len) + record.value.len();
        if bytes > MAX_RECORD_BYTES {
            return vec![Err(Rejected::RecordTooLarge(bytes))];
        }
        if self.routes.is_empty() {
            return vec![pass_through(record.value).map(Made::Event)];
        }
        let input = match jq::parse(record.topic, record.key, record.value) {
            Ok(input) => input,
            Err(error) => return vec![Err(Rejected::Json(error))],
        };
        let mut outcomes = Vec::new();
        let mut routed = false;
        for route in self.routes.iter().filter(|route| is_there(&route.life)) {
            if route.from.is_none() && route.topic.matches(record.topic) {
                routed = true;
                self.apply_route(route, &input, record, &mut outcomes);
            }
        }
        if routed { outcomes } else { vec![Err(Rejected::Unrouted(record.topic.to_owned()))] }
    }

    /// The routes that take events of a channel, in their order.
    fn following(&self, is_there: impl Fn(&Life) -> bool) -> impl Iterator<Item = &Route> {
        self.routes.iter().filter(move |route| route.from.is_some() && is_there(&route.life))
    }

    /// What the events that were made of a record become by a route that takes some of them.
    fn follow(&self, route: &Route, made: &[Transformed], record: Taken<'_>) -> Vec<Result<Made, Rejected>> {
        let mut outcomes = Vec::new();
        if !route.topic.matches(record.topic) {
            return outcomes;
        }
        for event in made.iter().filter(|event| Some(event.stream.channel()) == route.from.as_deref()) {
            let key = Bytes::copy_from_slice(event.stream.key().as_bytes());
            let taken = Taken { topic: event.stream.as_str(), key: Some(&key), value: &event.data, ..record };
            match jq::parse(taken.topic, taken.key, taken.value) {
                Ok(input) => self.apply_route(route, &input, taken, &mut outcomes),
                Err(error) => outcomes.push(Err(Rejected::Json(error))),
            }
        }
        outcomes
    }

    fn apply_route(
        &self,
        route: &Route,
        input: &jq::Input,
        record: Taken<'_>,
        outcomes: &mut Vec<Result<Made, Rejected>>,
    ) {
        let split = match route.takes(input) {
            Ok(true) => route.split(input),
            Ok(false) => return,
            Err(error) => Err(error),
        };
        let parts = match split {
            Ok(parts) => parts,
            Err(error) => return outcomes.push(Err(error)),
        };
        let (parts, whole) = match &parts {
            Some(parts) => (&parts[..], None),
            None => (std::slice::from_ref(input), Some(record.value)),
        };
        match &route.maker {
            Maker::Operator(_) if parts.is_empty() => {}
            Maker::Operator(reader) => {
                // The variant of the streams is the operator's.
                let key = |part: &jq::Input| self.stream(route, part).map(|stream| stream.key().to_owned());
                let inputs = reader.read(parts, whole, record, key);
                outcomes.push(inputs.map(|inputs| Made::Inputs { route: route.id, inputs }));
            }
            Maker::AsItIs => outcomes.extend(parts.iter().map(|part| self.event(route, None, part, whole))),
            Maker::Data(data) => {
                outcomes.extend(parts.iter().map(|part| self.event(route, Some(data), part, whole)));
            }
        }
    }

    fn stream(&self, route: &Route, input: &jq::Input) -> Result<StreamName, Rejected> {
        let channel = match &route.channel {
            Channel::Fixed(name) => name.clone(),
            Channel::Computed(filter) => text_of("channel", filter, input)?,
        };
        let mut key = text_of("key", &route.key, input)?;
        if self.private.contains(&channel) {
            key = UserId::new(&key)?.key().to_owned();
        }
        Ok(StreamName::new(&channel, &key, None)?)
    }

    /// `whole`: the record's value, if that is what the route looks at.
    fn event(
        &self,
        route: &Route,
        data: Option<&Filter>,
        input: &jq::Input,
        whole: Option<&Bytes>,
    ) -> Result<Made, Rejected> {
        let stream = self.stream(route, input)?;
        let data = data_of(data, input, whole)?;
        transformed(stream, data).map(Made::Event)
    }
}

impl Route {
    fn compile(TableRoute { id, config, life }: &TableRoute) -> Result<Self, JqError> {
        let optional = |program: &Option<String>| program.as_deref().map(Filter::compile).transpose();
        let maker = match &config.makes {
            Makes::AsItIs => Maker::AsItIs,
            Makes::Data(program) => Maker::Data(Filter::compile(program)?),
            Makes::Operator(operator) => Maker::Operator(Reader::compile(operator)?),
        };
        Ok(Self {
            id: *id,
            life: life.clone(),
            topic: wildmatch::WildMatch::new(&config.topic),
            from: config.from.clone(),
            filter: optional(&config.filter)?,
            split: optional(&config.split)?,
            channel: if tickmesh_protocol::stream::is_part(&config.channel) {
                Channel::Fixed(config.channel.clone())
            } else {
                Channel::Computed(Filter::compile(&config.channel)?)
            },
            key: Filter::compile(&config.key)?,
            maker,
        })
    }

    /// Whether the record is for this route.
    fn takes(&self, input: &jq::Input) -> Result<bool, Rejected> {
        let Some(filter) = &self.filter else { return Ok(true) };
        bool_of("filter", filter, input)
    }

    /// What takes the record's place, if anything does.
    fn split(&self, input: &jq::Input) -> Result<Option<Vec<jq::Input>>, Rejected> {
        let split = self.split.as_ref().map(|split| split.run_to_parts(input, MAX_PARTS)).transpose();
        split.map_err(|error| Rejected::Jq { part: "split", error })
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

/// The routes of one source.
pub type Routes = std::sync::Arc<[RouteConfig]>;

#[cfg(test)]
mod tests;
