//! Who of a shard's connections has which streams. Adding and removing cost the same however many there are.

use std::collections::{HashMap, hash_map::Entry};

use tickmesh_protocol::{Position, StreamName};

use super::queue::{Grant, StreamId};

/// The subscriptions of one shard. Connections go by their place in the shard.
#[derive(Debug, Default)]
pub struct Subscriptions {
    streams: HashMap<StreamId, Members>,
    names: HashMap<StreamName, StreamId>,
    /// By connection: its streams in order, and its index among each stream's members.
    connections: Vec<Vec<(StreamId, usize)>>,
}

/// The subscribers of one stream.
#[derive(Debug)]
pub struct Members {
    pub name: StreamName,
    pub connections: Vec<usize>,
    /// Where the stream stood when the last of its frames was handed out.
    pub last: Option<Position>,
}

impl Subscriptions {
    /// Adds a subscription; false if the connection has it already.
    pub fn add(&mut self, connection: usize, grant: &Grant) -> bool {
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
                entry.insert(Members { name: grant.name.clone(), connections: Vec::new(), last: None })
            }
        };
        members.last = grant.position;
        list.insert(at, (grant.id, members.connections.len()));
        members.connections.push(connection);
        true
    }

    /// Removes a subscription, and returns where the stream stood; `None` if the connection does not have it.
    pub fn remove(&mut self, connection: usize, id: StreamId) -> Option<Option<Position>> {
        let list = self.connections.get_mut(connection)?;
        let at = list.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        let (_, index) = list.remove(at);
        if list.is_empty() {
            *list = Vec::new();
        }
        self.remove_member(id, index)
    }

    /// Removes all subscriptions of a connection, and returns them.
    pub fn remove_all(&mut self, connection: usize) -> Vec<StreamId> {
        let list = self.connections.get_mut(connection).map(std::mem::take).unwrap_or_default();
        list.into_iter()
            .map(|(id, index)| {
                self.remove_member(id, index);
                id
            })
            .collect()
    }

    fn remove_member(&mut self, id: StreamId, index: usize) -> Option<Option<Position>> {
        let members = self.streams.get_mut(&id)?;
        members.connections.swap_remove(index);
        let last = members.last;
        if let Some(moved) = members.connections.get(index) {
            let list = self.connections.get_mut(*moved)?;
            let at = list.binary_search_by_key(&id, |(id, _)| *id).ok()?;
            list[at].1 = index;
        } else if members.connections.is_empty() {
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
    pub fn of(&self, connection: usize) -> impl Iterator<Item = &Members> {
        let list = self.connections.get(connection).map_or(&[][..], Vec::as_slice);
        list.iter().filter_map(|(id, _)| self.streams.get(id))
    }

    pub fn members_mut(&mut self, id: StreamId) -> Option<&mut Members> {
        self.streams.get_mut(&id)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    fn grant(id: usize) -> Grant {
        Grant { id: StreamId(id), name: format!("trades.s{id}").parse().unwrap(), position: None }
    }

    proptest! {
        #[test]
        fn behaves_like_a_set_of_pairs(
            steps in proptest::collection::vec((0_usize..6, 0_usize..6, 0_u8..5), 0..200)
        ) {
            let mut subscriptions = Subscriptions::default();
            let mut model: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
            for (connection, stream, action) in steps {
                let list = model.entry(connection).or_default();
                match action {
                    0 => {
                        let removed: BTreeSet<_> = subscriptions.remove_all(connection).iter().map(|id| id.0).collect();
                        prop_assert_eq!(removed, std::mem::take(list));
                    }
                    1 => prop_assert_eq!(
                        subscriptions.remove(connection, StreamId(stream)).is_some(),
                        list.remove(&stream)
                    ),
                    _ => prop_assert_eq!(subscriptions.add(connection, &grant(stream)), list.insert(stream)),
                }
                for stream in 0..6 {
                    let expected: BTreeSet<_> =
                        model.iter().filter(|(_, list)| list.contains(&stream)).map(|(key, _)| *key).collect();
                    let members = subscriptions.members_mut(StreamId(stream));
                    let members: Vec<_> = members.map(|members| members.connections.clone()).unwrap_or_default();
                    prop_assert_eq!(members.len(), expected.len());
                    prop_assert_eq!(members.into_iter().collect::<BTreeSet<_>>(), expected.clone());
                    prop_assert_eq!(subscriptions.id(&format!("trades.s{stream}")).is_some(), !expected.is_empty());
                }
                for (connection, list) in &model {
                    prop_assert_eq!(subscriptions.count(*connection), list.len());
                    prop_assert_eq!(subscriptions.of(*connection).count(), list.len());
                    prop_assert!(list.iter().all(|id| subscriptions.has(*connection, StreamId(*id))));
                }
            }
        }
    }
}
