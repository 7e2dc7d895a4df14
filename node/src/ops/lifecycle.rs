//! The lifecycle events of the acceptance use cases, under the names operators know: one enum, one place, feeding the
//! log and `tickmesh_lifecycle_events_total{event}`.

use prometheus::{IntCounter, IntCounterVec};

use super::metrics::Registry;

/// What can happen to a connection, a subscription or a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(usize)]
pub enum Lifecycle {
    ConnectionOpen,
    AuthValidate,
    ConnectionAccepted,
    ConnectionRejected,
    SubscribeRequest,
    TopicPermissionCheck,
    SubscriptionConfirmed,
    UnsubscribeRequest,
    KafkaMessage,
    MessageDispatch,
    ClientOverload,
    UserStreamPush,
    ResumeStream,
}

impl Lifecycle {
    const ALL: [Self; 13] = [
        Self::ConnectionOpen,
        Self::AuthValidate,
        Self::ConnectionAccepted,
        Self::ConnectionRejected,
        Self::SubscribeRequest,
        Self::TopicPermissionCheck,
        Self::SubscriptionConfirmed,
        Self::UnsubscribeRequest,
        Self::KafkaMessage,
        Self::MessageDispatch,
        Self::ClientOverload,
        Self::UserStreamPush,
        Self::ResumeStream,
    ];

    /// The name in logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::ConnectionOpen => "onConnectionOpen",
            Self::AuthValidate => "onAuthValidate",
            Self::ConnectionAccepted => "onConnectionAccepted",
            Self::ConnectionRejected => "onConnectionRejected",
            Self::SubscribeRequest => "onSubscribeRequest",
            Self::TopicPermissionCheck => "onTopicPermissionCheck",
            Self::SubscriptionConfirmed => "onSubscriptionConfirmed",
            Self::UnsubscribeRequest => "onUnsubscribeRequest",
            Self::KafkaMessage => "onKafkaMessage",
            Self::MessageDispatch => "onMessageDispatch",
            Self::ClientOverload => "onClientOverload",
            Self::UserStreamPush => "onUserStreamPush",
            Self::ResumeStream => "onResumeStream",
        }
    }
}

/// Counts lifecycle events. Use the macro [`lifecycle!`](crate::lifecycle) to count and log one.
#[derive(Clone, Debug)]
pub struct LifecycleEvents(Vec<IntCounter>);

impl LifecycleEvents {
    pub fn new(registry: &Registry) -> Self {
        let family: IntCounterVec =
            registry.counters("lifecycle_events_total", "Lifecycle events, by their name.", &["event"]);
        Self(Lifecycle::ALL.iter().map(|event| family.with_label_values(&[event.name()])).collect())
    }

    /// Counts an event without logging it.
    pub fn count(&self, event: Lifecycle, times: u64) {
        self.0[event as usize].inc_by(times);
    }
}

/// Counts a lifecycle event and logs it with the given fields: per-message ones at TRACE, the others at DEBUG.
///
/// ```
/// use tickmesh::{lifecycle, ops::{lifecycle::{Lifecycle, LifecycleEvents}, metrics::Registry}};
///
/// let registry = Registry::new();
/// let events = LifecycleEvents::new(&registry);
/// lifecycle!(events, Lifecycle::SubscribeRequest, connection = "c1", streams = 2);
/// assert!(registry.render().contains(r#"tickmesh_lifecycle_events_total{event="onSubscribeRequest"} 1"#));
/// ```
#[macro_export]
macro_rules! lifecycle {
    ($events:expr, $event:expr $(, $($field:tt)*)?) => {{
        let event: $crate::ops::lifecycle::Lifecycle = $event;
        $events.count(event, 1);
        match event {
            $crate::ops::lifecycle::Lifecycle::KafkaMessage
            | $crate::ops::lifecycle::Lifecycle::MessageDispatch
            | $crate::ops::lifecycle::Lifecycle::UserStreamPush => {
                tracing::trace!(target: "tickmesh::lifecycle", event = event.name() $(, $($field)*)?);
            }
            _ => tracing::debug!(target: "tickmesh::lifecycle", event = event.name() $(, $($field)*)?),
        }
    }};
}
