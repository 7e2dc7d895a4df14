//! Where mutations bite, and where liars lie: the thin layer between the peers of the model and the machines.

use tickmesh_protocol::{
    Batch, Event, Previous, Sequence,
    repair::{Output, Received, Repair},
    takeover::SourceId,
};

use super::*;

impl World<'_> {
    fn is(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }

    /// What an ingest peer takes a batch of another for.
    pub(super) fn altered_seen(&self, id: Id, batch: Rc<Batch>) -> Rc<Batch> {
        let Some(ingest) = self.get_ingest(id).filter(|_| self.is(Mutation::ForgetUnseen)) else {
            return batch;
        };
        let mut batch = Batch::clone(&batch);
        for event in &mut batch.events {
            let newest = ingest.sequencer.last(&event.stream).filter(|last| last.epoch == event.epoch);
            event.sequence = newest.map_or(event.sequence, |last| last.sequence.max(event.sequence));
        }
        Rc::new(batch)
    }

    /// What an ingest peer really publishes.
    pub(super) fn altered_published(&mut self, id: Id, mut batch: Batch) -> Option<Batch> {
        if let Some(ahead) = self.lie(id) {
            for (_, head) in &mut batch.heads {
                *head = feeds::further(*head, ahead).unwrap_or(*head);
            }
        }
        if self.is(Mutation::TellNoHeads) {
            batch.heads.clear();
        }
        if self.is(Mutation::TakeOverWithoutBacklog) {
            let ingest = self.ingest(id)?;
            let takeovers = ingest.publisher.counts().takeovers;
            if !batch.events.is_empty() && takeovers > ingest.takeovers {
                ingest.takeovers = takeovers;
                batch.events.clear();
            }
        }
        (!batch.events.is_empty() || !batch.heads.is_empty()).then_some(batch)
    }

    /// Where an ingest peer begins to read.
    pub(super) fn altered_start(&mut self, id: Id, partition: usize) {
        let source = SourceId(self.source_of(partition) as u16);
        let log = self.log.partition(partition);
        let end = (log.epoch(), log.end());
        let now = self.local(id);
        let (at_end, cold) = (self.is(Mutation::StartAtEnd), self.is(Mutation::PublishBeforeWarm));
        let Some(ingest) = self.ingest(id) else { return };
        if at_end {
            ingest.partitions[partition].next = Some(end);
        }
        if cold {
            ingest.publisher.read_up(source, 0, now);
            ingest.publisher.settled(now);
        }
    }

    /// What an edge takes an event for; `None`: for what it is.
    pub(super) fn altered_event(&self, event: &Event) -> Option<Event> {
        let skip = self.is(Mutation::SkipPreviousCheck) && matches!(event.previous, Previous::At(_));
        skip.then(|| Event { previous: Previous::Unknown { read_from: Sequence::ZERO }, ..event.clone() })
    }

    /// What an edge makes of an event that it received.
    pub(super) fn altered_received(
        &mut self,
        id: Id,
        stream: usize,
        event: &Event,
        received: Received,
        outputs: &mut Vec<Output>,
    ) {
        if self.is(Mutation::DeliverDuplicates) && received == Received::Duplicate {
            outputs.push(Output::Deliver(event.clone()));
        }
        if self.is(Mutation::ForgetReset) {
            outputs.retain(|output| !matches!(output, Output::Reset(_)));
        }
        if self.is(Mutation::GoBackToOldEpoch) {
            self.go_back(id, stream, event, received, outputs);
        }
        // More than one: the event itself, and what was held.
        if outputs.len() > 1 {
            self.altered_released(outputs);
        }
    }

    /// What an edge puts out of what it held.
    pub(super) fn altered_released(&self, outputs: &mut Vec<Output>) {
        if self.is(Mutation::ForgetHeld) && matches!(outputs.last(), Some(Output::Deliver(_))) {
            outputs.pop();
        }
    }

    fn go_back(
        &mut self,
        id: Id,
        stream: usize,
        event: &Event,
        received: Received,
        outputs: &mut Vec<Output>,
    ) {
        let now = self.local(id);
        let Some(found) = self.edge(id).and_then(|edge| edge.streams[stream].as_mut()) else { return };
        if let Some(Output::Reset(_)) = outputs.first() {
            found.left.extend(found.epoch);
        }
        found.epoch = found.repair.position().map(|position| position.epoch);
        if received == Received::Duplicate && found.left.contains(&event.epoch) {
            found.left.retain(|left| *left != event.epoch);
            found.repair = standing_at(event.position(), now);
            outputs.extend([Output::Reset(event.epoch), Output::Deliver(event.clone())]);
        }
    }

    /// Whether an edge has dealt with a claim in a wrong way.
    pub(super) fn altered_claim(&mut self, id: Id, stream: usize, head: Position) -> bool {
        if !self.is(Mutation::BelieveClaimedHead) {
            return false;
        }
        let now = self.local(id);
        let Some(found) = self.edge(id).and_then(|edge| edge.streams[stream].as_mut()) else { return false };
        let newer = found
            .repair
            .position()
            .is_some_and(|last| last.epoch == head.epoch && last.sequence < head.sequence);
        if newer {
            found.repair = standing_at(head, now);
        }
        newer
    }

    /// Whether an edge waits for the head of a stream.
    pub(super) fn altered_join(&mut self, id: Id, stream: usize) {
        if self.is(Mutation::JoinWithoutHead)
            && let Some(question) = self.question_about(id, stream)
        {
            self.head_known(id, question, stream, None, &std::sync::Arc::default());
        }
    }

    /// Which page of an answer an edge takes.
    pub(super) fn altered_page(&mut self, id: Id, feed: u32, page: &mut Option<Rc<Batch>>) {
        if !self.is(Mutation::DropLastPage) {
            return;
        }
        let running = self.edge(id).and_then(|edge| edge.running.iter_mut().find(|known| known.feed == feed));
        if let Some(running) = running {
            std::mem::swap(page, &mut running.held_back);
        }
    }
}

fn standing_at(position: Position, now: Moment) -> Repair {
    let mut repair = Repair::default();
    repair.join();
    repair.joined(Some(position), now, &mut Vec::new());
    repair
}
