//! Client protocol v1: the JSON text frames between an edge and its clients, typed in both directions.
//!
//! - [`ClientMessage`]: what a client asks.
//! - [`ControlMessage`]: what an edge says; everything with an `"event"` field.
//! - [`DataMessage`]: one event of a stream, `{"stream","sequence","previous","data"}`; with `epoch` and `signature` where it is
//!   signed, with `"snapshot":true` or `"conflated":true` where it is one.
//! - [`ErrorCode`] and [`CloseCode`]: an API of their own, each with a rule whether to come back.

mod codes;
mod request;
mod server;

pub use codes::{CloseCode, ErrorCode};
pub use request::{
    ClientMessage, Credential, LastSeen, MAX_CLIENT_FRAME_BYTES, MAX_CREDENTIAL_BYTES,
    MAX_STREAMS_PER_REQUEST, ProtocolError, RequestId, ResumeFrom, Secret,
};
pub use server::{
    ControlMessage, DataMessage, InvalidServerMessage, Limits, Mark, Rejection, Resumed, ServerMessage,
    write_data_message, write_marked_message,
};
