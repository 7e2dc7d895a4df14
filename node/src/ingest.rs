//! Ingest: records of a log become sequenced events, kept in rings and published in signed batches.
