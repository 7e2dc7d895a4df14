//! Who of a shard's connections has which streams. Adding and removing cost the same however many there are.
//!
//! A subscription is *live*, and gets each frame as it comes, or it *waits*: its client is still being given what it missed.

use std::collections::{HashMap, hash_map::Entry};

use tickmesh_protocol::{Position, StreamName, policy::ChannelPolicy};

use super::queue::{Grant, StreamId, begins_with_snapshot};

/// The subscriptions of one shard. Connections go by their place in the shard.
#[derive(Debug, Default)]
pub struct Subscriptions {
    streams: HashMap<StreamId, Members>,
    names: HashMap<StreamName, StreamId>,
    /// By connection: its streams in order, and its place among each stream's members.
    connections: Vec<Vec<(StreamId, Place)>>,
}

/// Where a connection is among a stream's members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    live: bool,
    index: usize,
}

/// The subscribers of one stream.
#[derive(Debug)]
pub struct Members {
    pub name: StreamName,
    /// Who gets its frames as they come.
    pub live: Vec<usize>,
    /// Who does not yet.
    pub waiting: Vec<usize>,
    /// Where the stream stood when the last of its frames was handed out.
    pub last: Option<Position>,
    /// What new clients begin with, and slow ones get.
    pub policy: ChannelPolicy,
}

impl Subscriptions {
    /// Adds a subscription, live or waiting; false if the connection has it already.
    pub fn add(&mut self, connection: usize, grant: &Grant, live: bool) -> bool {
        if self.connections.len() <= connection {
            self.connections.resize_with(connection + 1, Vec::new);
        }
        let list = &mut self.connections[connection];
        let Err(at) = list.binary_search_by_key(&grant.id, |(id, _)| *id) else {
            return false;
        };
        let members = match self.streams.entry(grant.id) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                self.names.insert(grant.name.clone(), grant.id);
                entry.insert(Members {
                    name: grant.name.clone(),
                    live: Vec::new(),
                    waiting: Vec::new(),
                    last: None,
                    policy: grant.policy,
                })
            }
        };
        (members.last, members.policy) = (grant.position, grant.policy);
        list.insert(at, (grant.id, members.push(connection, live)));
        true
    }

    /// Makes a subscription live, or lets it wait.
    pub fn set_live(&mut self, connection: usize, id: StreamId, live: bool) {
        let Some(place) = self.place_mut(connection, id).copied().filter(|place| place.live != live) else {
            return;
        };
        self.remove_member(id, place);
        let Some(members) = self.streams.get_mut(&id) else { return };
        let place = members.push(connection, live);
        if let Some(at) = self.place_mut(connection, id) {
            *at = place;
        }
    }

    fn place_mut(&mut self, connection: usize, id: StreamId) -> Option<&mut Place> {
        let list = self.connections.get_mut(connection)?;
        let at = list.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        Some(&mut list[at].1)
    }

    /// Removes a subscription, and returns where the stream stood; `None` if the connection does not have it.
    pub fn remove(&mut self, connection: usize, id: StreamId) -> Option<Option<Position>> {
        let list = self.connections.get_mut(connection)?;
        let at = list.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        let (_, place) = list.remove(at);
        if list.is_empty() {
            *list = Vec::new();
        }
        self.remove_member(id, place);
        self.forget_if_unused(id)
    }

    /// Removes all subscriptions of a connection, and returns them.
    pub fn remove_all(&mut self, connection: usize) -> Vec<StreamId> {
        let list = self.connections.get_mut(connection).map(std::mem::take).unwrap_or_default();
        list.into_iter()
            .map(|(id, place)| {
                self.remove_member(id, place);
                self.forget_if_unused(id);
                id
            })
            .collect()
    }

    /// Takes a connection out of a stream's members; another one takes its place there.
    fn remove_member(&mut self, id: StreamId, place: Place) {
        let Some(members) = self.streams.get_mut(&id) else { return };
        let list = members.list_mut(place.live);
        list.swap_remove(place.index);
        if let Some(moved) = list.get(place.index).copied()
            && let Some(at) = self.place_mut(moved, id)
        {
            *at = place;
        }
    }

    /// Where a stream stands; it is forgotten if nobody has it.
    fn forget_if_unused(&mut self, id: StreamId) -> Option<Option<Position>> {
        let members = self.streams.get(&id)?;
        let last = members.last;
        if members.live.is_empty() && members.waiting.is_empty() {
            self.names.remove(&members.name);
            self.streams.remove(&id);
        }
        Some(last)
    }

    pub fn id(&self, name: &str) -> Option<StreamId> {
        self.names.get(name).copied()
    }

    pub fn has(&self, connection: usize, id: StreamId) -> bool {
        self.connections
            .get(connection)
            .is_some_and(|list| list.binary_search_by_key(&id, |(id, _)| *id).is_ok())
    }

    pub fn count(&self, connection: usize) -> usize {
        self.connections.get(connection).map_or(0, Vec::len)
    }

    /// The streams of a connection.
    pub fn of(&self, connection: usize) -> impl Iterator<Item = (StreamId, &Members)> {
        let list = self.connections.get(connection).map_or(&[][..], Vec::as_slice);
        list.iter().filter_map(|(id, _)| Some((*id, self.streams.get(id)?)))
    }

    pub fn members(&self, id: StreamId) -> Option<&Members> {
        self.streams.get(&id)
    }

    pub fn members_mut(&mut self, id: StreamId) -> Option<&mut Members> {
        self.streams.get_mut(&id)
    }
}

