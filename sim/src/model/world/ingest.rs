//! An ingest peer: what the worker around [`Sequencer`] and [`Publisher`] does. It starts from its disk, a sibling or the
//! configuration, reads the log up to its end, ranks, publishes, saves its state, and answers questions and feeds.

use std::time::Duration;

use tickmesh_protocol::{
    Batch, Event, PublisherKey, Sequence,
    sequencer::Sequencer,
    takeover::{Publisher, Settings, SourceId},
};

use super::{history::History, *};

/// Records taken from the log at once: few, so that replicas stand at different places.
const READ_AT_ONCE: usize = 16;

/// How long a peer without a disk waits for a sibling's state.
const ALONE_AFTER: Time = 700 * MS;

/// How often the state is told when nothing changes.
const BEAT: Time = 500 * MS;

pub(super) struct Ingest {
    pub(super) sequencer: Sequencer,
    pub(super) publisher: Publisher,
    pub(super) history: History,
    /// Where reading of each partition goes on; `None` before it has begun.
    pub(super) partitions: Vec<Partition>,
    /// Whether the state to start from is known.
    begun: bool,
    /// Sources read up to the end of their logs.
    read_up: Vec<bool>,
    /// Sources for which this peer ranks.
    pub(super) warm: Vec<bool>,
    connected: Vec<bool>,
    /// The topics that each peer has joined, as bits.
    pub(super) subscribed: Vec<u32>,
    /// The topics that this peer has joined.
    topics: u32,
    /// What siblings are given: as old as the last checkpoint, or the moment when this peer became warm.
    shared: Option<Rc<Saved>>,
    /// Peers that want to know the state.
    listeners: Vec<bool>,
    /// Events that were given to the publisher to be published: streams and indices.
    pub(super) offered: Vec<(usize, usize)>,
    /// Takeovers of which a mutation knows.
    pub(super) takeovers: u64,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Partition {
    pub(super) next: Option<(tickmesh_protocol::Epoch, u64)>,
    pub(super) reached: bool,
    reading: bool,
}

/// What a checkpoint holds.
#[derive(Clone, Debug)]
pub struct Saved {
    sequencer: Sequencer,
    partitions: Vec<Option<(tickmesh_protocol::Epoch, u64)>>,
}

impl Ingest {
    fn new(world: &World<'_>, id: Id, incarnation: u32) -> Self {
        let shape = &world.scenario.world;
        let sources = shape.partitions.iter().map(|partition| partition.source + 1).max().unwrap_or(0);
        let settings = Settings { settle: Duration::from_micros(shape.settle), ..Settings::default() };
        Self {
            sequencer: Sequencer::default(),
            publisher: Publisher::new(key(id), u64::from(incarnation), settings),
            history: History::new(shape.streams.len(), shape.ring),
            partitions: vec![Partition::default(); shape.partitions.len()],
            begun: false,
            read_up: vec![false; sources],
            warm: vec![false; sources],
            connected: vec![false; world.peers.len()],
            subscribed: vec![0; world.peers.len()],
            topics: 0,
            shared: None,
            listeners: vec![false; world.peers.len()],
            offered: Vec::new(),
            takeovers: 0,
        }
    }

    pub(super) fn saved(&self) -> Saved {
        Saved {
            sequencer: self.sequencer.clone(),
            partitions: self.partitions.iter().map(|partition| partition.next).collect(),
        }
    }

    fn restore(&mut self, saved: &Saved) {
        for (epoch, reading) in saved.sequencer.partitions() {
            self.sequencer.restore_partition(epoch, reading.read_from, reading.next);
        }
        for (stream, last, left) in saved.sequencer.streams() {
            self.sequencer.restore_stream(stream.clone(), last, left);
        }
        for (partition, next) in self.partitions.iter_mut().zip(&saved.partitions) {
            partition.next = *next;
        }
    }
}

/// The key of ingest peer `id`.
pub(super) fn key(id: Id) -> PublisherKey {
    PublisherKey([id as u8 + 1; 32])
}

/// The ingest peer of a key.
pub(super) fn peer_of(key: &PublisherKey) -> Id {
    usize::from(key.0[0]) - 1
}

impl World<'_> {
    pub(super) fn ingest(&mut self, id: Id) -> Option<&mut Ingest> {
        match &mut self.peers.get_mut(id)?.role {
            Role::Ingest(ingest) => Some(ingest),
            _ => None,
        }
    }

