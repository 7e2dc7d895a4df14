//! How many connections one address and one user may have, over all shards; and which address a client has.

use std::{
    collections::{HashMap, hash_map::Entry},
    hash::Hash,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use axum::http::HeaderMap;
use ipnet::IpNet;
use tickmesh_protocol::UserId;

/// What says which addresses a request has passed (de facto standard; each proxy adds the one it was reached from).
const FORWARDED_FOR: &str = "x-forwarded-for";

/// Counts connections.
#[derive(Debug)]
pub struct Admission {
    per_address: Option<usize>,
    per_user: Option<usize>,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    of_addresses: HashMap<IpAddr, usize>,
    of_users: HashMap<UserId, usize>,
}

/// Why there is no place for one more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crowded {
    Address,
    User,
}

impl Crowded {
    /// For the client.
    pub fn words(self) -> &'static str {
        match self {
            Self::Address => "too many connections from this address",
            Self::User => "too many connections of this user",
        }
    }
}

/// One connection among those counted; given back when dropped.
#[derive(Debug)]
pub struct Place {
    admission: Arc<Admission>,
    address: IpAddr,
    user: Option<UserId>,
}

impl Admission {
    pub fn new(per_address: Option<usize>, per_user: Option<usize>) -> Self {
        Self { per_address, per_user, counts: Mutex::default() }
    }

    /// Counts one more connection.
    ///
    /// # Errors
    /// If there are as many as there may be.
    pub fn enter(self: &Arc<Self>, address: IpAddr, user: Option<&UserId>) -> Result<Place, Crowded> {
        let address = network_of(address);
        let mut counts = self.counts();
        take(&mut counts.of_addresses, &address, self.per_address).map_err(|()| Crowded::Address)?;
        if let Some(user) = user
            && take(&mut counts.of_users, user, self.per_user).is_err()
        {
            give_back(&mut counts.of_addresses, &address);
            return Err(Crowded::User);
        }
        drop(counts);
        Ok(Place { admission: Arc::clone(self), address, user: user.cloned() })
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// The client has signed in on its open connection.
    ///
    /// # Errors
    /// If the user has as many as there may be; then it stays counted as it was.
    pub fn sign_in(&mut self, user: &UserId) -> Result<(), Crowded> {
        if self.user.is_none() {
            let mut counts = self.admission.counts();
            take(&mut counts.of_users, user, self.admission.per_user).map_err(|()| Crowded::User)?;
            drop(counts);
            self.user = Some(user.clone());
        }
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.admission.counts();
        give_back(&mut counts.of_addresses, &self.address);
        if let Some(user) = &self.user {
            give_back(&mut counts.of_users, user);
        }
    }
}

fn take<K: Hash + Eq + Clone>(
    counts: &mut HashMap<K, usize>,
    key: &K,
    most: Option<usize>,
) -> Result<(), ()> {
    match counts.entry(key.clone()) {
        Entry::Occupied(mut count) if most.is_none_or(|most| *count.get() < most) => *count.get_mut() += 1,
        Entry::Vacant(count) if most != Some(0) => _ = count.insert(1),
        _ => return Err(()),
    }
    Ok(())
}

fn give_back<K: Hash + Eq>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

/// What is counted as one: an IPv4 address, or the 64 bits of an IPv6 address that a household is given (RFC 6177).
fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
        address => address,
    }
}

/// Whether an address is one of a proxy that is believed.
pub fn is_trusted(address: IpAddr, trusted: &[IpNet]) -> bool {
    trusted.iter().any(|net| net.contains(&address.to_canonical()))
}

/// The address of a client: where the connection comes from or, if that is a trusted proxy, the last address in
/// `X-Forwarded-For` that is none. What stands before that anybody can have written.
pub fn client_address(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let peer = peer.to_canonical();
    if !is_trusted(peer, trusted) {
        return peer;
    }
    let mut passed: Vec<&str> = Vec::new();
    for value in headers.get_all(FORWARDED_FOR) {
        passed.extend(value.to_str().unwrap_or("?").split(',').map(str::trim));
    }
    let mut last = peer;
    for text in passed.into_iter().rev() {
        // A proxy that writes something else is where our knowledge ends.
        let Ok(address) = text.parse::<IpAddr>() else { return last };
        last = address.to_canonical();
        if !is_trusted(last, trusted) {
            break;
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn connections_are_counted_and_given_back() {
        let admission = Arc::new(Admission::new(Some(2), Some(1)));
        let (alice, bob) = (UserId::new("alice").unwrap(), UserId::new("bob").unwrap());
        let first = admission.enter(ip("10.0.0.1"), Some(&alice)).unwrap();
        assert_eq!(admission.enter(ip("10.0.0.2"), Some(&alice)).unwrap_err(), Crowded::User);
        let mut second = admission.enter(ip("::ffff:10.0.0.1"), None).unwrap();
        assert_eq!(admission.enter(ip("10.0.0.1"), Some(&bob)).unwrap_err(), Crowded::Address);
        assert_eq!(second.sign_in(&alice), Err(Crowded::User));
        drop(first);
        assert_eq!(second.sign_in(&alice), Ok(()));
        drop(second);
        let counts = admission.counts();
        assert!(counts.of_addresses.is_empty() && counts.of_users.is_empty(), "{counts:?}");
    }

    #[test]
    fn a_household_of_ipv6_is_one() {
        let admission = Arc::new(Admission::new(Some(1), None));
        let _first = admission.enter(ip("2001:db8:0:1::1"), None).unwrap();
        assert!(admission.enter(ip("2001:db8:0:1:ffff::2"), None).is_err());
        assert!(admission.enter(ip("2001:db8:0:2::1"), None).is_ok());
    }

    #[test]
    fn only_trusted_proxies_are_believed() {
        let trusted: Vec<IpNet> = vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
        let address = |peer: &str, forwarded: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in forwarded {
                headers.append(FORWARDED_FOR, value.parse().unwrap());
            }
            client_address(ip(peer), &headers, &trusted).to_string()
        };
        assert_eq!(address("192.0.2.1", &["198.51.100.7"]), "192.0.2.1", "anybody can write that");
        assert_eq!(address("10.0.0.1", &["198.51.100.7"]), "198.51.100.7");
        assert_eq!(address("10.0.0.1", &["6.6.6.6, 198.51.100.7, 10.0.0.2"]), "198.51.100.7");
        assert_eq!(address("10.0.0.1", &["6.6.6.6", "198.51.100.7, 10.0.0.2"]), "198.51.100.7");
        assert_eq!(address("10.0.0.1", &["nonsense, 10.0.0.2"]), "10.0.0.2");
        assert_eq!(address("10.0.0.1", &[]), "10.0.0.1");
        assert_eq!(address("fd00::1", &["2001:db8::1"]), "2001:db8::1");
        assert_eq!(address("::ffff:10.0.0.1", &["198.51.100.7"]), "198.51.100.7");
    }
}
