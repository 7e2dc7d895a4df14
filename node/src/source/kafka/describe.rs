//! Asks a broker which topics have which id and partitions. The safe
//! crate does not wrap `DescribeTopics`, and nothing else tells the id, by which a topic that was deleted and created
//! again under the same name is known for what it is.

#![expect(unsafe_code, reason = "librdkafka's DescribeTopics has no safe binding")]

use std::{
    ffi::{CStr, CString, c_char},
    ptr,
    time::Duration,
};

use rdkafka::{
    bindings::{self as sys, rd_kafka_admin_op_t},
    client::{Client, ClientContext},
    types::{RDKafka, RDKafkaErrorCode, RDKafkaRespErr},
};

/// A topic as a broker sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Description {
    pub(super) topic: String,
    pub(super) found: Result<Found, RDKafkaErrorCode>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// The topic's id as 32 hexadecimal digits; all zero from a broker older than 2.8, which has none.
    pub(super) id: String,
    pub(super) partitions: Vec<i32>,
}

/// Why no broker answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot describe topics: {reason}")]
pub(super) struct DescribeError {
    pub(super) code: Option<RDKafkaErrorCode>,
    pub(super) reason: String,
}

impl DescribeError {
    fn new(reason: impl Into<String>) -> Self {
        Self { code: None, reason: reason.into() }
    }
}

/// Describes topics by name. Blocks for at most `timeout`.
pub(super) fn describe_topics<C: ClientContext>(
    client: &Client<C>,
    topics: &[&str],
    timeout: Duration,
) -> Result<Vec<Description>, DescribeError> {
    if topics.is_empty() {
        return Ok(Vec::new());
    }
    let names: Vec<CString> = topics
        .iter()
        .map(|topic| CString::new(*topic))
        .collect::<Result<_, _>>()
        .map_err(|_| DescribeError::new("a topic name holds a zero byte"))?;
    let timeout_ms = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    let handle = client.native_ptr();
    let collection = Collection::new(&names)?;
    let options = Options::new(handle, timeout_ms)?;
    let queue = Queue::new(handle)?;
    // SAFETY: all four pointers are live and of the types asked for; librdkafka copies names and options and keeps its
    // own reference to the queue.
    unsafe { sys::rd_kafka_DescribeTopics(handle, collection.0, options.0, queue.0) };
    // A little longer than the request may take, so that its own error arrives and says more than "no answer".
    let event = queue.poll(timeout_ms.saturating_add(100))?;
    event.descriptions()
}

struct Collection(*mut sys::rd_kafka_TopicCollection_t);

impl Collection {
    fn new(names: &[CString]) -> Result<Self, DescribeError> {
        let mut pointers: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
        // SAFETY: the array holds `len` pointers to strings that live until the call returns; they are copied.
        let raw =
            unsafe { sys::rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len()) };
        if raw.is_null() { Err(DescribeError::new("no memory for the topic names")) } else { Ok(Self(raw)) }
    }
}

impl Drop for Collection {
    fn drop(&mut self) {
        // SAFETY: made by `new`, not null, destroyed once.
        unsafe { sys::rd_kafka_TopicCollection_destroy(self.0) };
    }
}

struct Options(*mut sys::rd_kafka_AdminOptions_t);

impl Options {
    fn new(handle: *mut RDKafka, timeout_ms: i32) -> Result<Self, DescribeError> {
        // SAFETY: the client outlives this call, as `describe_topics` borrows it.
        let raw = unsafe {
            sys::rd_kafka_AdminOptions_new(handle, rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS)
        };
        if raw.is_null() {
            return Err(DescribeError::new("no memory for the options"));
        }
        let options = Self(raw);
        // SAFETY: the options are live; a null buffer of size zero means that no error text is wanted.
        let result =
            unsafe { sys::rd_kafka_AdminOptions_set_request_timeout(raw, timeout_ms, ptr::null_mut(), 0) };
        if result == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
            Ok(options)
        } else {
            Err(DescribeError::new(format!("a time limit of {timeout_ms} ms is refused")))
        }
    }
}

