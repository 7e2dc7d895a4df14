//! What was taken back before it ended. An operator says so at an ingest peer; the others and the edges hear of it by private
//! feeds.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::Context;
use tickmesh_protocol::revocation::{Revocation, RevokedKind};
use tokio::sync::watch;

use super::{Identity, Proof};
use crate::ops::metrics::now_us;

/// Most that are kept: a leaked database of an exchange is answered by another secret, not by this list.
const MAX_REVOCATIONS: usize = 100_000;

/// Why something cannot be revoked.
#[derive(Debug, thiserror::Error)]
pub enum RevokeError {
    #[error("{MAX_REVOCATIONS} revocations are kept already")]
    TooMany,
    #[error("it holds until this peer is started again, since {} cannot be written: {error}", file.display())]
    Write { file: PathBuf, error: io::Error },
}

/// The revocations that are known here.
#[derive(Debug)]
pub struct Revocations {
    list: Mutex<List>,
    /// Rises with each that is new.
    serial: watch::Sender<u64>,
    /// After this nothing that was revoked could be valid any more.
    kept: Duration,
    /// Where they are kept over a restart.
    file: Option<PathBuf>,
}

#[derive(Debug, Default)]
struct List {
    by_what: HashMap<(RevokedKind, String), (u64, Revocation)>,
}

impl Default for Revocations {
    fn default() -> Self {
        Self { list: Mutex::default(), serial: watch::Sender::new(0), kept: Duration::MAX, file: None }
    }
}

impl Revocations {
    /// # Errors
    /// If the file is there and cannot be read.
    pub fn open(file: Option<&Path>, kept: Duration) -> anyhow::Result<Self> {
        let revocations = Self { kept, file: file.map(Path::to_owned), ..Self::default() };
        if let Some(file) = file {
            match fs::read(file) {
                Ok(bytes) => {
                    let list: Vec<Revocation> = serde_json::from_slice(&bytes)
                        .with_context(|| format!("{} is no list of revocations", file.display()))?;
                    revocations.add(&list)?;
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error).with_context(|| format!("cannot read {}", file.display())),
            }
        }
        Ok(revocations)
    }

    fn list(&self) -> MutexGuard<'_, List> {
        // No code panics while it holds the lock; if it did, what is in it would still be true.
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds what is new.
    ///
    /// # Errors
    /// If there are too many, or they cannot be kept; those that there is room for hold all the same.
    pub fn add(&self, new: &[Revocation]) -> Result<(), RevokeError> {
        let mut list = self.list();
        let oldest = (now_us() / 1_000_000).saturating_sub(self.kept.as_secs());
        list.by_what.retain(|_, (_, known)| known.at >= oldest);
        let (mut serial, mut too_many) = (*self.serial.borrow(), false);
        let before = serial;
        for revocation in new.iter().filter(|new| new.at >= oldest) {
            let what = (revocation.kind, revocation.id.clone());
            let known = list.by_what.get(&what).map(|(_, known)| known.at);
            if known.is_some_and(|known| known >= revocation.at) {
                continue;
            }
            if known.is_none() && list.by_what.len() >= MAX_REVOCATIONS {
                too_many = true;
                continue;
            }
            serial += 1;
            list.by_what.insert(what, (serial, revocation.clone()));
        }
        if serial == before {
            return if too_many { Err(RevokeError::TooMany) } else { Ok(()) };
        }
        let written = self.write(&list);
        drop(list);
        self.serial.send_replace(serial);
        tracing::info!(new = serial - before, "credentials revoked");
        if too_many { Err(RevokeError::TooMany) } else { written }
    }

    fn write(&self, list: &List) -> Result<(), RevokeError> {
        let Some(file) = &self.file else { return Ok(()) };
        let all: Vec<_> = list.by_what.values().map(|(_, revocation)| revocation).collect();
        let written = serde_json::to_vec(&all)
            .map_err(io::Error::other)
            .and_then(|bytes| crate::durable::replace(file, &bytes));
        written.map_err(|error| RevokeError::Write { file: file.clone(), error })
    }

    /// Those after a serial number, in any order.
    pub fn since(&self, serial: u64) -> Vec<Revocation> {
        let list = self.list();
        let newer = list.by_what.values().filter(|(known, _)| *known > serial);
        newer.map(|(_, revocation)| revocation.clone()).collect()
    }

