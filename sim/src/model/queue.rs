//! What happens next: events in a total order, by time and then in the order in which they were put in, so that the same
//! world always takes the same course.

use std::{cmp::Ordering, collections::BinaryHeap};

/// Virtual time: microseconds since the world began.
pub type Time = u64;

/// Microseconds in a millisecond.
pub const MS: Time = 1000;

/// Events by time.
#[derive(Debug)]
pub struct Queue<E> {
    entries: BinaryHeap<Entry<E>>,
    number: u64,
}

#[derive(Debug)]
struct Entry<E> {
    at: Time,
    number: u64,
    event: E,
}

impl<E> Default for Queue<E> {
    fn default() -> Self {
        Self { entries: BinaryHeap::new(), number: 0 }
    }
}

impl<E> Queue<E> {
    pub fn push(&mut self, at: Time, event: E) {
        self.number += 1;
        self.entries.push(Entry { at, number: self.number, event });
    }

    pub fn next_at(&self) -> Option<Time> {
        self.entries.peek().map(|entry| entry.at)
    }

    pub fn pop(&mut self) -> Option<(Time, E)> {
        self.entries.pop().map(|entry| (entry.at, entry.event))
    }
}

// The earliest is the greatest: the heap of the standard library gives the greatest first.
impl<E> Ord for Entry<E> {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<E> Eq for Entry<E> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_first_then_the_order_of_arrival() {
        let mut queue = Queue::default();
        for (at, event) in [(5, 'c'), (1, 'a'), (5, 'd'), (1, 'b')] {
            queue.push(at, event);
        }
        assert_eq!(queue.next_at(), Some(1));
        let order: String = std::iter::from_fn(|| queue.pop()).map(|(_, event)| event).collect();
        assert_eq!(order, "abcd");
    }
}
