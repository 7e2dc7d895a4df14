//! Whom to dial, and when: bootstrap addresses and configured publishers, for ever. Pure: no I/O, no clock.

use std::time::{Duration, Instant};

use libp2p::{Multiaddr, PeerId, multiaddr::Protocol};

use crate::ops::backoff::Backoff;

/// First wait after a failure, and after a lost connection.
const FIRST_WAIT: Duration = Duration::from_millis(250);

/// Longest wait for a peer: one that was away for a day is found again within it. No longer than a publisher that comes
/// back waits before it leads ([`tickmesh_protocol::takeover::Settings::settle`]).
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// Longest wait for an address that does not say who is there: it is for the first contact.
const LONGEST_WAIT_FOR_ANYBODY: Duration = Duration::from_secs(15);

/// After each so many failures somebody else is asked where a peer is.
const FAILURES_PER_QUESTION: u32 = 8;

/// A connection that held this long was a real one: the next wait is the first again.
const STABLE_AFTER: Duration = Duration::from_secs(1);

/// Addresses learnt and kept for one peer besides the configured ones; the latest are the likeliest.
const MAX_LEARNT: usize = 8;

/// Everybody this node wants to be connected to.
#[derive(Debug)]
pub(super) struct Dialer {
    me: PeerId,
    targets: Vec<Target>,
}

#[derive(Debug)]
struct Target {
    whom: Whom,
    learnt: Vec<Multiaddr>,
    backoff: Backoff,
    state: State,
}

#[derive(Debug)]
enum Whom {
    Peer {
        id: PeerId,
        addresses: Vec<Multiaddr>,
    },
    /// A bootstrap address that does not say who is there.
    Anybody {
        address: Multiaddr,
    },
}

#[derive(Clone, Copy, Debug)]
enum State {
    Waiting {
        until: Instant,
    },
    Dialing,
    Connected {
        to: PeerId,
        since: Instant,
    },
    /// The address turned out to be this node's own.
    Myself,
}

/// Names a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TargetId(usize);

/// What to dial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Dial {
    Peer { id: PeerId, addresses: Vec<Multiaddr> },
    Address(Multiaddr),
}

impl Dialer {
    pub(super) fn new(me: PeerId, bootstrap: &[Multiaddr], publishers: &[PeerId], now: Instant) -> Self {
        let mut dialer = Self { me, targets: Vec::new() };
        for address in bootstrap {
            match peer_in(address) {
                Some(id) => {
                    if let Some(addresses) = dialer.peer(id, now) {
                        addresses.push(address.clone());
                    }
                }
                None => dialer.add(Whom::Anybody { address: address.clone() }, now),
            }
        }
        for id in publishers {
            dialer.peer(*id, now);
        }
        dialer
    }

    fn add(&mut self, whom: Whom, now: Instant) {
        let state = State::Waiting { until: now };
        let longest = match whom {
            Whom::Peer { .. } => LONGEST_WAIT,
            Whom::Anybody { .. } => LONGEST_WAIT_FOR_ANYBODY,
        };
        let backoff = Backoff::new(FIRST_WAIT, longest);
        self.targets.push(Target { whom, learnt: Vec::new(), backoff, state });
    }

    /// The configured addresses of a peer, added to the targets if it is new; nothing for this node itself.
    fn peer(&mut self, wanted: PeerId, now: Instant) -> Option<&mut Vec<Multiaddr>> {
        if wanted == self.me {
            return None;
        }
        let known = |target: &Target| matches!(target.whom, Whom::Peer { id, .. } if id == wanted);
        if !self.targets.iter().any(known) {
            self.add(Whom::Peer { id: wanted, addresses: Vec::new() }, now);
        }
        self.targets.iter_mut().find_map(|target| match &mut target.whom {
            Whom::Peer { id, addresses } if *id == wanted => Some(addresses),
            _ => None,
        })
    }