    pub(super) fn get_ingest(&self, id: Id) -> Option<&Ingest> {
        match &self.peers.get(id)?.role {
            Role::Ingest(ingest) => Some(ingest),
            _ => None,
        }
    }

    pub(super) fn start_ingest(&mut self, id: Id) {
        let incarnation = self.peers[id].incarnation;
        let mut ingest = Ingest::new(self, id, incarnation);
        let saved = self.disks[id].clone();
        let begun = saved.is_some() || self.now == 0;
        if let Some(saved) = saved {
            ingest.restore(&saved);
        }
        self.peers[id].role = Role::Ingest(Box::new(ingest));
        if begun {
            self.begin_reading(id);
        } else {
            self.later(id, ALONE_AFTER, Input::Alone);
        }
        let phase = self.random.below(self.scenario.world.checkpoint_every);
        self.later(id, phase, Input::Checkpoint);
        self.later(id, BEAT, Input::Beat);
    }

    pub(super) fn ingest_input(&mut self, id: Id, input: Input) {
        match input {
            Input::Message { from, message, .. } => self.ingest_message(id, from, message),
            Input::Connected(other) => {
                let unbegun = self.ingest(id).is_some_and(|ingest| {
                    ingest.connected[other] = true;
                    !ingest.begun
                });
                if matches!(self.peers[other].peer, Peer::Ingest(_)) {
                    self.send(id, other, Message::AskStatus);
                    if unbegun {
                        self.send(id, other, Message::AskState);
                    }
                }
                let topics = self.ingest(id).map_or(0, |ingest| ingest.topics);
                self.send(id, other, Message::Topics(topics));
            }
            Input::Disconnected(other) => {
                let now = self.local(id);
                if let Some(ingest) = self.ingest(id) {
                    ingest.connected[other] = false;
                    ingest.listeners[other] = false;
                    ingest.subscribed[other] = 0;
                    ingest.publisher.peer_down(key(other), now);
                }
            }
            Input::Wake { due } => {
                let (late, now) = (self.now - due, self.local(id));
                self.peers[id].wake = None;
                if let Some(ingest) = self.ingest(id) {
                    ingest.publisher.woken(Duration::from_micros(late), now);
                }
            }
            Input::Read { partition } => self.read(id, partition),
            Input::Beat => {
                self.tell_status(id);
                self.later(id, BEAT, Input::Beat);
            }
            Input::Checkpoint => {
                self.save(id);
                self.later(id, self.scenario.world.checkpoint_every, Input::Checkpoint);
            }
            Input::Alone => self.begin_reading(id),
        }
        if !self.thawing {
            self.publish_due(id);
        }
    }

    pub(super) fn save(&mut self, id: Id) {
        let Some(ingest) = self.ingest(id).filter(|ingest| ingest.begun) else { return };
        let saved = Rc::new(ingest.saved());
        if ingest.warm.iter().all(|warm| *warm) {
            ingest.shared = Some(Rc::clone(&saved));
        }
        self.disks[id] = Some(saved);
    }

    fn ingest_message(&mut self, id: Id, from: Id, message: Message) {
        let now = self.local(id);
        match message {
            Message::Batch(batch) => {
                let batch = self.altered_seen(id, batch);
                if let Some(ingest) = self.ingest(id) {
                    ingest.publisher.seen(&batch, now);
                }
            }
            Message::Topics(topics) => {
                if let Some(ingest) = self.ingest(id) {
                    ingest.subscribed[from] = topics;
                }
            }
            Message::AskHeads { question, streams } => self.answer_heads(id, from, question, streams),
            Message::AskStatus => {
                if let Some(ingest) = self.ingest(id) {
                    ingest.listeners[from] = true;
                    let status = Message::Status(ingest.warm.clone());
                    self.send(id, from, status);
                }
            }
            Message::Status(warm) => self.take_status(id, from, &warm),
            Message::AskState => {
                let state = self.get_ingest(id).and_then(|ingest| ingest.shared.clone());
                self.send(id, from, Message::State(state));
            }
            Message::State(Some(saved)) => {
                if let Some(ingest) = self.ingest(id).filter(|ingest| !ingest.begun) {
                    ingest.restore(&saved);
                    self.begin_reading(id);
                }
            }
            Message::AskFeed { feed, streams } => self.serve_feed(id, from, feed, &streams),
            Message::State(None)
            | Message::Heads { .. }
            | Message::HeadsRefused { .. }
            | Message::Page { .. }
            | Message::FeedEnds { .. }
            | Message::FeedBroken { .. } => {}
        }
    }

