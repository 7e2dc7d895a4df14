//! What operators take, read from a record by the jq programs of its route.

use std::str::FromStr;

use bytes::Bytes;
use tickmesh_protocol::{
    book::{Change, MAX_BOOK_LEVELS},
    event::MAX_EVENT_DATA_BYTES,
    stream::{InvalidStreamName, is_part},
};

use super::{
    Rejected, Taken,
    decimal::Decimal,
    jq::{Filter, Input, JqError},
    operators::{Inputs, Item, Trade, depth::Update},
    route::{OperatorConfig, Reads},
    text_of,
};

/// How far a record's time may be behind the log's: an engine that caught up after an hour.
const MAX_BEHIND_MS: u64 = 3_600_000;
/// How far it may be ahead: clocks that differ. A wrong one closes candles that others still trade in.
const MAX_AHEAD_MS: u64 = 60_000;

/// The programs that read for an operator.
pub(super) struct Reader {
    reads: Programs,
    time: Option<Filter>,
}

enum Programs {
    Trades { price: Filter, quantity: Filter },
    Updates(Box<UpdatePrograms>),
    Items { member: Option<Filter>, data: Option<Filter> },
}

struct UpdatePrograms {
    asks: Filter,
    bids: Filter,
    snapshot: Option<Filter>,
    first: Option<Filter>,
    last: Option<Filter>,
    previous: Option<Filter>,
}

/// A record, or a part of one, and what is known of it already.
struct Part<'a> {
    key: String,
    time_ms: u64,
    input: &'a Input,
    /// The record's value, if that is what the route looks at.
    whole: Option<&'a Bytes>,
}

impl Reader {
    pub(super) fn compile(config: &OperatorConfig) -> Result<Self, JqError> {
        let optional = |program: &Option<String>| program.as_deref().map(Filter::compile).transpose();
        let reads = match &config.reads {
            Reads::Trades { price, quantity } => {
                Programs::Trades { price: Filter::compile(price)?, quantity: Filter::compile(quantity)? }
            }
            Reads::Updates { asks, bids, snapshot, first, last, previous } => {
                Programs::Updates(Box::new(UpdatePrograms {
                    asks: Filter::compile(asks)?,
                    bids: Filter::compile(bids)?,
                    snapshot: optional(snapshot)?,
                    first: optional(first)?,
                    last: optional(last)?,
                    previous: optional(previous)?,
                }))
            }
            Reads::Items { member, data } => {
                Programs::Items { member: optional(member)?, data: optional(data)? }
            }
        };
        Ok(Self { reads, time: optional(&config.time)? })
    }

    /// Reads the parts of a record. `whole`: the record's value, if it is the only part; `key` makes the key of a part.
    pub(super) fn read(
        &self,
        parts: &[Input],
        whole: Option<&Bytes>,
        record: Taken<'_>,
        key: impl Fn(&Input) -> Result<String, Rejected>,
    ) -> Result<Inputs, Rejected> {
        let parts = parts.iter().map(|input| {
            let key = key(input)?;
            let log_ms = record.engine_time_us / 1000;
            let time_ms = match &self.time {
                Some(time) => time_of(time, input, log_ms)?,
                None if log_ms == 0 => return Err(Rejected::NoTime),
                None => log_ms,
            };
            Ok(Part { key, time_ms, input, whole })
        });
        Ok(match &self.reads {
            Programs::Trades { price, quantity } => {
                let trade = |part: Result<Part<'_>, Rejected>| {
                    let Part { key, time_ms, input, .. } = part?;
                    let price = number_of("price", price, input)?;
                    let quantity = number_of("quantity", quantity, input)?;
                    Ok(Trade { key, price, quantity, time_ms })
                };
                Inputs::Trades(parts.map(trade).collect::<Result<_, Rejected>>()?)
            }
            Programs::Updates(programs) => {
                Inputs::Updates(parts.map(|part| programs.read(part?)).collect::<Result<_, _>>()?)
            }
            Programs::Items { member, data } => {
                let item = |part: Result<Part<'_>, Rejected>| item_of(member.as_ref(), data.as_ref(), part?);
                Inputs::Items(parts.map(item).collect::<Result<_, _>>()?)
            }
        })
    }
}

