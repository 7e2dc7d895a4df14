//! An edge: what the hub around [`Repair`] does. It joins topics, asks where streams stand, confirms subscriptions, takes what
//! the bus and the feeds bring, and hands the outputs to its clients.

use std::sync::Arc;

use tickmesh_protocol::{
    Event, rank,
    repair::{Output, Received, Repair, Way},
};

use super::{edge_fetch::Running, *};

/// What one ingest peer gets to answer a question about heads.
const ASK_TIMEOUT: Time = 900 * MS;

/// How long the question may take in all.
const JOIN_TIMEOUT: Time = 2000 * MS;

/// How long a stream without clients is kept.
const LEAVE_AFTER: Time = 250 * MS;

/// Everybody refused: ask all again after this.
const RETRY_AFTER: Time = 200 * MS;

pub(super) struct Edge {
    pub(super) streams: Vec<Option<Stream>>,
    pub(super) connected: Vec<bool>,
    questions: Vec<Question>,
    next_number: u32,
    pub(super) running: Vec<Running>,
}

pub(super) struct Stream {
    pub(super) repair: Repair,
    /// Differs from that of a stream with the same name that was given up before.
    pub(super) generation: u32,
    /// Clients that wait for the confirmation.
    waiters: Vec<usize>,
    /// Clients that were confirmed.
    pub(super) clients: Vec<usize>,
    idle_since: Option<Time>,
    /// Before these positions it had no event when it was joined.
    read: Arc<[Position]>,
    /// Epochs that the stream has left, for a mutation that goes back to them.
    pub(super) left: Vec<tickmesh_protocol::Epoch>,
    pub(super) epoch: Option<tickmesh_protocol::Epoch>,
}

/// "Where does this stream stand?"
struct Question {
    number: u32,
    stream: usize,
    generation: u32,
    asked: Vec<Id>,
    with: Option<Id>,
    /// When it is somebody else's turn, or all are asked again.
    next_at: Time,
    ends_at: Time,
}

impl Edge {
    fn new(streams: usize, peers: usize) -> Self {
        Self {
            streams: (0..streams).map(|_| None).collect(),
            connected: vec![false; peers],
            questions: Vec::new(),
            next_number: 0,
            running: Vec::new(),
        }
    }

    pub(super) fn number(&mut self) -> u32 {
        self.next_number += 1;
        self.next_number
    }

    pub(super) fn stream(&mut self, stream: usize, generation: u32) -> Option<&mut Stream> {
        self.streams.get_mut(stream)?.as_mut().filter(|found| found.generation == generation)
    }

    fn topics(&self, topic_of: &[usize]) -> u32 {
        let joined = self.streams.iter().enumerate().filter(|(_, stream)| stream.is_some());
        joined.fold(0, |topics, (stream, _)| topics | 1 << topic_of[stream])
    }
}

