//! Questions about heads: whom an edge asks, and when an ingest peer may answer. Pure: no I/O, no clock.
//!
//! The answer "at 7" promises the asker everything after 7. It holds because the answerer first makes sure that its
//! gossipsub sends the asker whatever it publishes next, and only then asks ingest for the head: [`Held`] keeps the
//! question until then. "Subscribed" alone would not do: an edge that leaves a topic and joins it again may still be
//! seen with its old subscription, which its "unsubscribe" on the way is about to end. So a question says how many
//! "unsubscribe" its asker has sent on this connection ([`Asked::unsubscribed`]), and the answerer waits until it has
//! seen as many.

mod codec;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    time::{Duration, Instant},
};

use tickmesh_protocol::{
    PublisherKey, Topic,
    head::{HeadReply, HeadRequest},
    rank,
};
use tokio::sync::oneshot;

pub(super) use codec::{Asked, HeadCodec, PROTOCOL};

/// What a question may take in all: what a client waits for `subscribed`.
pub const TIMEOUT: Duration = Duration::from_secs(2);

/// What one publisher gets, so that the next can still be asked: three round trips of the longest line there is.
pub(super) const ASK_TIMEOUT: Duration = Duration::from_millis(900);

/// How long an answerer waits to see the subscription: less than [`ASK_TIMEOUT`], as later answers are for nobody.
const HOLD_TIMEOUT: Duration = Duration::from_millis(800);

/// When everybody refused, all are asked again after this: an ingest peer that just starts needs no more.
const RETRY_AFTER: Duration = Duration::from_millis(200);

/// Questions of this node that wait for an answer; one per topic with new subscriptions. More means that nobody
/// answers, and to refuse at once is then better than to wait.
pub(super) const MAX_OPEN: usize = 4096;

/// Questions one publisher is asked at a time over one connection. The rest waits here instead of there.
pub(super) const MAX_ASKED_PER_PEER: usize = 64;

/// Questions held for one peer: twice what an honest one asks at a time.
pub(super) const MAX_HELD_PER_PEER: usize = 2 * MAX_ASKED_PER_PEER;

/// Questions held in all: 64 edges that all join as much as they can.
const MAX_HELD: usize = 64 * MAX_ASKED_PER_PEER;

/// Why nobody could be asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    #[error("topic {0} has not been joined")]
    NotJoined(Topic),
    #[error("no ingest peer answered within {} s", TIMEOUT.as_secs())]
    Timeout,
    #[error("more than {MAX_OPEN} questions are waiting for an ingest peer")]
    Overloaded,
    #[error("the mesh has stopped")]
    Stopped,
}

/// Names a question of this node.
pub(super) type QuestionId = u64;

/// The questions of this node, until they are answered or nobody waits for them.
#[derive(Debug, Default)]
pub(super) struct Questions {
    next: QuestionId,
    open: HashMap<QuestionId, Question>,
    /// Those that nobody has, oldest first.
    waiting: BTreeSet<QuestionId>,
    /// How many are with each publisher now.
    load: HashMap<PublisherKey, usize>,
}

#[derive(Debug)]
struct Question {
    request: HeadRequest,
    answer: oneshot::Sender<Result<HeadReply, HeadError>>,
    /// Who has it now.
    with: Option<PublisherKey>,
    refused: HashSet<PublisherKey>,
    last_refused: Option<Instant>,
}

impl Questions {
    /// Takes a question, unless too many are open; it is then answered at once.
    pub(super) fn add(
        &mut self,
        request: HeadRequest,
        answer: oneshot::Sender<Result<HeadReply, HeadError>>,
    ) -> Option<QuestionId> {
        if self.open.len() >= MAX_OPEN {
            // Whoever asked may have gone.
            let _ = answer.send(Err(HeadError::Overloaded));
            return None;
        }
        let id = self.next;
        self.next += 1;
        let question = Question { request, answer, with: None, refused: HashSet::new(), last_refused: None };
        self.open.insert(id, question);
        self.waiting.insert(id);
        Some(id)
    }

    /// Gives a question that nobody has to the best of the live publishers that has not refused it.
    pub(super) fn assign(
        &mut self,
        id: QuestionId,
        live: impl IntoIterator<Item = PublisherKey>,
    ) -> Option<(PublisherKey, &HeadRequest)> {
        let question = self.open.get_mut(&id).filter(|question| question.with.is_none())?;
        let publisher = rank::ranked(&question.request.topic, live)
            .into_iter()
            .filter(|publisher| !question.refused.contains(publisher))
            .find(|publisher| self.load.get(publisher).is_none_or(|load| *load < MAX_ASKED_PER_PEER))?;
        question.with = Some(publisher);
        self.waiting.remove(&id);
        *self.load.entry(publisher).or_default() += 1;
        Some((publisher, &question.request))
    }

    /// Notes an answer; one that does not fit the question counts as a refusal. Whether it was believed.
    pub(super) fn answered(&mut self, id: QuestionId, reply: HeadReply, now: Instant) -> bool {
        let fits =
            self.open.get(&id).is_some_and(|question| question.request.streams.len() == reply.heads.len());
        if !fits {
            self.refused(id, now);
            return false;
        }
        if let Some(question) = self.close(id) {
            let _ = question.answer.send(Ok(reply));
        }
        true
    }

