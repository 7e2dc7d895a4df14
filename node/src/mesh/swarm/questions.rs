//! Questions about heads: this node's own, and those of other peers.

use std::time::Instant;

use libp2p::{
    PeerId,
    futures::future::BoxFuture,
    request_response::{self, Message, ResponseChannel},
};
use tickmesh_protocol::{
    PublisherKey,
    head::{HeadReply, HeadRequest},
};
use tokio::{sync::oneshot, time};

use super::Node;
use crate::{
    mesh::{
        handle::NewQuestion,
        heads::{ASK_TIMEOUT, Asked, HeadError, QuestionId},
    },
    ports::IngestInput,
};

/// Questions ingest may have at a time: as many as its input could ever hold.
const MAX_ANSWERS: usize = 4096;

/// Who waits for an answer of this node's ingest.
pub(super) enum Asker {
    Myself(QuestionId),
    Peer(ResponseChannel<HeadReply>),
}

/// An answer of this node's ingest that is on its way; nothing if it refuses.
pub(super) type PendingAnswer = BoxFuture<'static, (Asker, Option<HeadReply>)>;

impl Node {
    /// The edge of this node asks.
    pub(super) fn on_question(&mut self, (request, answer): NewQuestion) {
        // What was joined before the question must be joined before the answer.
        self.follow_wanted();
        if !self.edge_has_joined(&request.topic) {
            let _ = answer.send(Err(HeadError::NotJoined(request.topic)));
            return;
        }
        if let Some(id) = self.questions.add(request, answer) {
            self.ask(id);
        }
    }

    /// Gives questions that nobody has to somebody, where there is somebody.
    pub(super) fn ask_all(&mut self) {
        let mut at = None;
        // With hundreds waiting and everybody busy there is nothing to look for.
        while self.publishers_to_ask().any(|publisher| self.questions.has_room(&publisher))
            && let Some(id) = self.questions.next_waiting(at)
        {
            self.ask(id);
            at = Some(id);
        }
    }

    fn publishers_to_ask(&self) -> impl Iterator<Item = PublisherKey> {
        let myself = self.ports.ingest.is_some() && self.validator.believes(&self.me);
        self.live.values().copied().chain(myself.then_some(self.me))
    }

    fn ask(&mut self, id: QuestionId) {
        let live: Vec<_> = self.publishers_to_ask().collect();
        let Some((publisher, request)) = self.questions.assign(id, live) else {
            return;
        };
        let request = request.clone();
        if publisher == self.me {
            self.ask_ingest(Asker::Myself(id), request);
            return;
        }
        let Some(peer) = self.live.iter().find(|(_, key)| **key == publisher).map(|(peer, _)| *peer) else {
            return self.on_refused(id);
        };
        let behaviour = self.swarm.behaviour_mut();
        let asked = Asked { unsubscribed: behaviour.one.unsubscribed_at(&peer), request };
        self.asked.insert(behaviour.heads.send_request(&peer, asked), id);
    }

    fn on_refused(&mut self, id: QuestionId) {
        self.metrics.heads_failed.inc();
        self.questions.refused(id, Instant::now());
        self.ask(id);
    }

    fn on_answered(&mut self, id: QuestionId, reply: HeadReply) {
        if self.questions.answered(id, reply, Instant::now()) {
            self.metrics.heads_asked.inc();
        } else {
            self.metrics.heads_failed.inc();
        }
        // Its publisher has room for another now.
        self.ask_all();
    }

    pub(super) fn on_heads(&mut self, event: request_response::Event<Asked, HeadReply>) {
        use request_response::Event;
        match event {
            Event::Message { peer, message: Message::Request { request, channel, .. }, .. } => {
                self.on_asked(peer, request, channel);
            }
            Event::Message { message: Message::Response { request_id, response }, .. } => {
                if let Some(id) = self.asked.remove(&request_id) {
                    self.on_answered(id, response);
                }
            }
            Event::OutboundFailure { peer, request_id, error, .. } => {
                tracing::debug!(%peer, %error, "question about heads not answered");
                if let Some(id) = self.asked.remove(&request_id) {
                    self.on_refused(id);
                }
            }
            Event::InboundFailure { peer, error, .. } => {
                tracing::debug!(%peer, %error, "answer about heads not sent");
            }
            Event::ResponseSent { .. } => {}
        }
    }

    /// Another peer asks: its answer waits until what is published next will reach it.
    fn on_asked(&mut self, peer: PeerId, asked: Asked, channel: ResponseChannel<HeadReply>) {
        match self.held.hold(peer, asked, channel, Instant::now()) {
            Ok(()) => self.answer_held(peer),
            Err(channel) => self.refuse(channel),
        }
    }

    pub(super) fn on_subscribed(&mut self, peer: PeerId, topic: &str) {
        // Only who is asked needs to know.
        if self.ports.ingest.is_some() {
            self.subscriptions.subscribed(peer, topic);
            self.answer_held(peer);
        }
    }

    pub(super) fn on_unsubscribed(&mut self, peer: PeerId, topic: &str) {
        if self.ports.ingest.is_some() {
            self.subscriptions.unsubscribed(peer, topic);
            self.answer_held(peer);
        }
    }

    fn answer_held(&mut self, peer: PeerId) {
        for (request, channel) in self.held.ready(&peer, &self.subscriptions) {
            self.ask_ingest(Asker::Peer(channel), request);
        }
    }

    /// Asks this node's ingest. What it hands over to be published after it has answered comes to the swarm after the
    /// subscription that was seen before it was asked.
    fn ask_ingest(&mut self, asker: Asker, request: HeadRequest) {
        let (answer, answered) = oneshot::channel();
        let sent = match &self.ports.ingest {
            Some(ingest) if self.answers.len() < MAX_ANSWERS => {
                ingest.try_send(IngestInput::Head { request, answer }).is_ok()
            }
            _ => false,
        };
        if !sent {
            tracing::debug!("question about heads refused: ingest is busy");
        }
        // A dropped `answer` ends this at once.
        self.answers.push(Box::pin(async move {
            let reply = time::timeout(ASK_TIMEOUT, answered).await;
            (asker, reply.ok().and_then(Result::ok))
        }));
    }

    pub(super) fn on_ingest_answer(&mut self, asker: Asker, reply: Option<HeadReply>) {
        match (asker, reply) {
            (Asker::Myself(id), Some(reply)) => self.on_answered(id, reply),
            (Asker::Myself(id), None) => self.on_refused(id),
            (Asker::Peer(channel), Some(reply)) => {
                // If it cannot be sent, the asker is gone.
                if self.swarm.behaviour_mut().heads.send_response(channel, reply).is_ok() {
                    self.metrics.heads_answered.inc();
                }
            }
            (Asker::Peer(channel), None) => self.refuse(channel),
        }
    }

    /// To drop the channel closes the stream: the asker hears it at once and asks the next.
    pub(super) fn refuse(&mut self, channel: ResponseChannel<HeadReply>) {
        drop(channel);
        self.metrics.heads_refused.inc();
    }
}
