//! Leader epochs: the safe crate does not give them, librdkafka does.

#![expect(unsafe_code, reason = "librdkafka's leader epochs have no safe binding")]

use std::ffi::CString;

use rdkafka::{TopicPartitionList, bindings as sys, message::BorrowedMessage};

/// The leader epoch under which a message was written; none from a broker that does not tell.
pub(super) fn term_of(message: &BorrowedMessage<'_>) -> Option<u32> {
    // SAFETY: the pointer is of a message that lives as long as the reference.
    let epoch = unsafe { sys::rd_kafka_message_leader_epoch(message.ptr()) };
    u32::try_from(epoch).ok()
}

/// Says under which leader epoch the record before a partition's offset was read. With it librdkafka asks the broker
/// whether that record is still in the log before it goes on.
pub(super) fn set_term(list: &mut TopicPartitionList, topic: &str, partition: i32, term: u32) {
    let (Ok(topic), Ok(epoch)) = (CString::new(topic), i32::try_from(term)) else { return };
    // SAFETY: list and topic live during both calls; the element belongs to the list, which is not changed in between.
    unsafe {
        let element = sys::rd_kafka_topic_partition_list_find(list.ptr(), topic.as_ptr(), partition);
        if !element.is_null() {
            sys::rd_kafka_topic_partition_set_leader_epoch(element, epoch);
        }
    }
}
