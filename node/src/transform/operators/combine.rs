//! Combination: one stream of all keys, such as `ticker.global` of all `ticker.*`.
//!
//! An event holds the newest data of every *member* by its name, in the order of the names: `{"btc_usdt":{…},"eth_usdt":{…}}`. It says all there is to
//! know, each time. It is told at the first record and then at most once in [`Config::every_ms`] of event time, if a member has changed. A
//! member whose data is `null` is left out from then on; there is no other way for one to go.
//!
//! What one event cannot hold is refused: the member is left out, and its record is a dead letter, each time until there is room.
//!
//! Records of several partitions have no common order, and peers could not combine them alike. So only those of partition 0 are
//! taken, and a route must take one topic; others are dead letters.
//!
//! ```
//! use tickmesh::transform::operators::{Inputs, Item, Kind, Operator, combine::Config};
//!
//! let mut combine = Operator::new(&Kind::Combine(Config { every_ms: 1000 }), true);
//! let mut take = |member: &str, data: &str, time_ms| {
//!     let item = Item { key: "global".into(), member: member.into(), data: data.into(), time_ms };
//!     let told = combine.take(&Inputs::Items(vec![item])).unwrap().told;
//!     told.into_iter().map(|told| format!("{} {}", told.key, told.data)).collect::<Vec<_>>()
//! };
//! assert_eq!(take("eth_usdt", r#"{"last":"2519"}"#, 5000), [r#"global {"eth_usdt":{"last":"2519"}}"#]);
//! assert!(take("btc_usdt", r#"{"last":"36200"}"#, 5400).is_empty(), "within a second");
//! assert_eq!(
//!     take("eth_usdt", r#"{"last":"2520"}"#, 6000),
//!     [r#"global {"btc_usdt":{"last":"36200"},"eth_usdt":{"last":"2520"}}"#],
//! );
//! assert!(take("eth_usdt", r#"{"last":"2520"}"#, 9000).is_empty(), "nothing has changed");
//! assert_eq!(take("eth_usdt", "null", 9001), [r#"global {"btc_usdt":{"last":"36200"}}"#]);
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use bincode::{Decode, Encode};
use tickmesh_protocol::event::MAX_EVENT_DATA_BYTES;

use super::{Item, MAX_KEYS, Refused, Told, due::Due, room_for};

/// Bytes that a member costs beside its name and data: two quotes, a colon, a comma.
const MEMBER_BYTES: usize = 4;
/// The braces around all members.
const FRAME_BYTES: usize = 2;

/// Most bytes of all members in one partition: more would not fit a checkpoint.
const MAX_BYTES: usize = super::MAX_STATE_BYTES / 2;

/// What a route says of its combination.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Config {
    /// How often it is told at most, in milliseconds of event time.
    pub every_ms: u64,
}

/// The combinations of one partition.
pub struct Combine {
    every_ms: u64,
    /// The latest time of any member.
    now_ms: u64,
    groups: BTreeMap<Rc<str>, Group>,
    /// Members of all groups, and their bytes.
    members: usize,
    bytes: usize,
    due: Due<Rc<str>>,
}

/// The members of one stream.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
struct Group {
    members: BTreeMap<String, String>,
    /// Of its event, or a little more.
    bytes: usize,
    told_ms: Option<u64>,
    /// One has changed since.
    untold: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(super) struct State {
    now_ms: u64,
    groups: Vec<(String, Group)>,
}

impl Combine {
    pub(super) const fn new(config: &Config) -> Self {
        Self {
            every_ms: config.every_ms,
            now_ms: 0,
            groups: BTreeMap::new(),
            members: 0,
            bytes: 0,
            due: Due::new(),
        }
    }