    fn answer_heads(&mut self, id: Id, from: Id, question: u32, streams: Vec<usize>) {
        let answer = self.get_ingest(id).and_then(|ingest| {
            let heads = streams.iter().map(|stream| self.head_for(ingest, from, *stream));
            let heads = heads.collect::<Option<Vec<_>>>()?;
            let read = ingest.sequencer.partitions().filter_map(|(epoch, reading)| {
                Some(Position { epoch, sequence: Sequence::new(reading.next).ok()? })
            });
            let left = streams.iter().map(|stream| {
                let name = &self.names.streams[*stream];
                let head = ingest.publisher.head(name).map(|head| head.epoch);
                let left = ingest.publisher.left(name).iter().chain(ingest.sequencer.left(name));
                (*stream, left.copied().filter(|epoch| Some(*epoch) != head).collect())
            });
            Some(Message::Heads { question, heads, read: read.collect(), left: left.collect() })
        });
        self.send(id, from, answer.unwrap_or(Message::HeadsRefused { question }));
    }

    /// Where a stream stands, for an edge whose subscription was seen; nothing, if this peer cannot know it yet.
    fn head_for(&self, ingest: &Ingest, from: Id, stream: usize) -> Option<(usize, Option<Position>)> {
        let seen = ingest.subscribed[from] >> self.names.topic_of[stream] & 1 == 1;
        let name = &self.names.streams[stream];
        let head = ingest.publisher.head(name);
        // Who has not read to the end does not know that there is nothing, nor who has not published yet what there is.
        let read_up = ingest.read_up[self.source_of(self.scenario.world.streams[stream])];
        let known = head.is_some() || read_up && ingest.sequencer.last(name).is_none();
        (seen && known).then_some((stream, head))
    }

    fn take_status(&mut self, id: Id, from: Id, warm: &[bool]) {
        let now = self.local(id);
        let shape = self.scenario.world.ingests[from];
        let Some(ingest) = self.ingest(id).filter(|ingest| ingest.connected[from]) else { return };
        for (source, warm) in warm.iter().enumerate() {
            ingest.publisher.peer(
                key(from),
                SourceId(source as u16),
                warm.then_some(shape.tier(source)),
                now,
            );
        }
    }

    fn tell_status(&mut self, id: Id) {
        let Some(ingest) = self.get_ingest(id) else { return };
        let (warm, listeners) = (ingest.warm.clone(), ingest.listeners.clone());
        for listener in self.ingest_ids().filter(|listener| listeners[*listener]) {
            self.send(id, listener, Message::Status(warm.clone()));
        }
    }

    /// The state to start from is known, or there is none.
    fn begin_reading(&mut self, id: Id) {
        let from_oldest = self.scenario.world.from_oldest;
        let Some(ingest) = self.ingest(id).filter(|ingest| !ingest.begun) else { return };
        ingest.begun = true;
        self.tell_restored(id);
        for partition in 0..self.scenario.world.partitions.len() {
            let log = self.log.partition(partition);
            let (epoch, begin, end) = (log.epoch(), log.begin(), log.end());
            let from = if from_oldest { begin } else { end };
            let Some(ingest) = self.ingest(id) else { return };
            let known = ingest.partitions[partition].next.is_some();
            if !known {
                ingest.partitions[partition].next = Some((epoch, from));
                self.began_unknowing |= self.now > 0;
            }
            self.altered_start(id, partition);
            let Some(ingest) = self.ingest(id) else { return };
            if let Some((epoch, next)) = ingest.partitions[partition].next
                && let Ok(next) = Sequence::new(next)
            {
                ingest.sequencer.begin(epoch, next, next == Sequence::ZERO);
            }
            self.schedule_read(id, partition);
        }
        self.say(|world| format!("{} begins to read", world.peers[id].peer));
    }

