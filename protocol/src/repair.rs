//! One stream at an edge: joined, linked, repaired. Pure, so that every order of arrival can be tried.
//!
//! ```text
//!          join              joined(head)            hole
//!   Idle ───────> Joining ───────────────> Linked <────────> Repairing
//!     <──────────                                   mended
//!       give_up
//! ```
//!
//! | state | an event that follows | one after a hole | one that is older |
//! |---|---|---|---|
//! | idle | ignored | ignored | ignored |
//! | joining | held until the head is known | held | held |
//! | linked | delivered | held; what is missing will be fetched: *repairing* | dropped |
//! | repairing | delivered, then what was held and follows it | held; beyond the bound dropped and fetched later: *catching up* | dropped |
//!
//! A worked example, standing at 7. `{8, previous 7}` is delivered. `{12, previous 11}` is held, and after [`GRACE`] a fetch
//! "after 8" is due: gossip keeps no order, so what is missing may yet come by itself. The feed brings `{11, previous 8}`:
//! delivered, and 12 after it. Had the feed brought nothing although its server stands at 12, then `previous 11` was a lie; had
//! every server refused ("the oldest I have is 10"), then the log has lost 9. Only then is the hole told, and the stream goes on.
//!
//! What somebody *claims* (a head message, the answer to a question) never moves the stream: it only makes it look, and so does
//! the return of a server after a pause ([`Repair::suspect`]). Every step is by an event that a publisher signed.

mod held;
mod hole;

use std::{sync::Arc, time::Duration};

use self::{held::Held, hole::Hole};
use crate::{
    Epoch, Event, Moment, Position,
    feed::FeedEnd,
    link::{Link, Verdict},
};

/// Most events held for one stream, while it is being joined or after a hole: two seconds at 500 events/s.
pub const MAX_HELD_EVENTS: usize = 1024;

/// Most bytes held for one stream.
pub const MAX_HELD_BYTES: usize = 2 * 1024 * 1024;

/// How long an event after a hole waits for what is missing before that is fetched. A batch that was overtaken comes within
/// milliseconds; a feed takes as long again.
pub const GRACE: Duration = Duration::from_millis(20);

/// What is to be done, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Give it to the clients.
    Deliver(Event),
    /// Tell the clients that the stream is numbered anew; the first event of the epoch follows.
    Reset(Epoch),
    /// What lies between this position and the next event is lost for good.
    Gap { after: Option<Position> },
}

/// What became of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// It is among the outputs, perhaps with others that waited for it.
    Delivered,
    Duplicate,
    /// Nobody wants the stream.
    Ignored,
    /// Kept until the head is known or what is missing before it has come.
    Held,
    /// There was no room to keep it, or an older one instead; it will be fetched.
    Dropped,
}

/// Which way an event came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Gossip,
    /// By a feed that was asked for what follows the stream's position.
    Feed,
}

/// How a fetch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fetched {
    /// A server was asked and gave what it has, or all of them refused.
    Ended(FeedEnd),
    /// Nobody could be asked, or one who was asked went away.
    Failed,
}

/// A fetch to be made: of everything after a position, or from the oldest event there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetch {
    /// To be given back with what it brought.
    pub id: u32,
    pub after: Option<Position>,
    /// How often the stream has been fetched in vain; a reason to ask another server first.
    pub attempt: u32,
}

/// One stream.
#[derive(Clone, Debug, Default)]
pub struct Repair {
    state: State,
    /// Of the last fetch.
    fetch_id: u32,
}

#[derive(Clone, Debug, Default)]
enum State {
    #[default]
    Idle,
    Joining {
        held: Held,
        /// Somebody says that the stream stands here.
        claimed: Option<Position>,
    },
    Live {
        link: Link,
        /// What is known to be missing; most streams never have any.
        hole: Option<Box<Hole>>,
    },
}

