//! Which bytes from the mesh are believed. Pure: bytes and topic in, verdict out.
//!
//! A batch is accepted once, if it is signed by a configured publisher, belongs to the topic it came on, and was not
//! seen before. Everything else is rejected (no honest peer forwards it) or ignored (an honest peer may).

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use bytes::Bytes;
use tickmesh_protocol::{PublisherKey, SignedBatch, Topic, batch::InvalidBatch, codec::CodecError};

/// Counters behind the newest that are still told apart: two seconds of 1 ms batches on one topic. What gossip brings
/// later than that is older than anything it keeps.
const WINDOW: usize = 2048;

/// Boots kept per publisher: the one that runs, and those that just ended and whose last batches may still be on the
/// way. The longest unheard is forgotten first, so old batches played back cannot push out a boot that publishes;
/// their events have old sequences, which edges drop.
const MAX_BOOTS: usize = 4;

/// Judges the batches that arrive at one node.
#[derive(Debug)]
pub struct Validator {
    publishers: HashSet<PublisherKey>,
    /// At most [`MAX_BOOTS`] for each of the publishers, the latest heard last.
    boots: HashMap<PublisherKey, Vec<Boot>>,
}

#[derive(Debug)]
struct Boot {
    id: u64,
    /// One for each topic this node has joined.
    windows: HashMap<Topic, Window>,
}

/// What is to be done with a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// New and true: deliver and forward. `late`: a later one of its publisher, boot and topic came before it.
    Accept { batch: Arc<SignedBatch>, late: bool },
    /// Whoever sent it did not check it: do not forward, note against the sender.
    Reject(Reason),
    /// Do not forward; the sender may have meant well.
    Ignore(Reason),
}

/// Why a message is not delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The bytes are no batch.
    Malformed,
    /// A batch of a version not known here.
    Version,
    /// The signature is not that of the publisher it names.
    Signature,
    /// It was sent on another topic than its own.
    Topic,
    /// Its publisher is not configured here.
    Publisher,
    /// It was seen before, or is too old to tell.
    Replay,
}

impl Reason {
    pub const ALL: [Self; 6] =
        [Self::Malformed, Self::Version, Self::Signature, Self::Topic, Self::Publisher, Self::Replay];

    /// The label in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Version => "version",
            Self::Signature => "signature",
            Self::Topic => "topic",
            Self::Publisher => "publisher",
            Self::Replay => "replay",
        }
    }
}

impl Validator {
    pub fn new(publishers: impl IntoIterator<Item = PublisherKey>) -> Self {
        Self { publishers: publishers.into_iter().collect(), boots: HashMap::new() }
    }

    /// Whether a key is a configured publisher.
    pub fn believes(&self, publisher: &PublisherKey) -> bool {
        self.publishers.contains(publisher)
    }

    /// Judges what arrived on `topic`. `sender` tells the key of the peer it came from, if it
    /// has one that could sign; it is asked only about publishers that are not known.
    pub fn judge(
        &mut self,
        envelope: Bytes,
        topic: &Topic,
        sender: impl FnOnce() -> Option<PublisherKey>,
    ) -> Verdict {
        let signed = match SignedBatch::open(envelope) {
            Ok(signed) => signed,
            Err(InvalidBatch::Signature) => return Verdict::Reject(Reason::Signature),
            // While peers are upgraded, those that know a newer version forward it to those that do not yet.
            Err(InvalidBatch::Codec(CodecError::UnknownVersion(_))) => {
                return Verdict::Ignore(Reason::Version);
            }
            Err(InvalidBatch::Codec(_)) => return Verdict::Reject(Reason::Malformed),
        };
        let batch = signed.batch();
        if batch.topic != *topic {
            return Verdict::Reject(Reason::Topic);
        }
        if !self.believes(&batch.publisher) {
            // While a new publisher is being made known, peers that know it forward its batches to peers that do not
            // yet: punishing those would cut off everything else they carry. Its own connection is another matter.
            let author_sent_it = sender() == Some(batch.publisher);
            return if author_sent_it {
                Verdict::Reject(Reason::Publisher)
            } else {
                Verdict::Ignore(Reason::Publisher)
            };
        }
        let window = self.window(batch.publisher, batch.boot, topic);
        let late = window.newest.is_some_and(|newest| batch.counter < newest);
        if !window.admit(batch.counter) {
            return Verdict::Ignore(Reason::Replay);
        }
        Verdict::Accept { batch: Arc::new(signed), late }
    }

    /// Forgets a topic that was left.
    pub fn forget(&mut self, topic: &Topic) {
        for boots in self.boots.values_mut() {
            for boot in boots {
                boot.windows.remove(topic);
            }
        }
    }

    fn window(&mut self, publisher: PublisherKey, id: u64, topic: &Topic) -> &mut Window {
        let boots = self.boots.entry(publisher).or_default();
        let boot = match boots.iter().position(|boot| boot.id == id) {
            Some(at) => boots.remove(at),
            None => {
                if boots.len() == MAX_BOOTS {
                    boots.remove(0);
                }
                Boot { id, windows: HashMap::new() }
            }
        };
        let newest = boots.len();
        boots.push(boot);
        let windows = &mut boots[newest].windows;
        if !windows.contains_key(topic) {
            windows.insert(topic.clone(), Window::default());
        }
        windows.entry(topic.clone()).or_default()
    }
}

const WORDS: usize = WINDOW / 64;

/// Which of the newest [`WINDOW`] counters were seen, as in RFC 4303 §3.4.3: bit `counter mod WINDOW`.
#[derive(Debug)]
struct Window {
    newest: Option<u64>,
    seen: [u64; WORDS],
}

impl Default for Window {
    fn default() -> Self {
        Self { newest: None, seen: [0; WORDS] }
    }
}

impl Window {
    /// Whether a counter is seen for the first time; notes it.
    fn admit(&mut self, counter: u64) -> bool {
        let width = WINDOW as u64;
        match self.newest {
            Some(newest) if counter <= newest => {
                if newest - counter >= width {
                    return false;
                }
            }
            Some(newest) if counter - newest < width => {
                for skipped in newest + 1..counter {
                    self.clear(skipped);
                }
                self.clear(counter);
                self.newest = Some(counter);
            }
            _ => {
                self.seen = [0; WORDS];
                self.newest = Some(counter);
            }
        }
        let (word, bit) = Self::place(counter);
        let new = self.seen[word] & bit == 0;
        self.seen[word] |= bit;
        new
    }

    fn clear(&mut self, counter: u64) {
        let (word, bit) = Self::place(counter);
        self.seen[word] &= !bit;
    }

    /// Below [`WORDS`], so indexing with it is safe.
    fn place(counter: u64) -> (usize, u64) {
        let at = (counter % WINDOW as u64) as usize;
        (at / 64, 1 << (at % 64))
    }
}

#[cfg(test)]
mod tests;