    /// The streams of a checkpoint have heads, although nothing of them is read again.
    fn tell_restored(&mut self, id: Id) {
        let now = self.local(id);
        for (stream, name) in self.names.streams.clone().into_iter().enumerate() {
            let source = SourceId(self.source_of(self.scenario.world.streams[stream]) as u16);
            if let Some(ingest) = self.ingest(id)
                && let Some(last) = ingest.sequencer.last(&name)
            {
                ingest.publisher.replayed(source, &name, last, now);
                ingest.history.restore(stream, last);
                let index = self.log.index_of(stream, last);
                self.note_known(stream, index);
                self.join_as_ingest(id, self.names.topic_of[stream]);
            }
        }
    }

    /// A record was written: everybody who reads the partition will see it after a while.
    pub(super) fn wake_readers(&mut self, partition: usize) {
        for id in self.ingest_ids() {
            self.schedule_read(id, partition);
        }
    }

    fn schedule_read(&mut self, id: Id, partition: usize) {
        let delay = self.read_delay(id);
        let Some(ingest) = self.ingest(id).filter(|ingest| ingest.begun) else { return };
        let state = &mut ingest.partitions[partition];
        if !state.reading {
            state.reading = true;
            self.later(id, delay, Input::Read { partition });
        }
    }

    fn read(&mut self, id: Id, partition: usize) {
        let Some(ingest) = self.ingest(id) else { return };
        ingest.partitions[partition].reading = false;
        let next = ingest.partitions[partition].next;
        let read = self.log.read(partition, next, READ_AT_ONCE, Some(id));
        let Some(ingest) = self.ingest(id) else { return };
        if next != Some((read.epoch, read.from))
            && let Ok(from) = Sequence::new(read.from)
        {
            ingest.sequencer.begin(read.epoch, from, from == Sequence::ZERO);
            self.say(|world| {
                format!("{} begins partition {} at {}", world.peers[id].peer, partition + 1, read.from)
            });
        }
        for (number, stream) in (read.from..).zip(&read.streams) {
            if let Some(stream) = stream {
                self.take_record(id, partition, *stream, read.epoch, number);
            }
        }
        let end = read.from + read.streams.len() as u64;
        let Some(ingest) = self.ingest(id) else { return };
        ingest.sequencer.passed(read.epoch, end);
        ingest.partitions[partition].next = Some((read.epoch, end));
        if read.reached {
            self.reached(id, partition);
        } else {
            self.schedule_read(id, partition);
        }
    }

    fn take_record(
        &mut self,
        id: Id,
        partition: usize,
        stream: usize,
        epoch: tickmesh_protocol::Epoch,
        number: u64,
    ) {
        let now = self.local(id);
        let source = SourceId(self.source_of(partition) as u16);
        let name = self.names.streams[stream].clone();
        let Some(ingest) = self.ingest(id) else { return };
        let Ok((sequence, previous)) = ingest.sequencer.next(&name, epoch, number) else {
            self.say(|world| {
                format!("{} refuses record {number} of {}", world.peers[id].peer, world.names.streams[stream])
            });
            return;
        };
        let data = bytes::Bytes::from_static(b"1");
        let event =
            Event { stream: name, epoch, sequence, previous, engine_time_us: 0, data, signature: None };
        ingest.history.keep(stream, event.clone());
        let reached =
            ingest.partitions[partition].reached || self.mutation == Some(Mutation::PublishBeforeWarm);
        let index = self.log.index_of(stream, event.position());
        let Some(ingest) = self.ingest(id) else { return };
        if reached {
            ingest.offered.extend(index.map(|index| (stream, index)));
            ingest.publisher.offer(source, event, now);
        } else {
            ingest.publisher.replayed(source, &event.stream, event.position(), now);
            self.note_replayed(stream, index, &event);
        }
        self.join_as_ingest(id, self.names.topic_of[stream]);
    }

