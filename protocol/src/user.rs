//! Users of the exchange, as its tokens name them.

use std::{fmt, sync::Arc};

use crate::{StreamName, stream::escape_key};

/// Longest key of a user's streams, in bytes: with the name of any sane channel it fits into a stream's name.
pub const MAX_USER_KEY_BYTES: usize = 100;

/// A user of the exchange. Any text, compared byte by byte: `Alice` is not `alice`. Cheap to clone.
///
/// ```
/// use tickmesh_protocol::UserId;
///
/// let alice = UserId::new("Alice").unwrap();
/// assert_eq!(alice.key(), "--_41lice");
/// assert!(alice.owns(&"orders.--_41lice".parse().unwrap()));
/// assert!(!alice.owns(&"orders.alice".parse().unwrap()));
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UserId {
    text: Arc<str>,
    key: Arc<str>,
}

/// Why a text names no user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidUserId {
    #[error("a user id is empty")]
    Empty,
    #[error("a user id is too long: escaped for a stream's name it may have {MAX_USER_KEY_BYTES} bytes")]
    TooLong,
}

impl UserId {
    /// # Errors
    /// If it is empty, or too long for the name of a stream.
    pub fn new(text: &str) -> Result<Self, InvalidUserId> {
        // First the length: nothing below may do work on a text of any size.
        if text.len() > MAX_USER_KEY_BYTES {
            return Err(InvalidUserId::TooLong);
        }
        if text.is_empty() {
            return Err(InvalidUserId::Empty);
        }
        let key = escape_key(text);
        if key.len() > MAX_USER_KEY_BYTES {
            return Err(InvalidUserId::TooLong);
        }
        Ok(Self { text: text.into(), key: key.into() })
    }

    /// As the exchange writes it.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// As it stands in the names of the user's streams.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Whether a stream of a private channel is this user's.
    pub fn owns(&self, stream: &StreamName) -> bool {
        stream.key() == &*self.key
    }
}

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lengths_are_bounded() {
        assert_eq!(UserId::new(""), Err(InvalidUserId::Empty));
        assert!(UserId::new(&"a".repeat(MAX_USER_KEY_BYTES)).is_ok());
        assert_eq!(UserId::new(&"a".repeat(MAX_USER_KEY_BYTES + 1)), Err(InvalidUserId::TooLong));
        assert_eq!(UserId::new(&"Ä".repeat(20)), Err(InvalidUserId::TooLong), "six bytes each");
    }

    proptest! {
        #[test]
        fn nobody_owns_the_streams_of_another(one in ".{1,12}", other in ".{1,12}") {
            let (Ok(one), Ok(other)) = (UserId::new(&one), UserId::new(&other)) else { return Ok(()) };
            let stream = StreamName::new("orders", other.key(), None).unwrap();
            prop_assert_eq!(one.owns(&stream), one == other);
        }
    }
}
