//! What is done for the clients of a channel besides delivering its events: what is kept for those who come, and what
//! becomes of those who read too slowly.

use std::{fmt, str::FromStr};

/// What ingest keeps of each stream of a channel, for who subscribes or has lost its place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Retain {
    #[default]
    None,
    /// The last event: it says everything that is to be known of the stream.
    Last,
    /// The order book that the events add up to, see [`crate::book`].
    Book,
}

/// What becomes of a client that does not keep up with a channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum OnSlow {
    /// It is disconnected; it comes back and resumes.
    #[default]
    Disconnect,
    /// It gets the newest event of each stream only.
    Conflate,
    /// What waits for it of a stream is dropped, and it gets a snapshot.
    Resync,
}

/// The policy of one channel. The same on all peers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ChannelPolicy {
    pub retain: Retain,
    pub on_slow: OnSlow,
}

/// A policy that could not keep its promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPolicy {
    #[error(
        "on_slow = \"conflate\" leaves out all but the last event, so it needs retain = \"last\": events that say everything"
    )]
    Conflate,
    #[error("on_slow = \"resync\" sends a snapshot, so it needs retain = \"book\" or \"last\"")]
    Resync,
    #[error("the channel is private: on_slow can only be \"disconnect\", its events are never left out")]
    PrivateSlow,
    #[error("the channel is private: retain can only be \"none\", nothing of it is given to who asks")]
    PrivateRetained,
}

impl ChannelPolicy {
    /// Whether the parts go together.
    ///
    /// # Errors
    /// [`InvalidPolicy`] says why not.
    pub fn check(self, private: bool) -> Result<(), InvalidPolicy> {
        match (self.on_slow, self.retain) {
            (OnSlow::Conflate | OnSlow::Resync, _) if private => Err(InvalidPolicy::PrivateSlow),
            (_, Retain::Last | Retain::Book) if private => Err(InvalidPolicy::PrivateRetained),
            (OnSlow::Conflate, Retain::None | Retain::Book) => Err(InvalidPolicy::Conflate),
            (OnSlow::Resync, Retain::None) => Err(InvalidPolicy::Resync),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for ChannelPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "retain = \"{}\", on_slow = \"{}\"", self.retain, self.on_slow)
    }
}

/// The words of a configuration.
macro_rules! words {
    ($policy:ident { $($value:ident = $word:literal),+ }) => {
        impl fmt::Display for $policy {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$value => $word),+ })
            }
        }

        impl FromStr for $policy {
            type Err = String;

            fn from_str(word: &str) -> Result<Self, String> {
                match word {
                    $($word => Ok(Self::$value),)+
                    _ => Err(["known:", $($word),+].join(" ")),
                }
            }
        }
    };
}

words!(Retain { None = "none", Last = "last", Book = "book" });
words!(OnSlow { Disconnect = "disconnect", Conflate = "conflate", Resync = "resync" });

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_promises_that_can_be_kept_are_taken() {
        let good = |policy: &ChannelPolicy, private| policy.check(private).is_ok();
        let all: Vec<ChannelPolicy> = ["none", "last", "book"]
            .iter()
            .flat_map(|retain| ["disconnect", "conflate", "resync"].map(|on_slow| (retain, on_slow)))
            .map(|(retain, on_slow)| ChannelPolicy {
                retain: retain.parse().unwrap(),
                on_slow: on_slow.parse().unwrap(),
            })
            .collect();
        let said = |private| -> Vec<String> {
            all.iter().filter(|policy| good(policy, private)).map(ToString::to_string).collect()
        };
        assert_eq!(
            said(false),
            [
                "retain = \"none\", on_slow = \"disconnect\"",
                "retain = \"last\", on_slow = \"disconnect\"",
                "retain = \"last\", on_slow = \"conflate\"",
                "retain = \"last\", on_slow = \"resync\"",
                "retain = \"book\", on_slow = \"disconnect\"",
                "retain = \"book\", on_slow = \"resync\"",
            ]
        );
        assert_eq!(said(true), ["retain = \"none\", on_slow = \"disconnect\""]);
        assert_eq!("all".parse::<Retain>().unwrap_err(), "known: none last book");
    }
}
