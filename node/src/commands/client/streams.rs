//! Where each stream stands at this client, and what an event is there: the next one, one that has come before, or one after a
//! gap. Pure.

use std::collections::BTreeMap;

use tickmesh_protocol::{
    Epoch, Position, Sequence,
    client::{
        ClientMessage, DataMessage, LastSeen, MAX_CLIENT_FRAME_BYTES, MAX_STREAMS_PER_REQUEST, RequestId,
        ResumeFrom,
    },
};

/// What a request has besides its streams, and what stands around the name of one: quotes, and a position of at most 56 bytes.
const AROUND_REQUEST: usize = 128;
const AROUND_STREAM: usize = 64;

/// Positions by stream, as they are kept in a file.
pub(super) type Positions = BTreeMap<String, LastSeen>;

/// The streams to be followed, by name.
pub(super) struct Streams(BTreeMap<String, Stream>);

#[derive(Default)]
struct Stream {
    /// Nothing before an edge has confirmed it.
    seen: Option<LastSeen>,
    /// The epoch of the next event, if it is another. The position stays in the old one: from there it can be resumed.
    next_epoch: Option<Epoch>,
    status: Status,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Status {
    /// To be asked for.
    #[default]
    Wanted,
    /// Asked for by the request with this number.
    Asked(u64),
    Live,
}

/// What an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Next,
    /// Something is missing after the last one.
    Gap {
        after: Option<Sequence>,
    },
    /// Not newer than the last one.
    Duplicate {
        last: Sequence,
    },
}