    /// What is to be dialed now; each is then under way until it is reported.
    pub(super) fn due(&mut self, now: Instant) -> Vec<(TargetId, Dial)> {
        let mut due = Vec::new();
        for (index, target) in self.targets.iter_mut().enumerate() {
            if matches!(target.state, State::Waiting { until } if until <= now) {
                target.state = State::Dialing;
                due.push((TargetId(index), target.dial()));
            }
        }
        due
    }

    /// A dial came to nothing. `jitter` is 0.0 to 1.0, random.
    pub(super) fn failed(&mut self, id: TargetId, now: Instant, jitter: f64) {
        if let Some(target) = self.targets.get_mut(id.0)
            && matches!(target.state, State::Dialing)
        {
            target.wait(now, jitter);
        }
    }

    /// The address is this node's own, or its peer is: never again.
    pub(super) fn is_myself(&mut self, id: TargetId) {
        if let Some(target) = self.targets.get_mut(id.0) {
            target.state = State::Myself;
        }
    }

    /// There is a connection to a peer, by whoever's dial; `by` is the target whose dial it was.
    pub(super) fn connected(&mut self, peer: PeerId, by: Option<TargetId>, now: Instant) {
        for (index, target) in self.targets.iter_mut().enumerate() {
            let this = match target.whom {
                Whom::Peer { id, .. } => id == peer,
                Whom::Anybody { .. } => by == Some(TargetId(index)),
            };
            if this && !matches!(target.state, State::Connected { .. }) {
                target.state = State::Connected { to: peer, since: now };
            }
        }
    }

    /// The last connection to a peer closed.
    pub(super) fn disconnected(&mut self, peer: PeerId, now: Instant, jitter: f64) {
        for target in &mut self.targets {
            if let State::Connected { to, since } = target.state
                && to == peer
            {
                if now.duration_since(since) >= STABLE_AFTER {
                    target.backoff.succeeded();
                }
                target.wait(now, jitter);
            }
        }
    }

    /// Somebody said where a peer can be reached. If that is news, it is tried soon.
    pub(super) fn learn(
        &mut self,
        peer: PeerId,
        addresses: impl IntoIterator<Item = Multiaddr>,
        now: Instant,
    ) {
        let Some(target) =
            self.targets.iter_mut().find(|target| matches!(target.whom, Whom::Peer { id, .. } if id == peer))
        else {
            return;
        };
        for address in addresses {
            if !target.learnt.contains(&address)
                && let State::Waiting { until } = &mut target.state
            {
                *until = (*until).min(now + FIRST_WAIT);
            }
            target.learnt.retain(|known| *known != address);
            target.learnt.push(address);
            if target.learnt.len() > MAX_LEARNT {
                target.learnt.remove(0);
            }
        }
    }

    /// Whether a peer was not reached so often that others should be asked where it is: the first time, and now and then.
    pub(super) fn is_lost(&self, peer: &PeerId) -> bool {
        self.targets.iter().any(|target| {
            matches!(target.whom, Whom::Peer { id, .. } if id == *peer)
                && !matches!(target.state, State::Connected { .. })
                && target.backoff.failures() % FAILURES_PER_QUESTION == 1
        })
    }

    /// Whether a peer is one this node wants to be connected to and is not.
    pub(super) fn misses(&self, peer: &PeerId) -> bool {
        self.targets.iter().any(|target| {
            matches!(target.whom, Whom::Peer { id, .. } if id == *peer)
                && !matches!(target.state, State::Connected { .. })
        })
    }
}

impl Target {
    fn dial(&self) -> Dial {
        match &self.whom {
            Whom::Anybody { address } => Dial::Address(address.clone()),
            Whom::Peer { id, addresses } => {
                let mut all = addresses.clone();
                all.extend(self.learnt.iter().rev().filter(|learnt| !addresses.contains(learnt)).cloned());
                Dial::Peer { id: *id, addresses: all }
            }
        }
    }

    fn wait(&mut self, now: Instant, jitter: f64) {
        self.state = State::Waiting { until: now + self.backoff.failed(jitter) };
    }
}