impl World<'_> {
    pub(super) fn edge(&mut self, id: Id) -> Option<&mut Edge> {
        match &mut self.peers.get_mut(id)?.role {
            Role::Edge(edge) => Some(edge),
            _ => None,
        }
    }

    pub(super) fn start_edge(&mut self, id: Id) {
        let edge = Edge::new(self.scenario.world.streams.len(), self.peers.len());
        self.peers[id].role = Role::Edge(Box::new(edge));
    }

    pub(super) fn edge_input(&mut self, id: Id, input: Input) {
        match input {
            Input::Message { from, message, .. } => self.edge_message(id, from, message),
            Input::Connected(other) => {
                let topic_of = self.names.topic_of.clone();
                let now = self.local(id);
                if let Some(edge) = self.edge(id) {
                    edge.connected[other] = true;
                    // It may know what was missed meanwhile.
                    edge.streams.iter_mut().flatten().for_each(|stream| stream.repair.suspect(now));
                    let topics = edge.topics(&topic_of);
                    self.send(id, other, Message::Topics(topics));
                }
            }
            Input::Disconnected(other) => {
                if let Some(edge) = self.edge(id) {
                    edge.connected[other] = false;
                    for question in edge.questions.iter_mut().filter(|asked| asked.with == Some(other)) {
                        question.with = None;
                        question.next_at = 0;
                    }
                }
                self.server_lost(id, other);
            }
            Input::Wake { .. } => self.peers[id].wake = None,
            Input::Read { .. } | Input::Beat | Input::Checkpoint | Input::Alone => {}
        }
        if !self.thawing {
            self.drive_edge(id);
        }
    }

    /// Does what is due, and asks to be woken for what will be.
    pub(super) fn drive_edge(&mut self, id: Id) {
        self.fetch_timeouts(id);
        self.ask_heads(id);
        self.begin_fetches(id);
        self.leave_idle(id);
        let due = self.edge(id).and_then(|edge| {
            let questions = edge.questions.iter().map(|question| question.next_at.min(question.ends_at));
            let idle = edge.streams.iter().flatten().filter_map(|stream| stream.idle_since);
            let running = edge.running.iter().map(|running| running.times_out);
            questions.chain(idle.map(|since| since + LEAVE_AFTER)).chain(running).min()
        });
        let due = due.map(|due| self.peers[id].clock.local(due));
        let fetches = self.edge(id).and_then(|edge| {
            edge.streams.iter().flatten().filter_map(|stream| stream.repair.fetch_due()).min()
        });
        let due = [due, fetches].into_iter().flatten().min();
        self.wake_at(id, due);
    }

    fn edge_message(&mut self, id: Id, from: Id, message: Message) {
        match message {
            Message::Batch(batch) => self.edge_batch(id, &batch),
            Message::Heads { question, heads, read, left } => {
                for (stream, head) in heads {
                    self.head_known(id, question, stream, head, &read);
                    let found = self.edge(id).and_then(|edge| edge.streams.get_mut(stream)?.as_mut());
                    if let (Some(found), Some((_, left))) = (found, left.iter().find(|(of, _)| *of == stream))
                    {
                        found.repair.note_left(left);
                    }
                }
            }
            Message::HeadsRefused { question } => {
                let now = self.now;
                if let Some(edge) = self.edge(id)
                    && let Some(asked) = edge.questions.iter_mut().find(|asked| asked.number == question)
                {
                    asked.with = None;
                    asked.next_at = now;
                }
            }
            Message::Page { feed, page } => self.edge_page(id, feed, &page),
            Message::FeedEnds { feed, ends } => self.feed_ends(id, from, feed, &ends),
            Message::FeedBroken { feed } => self.feed_broken(id, feed),
            Message::Topics(_)
            | Message::AskHeads { .. }
            | Message::AskStatus
            | Message::Status(_)
            | Message::AskState
            | Message::State(_)
            | Message::AskFeed { .. } => {}
        }
    }

    fn edge_batch(&mut self, id: Id, batch: &tickmesh_protocol::Batch) {
        for event in &batch.events {
            if let Some(stream) = self.names.stream(&event.stream) {
                self.edge_event(id, stream, event, Way::Gossip);
            }
        }
        for (stream, head) in &batch.heads {
            if let Some(stream) = self.names.stream(stream) {
                self.edge_claim(id, stream, *head);
            }
        }
    }

    pub(super) fn edge_event(&mut self, id: Id, stream: usize, event: &Event, way: Way) {
        let now = self.local(id);
        let altered = self.altered_event(event);
        let event = altered.as_ref().unwrap_or(event);
        let Some(found) = self.edge(id).and_then(|edge| edge.streams[stream].as_mut()) else { return };
        let mut outputs = Vec::new();
        let received = found.repair.receive(event, way, now, &mut outputs);
        if received == Received::Duplicate {
            self.counts.duplicates += 1;
        }
        self.altered_received(id, stream, event, received, &mut outputs);
        self.put_out(id, stream, outputs);
    }

    fn edge_claim(&mut self, id: Id, stream: usize, head: Position) {
        let now = self.local(id);
        if self.altered_claim(id, stream, head) {
            return;
        }
        if let Some(found) = self.edge(id).and_then(|edge| edge.streams[stream].as_mut()) {
            found.repair.claimed(head, now);
        }
    }

    /// Hands outputs to the clients of a stream, in order.
    pub(super) fn put_out(&mut self, id: Id, stream: usize, outputs: Vec<Output>) {
        if outputs.is_empty() {
            return;
        }
        let Some(found) = self.edge(id).and_then(|edge| edge.streams[stream].as_ref()) else { return };
        let (clients, held) = (found.clients.clone(), found.repair.held());
        self.check_held(id, held);
        for output in outputs {
            for client in &clients {
                self.client_output(*client, &output);
            }
        }
    }

    /// A client wants a stream.
    pub(super) fn subscribe(&mut self, id: Id, stream: usize, client: usize) {
        let now = self.now;
        let Some(edge) = self.edge(id) else { return };
        let generation = edge.number();
        let new = edge.streams[stream].is_none();
        let found = edge.streams[stream].get_or_insert_with(|| Stream {
            repair: Repair::default(),
            generation,
            waiters: Vec::new(),
            clients: Vec::new(),
            idle_since: None,
            read: Arc::default(),
            left: Vec::new(),
            epoch: None,
        });
        found.idle_since = None;
        let generation = found.generation;
        let ask = found.repair.join();
        if found.waiters.contains(&client) || found.clients.contains(&client) {
            self.asked_before(client);
            return;
        }
        let live = found.repair.is_live().then(|| (found.repair.position(), Arc::clone(&found.read)));
        if live.is_some() { &mut found.clients } else { &mut found.waiters }.push(client);
        if ask {
            let number = edge.number();
            let question = Question {
                number,
                stream,
                generation,
                asked: Vec::new(),
                with: None,
                next_at: now,
                ends_at: now + JOIN_TIMEOUT,
            };
            edge.questions.push(question);
        } else {
            self.asked_before(client);
        }
        if let Some((position, read)) = live {
            self.confirmed(client, position, &read, false);
        }
        if new {
            self.tell_topics(id);
        }
        self.altered_join(id, stream);
        if self.peers[id].frozen.is_empty() {
            self.drive_edge(id);
        }
    }

    pub(super) fn unsubscribe(&mut self, id: Id, stream: usize, client: usize) {
        let now = self.now;
        let Some(found) = self.edge(id).and_then(|edge| edge.streams[stream].as_mut()) else { return };
        found.waiters.retain(|waiter| *waiter != client);
        found.clients.retain(|known| *known != client);
        if found.waiters.is_empty() && found.clients.is_empty() {
            found.idle_since = Some(now);
        }
        if self.peers[id].frozen.is_empty() {
            self.drive_edge(id);
        }
    }

    fn leave_idle(&mut self, id: Id) {
        let now = self.now;
        let Some(edge) = self.edge(id) else { return };
        let mut left = false;
        for (stream, found) in edge.streams.iter_mut().enumerate() {
            let idle = found.as_ref().and_then(|found| found.idle_since);
            if idle.is_some_and(|since| since + LEAVE_AFTER <= now) {
                *found = None;
                edge.questions.retain(|question| question.stream != stream);
                left = true;
            }
        }
        if left {
            self.tell_topics(id);
        }
    }

    fn tell_topics(&mut self, id: Id) {
        let topic_of = self.names.topic_of.clone();
        let Some(edge) = self.edge(id) else { return };
        let topics = edge.topics(&topic_of);
        for other in self.ingest_ids() {
            if self.edge(id).is_some_and(|edge| edge.connected[other]) {
                self.send(id, other, Message::Topics(topics));
            }
        }
    }

    /// Asks who is next about streams that are being joined; gives up what took too long.
    fn ask_heads(&mut self, id: Id) {
        let now = self.now;
        let keys: Vec<_> = self.ingest_ids().map(ingest::key).collect();
        let (topics, topic_of) = (self.names.topics.clone(), self.names.topic_of.clone());
        loop {
            let Some(edge) = self.edge(id) else { return };
            let due = |question: &Question| question.next_at.min(question.ends_at) <= now;
            let Some(at) = edge.questions.iter().position(due) else { return };
            if edge.questions[at].ends_at <= now {
                let question = edge.questions.remove(at);
                self.unavailable(id, question.stream);
                continue;
            }
            let connected = edge.connected.clone();
            let question = &mut edge.questions[at];
            // The best ranked first: most likely it leads.
            let topic = &topics[topic_of[question.stream]];
            let mut order =
                rank::ranked(topic, keys.iter().copied()).into_iter().map(|key| ingest::peer_of(&key));
            let untried = |id: &Id| connected[*id] && !question.asked.contains(id);
            let Some(server) = order.find(untried) else {
                question.asked.clear();
                question.with = None;
                question.next_at = now + RETRY_AFTER;
                continue;
            };
            question.asked.push(server);
            question.with = Some(server);
            question.next_at = now + ASK_TIMEOUT;
            let (number, stream) = (question.number, question.stream);
            self.send(id, server, Message::AskHeads { question: number, streams: vec![stream] });
        }
    }

    /// The number of the question about a stream.
    pub(super) fn question_about(&mut self, id: Id, stream: usize) -> Option<u32> {
        let mut questions = self.edge(id)?.questions.iter();
        questions.find(|question| question.stream == stream).map(|question| question.number)
    }

    pub(super) fn head_known(
        &mut self,
        id: Id,
        number: u32,
        stream: usize,
        head: Option<Position>,
        read: &Arc<[Position]>,
    ) {
        let now = self.local(id);
        let Some(edge) = self.edge(id) else { return };
        let Some(at) = edge.questions.iter().position(|question| question.number == number) else { return };
        let question = edge.questions.remove(at);
        let Some(found) = edge.stream(stream, question.generation) else { return };
        let waiters = std::mem::take(&mut found.waiters);
        found.clients.extend(&waiters);
        let mut outputs = Vec::new();
        match head {
            Some(_) => found.repair.joined(head, now, &mut outputs),
            None => found.repair.joined_empty(Arc::clone(read), now, &mut outputs),
        }
        found.read = Arc::clone(read);
        for client in waiters {
            self.confirmed(client, head, read, true);
        }
        self.altered_released(&mut outputs);
        self.put_out(id, stream, outputs);
    }

    fn unavailable(&mut self, id: Id, stream: usize) {
        let now = self.now;
        let Some(found) = self.edge(id).and_then(|edge| edge.streams[stream].as_mut()) else { return };
        found.repair.give_up();
        let waiters = std::mem::take(&mut found.waiters);
        if found.clients.is_empty() {
            found.idle_since = Some(now);
        }
        for client in waiters {
            self.refused(client);
        }
    }
}
