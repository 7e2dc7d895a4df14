//! A stream under repair, in virtual time, and what it puts out.

use bytes::Bytes;
use tickmesh_protocol::{
    Epoch, Event, Moment, Position, Previous, Sequence,
    feed::FeedEnd,
    repair::{Fetch, Fetched, Output, Received, Repair, Way},
};

pub fn sequence(number: u64) -> Sequence {
    Sequence::new(number).unwrap()
}

pub fn at(epoch: u64, number: u64) -> Position {
    Position { epoch: Epoch::from_u64(epoch), sequence: sequence(number) }
}

pub fn event_after(position: Position, previous: Previous) -> Event {
    Event {
        stream: "trades.btc_usdt".parse().unwrap(),
        epoch: position.epoch,
        sequence: position.sequence,
        previous,
        engine_time_us: 0,
        data: Bytes::from_static(b"1"),
        signature: None,
    }
}

/// Of epoch 1, after the number before it.
pub fn event(number: u64) -> Event {
    event_after(at(1, number), Previous::At(sequence(number - 1)))
}

/// A repair with what it puts out, in virtual time.
#[derive(Default)]
pub struct Stream {
    pub repair: Repair,
    pub now: Moment,
    pub outputs: Vec<Output>,
    pub fetches: u32,
}

impl Stream {
    pub fn joining() -> Self {
        let mut stream = Self::default();
        assert_eq!(stream.gossip(&event(1)), Received::Ignored);
        assert!(stream.repair.join() && !stream.repair.join(), "the head is asked for once");
        stream
    }

    pub fn live(head: impl Into<Option<Position>>) -> Self {
        let mut stream = Self::joining();
        stream.joined(head.into());
        assert!(stream.repair.is_live() && !stream.repair.is_repairing());
        stream
    }

    pub fn joined(&mut self, head: Option<Position>) {
        self.repair.joined(head, self.now, &mut self.outputs);
    }

    pub fn gossip(&mut self, event: &Event) -> Received {
        self.repair.receive(event, Way::Gossip, self.now, &mut self.outputs)
    }

    pub fn fed(&mut self, event: &Event) -> Received {
        self.repair.receive(event, Way::Feed, self.now, &mut self.outputs)
    }

    pub fn claimed(&mut self, head: Position) {
        self.repair.claimed(head, self.now);
    }

    /// The next fetch, at the time when it is due.
    pub fn fetch(&mut self) -> Fetch {
        let due = self.repair.fetch_due().expect("a fetch is needed");
        if due > self.now {
            assert_eq!(self.repair.begin_fetch(self.now), None, "not before it is due");
            self.now = due;
        }
        self.fetches += 1;
        let fetch = self.repair.begin_fetch(self.now).unwrap();
        assert_eq!(
            (self.repair.fetch_due(), self.repair.begin_fetch(self.now)),
            (None, None),
            "one at a time"
        );
        fetch
    }

    pub fn ended(&mut self, fetch: Fetch, end: Fetched) {
        self.repair.fetched(fetch.id, end, self.now, &mut self.outputs);
    }

    /// The next fetch, which brings these.
    pub fn serve(&mut self, events: &[Event], head: Option<Position>) -> Fetch {
        let fetch = self.fetch();
        for event in events {
            self.fed(event);
        }
        self.ended(fetch, complete(head));
        fetch
    }

    pub fn put_out(&mut self) -> Vec<Put> {
        self.outputs.drain(..).map(Put::from).collect()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    Event(u64),
    Reset(u64),
    Gap(Option<Position>),
}

impl From<Output> for Put {
    fn from(output: Output) -> Self {
        match output {
            Output::Deliver(event) => Self::Event(event.sequence.get()),
            Output::Reset(epoch) => Self::Reset(epoch.as_u64()),
            Output::Gap { after } => Self::Gap(after),
        }
    }
}

pub fn events(numbers: impl IntoIterator<Item = u64>) -> Vec<Put> {
    numbers.into_iter().map(Put::Event).collect()
}

pub fn complete(head: Option<Position>) -> Fetched {
    Fetched::Ended(FeedEnd::Complete { head })
}

pub fn refused(oldest: Option<Position>) -> Fetched {
    Fetched::Ended(FeedEnd::Refused { oldest })
}