    pub(super) fn take(&mut self, items: &[Item]) -> Result<Vec<Told>, Refused> {
        let known = |item: &&Item| {
            self.groups.get(&*item.key).is_some_and(|group| group.members.contains_key(&item.member))
        };
        room_for(items.iter().map(|item| &*item.key), self.groups.len(), |key| {
            self.groups.contains_key(key)
        })?;
        let new = items.iter().filter(|item| !known(item)).map(|item| (&item.key, &item.member));
        if self.members + new.collect::<BTreeSet<_>>().len() > MAX_KEYS {
            return Err(Refused::TooManyKeys);
        }
        let mut fits = true;
        for item in items {
            fits &= self.take_one(item);
        }
        if !fits {
            // What is due is told with the next record.
            return Err(Refused::TooLarge);
        }
        let mut told = Vec::new();
        while let Some(key) = self.due.pop(self.now_ms) {
            let Some(group) = self.groups.get_mut(&key) else { continue };
            (group.untold, group.told_ms) = (false, Some(self.now_ms));
            told.push(Told { key, variant: None, data: group.data() });
        }
        told.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(told)
    }

    /// Whether there is room for it.
    fn take_one(&mut self, item: &Item) -> bool {
        self.now_ms = self.now_ms.max(item.time_ms);
        let key: Rc<str> = match self.groups.get_key_value(&*item.key) {
            Some((key, _)) => Rc::clone(key),
            None => item.key.as_str().into(),
        };
        let group = self.groups.entry(Rc::clone(&key)).or_insert_with(|| Group::of(BTreeMap::new()));
        let before = group.members.remove(&item.member);
        let freed = before.as_ref().map_or(0, |data| bytes_of(&item.member, data));
        self.members -= usize::from(before.is_some());
        self.bytes -= freed;
        group.bytes -= freed;
        let more = bytes_of(&item.member, &item.data);
        let fits = group.bytes + more <= MAX_EVENT_DATA_BYTES && self.bytes + more <= MAX_BYTES;
        let now = (fits && item.data != "null").then(|| item.data.clone());
        let changed = now != before;
        if let Some(data) = now {
            self.members += 1;
            self.bytes += more;
            group.bytes += more;
            group.members.insert(item.member.clone(), data);
        }
        if changed && !group.untold {
            group.untold = true;
            self.due.set(group.due_ms(self.every_ms), key);
        }
        fits
    }

    pub(super) fn save(&self) -> State {
        let groups = self.groups.iter().map(|(key, group)| (key.to_string(), group.clone())).collect();
        State { now_ms: self.now_ms, groups }
    }

    pub(super) fn restore(config: &Config, state: State) -> Self {
        let mut combine = Self::new(config);
        combine.now_ms = state.now_ms;
        for (key, saved) in state.groups.into_iter().take(MAX_KEYS) {
            let key: Rc<str> = key.into();
            let group = Group { told_ms: saved.told_ms, untold: saved.untold, ..Group::of(saved.members) };
            combine.members += group.members.len();
            combine.bytes += group.bytes - FRAME_BYTES;
            if group.untold {
                combine.due.set(group.due_ms(config.every_ms), Rc::clone(&key));
            }
            combine.groups.insert(key, group);
        }
        combine
    }
}

impl Group {
    fn of(members: BTreeMap<String, String>) -> Self {
        let bytes = FRAME_BYTES + members.iter().map(|(member, data)| bytes_of(member, data)).sum::<usize>();
        Self { members, bytes, told_ms: None, untold: false }
    }

    fn due_ms(&self, every_ms: u64) -> u64 {
        self.told_ms.map_or(0, |told_ms| told_ms.saturating_add(every_ms))
    }

    fn data(&self) -> String {
        let mut text = String::with_capacity(self.bytes);
        text.push('{');
        for (index, (member, data)) in self.members.iter().enumerate() {
            // A member's name was seen to need no escapes.
            for part in [if index > 0 { ",\"" } else { "\"" }, member, "\":", data] {
                text.push_str(part);
            }
        }
        text.push('}');
        text
    }
}

const fn bytes_of(member: &str, data: &str) -> usize {
    MEMBER_BYTES + member.len() + data.len()
}
