//! The one table of who may have which stream, and the one function that decides.
//!
//! | stream | without credentials | signed in |
//! |---|---|---|
//! | of a private channel | no | if it is the user's own, by the exact user id |
//! | in `edge.anonymous` | yes | yes |
//! | any other | no | if one of the user's roles lists it (all, where no roles are configured), and its key is among the token's pairs (all, where the token names none) |

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use tickmesh_protocol::StreamName;

use super::{Identity, Pattern};

/// Channels that are private unless the configuration lists others.
pub fn default_private() -> HashSet<String> {
    ["orders", "balances", "positions", "account"].map(str::to_owned).into()
}

/// What is configured.
#[derive(Clone, Debug, Default)]
pub struct Permissions {
    /// Channels whose streams belong to one user each.
    pub private: Arc<HashSet<String>>,
    /// For everybody, credentials or not; `None`: all that is not private.
    pub anonymous: Option<Vec<Pattern>>,
    /// What each role may have.
    pub roles: BTreeMap<String, Vec<Pattern>>,
}

/// Why somebody may not have a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    #[error("not for clients without credentials")]
    Credentials,
    #[error("a private stream of another user")]
    AnotherUser,
    #[error("no role of this user has it")]
    Role,
    #[error("not among the pairs of this user")]
    Pair,
}

impl Permissions {
    /// Whether somebody may have a stream; `None` for who showed no credentials.
    ///
    /// # Errors
    /// Why not.
    pub fn decide(&self, who: Option<&Identity>, stream: &StreamName) -> Result<(), Denied> {
        if self.private.contains(stream.channel()) {
            return match who {
                Some(who) if who.user.owns(stream) => Ok(()),
                Some(_) => Err(Denied::AnotherUser),
                None => Err(Denied::Credentials),
            };
        }
        let listed = |patterns: &[Pattern]| patterns.iter().any(|pattern| pattern.matches(stream.as_str()));
        if self.anonymous.as_deref().is_none_or(listed) {
            return Ok(());
        }
        let who = who.ok_or(Denied::Credentials)?;
        let mut theirs = who.roles.iter().filter_map(|role| self.roles.get(role));
        if !self.roles.is_empty() && !theirs.any(|patterns| listed(patterns)) {
            return Err(Denied::Role);
        }
        let may = |pairs: &Vec<Pattern>| pairs.iter().any(|pair| pair.matches(stream.key()));
        if who.pairs.as_ref().is_none_or(may) { Ok(()) } else { Err(Denied::Pair) }
    }

    /// Whether there is anything for clients without credentials.
    pub fn admits_anonymous(&self) -> bool {
        self.anonymous.as_ref().is_none_or(|patterns| !patterns.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tickmesh_protocol::UserId;

    use super::*;
    use crate::auth::Proof;

    fn patterns(texts: &[&str]) -> Vec<Pattern> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn private() -> Arc<HashSet<String>> {
        Arc::new(default_private())
    }

    fn identity(user: &str, roles: &[&str], pairs: Option<&[&str]>) -> Identity {
        Identity {
            user: UserId::new(user).unwrap(),
            roles: roles.iter().map(|role| (*role).to_owned()).collect(),
            pairs: pairs.map(patterns),
            issued_at: None,
            expires_at: None,
            proof: Proof::Token { id: None },
        }
    }

    #[test]
    fn the_table() {
        let permissions = Permissions {
            private: private(),
            anonymous: Some(patterns(&["ticker.*"])),
            roles: BTreeMap::from([
                ("trader".to_owned(), patterns(&["trades.*", "depth.*"])),
                ("viewer".to_owned(), patterns(&["trades.*"])),
            ]),
        };
        let alice = identity("Alice", &["trader", "unheard_of"], Some(&["btc_*"]));
        let viewer = identity("bob", &["viewer"], None);
        let nobody = identity("eve", &[], None);
        for (who, stream, expected) in [
            (None, "ticker.global", Ok(())),
            (None, "trades.btc_usdt", Err(Denied::Credentials)),
            (None, "orders.bob", Err(Denied::Credentials)),
            (Some(&alice), "ticker.eth_usdt", Ok(())),
            (Some(&alice), "depth.btc_usdt@100ms", Ok(())),
            (Some(&alice), "depth.eth_usdt", Err(Denied::Pair)),
            (Some(&alice), "candles.btc_usdt@1m", Err(Denied::Role)),
            (Some(&alice), "orders.--_41lice", Ok(())),
            (Some(&alice), "orders.alice", Err(Denied::AnotherUser)),
            (Some(&viewer), "trades.eth_usdt", Ok(())),
            (Some(&viewer), "depth.eth_usdt", Err(Denied::Role)),
            (Some(&viewer), "balances.bob", Ok(())),
            (Some(&nobody), "trades.eth_usdt", Err(Denied::Role)),
            (Some(&nobody), "orders.eve", Ok(())),
        ] {
            assert_eq!(permissions.decide(who, &stream.parse().unwrap()), expected, "{who:?} {stream}");
        }
    }

    proptest! {
        /// Whatever is configured, and whatever a token says: a private stream is for its user alone.
        #[test]
        fn private_streams_are_for_their_user_alone(
            anonymous in proptest::option::of(Just(patterns(&["*"]))),
            with_roles: bool,
            user in "[aA]{1,3}",
            owner in "[aA]{1,3}",
            channel in "orders|balances|positions|account",
        ) {
            let mut roles = BTreeMap::new();
            if with_roles {
                roles.insert("admin".to_owned(), patterns(&["*"]));
            }
            let permissions = Permissions { private: private(), anonymous, roles };
            let stream = StreamName::new(&channel, UserId::new(&owner).unwrap().key(), None).unwrap();
            let who = identity(&user, &["admin"], Some(&["*"]));
            prop_assert_eq!(permissions.decide(Some(&who), &stream).is_ok(), user == owner);
            prop_assert!(permissions.decide(None, &stream).is_err());
        }

        /// Credentials never take anything away, and fewer roles or pairs never give more.
        #[test]
        fn more_rights_never_give_less(
            stream in "(trades|depth|ticker)\\.(btc|eth)_usdt",
            anonymous in proptest::sample::subsequence(vec!["trades.*", "*.btc_*"], 0..=2),
            roles in proptest::sample::subsequence(vec!["trader", "viewer"], 0..=2),
            pairs in proptest::option::of(proptest::sample::subsequence(vec!["btc_*", "eth_usdt"], 0..=2)),
        ) {
            let permissions = Permissions {
                private: private(),
                anonymous: Some(patterns(&anonymous)),
                roles: BTreeMap::from([
                    ("trader".to_owned(), patterns(&["depth.*", "trades.*"])),
                    ("viewer".to_owned(), patterns(&["ticker.*"])),
                ]),
            };
            let stream: StreamName = stream.parse().unwrap();
            let may = |who: Option<&Identity>| permissions.decide(who, &stream).is_ok();
            let who = identity("a", &roles, pairs.as_deref());
            prop_assert!(!may(None) || may(Some(&who)));
            let all = identity("a", &["trader", "viewer"], None);
            prop_assert!(!may(Some(&who)) || may(Some(&all)));
        }
    }
}
