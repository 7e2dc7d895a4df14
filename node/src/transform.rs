//! Routes: which record becomes an event of which stream.
