//! The policies of channels, put together from all routes and sources of a peer.

use std::collections::{HashMap, HashSet, hash_map::Entry};

use tickmesh_protocol::{policy::ChannelPolicy, stream::is_part};

/// The policy of each channel; one that nobody names has the default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policies(HashMap<String, Named>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Named {
    policy: ChannelPolicy,
    /// Who named it, in words.
    by: String,
}

impl Policies {
    /// Takes the policy that a route or a source, called so in words, names for a channel: its name, or the jq program
    /// that makes one.
    ///
    /// # Errors
    /// Says why it cannot be kept: it makes no sense, or another one says otherwise.
    pub fn name(
        &mut self,
        channel: &str,
        policy: ChannelPolicy,
        private: &HashSet<String>,
        by: String,
    ) -> Result<(), String> {
        if !is_part(channel) {
            return if policy == ChannelPolicy::default() {
                Ok(())
            } else {
                Err(format!("{by} makes its channel by jq; retain and on_slow need a channel that is named"))
            };
        }
        policy
            .check(private.contains(channel))
            .map_err(|invalid| format!("{by}, channel {channel:?}: {invalid}"))?;
        match self.0.entry(channel.to_owned()) {
            Entry::Vacant(entry) => {
                entry.insert(Named { policy, by });
                Ok(())
            }
            Entry::Occupied(entry) if entry.get().policy == policy => Ok(()),
            Entry::Occupied(entry) => {
                let Named { policy: other, by: first } = entry.get();
                Err(format!(
                    "{by} and {first} do not agree on channel {channel:?}: {policy} here, {other} there"
                ))
            }
        }
    }

    pub fn of(&self, channel: &str) -> ChannelPolicy {
        self.0.get(channel).map(|named| named.policy).unwrap_or_default()
    }
}