impl Repair {
    /// Begins to hold events, because the head has been asked for. Whether it has to be asked for.
    pub fn join(&mut self) -> bool {
        let idle = matches!(self.state, State::Idle);
        if idle {
            self.state = State::Joining { held: Held::default(), claimed: None };
        }
        idle
    }

    /// The head could not be had.
    pub fn give_up(&mut self) {
        if matches!(self.state, State::Joining { .. }) {
            self.state = State::Idle;
        }
    }

    /// The stream stands at `head`; what follows it was held, and is put out as far as nothing is missing.
    ///
    /// Held events of other epochs are left out: most likely they are late ones of an epoch that the stream has left. If they
    /// are of a new one, what is published next shows it.
    pub fn joined(&mut self, head: Option<Position>, now: Moment, outputs: &mut Vec<Output>) {
        self.go_live(Link::at(head), now, outputs);
    }

    /// The stream has had no event; whoever says so has read everything before these positions, one per epoch.
    pub fn joined_empty(&mut self, read: Arc<[Position]>, now: Moment, outputs: &mut Vec<Output>) {
        self.go_live(Link::empty(read), now, outputs);
    }

    fn go_live(&mut self, link: Link, now: Moment, outputs: &mut Vec<Output>) {
        let State::Joining { held, claimed } = &mut self.state else {
            // An answer that comes twice changes nothing.
            return;
        };
        let (held, claimed) = (std::mem::take(held), claimed.take());
        let (head, empty) = (link.last(), link.clone());
        self.state = State::Live { link, hole: None };
        for (epoch, events) in held.epochs {
            if head.map_or_else(|| empty.may_hold(epoch), |head| head.epoch == epoch) {
                for event in events.into_values() {
                    self.receive(&event, Way::Gossip, now, outputs);
                }
            }
        }
        if let Some(claimed) = claimed {
            self.claimed(claimed, now);
        }
    }

    /// Epochs that the stream left before it was joined: what comes of them is old.
    pub fn note_left(&mut self, epochs: &[Epoch]) {
        if let State::Live { link, .. } = &mut self.state {
            link.note_left(epochs);
        }
    }

    pub fn is_live(&self) -> bool {
        matches!(self.state, State::Live { .. })
    }

    /// The position of a live stream; `None` as well if it has had no event.
    pub fn position(&self) -> Option<Position> {
        match &self.state {
            State::Live { link, .. } => link.last(),
            State::Idle | State::Joining { .. } => None,
        }
    }

    /// Whether something is known to be missing.
    pub fn is_repairing(&self) -> bool {
        matches!(self.state, State::Live { hole: Some(_), .. })
    }

    /// Whether so much is missing that newer events are dropped, and fetched when their turn comes.
    pub fn is_catching_up(&self) -> bool {
        self.hole().is_some_and(Hole::is_catching_up)
    }

    /// Events held now.
    pub fn held(&self) -> usize {
        match &self.state {
            State::Idle => 0,
            State::Joining { held, .. } => held.count,
            State::Live { hole, .. } => hole.as_ref().map_or(0, |hole| hole.held.count),
        }
    }

    /// Takes an event.
    pub fn receive(&mut self, event: &Event, way: Way, now: Moment, outputs: &mut Vec<Output>) -> Received {
        match &mut self.state {
            State::Idle => Received::Ignored,
            State::Joining { held, .. } => held.keep_newest(event),
            State::Live { link, hole } => match link.judge(event) {
                Verdict::Duplicate => Received::Duplicate,
                verdict @ (Verdict::Next | Verdict::Reset { .. }) => {
                    deliver(link, event.clone(), verdict, outputs);
                    if let Some(open) = hole {
                        open.progress(link, way, outputs);
                        if open.is_mended() {
                            *hole = None;
                        }
                    }
                    Received::Delivered
                }
                Verdict::Gap { after } => {
                    let hole = hole.get_or_insert_with(|| Box::new(Hole::new(now)));
                    if way == Way::Feed && hole.forgives() {
                        if hole.held.has_older(link, event.position()) {
                            // The server's oldest event is newer than what is held here: that goes first.
                            hole.tell_and_go_on(link, outputs);
                            return self.receive(event, way, now, outputs);
                        }
                        outputs.push(Output::Gap { after });
                        deliver_after_gap(link, event.clone(), outputs);
                        hole.progress(link, way, outputs);
                        return Received::Delivered;
                    }
                    hole.hold(event, link, now)
                }
            },
        }
    }