    /// The serial number of the newest, now and whenever there is a new one.
    pub fn serial(&self) -> watch::Receiver<u64> {
        self.serial.subscribe()
    }

    /// Whether somebody's credentials were taken back.
    pub fn refuse(&self, identity: &Identity) -> bool {
        let list = self.list();
        if list.by_what.is_empty() {
            return false;
        }
        let at = |kind, id: &str| list.by_what.get(&(kind, id.to_owned())).map(|(_, known)| known.at);
        let proof = match &identity.proof {
            Proof::Token { id } | Proof::Opaque { id, .. } => {
                id.as_deref().and_then(|id| at(RevokedKind::Token, id))
            }
            Proof::ApiKey { id, .. } => at(RevokedKind::ApiKey, id),
        };
        let user = at(RevokedKind::User, identity.user.as_str());
        // What does not say when it was issued is not newer. Tokens say it in whole seconds.
        let older = |at: u64| identity.issued_at.is_none_or(|issued| issued.as_secs() <= at);
        proof.is_some() || user.is_some_and(older)
    }
}

#[cfg(test)]
mod tests {
    use tickmesh_protocol::UserId;

    use super::*;

    fn revocation(kind: RevokedKind, id: &str, at: u64) -> Revocation {
        Revocation { kind, id: id.into(), at }
    }

    fn identity(user: &str, issued: Option<u64>, proof: Proof) -> Identity {
        Identity {
            user: UserId::new(user).unwrap(),
            roles: vec![],
            pairs: None,
            issued_at: issued.map(Duration::from_secs),
            expires_at: None,
            proof,
        }
    }

    fn token(id: &str) -> Proof {
        Proof::Token { id: Some(id.into()) }
    }

    #[test]
    fn users_tokens_and_keys_are_refused_and_nobody_else() {
        let revocations = Revocations::default();
        let list = [
            revocation(RevokedKind::User, "alice", 100),
            revocation(RevokedKind::Token, "t1", 100),
            revocation(RevokedKind::ApiKey, "k1", 100),
        ];
        revocations.add(&list).unwrap();
        let key = |id: &str| Proof::ApiKey { id: id.into(), hash: [0; 32] };
        for (who, refused) in [
            (identity("alice", Some(99), token("t2")), true),
            (identity("alice", Some(100), token("t2")), true),
            (identity("alice", Some(101), token("t2")), false),
            (identity("alice", None, key("k2")), true),
            (identity("Alice", Some(99), token("t2")), false),
            (identity("bob", Some(99), token("t1")), true),
            (identity("bob", Some(500), token("t1")), true),
            (identity("bob", None, token("t2")), false),
            (identity("bob", None, key("k1")), true),
            (identity("bob", None, key("t1")), false),
        ] {
            assert_eq!(revocations.refuse(&who), refused, "{who:?}");
        }
    }

    #[test]
    fn what_is_new_is_told_once_and_kept_over_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("data").join("eu-1.revocations");
        let now = now_us() / 1_000_000;
        let kept = Duration::from_secs(1000);
        let revocations = Revocations::open(Some(&file), kept).unwrap();
        let mut serial = revocations.serial();
        let (old, a, b) = (
            revocation(RevokedKind::User, "old", now - 2000),
            revocation(RevokedKind::User, "a", now - 10),
            revocation(RevokedKind::User, "b", now),
        );
        revocations.add(&[old, a.clone()]).unwrap();
        assert!(serial.has_changed().unwrap());
        assert_eq!(revocations.since(0), std::slice::from_ref(&a));
        let known = *serial.borrow_and_update();
        revocations.add(&[a]).unwrap();
        assert!(!serial.has_changed().unwrap(), "it is known");
        revocations.add(std::slice::from_ref(&b)).unwrap();
        assert_eq!(revocations.since(known), [b]);
        let again = Revocations::open(Some(&file), kept).unwrap();
        assert_eq!(again.since(0).len(), 2);
        fs::write(&file, "rubbish").unwrap();
        let error = Revocations::open(Some(&file), kept).unwrap_err().to_string();
        assert!(error.contains("is no list of revocations"), "{error}");
    }
}