impl Streams {
    /// These streams, those with a position to be resumed there.
    pub(super) fn new(names: Vec<String>, kept: &Positions) -> Self {
        let stream = |name: String| {
            let stream = Stream { seen: kept.get(&name).copied(), ..Stream::default() };
            (name, stream)
        };
        Self(names.into_iter().map(stream).collect())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Where the streams stand that can be resumed.
    pub(super) fn positions(&self) -> impl Iterator<Item = (String, LastSeen)> {
        self.0.iter().filter_map(|(name, stream)| Some((name.clone(), stream.seen?)))
    }

    /// The connection is lost: everything is to be asked for again.
    pub(super) fn interrupt(&mut self) {
        for stream in self.0.values_mut() {
            stream.status = Status::Wanted;
            stream.next_epoch = None;
        }
    }

    /// The requests for what is wanted: to resume what was here before, to subscribe what was not.
    pub(super) fn requests(&mut self, next_id: &mut u64) -> Vec<ClientMessage> {
        let wanted = self.0.iter().filter(|(_, stream)| stream.status == Status::Wanted);
        let (known, new): (Vec<_>, Vec<_>) =
            wanted.map(|(name, stream)| (name.clone(), stream.seen)).partition(|(_, seen)| seen.is_some());
        let mut requests = Vec::new();
        for part in in_requests(known).into_iter().chain(in_requests(new)) {
            *next_id += 1;
            for (name, _) in &part {
                if let Some(stream) = self.0.get_mut(name) {
                    stream.status = Status::Asked(*next_id);
                }
            }
            let id = Some((*next_id).into());
            let positions: BTreeMap<_, _> =
                part.iter().filter_map(|(name, seen)| Some((name.clone(), (*seen)?))).collect();
            requests.push(if positions.is_empty() {
                ClientMessage::Subscribe { id, streams: part.into_iter().map(|(name, _)| name).collect() }
            } else {
                ClientMessage::Resume { id, from: ResumeFrom::Positions { positions } }
            });
        }
        requests
    }

    /// Judges an event and moves to it, unless it is a duplicate. A snapshot stands for everything before it, wherever that was;
    /// a conflated event for those left out before it.
    pub(super) fn advance(&mut self, event: &DataMessage<'_>) -> Verdict {
        // Nobody else is asked for, so there is none.
        let Some(stream) = self.0.get_mut(event.stream.as_str()) else { return Verdict::Next };
        let last = match stream.next_epoch {
            Some(_) => None,
            None => stream.seen.and_then(sequence_of),
        };
        if let Some(last) = last.filter(|last| event.sequence <= *last && !event.snapshot) {
            return Verdict::Duplicate { last };
        }
        let epoch = stream.next_epoch.take().or(event.epoch).or(stream.seen.and_then(epoch_of));
        stream.seen = Some(match epoch {
            Some(epoch) => LastSeen::At(Position { epoch, sequence: event.sequence }),
            None => LastSeen::Sequence(event.sequence),
        });
        if event.snapshot || event.conflated || event.previous == last {
            Verdict::Next
        } else {
            Verdict::Gap { after: last }
        }
    }

    /// Everything after a position will come; without one, from the first event on. Where the stream stood before.
    pub(super) fn begin(&mut self, name: &str, position: Option<Position>) -> Option<Sequence> {
        let stream = self.0.get_mut(name)?;
        let before = stream.seen.and_then(sequence_of);
        *stream = Stream {
            seen: Some(position.map_or(LastSeen::Nothing, LastSeen::At)),
            next_epoch: None,
            status: Status::Live,
        };
        before
    }

    /// Everything that was missed has come; `from` tells the epoch of a stream that was empty.
    pub(super) fn resumed(&mut self, name: &str, from: Option<Position>) {
        if let Some(stream) = self.0.get_mut(name) {
            stream.status = Status::Live;
        }
        if let Some(from) = from {
            self.learn(name, from.epoch);
        }
    }

    /// What follows is numbered anew.
    pub(super) fn reset(&mut self, name: &str, epoch: Epoch) {
        if let Some(stream) = self.0.get_mut(name) {
            stream.next_epoch = Some(epoch);
        }
    }

    /// Whether a stream has a number and nobody has said of which epoch.
    pub(super) fn lacks_epoch(&self, name: &str) -> bool {
        self.0.get(name).is_some_and(|stream| matches!(stream.seen, Some(LastSeen::Sequence(_))))
    }

    /// An edge says in which epoch a stream is.
    pub(super) fn learn(&mut self, name: &str, epoch: Epoch) {
        if let Some(stream) = self.0.get_mut(name)
            && let Some(LastSeen::Sequence(sequence)) = stream.seen
        {
            stream.seen = Some(LastSeen::At(Position { epoch, sequence }));
        }
    }

    /// To be asked for again. Its position stays.
    pub(super) fn want(&mut self, name: &str) {
        if let Some(stream) = self.0.get_mut(name) {
            stream.status = Status::Wanted;
        }
    }

    pub(super) fn remove(&mut self, name: &str) {
        self.0.remove(name);
    }

    /// The streams of a request that is not answered yet.
    pub(super) fn asked_by(&self, id: &RequestId) -> Vec<String> {
        let asked = self.0.iter().filter(
            |(_, stream)| matches!(stream.status, Status::Asked(asked) if RequestId::from(asked) == *id),
        );
        asked.map(|(name, _)| name.clone()).collect()
    }
}

/// Divides streams into what goes into one request each.
fn in_requests(streams: Vec<(String, Option<LastSeen>)>) -> Vec<Vec<(String, Option<LastSeen>)>> {
    let mut parts: Vec<Vec<_>> = Vec::new();
    let mut bytes = 0;
    for stream in streams {
        let own = stream.0.len() + AROUND_STREAM;
        bytes += own;
        match parts.last_mut() {
            Some(part)
                if part.len() < MAX_STREAMS_PER_REQUEST
                    && bytes <= MAX_CLIENT_FRAME_BYTES - AROUND_REQUEST =>
            {
                part.push(stream);
            }
            _ => {
                bytes = own;
                parts.push(vec![stream]);
            }
        }
    }
    parts
}

fn sequence_of(seen: LastSeen) -> Option<Sequence> {
    match seen {
        LastSeen::At(position) => Some(position.sequence),
        LastSeen::Sequence(sequence) => Some(sequence),
        LastSeen::Nothing => None,
    }
}

fn epoch_of(seen: LastSeen) -> Option<Epoch> {
    match seen {
        LastSeen::At(position) => Some(position.epoch),
        LastSeen::Sequence(_) | LastSeen::Nothing => None,
    }
}

#[cfg(test)]
mod tests;
