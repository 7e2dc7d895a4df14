//! Credentials that are taken back before they end.

use serde::{Deserialize, Serialize};

/// Longest id of what is revoked, in bytes: the longest user id, a UUID, a hash.
pub const MAX_REVOKED_ID_BYTES: usize = 128;

/// What an id is the id of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RevokedKind {
    /// A user: everything issued to it until then. It may sign in with a token that is issued later.
    User,
    /// One token, by its `jti` (RFC 7519 §4.1.7).
    Token,
    /// One API key, by its id.
    ApiKey,
}

/// Something is no longer accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocation {
    pub kind: RevokedKind,
    /// At most [`MAX_REVOKED_ID_BYTES`].
    pub id: String,
    /// When it was revoked: seconds since 1970 UTC.
    pub at: u64,
}
