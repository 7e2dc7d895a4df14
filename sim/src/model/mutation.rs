//! Bugs put in on purpose, to see that the model finds them. None is in the machines: the peers of the model change what goes
//! into them or what comes out.

/// A bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// An edge delivers events whatever `previous` says.
    SkipPreviousCheck,
    /// An edge forgets one of the events that it held when the hole before them is filled, or the stream is joined.
    ForgetHeld,
    /// A new leader does not publish what it held.
    TakeOverWithoutBacklog,
    /// A follower that sees a batch forgets newer events as well.
    ForgetUnseen,
    /// An edge takes a late event of an epoch that was left for the beginning of a new one.
    GoBackToOldEpoch,
    /// An edge does not say that an epoch begins.
    ForgetReset,
    /// An ingest peer ranks and publishes before it has read its log to the end.
    PublishBeforeWarm,
    /// An edge takes a stream to be where somebody says it is.
    BelieveClaimedHead,
    /// An edge loses the last page of every answer.
    DropLastPage,
    /// An edge confirms a subscription without knowing where the stream stands.
    JoinWithoutHead,
    /// A leader does not tell the heads of silent streams.
    TellNoHeads,
    /// An ingest peer that comes back goes on at the end of the log instead of where it was.
    StartAtEnd,
    /// A feed leaves out what it no longer has, and does not say so.
    NeverRefuse,
    /// An edge delivers what it has delivered before.
    DeliverDuplicates,
}

impl Mutation {
    pub const ALL: [Self; 14] = [
        Self::SkipPreviousCheck,
        Self::ForgetHeld,
        Self::TakeOverWithoutBacklog,
        Self::ForgetUnseen,
        Self::GoBackToOldEpoch,
        Self::ForgetReset,
        Self::PublishBeforeWarm,
        Self::BelieveClaimedHead,
        Self::DropLastPage,
        Self::JoinWithoutHead,
        Self::TellNoHeads,
        Self::StartAtEnd,
        Self::NeverRefuse,
        Self::DeliverDuplicates,
    ];
}