impl UpdatePrograms {
    fn read(&self, Part { key, time_ms, input, .. }: Part<'_>) -> Result<Update, Rejected> {
        let whole = match &self.snapshot {
            Some(snapshot) => bool_of("snapshot", snapshot, input)?,
            None => false,
        };
        let id = |part, program: &Option<Filter>| {
            program.as_ref().map(|program| number_of(part, program, input)).transpose()
        };
        Ok(Update {
            key,
            whole,
            asks: levels_of("asks", &self.asks, input)?,
            bids: levels_of("bids", &self.bids, input)?,
            // A snapshot follows nothing.
            first: if whole { None } else { id("first", &self.first)? },
            last: id("last", &self.last)?,
            previous: if whole { None } else { id("previous", &self.previous)? },
            time_ms,
        })
    }
}

fn item_of(member: Option<&Filter>, data: Option<&Filter>, part: Part<'_>) -> Result<Item, Rejected> {
    let Part { key, time_ms, input, whole } = part;
    let member = member.map(|member| text_of("member", member, input)).transpose()?;
    if member.as_deref().is_some_and(|member| !is_part(member)) {
        return Err(InvalidStreamName::Alphabet { part: "member" }.into());
    }
    let data = data_of(data, input, whole)?;
    if data.len() > MAX_EVENT_DATA_BYTES {
        return Err(Rejected::DataTooLarge(data.len()));
    }
    let data = String::from_utf8(data.into()).map_err(|error| Rejected::Json(error.to_string()))?;
    Ok(Item { key, member: member.unwrap_or_default(), data, time_ms })
}

/// The data of an event, exact JSON text. `whole`: the record's value, if that is what the route looks at.
pub(super) fn data_of(
    data: Option<&Filter>,
    input: &Input,
    whole: Option<&Bytes>,
) -> Result<Bytes, Rejected> {
    Ok(match (data, whole) {
        (Some(filter), _) => {
            filter.run_to_json(input).map_err(|error| Rejected::Jq { part: "data", error })?.into()
        }
        (None, Some(value)) => value.slice_ref(value.trim_ascii()),
        (None, None) => input.to_json().map_err(|error| Rejected::Jq { part: "split", error })?.into(),
    })
}

/// True or false.
pub(super) fn bool_of(part: &'static str, filter: &Filter, input: &Input) -> Result<bool, Rejected> {
    let bool = filter.run_to_bool(input).map_err(|error| Rejected::Jq { part, error })?;
    bool.map_err(|value| Rejected::NoBool { part, value })
}

/// A number, or a text that holds one: a decimal, or an update id, which is whole and not negative.
fn number_of<N: FromStr>(part: &'static str, filter: &Filter, input: &Input) -> Result<N, Rejected> {
    let text = filter.run_to_number(input).map_err(|error| Rejected::Jq { part, error })?;
    text.and_then(|text| text.parse().map_err(|_| text)).map_err(|value| Rejected::NoNumber { part, value })
}

/// The levels of one side: `[[price, quantity], …]`, of numbers or texts; null is none.
fn levels_of(part: &'static str, filter: &Filter, input: &Input) -> Result<Vec<Change>, Rejected> {
    let pairs =
        filter.run_to_pairs(input, 2 * MAX_BOOK_LEVELS).map_err(|error| Rejected::Jq { part, error })?;
    let pairs = pairs.map_err(|value| Rejected::NoLevels { part, value })?;
    let change = |(price, quantity): (String, String)| {
        Change::parse(&plain(price), &plain(quantity))
            .map_err(|broken| Rejected::NoLevels { part, value: broken.to_string() })
    };
    pairs.into_iter().map(change).collect()
}

/// A number without an exponent, if it is one: clients are told digits and a point.
fn plain(number: String) -> String {
    if !number.contains(['e', 'E']) {
        return number;
    }
    number.parse::<Decimal>().map_or(number, |number| number.to_string())
}

/// A time in milliseconds, not far from the log's own.
fn time_of(filter: &Filter, input: &Input, log_ms: u64) -> Result<u64, Rejected> {
    let time: Decimal = number_of("time", filter, input)?;
    let time_ms =
        time.to_string().parse().map_err(|_| Rejected::NoNumber { part: "time", value: time.to_string() })?;
    let range = log_ms.saturating_sub(MAX_BEHIND_MS)..=log_ms.saturating_add(MAX_AHEAD_MS);
    if log_ms > 0 && !range.contains(&time_ms) {
        return Err(Rejected::Time { time_ms, log_ms });
    }
    Ok(time_ms)
}