    fn join_as_ingest(&mut self, id: Id, topic: usize) {
        let Some(ingest) = self.ingest(id) else { return };
        if ingest.topics >> topic & 1 == 1 {
            return;
        }
        ingest.topics |= 1 << topic;
        let topics = ingest.topics;
        for other in self.ingest_ids().filter(|other| *other != id) {
            self.send(id, other, Message::Topics(topics));
        }
    }

    /// A partition was read up to the end of its log. When all of a source were, the peer is to be ranked for it.
    fn reached(&mut self, id: Id, partition: usize) {
        let now = self.local(id);
        let source = self.source_of(partition);
        let tier = self.scenario.world.ingests[id].tier(source);
        let shape = &self.scenario.world;
        let Some(Role::Ingest(ingest)) = self.peers.get_mut(id).map(|peer| &mut peer.role) else { return };
        ingest.partitions[partition].reached = true;
        let mut partitions = shape.partitions.iter().zip(&ingest.partitions);
        let all = partitions.all(|(shape, state)| shape.source != source || state.reached);
        if all && !ingest.read_up[source] {
            ingest.read_up[source] = true;
            ingest.publisher.read_up(SourceId(source as u16), tier, now);
        }
    }

    /// Ranks from now on where this peer has settled.
    fn settle(&mut self, id: Id) {
        let now = self.local(id);
        let Some(ingest) = self.ingest(id) else { return };
        for source in ingest.publisher.settled(now) {
            let source = usize::from(source.0);
            if let Some(ingest) = self.ingest(id) {
                ingest.warm[source] = true;
            }
            self.say(|world| format!("{} is warm for source {}", world.peers[id].peer, source + 1));
            self.save(id);
            self.tell_status(id);
        }
    }

    /// Publishes what is due, and asks to be woken for what will be.
    pub(super) fn publish_due(&mut self, id: Id) {
        self.settle(id);
        let now = self.local(id);
        let Some(ingest) = self.ingest(id) else { return };
        let batches = ingest.publisher.take_due(now);
        self.publish(id, batches);
        let Some(ingest) = self.ingest(id) else { return };
        let due = ingest.publisher.next_due();
        self.wake_at(id, due);
    }

    pub(super) fn publish(&mut self, id: Id, batches: Vec<Batch>) {
        for batch in batches {
            let Some(topic) = self.names.topic(&batch.topic) else { continue };
            let Some(batch) = self.altered_published(id, batch) else { continue };
            self.note_published(id, &batch);
            self.say(|world| format!("{} publishes {}", world.peers[id].peer, told(&batch)));
            let batch = Rc::new(batch);
            for to in 0..self.peers.len() {
                let wants = |ingest: &Ingest| ingest.subscribed[to] >> topic & 1 == 1;
                if to != id && self.get_ingest(id).is_some_and(wants) {
                    self.send(id, to, Message::Batch(Rc::clone(&batch)));
                }
            }
        }
    }

    fn read_delay(&mut self, id: Id) -> Time {
        let least = self.scenario.world.ingests[id].read_delay / 4;
        let most = self.slow_reads[id].iter().map(|(_, delay)| *delay);
        let most = most.fold(self.scenario.world.ingests[id].read_delay, Time::max);
        self.random_of(id).between(least, most)
    }
}

/// A batch in words.
pub(super) fn told(batch: &Batch) -> String {
    let events = batch
        .events
        .iter()
        .map(|event| format!("{} {} ({})", event.stream, short(event.position()), previous(event)));
    let heads = batch.heads.iter().map(|(stream, head)| format!("head {stream} {}", short(*head)));
    events.chain(heads).collect::<Vec<_>>().join(", ")
}

fn previous(event: &Event) -> String {
    use tickmesh_protocol::Previous;
    match event.previous {
        Previous::At(sequence) => format!("after {sequence}"),
        Previous::Unknown { read_from } => format!("read from {read_from}"),
        Previous::Reset { after } => format!("reset after {}", short(after)),
    }
}

/// A position with few digits of its epoch.
pub(super) fn short(position: Position) -> String {
    let epoch = position.epoch.to_string();
    format!("{}:{}", epoch.get(..4).unwrap_or(&epoch), position.sequence)
}
