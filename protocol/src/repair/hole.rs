//! What is missing of a stream: when it is fetched, and when it is given up.

use std::time::Duration;

use super::{Fetched, GRACE, Output, Received, Way, deliver_after_gap, held::Held, is_further, is_newer};
use crate::{Event, Moment, Position, feed::FeedEnd, link::Link};

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

/// A stream with something missing.
#[derive(Clone, Debug)]
pub(super) struct Hole {
    pub(super) held: Held,
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

impl Hole {
    pub(super) fn new(now: Moment) -> Self {
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

    /// Something may be missing of which nothing is known: what follows will be fetched once.
    pub(super) fn suspect(&mut self, now: Moment) {
        self.suspected = true;
        self.hurry(now);
    }

    pub(super) fn is_catching_up(&self) -> bool {
        self.dropped
    }

    /// Whether the next event by feed is delivered whatever is missing before it; once.
    pub(super) fn forgives(&mut self) -> bool {
        self.forgiven.take().is_some()
    }

    /// When the next fetch is due, if none is running.
    pub(super) fn fetch_due(&self) -> Option<Moment> {
        match self.fetch {
            FetchState::Due(at) => Some(at),
            FetchState::Running => None,
        }
    }

    /// Begins the fetch that is due: after which position, and how often it was tried in vain.
    pub(super) fn begin(&mut self, link: &Link, now: Moment) -> Option<(Option<Position>, u32)> {
        if self.fetch_due().is_none_or(|at| at > now) {
            return None;
        }
        self.fetch = FetchState::Running;
        self.began_at = link.last();
        self.sought = self.claimed;
        self.examined = std::mem::take(&mut self.suspected);
        let after = match self.forgiven {
            None => link.last().or_else(|| self.before_first(link)),
            // The position just before; if there is none, the oldest is asked for by name of nothing.
            Some(oldest) => oldest.sequence.before().map(|sequence| Position { sequence, ..oldest }),
        };
        Some((after, self.tries))
    }

    /// Notes that the stream stands at least here.
    pub(super) fn claim(&mut self, head: Position) {
        if self.claimed.is_none_or(|known| is_further(known, head)) {
            self.claimed = Some(head);
        }
    }

    /// Keeps an event that came after something missing.
    pub(super) fn hold(&mut self, event: &Event, link: &Link, now: Moment) -> Received {
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
    pub(super) fn progress(&mut self, link: &mut Link, way: Way, outputs: &mut Vec<Output>) {
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
    pub(super) fn is_mended(&self) -> bool {
        self.held.count == 0
            && self.claimed.is_none()
            && !self.suspected
            && !self.examined
            && self.forgiven.is_none()
    }

    pub(super) fn ended(&mut self, end: Fetched, link: &mut Link, now: Moment, outputs: &mut Vec<Output>) {
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
    pub(super) fn tell_and_go_on(&mut self, link: &mut Link, outputs: &mut Vec<Output>) {
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