impl Drop for Options {
    fn drop(&mut self) {
        // SAFETY: made by `new`, not null, destroyed once.
        unsafe { sys::rd_kafka_AdminOptions_destroy(self.0) };
    }
}

struct Queue(*mut sys::rd_kafka_queue_t);

impl Queue {
    fn new(handle: *mut RDKafka) -> Result<Self, DescribeError> {
        // SAFETY: the client outlives the queue, as `describe_topics` borrows it.
        let raw = unsafe { sys::rd_kafka_queue_new(handle) };
        if raw.is_null() { Err(DescribeError::new("no memory for the queue")) } else { Ok(Self(raw)) }
    }

    fn poll(&self, timeout_ms: i32) -> Result<Event, DescribeError> {
        // SAFETY: the queue is live; what comes out is owned by the caller.
        let raw = unsafe { sys::rd_kafka_queue_poll(self.0, timeout_ms) };
        if raw.is_null() { Err(DescribeError::new("no answer in time")) } else { Ok(Event(raw)) }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: made by `new`, not null, destroyed once. A late answer is freed by librdkafka.
        unsafe { sys::rd_kafka_queue_destroy(self.0) };
    }
}

struct Event(*mut sys::rd_kafka_event_t);

impl Event {
    fn descriptions(&self) -> Result<Vec<Description>, DescribeError> {
        // SAFETY: the event is live; its error text lives as long as the event.
        let (code, text) =
            unsafe { (sys::rd_kafka_event_error(self.0), text_of(sys::rd_kafka_event_error_string(self.0))) };
        if code != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Err(DescribeError { code: Some(code.into()), reason: text });
        }
        // SAFETY: the event is live; the call gives null for an event of another kind.
        let result = unsafe { sys::rd_kafka_event_DescribeTopics_result(self.0) };
        if result.is_null() {
            return Err(DescribeError::new("an answer of another kind"));
        }
        let mut count = 0;
        // SAFETY: `result` belongs to the live event, and so does the array of `count` pointers that it gives.
        let topics = unsafe {
            let topics = sys::rd_kafka_DescribeTopics_result_topics(result, &mut count);
            slice_of(topics.cast_const(), count)
        };
        Ok(topics.iter().map(|topic| describe(*topic)).collect())
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: taken from the queue, not null, destroyed once.
        unsafe { sys::rd_kafka_event_destroy(self.0) };
    }
}

/// `topic` must be live: it comes from an event that the caller holds.
fn describe(topic: *const sys::rd_kafka_TopicDescription_t) -> Description {
    // SAFETY: the description is live for the whole function, and with it everything that hangs on it.
    unsafe {
        let name = text_of(sys::rd_kafka_TopicDescription_name(topic));
        let error = sys::rd_kafka_TopicDescription_error(topic);
        if !error.is_null() {
            let code = sys::rd_kafka_error_code(error);
            if code != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
                return Description { topic: name, found: Err(code.into()) };
            }
        }
        let id = sys::rd_kafka_TopicDescription_topic_id(topic);
        let (high, low) = if id.is_null() {
            (0, 0)
        } else {
            (sys::rd_kafka_Uuid_most_significant_bits(id), sys::rd_kafka_Uuid_least_significant_bits(id))
        };
        let mut count = 0;
        let partitions = sys::rd_kafka_TopicDescription_partitions(topic, &mut count);
        let partitions = slice_of(partitions.cast_const(), count)
            .iter()
            .map(|partition| sys::rd_kafka_TopicPartitionInfo_partition(*partition))
            .collect();
        Description { topic: name, found: Ok(Found { id: format!("{high:016x}{low:016x}"), partitions }) }
    }
}

/// # Safety
/// `text` is null or a string that ends with a zero byte and lives until the call returns.
unsafe fn text_of(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: not null; the rest is the caller's promise.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// # Safety
/// `items` is null, or an array of `count` items that lives as long as the caller uses the slice.
unsafe fn slice_of<'a, T>(items: *const T, count: usize) -> &'a [T] {
    if items.is_null() || count == 0 {
        return &[];
    }
    // SAFETY: not null; the rest is the caller's promise.
    unsafe { std::slice::from_raw_parts(items, count) }
}