impl Members {
    pub fn begins_with_snapshot(&self) -> bool {
        begins_with_snapshot(self.policy, self.last)
    }

    fn list_mut(&mut self, live: bool) -> &mut Vec<usize> {
        if live { &mut self.live } else { &mut self.waiting }
    }

    fn push(&mut self, connection: usize, live: bool) -> Place {
        let list = self.list_mut(live);
        list.push(connection);
        Place { live, index: list.len() - 1 }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    fn grant(id: usize) -> Grant {
        let (name, policy) = (format!("trades.s{id}").parse().unwrap(), ChannelPolicy::default());
        Grant { id: StreamId(id), name, position: None, policy }
    }

    proptest! {
        #[test]
        fn behaves_like_a_set_of_pairs(
            steps in proptest::collection::vec((0_usize..6, 0_usize..6, 0_u8..8), 0..200)
        ) {
            let mut subscriptions = Subscriptions::default();
            // By connection and stream: whether it is live.
            let mut model: BTreeMap<usize, BTreeMap<usize, bool>> = BTreeMap::new();
            for (connection, stream, action) in steps {
                let list = model.entry(connection).or_default();
                match action {
                    0 => {
                        let removed: BTreeSet<_> = subscriptions.remove_all(connection).iter().map(|id| id.0).collect();
                        prop_assert_eq!(removed, std::mem::take(list).into_keys().collect::<BTreeSet<_>>());
                    }
                    1 => prop_assert_eq!(
                        subscriptions.remove(connection, StreamId(stream)).is_some(),
                        list.remove(&stream).is_some()
                    ),
                    2 | 3 => {
                        subscriptions.set_live(connection, StreamId(stream), action == 2);
                        list.entry(stream).and_modify(|live| *live = action == 2);
                    }
                    _ => {
                        let live = action > 5;
                        let new = !list.contains_key(&stream);
                        list.entry(stream).or_insert(live);
                        prop_assert_eq!(subscriptions.add(connection, &grant(stream), live), new);
                    }
                }
                for stream in 0..6 {
                    let expected = |live| -> BTreeSet<usize> {
                        let of = model.iter().filter(|(_, list)| list.get(&stream) == Some(&live));
                        of.map(|(key, _)| *key).collect()
                    };
                    let members = subscriptions.members(StreamId(stream));
                    let lists = members.map_or((vec![], vec![]), |members| (members.live.clone(), members.waiting.clone()));
                    prop_assert_eq!(lists.0.len() + lists.1.len(), expected(true).len() + expected(false).len());
                    prop_assert_eq!(lists.0.into_iter().collect::<BTreeSet<_>>(), expected(true));
                    prop_assert_eq!(lists.1.into_iter().collect::<BTreeSet<_>>(), expected(false));
                    prop_assert_eq!(
                        subscriptions.id(&format!("trades.s{stream}")).is_some(),
                        !expected(true).is_empty() || !expected(false).is_empty()
                    );
                }
                for (connection, list) in &model {
                    prop_assert_eq!(subscriptions.count(*connection), list.len());
                    prop_assert_eq!(subscriptions.of(*connection).count(), list.len());
                    prop_assert!(list.keys().all(|id| subscriptions.has(*connection, StreamId(*id))));
                }
            }
        }
    }
}