    /// Somebody says that the stream stands at `head`. If that is further than here, it will be fetched.
    pub fn claimed(&mut self, head: Position, now: Moment) {
        match &mut self.state {
            State::Idle => {}
            // Whoever answers where the stream stands may know less.
            State::Joining { claimed, .. } => {
                if claimed.is_none_or(|known| is_further(known, head)) {
                    *claimed = Some(head);
                }
            }
            State::Live { link, hole } => {
                if is_newer(link, head) {
                    hole.get_or_insert_with(|| Box::new(Hole::new(now))).claim(head);
                }
            }
        }
    }

    /// Something may have been missed without a trace: the edge was cut off, or a server came that knows more. What follows the
    /// stream's position will be fetched once.
    pub fn suspect(&mut self, now: Moment) {
        let State::Live { hole, .. } = &mut self.state else { return };
        let hole = hole.get_or_insert_with(|| Box::new(Hole::new(now)));
        hole.suspect(now);
    }

    /// When the next fetch is due, if one is needed and none is running.
    pub fn fetch_due(&self) -> Option<Moment> {
        self.hole()?.fetch_due()
    }

    /// Begins the fetch that is due.
    pub fn begin_fetch(&mut self, now: Moment) -> Option<Fetch> {
        let State::Live { link, hole: Some(hole) } = &mut self.state else { return None };
        let (after, attempt) = hole.begin(link, now)?;
        self.fetch_id = self.fetch_id.wrapping_add(1);
        Some(Fetch { id: self.fetch_id, after, attempt })
    }

    /// A fetch has ended; what it brought was received before.
    pub fn fetched(&mut self, id: u32, end: Fetched, now: Moment, outputs: &mut Vec<Output>) {
        let State::Live { link, hole } = &mut self.state else { return };
        let Some(open) = hole else { return };
        if id != self.fetch_id || open.fetch_due().is_some() {
            return;
        }
        open.ended(end, link, now, outputs);
        if open.is_mended() {
            *hole = None;
        }
    }

    fn hole(&self) -> Option<&Hole> {
        match &self.state {
            State::Live { hole, .. } => hole.as_deref(),
            State::Idle | State::Joining { .. } => None,
        }
    }
}

/// Whether a claim says more than one before.
fn is_further(known: Position, claimed: Position) -> bool {
    known.epoch != claimed.epoch || known.sequence < claimed.sequence
}

/// Whether a position is one that the stream has not come to.
fn is_newer(link: &Link, position: Position) -> bool {
    match link.last() {
        None => link.empty_before(position.epoch).is_none_or(|read| position.sequence >= read.sequence),
        Some(last) if last.epoch == position.epoch => position.sequence > last.sequence,
        Some(_) => !link.has_left(position.epoch),
    }
}

/// Puts out an event that follows.
fn deliver(link: &mut Link, event: Event, verdict: Verdict, outputs: &mut Vec<Output>) {
    link.jump(event.position());
    if let Verdict::Reset { epoch } = verdict {
        outputs.push(Output::Reset(epoch));
    }
    outputs.push(Output::Deliver(event));
}

/// Puts out an event although something is missing before it.
fn deliver_after_gap(link: &mut Link, event: Event, outputs: &mut Vec<Output>) {
    if link.last().is_some_and(|last| last.epoch != event.epoch) {
        outputs.push(Output::Reset(event.epoch));
    }
    link.jump(event.position());
    outputs.push(Output::Deliver(event));
}