/// Who is said to be at an address.
pub(super) fn peer_in(address: &Multiaddr) -> Option<PeerId> {
    address.iter().find_map(|part| match part {
        Protocol::P2p(id) => Some(id),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Multiaddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_peer_is_dialed_for_ever_with_longer_and_longer_waits() {
        let (me, peer, mut now) = (PeerId::random(), PeerId::random(), Instant::now());
        let at = address(&format!("/ip4/127.0.0.1/tcp/1/p2p/{peer}"));
        let mut dialer = Dialer::new(me, std::slice::from_ref(&at), &[peer], now);
        let mut waits = Vec::new();
        for _ in 0..10 {
            let due = dialer.due(now);
            assert_eq!(due, vec![(TargetId(0), Dial::Peer { id: peer, addresses: vec![at.clone()] })]);
            assert!(dialer.due(now).is_empty(), "one dial at a time");
            dialer.failed(TargetId(0), now, 1.0);
            assert_eq!(dialer.is_lost(&peer), [0, 8].contains(&waits.len()));
            let State::Waiting { until } = dialer.targets[0].state else { panic!("must wait") };
            waits.push(until - now);
            now = until;
        }
        assert_eq!(waits[..3], [FIRST_WAIT, FIRST_WAIT * 2, FIRST_WAIT * 4]);
        assert_eq!(waits[9], LONGEST_WAIT);
        assert!(dialer.misses(&peer));
        dialer.due(now);
        dialer.connected(peer, None, now);
        assert!(!dialer.misses(&peer) && dialer.due(now + LONGEST_WAIT).is_empty());
        assert!(!dialer.is_lost(&peer));
        // A connection that breaks at once does not make the dialing quick again; one that held does.
        dialer.disconnected(peer, now, 1.0);
        assert!(dialer.due(now + LONGEST_WAIT / 2).is_empty());
        dialer.connected(peer, None, now);
        now += STABLE_AFTER;
        dialer.disconnected(peer, now, 0.0);
        assert_eq!(dialer.due(now + FIRST_WAIT / 2).len(), 1);
    }

    #[test]
    fn an_address_without_a_peer_belongs_to_whoever_answered() {
        let (peer, other, now) = (PeerId::random(), PeerId::random(), Instant::now());
        let mut dialer = Dialer::new(PeerId::random(), &[address("/ip4/127.0.0.1/tcp/1")], &[], now);
        assert_eq!(dialer.due(now), vec![(TargetId(0), Dial::Address(address("/ip4/127.0.0.1/tcp/1")))]);
        dialer.connected(other, None, now);
        assert!(matches!(dialer.targets[0].state, State::Dialing));
        dialer.connected(peer, Some(TargetId(0)), now);
        dialer.disconnected(other, now, 0.0);
        assert!(dialer.due(now + LONGEST_WAIT).is_empty());
        dialer.disconnected(peer, now, 0.0);
        assert_eq!(dialer.due(now + FIRST_WAIT).len(), 1);
        dialer.is_myself(TargetId(0));
        assert!(dialer.due(now + LONGEST_WAIT).is_empty());
    }

    #[test]
    fn this_node_is_no_target_and_learnt_addresses_are_bounded() {
        let (me, peer, now) = (PeerId::random(), PeerId::random(), Instant::now());
        let mut dialer =
            Dialer::new(me, &[address(&format!("/ip4/127.0.0.1/tcp/1/p2p/{me}"))], &[me, peer], now);
        dialer.learn(peer, (1..20).map(|port| address(&format!("/ip4/127.0.0.1/tcp/{port}"))), now);
        let due = dialer.due(now);
        let [(_, Dial::Peer { id, addresses })] = due.as_slice() else { panic!("{due:?}") };
        assert_eq!((*id, addresses.len()), (peer, MAX_LEARNT));
        assert_eq!(addresses[0], address("/ip4/127.0.0.1/tcp/19"), "the latest first");
    }
}
