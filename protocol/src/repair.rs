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

use std::{sync::Arc, time::Duration};

use self::held::Held;
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

/// Pause after the first fetch that brought nothing; it doubles with each further one.
const RETRY: Duration = Duration::from_millis(50);
const LONGEST_RETRY: Duration = Duration::from_secs(2);

/// Fetches in a row that every server refused before the hole is told. The second one is for a server that was just
/// starting.
const REFUSALS: u32 = 2;

/// Fetches in a row that brought nothing, although their servers stood further, before the hole is told: then what is held
/// names a `previous` that nobody has.
const CONTRADICTIONS: u32 = 4;

/// Fetches in a row from servers that stood before what was claimed when they were asked, until the claim is dropped: about
/// 3 s. A true one is repeated.
const UNPROVEN: u32 = 6;

/// Fetches in a row from servers that stood before what is held, until that is dropped: about a minute, which an ingest peer
/// that reads the log late may need.
const BEHIND: u32 = 36;

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

/// A stream with something missing.
#[derive(Clone, Debug)]
struct Hole {
    held: Held,
    /// Somebody says that the stream stands here.
    claimed: Option<Position>,
    /// Nobody claims anything, but something may have been missed; the running fetch will tell whether what was suspected
    /// before it began is so.
    suspected: bool,
    examined: bool,
    /// Events had to be dropped: *catching up*.
    dropped: bool,
    fetch: FetchState,
    /// In a row: fetches that brought nothing, were refused, failed. What comes by feed begins the rows anew; what comes
    /// by gossip does not, or a busy stream would never be done with something that does not exist.
    barren: u32,
    refusals: u32,
    failures: u32,
    /// All of these together: each server has its turn.
    tries: u32,
    /// In a row: fetches from servers that stood before what was claimed, before what is held.
    unproven: u32,
    behind: u32,
    /// Where the stream stood when the running fetch began, and what was claimed then.
    began_at: Option<Position>,
    sought: Option<Position>,
    /// The newest that somebody who refused, in this row, named as his oldest event. Another one's may be of an epoch that the
    /// stream has left: that says nothing of what follows.
    refused_from: Option<Position>,
    /// The hole is lost for good up to this event, the oldest there is: the next event by feed is delivered whatever is
    /// missing before it.
    forgiven: Option<Position>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FetchState {
    Due(Moment),
    Running,
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
        self.hole().is_some_and(|hole| hole.dropped)
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
                    if hole.forgiven.is_some() && way == Way::Feed {
                        hole.forgiven = None;
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
        hole.suspected = true;
        hole.hurry(now);
    }

    /// When the next fetch is due, if one is needed and none is running.
    pub fn fetch_due(&self) -> Option<Moment> {
        match self.hole()?.fetch {
            FetchState::Due(at) => Some(at),
            FetchState::Running => None,
        }
    }

    /// Begins the fetch that is due.
    pub fn begin_fetch(&mut self, now: Moment) -> Option<Fetch> {
        let State::Live { link, hole: Some(hole) } = &mut self.state else { return None };
        if !matches!(hole.fetch, FetchState::Due(at) if at <= now) {
            return None;
        }
        hole.fetch = FetchState::Running;
        hole.began_at = link.last();
        hole.sought = hole.claimed;
        hole.examined = std::mem::take(&mut hole.suspected);
        self.fetch_id = self.fetch_id.wrapping_add(1);
        let after = match hole.forgiven {
            None => link.last().or_else(|| hole.before_first(link)),
            // The position just before; if there is none, the oldest is asked for by name of nothing.
            Some(oldest) => oldest.sequence.before().map(|sequence| Position { sequence, ..oldest }),
        };
        Some(Fetch { id: self.fetch_id, after, attempt: hole.tries })
    }

    /// A fetch has ended; what it brought was received before.
    pub fn fetched(&mut self, id: u32, end: Fetched, now: Moment, outputs: &mut Vec<Output>) {
        let State::Live { link, hole } = &mut self.state else { return };
        let Some(open) = hole else { return };
        if id != self.fetch_id || open.fetch != FetchState::Running {
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

impl Hole {
    fn new(now: Moment) -> Self {
        Self {
            held: Held::default(),
            claimed: None,
            suspected: false,
            examined: false,
            dropped: false,
            fetch: FetchState::Due(now + GRACE),
            barren: 0,
            refusals: 0,
            failures: 0,
            tries: 0,
            unproven: 0,
            behind: 0,
            began_at: None,
            sought: None,
            refused_from: None,
            forgiven: None,
        }
    }

    /// Notes that the stream stands at least here.
    fn claim(&mut self, head: Position) {
        if self.claimed.is_none_or(|known| is_further(known, head)) {
            self.claimed = Some(head);
        }
    }

    /// Keeps an event that came after something missing.
    fn hold(&mut self, event: &Event, link: &Link, now: Moment) -> Received {
        let oldest = self.held.oldest(link);
        let received = self.held.keep_oldest(event);
        if received == Received::Dropped {
            self.dropped = true;
            self.claim(event.position());
        }
        // What is missing is nearer than what has been looked for: that pause need not be waited for.
        if self.held.oldest(link) != oldest {
            self.hurry(now);
        }
        received
    }

    /// Does not wait for the end of a pause.
    fn hurry(&mut self, now: Moment) {
        if let FetchState::Due(at) = self.fetch {
            self.fetch = FetchState::Due(at.min(now + GRACE));
        }
    }

    /// Where an empty stream stands in the epoch of what is known to be missing.
    fn before_first(&self, link: &Link) -> Option<Position> {
        let epoch = self.held.oldest(link).or(self.claimed)?.epoch;
        let read = link.empty_before(epoch)?;
        Some(Position { sequence: read.sequence.before()?, ..read })
    }

    /// Puts out what was held and follows now.
    fn progress(&mut self, link: &mut Link, way: Way, outputs: &mut Vec<Output>) {
        if way == Way::Feed {
            (self.barren, self.refusals, self.failures, self.tries) = (0, 0, 0, 0);
        }
        self.refused_from = self.refused_from.filter(|oldest| is_newer(link, *oldest));
        self.held.release(link, outputs);
        if self.claimed.is_none_or(|claimed| !is_newer(link, claimed)) {
            self.claimed = None;
            self.dropped = false;
        }
    }

    /// Nothing is missing any more, as far as is known. A fetch that is still running then brings duplicates.
    fn is_mended(&self) -> bool {
        self.held.count == 0
            && self.claimed.is_none()
            && !self.suspected
            && !self.examined
            && self.forgiven.is_none()
    }

    fn ended(&mut self, end: Fetched, link: &mut Link, now: Moment, outputs: &mut Vec<Output>) {
        self.suspected |= std::mem::take(&mut self.examined) && end == Fetched::Failed;
        if link.last() == self.began_at {
            self.tries = self.tries.saturating_add(1);
        }
        match end {
            Fetched::Failed => {
                self.failures += 1;
                self.fetch = FetchState::Due(now + pause(self.failures));
            }
            Fetched::Ended(FeedEnd::Complete { head }) => {
                // A server that does not have it, either, is not the one that told of it: another one is asked.
                let elsewhere = |oldest: &Position| {
                    link.last() == self.began_at && !covers(head, *oldest) && self.barren < UNPROVEN
                };
                self.forgiven = self.forgiven.filter(elsewhere);
                self.compare(head);
                // If it brought something, what else is missing most likely came while this was on its way.
                if link.last() == self.began_at {
                    self.barren += 1;
                    self.brought_nothing(head, link, outputs);
                }
                let vain = self.barren.max(self.unproven).max(self.behind);
                self.fetch = FetchState::Due(if vain == 0 { now } else { now + pause(vain) });
            }
            Fetched::Ended(FeedEnd::Refused { oldest }) => {
                self.refusals += 1;
                self.fetch = FetchState::Due(now + pause(self.refusals + 2));
                // Who refuses has something newer.
                if let Some(oldest) = oldest.filter(|oldest| is_newer(link, *oldest)) {
                    self.claim(oldest);
                    self.refused_from = Some(oldest);
                }
                if self.refusals >= REFUSALS {
                    self.refused(link, now, outputs);
                }
            }
        }
    }

    /// A server gave all it has, up to `head`: what is claimed or held beyond that is not believed for ever, however
    /// much else comes meanwhile.
    fn compare(&mut self, head: Option<Position>) {
        self.unproven = match self.sought {
            Some(sought) if !covers(head, sought) => self.unproven + 1,
            _ => 0,
        };
        if self.unproven >= UNPROVEN {
            self.unproven = 0;
            self.disbelieve();
        }
        let behind = self.held.count > 0 && !self.held.is_reached_by(head);
        self.behind = if behind { self.behind + 1 } else { 0 };
        if self.behind >= BEHIND {
            self.behind = 0;
            self.held = Held::default();
        }
    }

    /// A server that stands at `head` had nothing new.
    fn brought_nothing(&mut self, head: Option<Position>, link: &mut Link, outputs: &mut Vec<Output>) {
        if self.barren > 1 && self.claimed.is_some_and(|claimed| covers(head, claimed)) {
            self.disbelieve();
        }
        // It stands further than something held here, of whatever epoch, and has not what is missing before that.
        if self.held.is_reached_by(head) && self.barren >= CONTRADICTIONS {
            self.tell_and_go_on(link, outputs);
        }
    }

    fn disbelieve(&mut self) {
        self.claimed = None;
        self.dropped = false;
    }

    /// Everybody refused: the hole is lost.
    fn refused(&mut self, link: &mut Link, now: Moment, outputs: &mut Vec<Output>) {
        let newer = self.refused_from;
        // What is held may be older than all that servers still have; then it comes first.
        let held_first = self.held.oldest(link).is_some_and(|held| {
            let same_epoch = link.last().is_none_or(|last| last.epoch == held.epoch);
            newer.is_none_or(|oldest| {
                same_epoch && (oldest.epoch != held.epoch || held.sequence < oldest.sequence)
            })
        });
        if newer.is_some() && !held_first && self.forgiven.is_none() {
            self.forgiven = newer;
            self.fetch = FetchState::Due(now);
            return;
        }
        self.forgiven = None;
        if !held_first {
            // Nobody has anything newer but what is held here.
            self.disbelieve();
        }
        self.tell_and_go_on(link, outputs);
    }

    /// Puts out the oldest held event after a told gap, and what follows it.
    fn tell_and_go_on(&mut self, link: &mut Link, outputs: &mut Vec<Output>) {
        if let Some(event) = self.held.pop_oldest(link) {
            outputs.push(Output::Gap { after: link.last() });
            deliver_after_gap(link, event, outputs);
            self.progress(link, Way::Feed, outputs);
        }
    }
}

/// Whether one who stands at `head` has come to a position.
fn covers(head: Option<Position>, position: Position) -> bool {
    head.is_some_and(|head| head.epoch == position.epoch && head.sequence >= position.sequence)
}

/// The pause before the next try.
fn pause(vain: u32) -> Duration {
    RETRY.saturating_mul(1 << vain.saturating_sub(1).min(6)).min(LONGEST_RETRY)
}