    /// Notes that the publisher that has the question will not answer it.
    pub(super) fn refused(&mut self, id: QuestionId, now: Instant) {
        if let Some(publisher) = self.release(id)
            && let Some(question) = self.open.get_mut(&id)
        {
            question.refused.insert(publisher);
            question.last_refused = Some(now);
        }
    }

    fn close(&mut self, id: QuestionId) -> Option<Question> {
        self.release(id);
        self.waiting.remove(&id);
        self.open.remove(&id)
    }

    fn release(&mut self, id: QuestionId) -> Option<PublisherKey> {
        let publisher = self.open.get_mut(&id)?.with.take()?;
        self.waiting.insert(id);
        if let Some(load) = self.load.get_mut(&publisher) {
            *load = load.saturating_sub(1);
            if *load == 0 {
                self.load.remove(&publisher);
            }
        }
        Some(publisher)
    }

    /// Drops questions nobody waits for any more, and lets those that all have refused be asked again.
    pub(super) fn tidy(&mut self, now: Instant) {
        let gone: Vec<_> =
            self.open.iter().filter(|(_, question)| question.answer.is_closed()).map(|(id, _)| *id).collect();
        for id in gone {
            self.close(id);
        }
        for id in &self.waiting {
            if let Some(question) = self.open.get_mut(id)
                && question.last_refused.is_some_and(|at| now.duration_since(at) >= RETRY_AFTER)
            {
                question.refused.clear();
                question.last_refused = None;
            }
        }
    }

    /// The first of those that nobody has, after the given one.
    pub(super) fn next_waiting(&self, after: Option<QuestionId>) -> Option<QuestionId> {
        let from = after.map_or(0, |id| id + 1);
        self.waiting.range(from..).next().copied()
    }

    /// Whether a publisher may be asked one more now.
    pub(super) fn has_room(&self, publisher: &PublisherKey) -> bool {
        self.load.get(publisher).is_none_or(|load| *load < MAX_ASKED_PER_PEER)
    }
}

/// What an answerer has seen of its peers' subscriptions, by peer.
#[derive(Debug)]
pub(super) struct Subscriptions<P>(HashMap<P, Seen>);

#[derive(Debug, Default)]
struct Seen {
    topics: HashSet<String>,
    unsubscribed: u64,
}

impl<P> Default for Subscriptions<P> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<P: Copy + Eq + std::hash::Hash> Subscriptions<P> {
    pub(super) fn subscribed(&mut self, peer: P, topic: &str) {
        self.0.entry(peer).or_default().topics.insert(topic.to_owned());
    }

    pub(super) fn unsubscribed(&mut self, peer: P, topic: &str) {
        let seen = self.0.entry(peer).or_default();
        seen.topics.remove(topic);
        seen.unsubscribed += 1;
    }

    /// The last connection to a peer closed.
    pub(super) fn forget(&mut self, peer: &P) {
        self.0.remove(peer);
    }

    /// Whether everything published from now on goes to the asker.
    fn cover(&self, peer: &P, asked: &Asked) -> bool {
        self.0.get(peer).is_some_and(|seen| {
            seen.unsubscribed >= asked.unsubscribed && seen.topics.contains(&asked.request.topic.to_string())
        })
    }
}

/// Questions of other peers that wait until their subscription is seen. `C` answers one.
#[derive(Debug)]
pub(super) struct Held<P, C>(Vec<HeldQuestion<P, C>>);

#[derive(Debug)]
struct HeldQuestion<P, C> {
    peer: P,
    asked: Asked,
    channel: C,
    since: Instant,
}

impl<P, C> Default for Held<P, C> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<P: Copy + Eq + std::hash::Hash, C> Held<P, C> {
    /// Takes a question. Gives it back if too many are held.
    pub(super) fn hold(&mut self, peer: P, asked: Asked, channel: C, now: Instant) -> Result<(), C> {
        let of_peer = self.0.iter().filter(|held| held.peer == peer).count();
        if self.0.len() >= MAX_HELD || of_peer >= MAX_HELD_PER_PEER {
            return Err(channel);
        }
        self.0.push(HeldQuestion { peer, asked, channel, since: now });
        Ok(())
    }

    /// Takes out what may now be answered.
    pub(super) fn ready(&mut self, peer: &P, seen: &Subscriptions<P>) -> Vec<(HeadRequest, C)> {
        self.0
            .extract_if(.., |held| held.peer == *peer && seen.cover(peer, &held.asked))
            .map(|held| (held.asked.request, held.channel))
            .collect()
    }

    /// Takes out what has waited too long.
    pub(super) fn expired(&mut self, now: Instant) -> Vec<C> {
        let late = |held: &mut HeldQuestion<P, C>| now.duration_since(held.since) >= HOLD_TIMEOUT;
        self.0.extract_if(.., late).map(|held| held.channel).collect()
    }

    /// The last connection to a peer closed: it can no longer be answered.
    pub(super) fn forget(&mut self, peer: &P) {
        self.0.retain(|held| held.peer != *peer);
    }
}

#[cfg(test)]
mod tests;
