//! Wire types and pure logic of tickmesh. No I/O, no async runtime, no libp2p: everything here is a plain
//! function of its inputs, so that it can be tested in virtual time and fuzzed.
//!
//! | module | holds |
//! |---|---|
//! | [`stream`] | [`StreamName`], what a client subscribes to |
//! | [`position`] | [`Sequence`], [`Epoch`], [`Position`]: where an event stands on its stream |
//! | [`event`] | [`Event`], one message of one stream |
//! | [`topic`] | [`Topic`], the bucket of streams that peers gossip about |
//! | [`batch`] | [`Batch`], what a publisher signs and sends at once |
//! | [`signature`] | what a client can verify: a detached JWS over one event |
//! | [`codec`] | the bytes on the mesh; the only module that knows bincode |
//! | [`head`] | the question "where does this stream stand", asked by an edge that joins |
//! | [`feed`] | what a peer asks another for, in order and without loss |
//! | [`book`] | [`book::Book`], the order book that depth events add up to |
//! | [`policy`] | [`ChannelPolicy`](policy::ChannelPolicy): what is kept of a channel, and what slow clients get of it |
//! | [`client`] | the JSON frames between an edge and its clients |
//! | [`sequencer`] | log positions → sequence and `previous` |
//! | [`link`] | received events → deliver, duplicate, gap, reset |
//! | [`rank`] | which of the ingest peers leads a topic |
//! | [`fetching`] | which servers are asked for what is missing |
//! | [`repair`] | one stream at an edge: joined, linked, repaired |
//! | [`history`] | what a reader of a stream can be given from an ingest peer's memory, or its log |
//! | [`takeover`] | what an ingest peer publishes, and when |
//! | [`checkpoint`] | [`checkpoint::State`], what an ingest peer goes on from |
//! | [`time`] | [`Moment`], time as the state machines see it |
//! | [`user`] | [`UserId`], whose the private streams are |

pub mod batch;
pub mod book;
pub mod catalogue;
pub mod checkpoint;
pub mod client;
pub mod codec;
pub mod event;
pub mod feed;
pub mod fetching;
pub mod head;
pub mod history;
pub mod link;
pub mod policy;
pub mod position;
pub mod rank;
pub mod repair;
pub mod revocation;
pub mod sequencer;
pub mod signature;
pub mod stream;
pub mod takeover;
pub mod time;
pub mod topic;
pub mod user;

pub use batch::{Batch, PublisherKey, SignedBatch, SigningKey};
pub use event::Event;
pub use position::{Epoch, Position, Previous, Sequence};
pub use stream::StreamName;
pub use time::Moment;
pub use topic::Topic;
pub use user::UserId;
