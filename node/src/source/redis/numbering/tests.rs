use proptest::prelude::*;
use tickmesh_protocol::{Sequence, checkpoint::PartitionState};

use super::*;

const BASE: u64 = 1_600_000_000_000;

fn id(n: u64) -> Id {
    Id { ms: BASE + n, n: 0 }
}

/// A stream of Redis, as far as it matters here; each entry has contents of its own.
#[derive(Clone, Debug, Default)]
struct Model {
    entries: Vec<(Id, u32)>,
    added: u64,
    last_given: Id,
    max_deleted: Id,
}

impl Model {
    fn add(&mut self, step: u64, contents: &mut u32) {
        *contents += 1;
        let ms = self.last_given.ms.max(BASE) + step;
        self.last_given = Id { ms, n: 0 };
        self.entries.push((self.last_given, *contents));
        self.added += 1;
    }

    fn trim(&mut self, count: usize) {
        self.entries.drain(..count.min(self.entries.len()));
    }

    fn delete(&mut self, at: usize) {
        if at < self.entries.len() {
            let (id, _) = self.entries.remove(at);
            self.max_deleted = self.max_deleted.max(id);
        }
    }

    fn info(&self) -> Info {
        Info {
            length: self.entries.len() as u64,
            added: self.added,
            last_given: self.last_given,
            max_deleted: self.max_deleted,
            first: self.entries.first().map(|(id, _)| *id),
            last: self.entries.last().map(|(id, _)| *id),
            first_digest: self.entries.first().map_or(0, |(_, contents)| *contents),
        }
    }

    fn at(&self, id: Id) -> Option<u32> {
        self.entries.iter().find(|(at, _)| *at == id).map(|(_, contents)| *contents)
    }

    fn after(&self, id: Id, count: usize) -> Vec<(Id, u32)> {
        self.entries.iter().filter(|(at, _)| *at > id).take(count).copied().collect()
    }
}

/// A reader that does with answers what the source does.
struct Reader {
    followed: Followed,
    /// What it handed on, with the generation.
    handed: Vec<(u32, Id, u32)>,
    /// Beginnings that were told, by how much had been handed on before.
    told: Vec<usize>,
    /// Whether each new generation began exactly where the stream was cut.
    exact: bool,
}

impl Reader {
    fn new(info: &Info) -> Self {
        Self { followed: Followed::from_beginning(info), handed: Vec::new(), told: Vec::new(), exact: true }
    }

    /// Whether the entries read are to be handed on.
    fn settle(&mut self, server: &Model, at_cursor: Option<u32>, read: &[Id]) -> bool {
        let info = server.info();
        match self.followed.judge(at_cursor, &info, read) {
            Verdict::Same => {
                if read.is_empty() {
                    self.followed.looked(at_cursor, &info);
                }
                true
            }
            Verdict::Trimmed => {
                self.told.push(self.handed.len());
                self.followed.trimmed(&info, read);
                true
            }
            Verdict::Lost => {
                let there = match self.followed.remembered() {
                    Some((oldest, newest)) => server
                        .entries
                        .iter()
                        .filter(|(id, _)| (oldest..=newest).contains(id))
                        .copied()
                        .collect(),
                    None => Vec::new(),
                };
                let cut = self.followed.find_cut(&there, &info);
                self.exact &= cut.first;
                self.told.push(self.handed.len());
                self.followed.go_on(cut, &info);
                false
            }
        }
    }

    fn look(&mut self, server: &Model) {
        self.settle(server, server.at(self.followed.cursor), &[]);
    }

    /// Reads up to `count` entries; `between` happens after they were read, and before the stream is looked at.
    fn read(&mut self, server: &mut Model, count: usize, between: impl FnOnce(&mut Model)) {
        let entries = server.after(self.followed.cursor, count);
        between(server);
        if entries.is_empty() {
            return;
        }
        let at_cursor = server.at(self.followed.cursor);
        let ids: Vec<Id> = entries.iter().map(|(id, _)| *id).collect();
        if (at_cursor.is_some() && at_cursor == self.followed.digest) || self.settle(server, at_cursor, &ids)
        {
            for (id, contents) in entries {
                self.followed.take(id, contents);
                self.handed.push((self.followed.generation, id, contents));
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// So many entries, their ids so far apart.
    Add(usize, u64),
    Trim(usize),
    Read(usize),
    /// Entries are trimmed and others added between two looks.
    ReadWhile(usize, usize, usize),
    Look,
    Save,
    /// The server goes back to what it saved; entries are added before anybody looks.
    Crash(usize, u64),
    /// The key is deleted and made anew.
    Anew(usize, u64),
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..6_usize, 1..4_u64).prop_map(|(count, step)| Step::Add(count, step)),
        1 => (1..6_usize).prop_map(Step::Trim),
        4 => (1..6_usize).prop_map(Step::Read),
        2 => (1..5_usize, 0..6_usize, 0..4_usize).prop_map(|(count, trim, add)| Step::ReadWhile(count, trim, add)),
        2 => Just(Step::Look),
        1 => Just(Step::Save),
        1 => (0..6_usize, prop_oneof![1..3_u64, Just(1000)]).prop_map(|(count, step)| Step::Crash(count, step)),
        1 => (0..6_usize, prop_oneof![1..3_u64, Just(1000)]).prop_map(|(count, step)| Step::Anew(count, step)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn nothing_is_given_twice_or_missed_in_silence(steps in prop::collection::vec(any_step(), 1..60)) {
        let (mut server, mut saved, mut contents) = (Model::default(), Model::default(), 0);
        let mut reader = Reader::new(&server.info());
        // Entries that were trimmed before they were read, and how much had been handed on then.
        let mut missed: Vec<(u32, usize)> = Vec::new();
        let mut ever_missed = Vec::new();
        let mut saved_contents = 0;
        for step in steps {
            ever_missed.extend(missed.iter().map(|(contents, _)| *contents));
            let trimmed_unread = |server: &Model, count: usize, after: Id, handed: usize| {
                let trimmed = server.entries.iter().take(count).filter(|(id, _)| *id > after);
                trimmed.map(|(_, contents)| (*contents, handed)).collect::<Vec<_>>()
            };
            match step {
                Step::Add(count, step) => (0..count).for_each(|_| server.add(step, &mut contents)),
                Step::Trim(count) => {
                    missed.extend(trimmed_unread(&server, count, reader.followed.cursor, reader.handed.len()));
                    server.trim(count);
                }
                Step::Read(count) => reader.read(&mut server, count, |_| {}),
                Step::ReadWhile(count, trim, add) => {
                    let read = server.after(reader.followed.cursor, count);
                    let last = read.last().map_or(reader.followed.cursor, |(id, _)| *id);
                    let mut gone = Vec::new();
                    reader.read(&mut server, count, |server| {
                        gone = trimmed_unread(server, trim, last, 0);
                        server.trim(trim);
                        (0..add).for_each(|_| server.add(1, &mut contents));
                    });
                    missed.extend(gone.into_iter().map(|(contents, _)| (contents, reader.handed.len())));
                }
                Step::Look => reader.look(&server),
                Step::Save => (saved, saved_contents) = (server.clone(), contents),
                Step::Crash(count, step) => {
                    server = saved.clone();
                    // What was added since is lost to everybody, and what was trimmed since is there to be read.
                    let back = server.after(reader.followed.cursor, usize::MAX);
                    missed.retain(|(missed, _)| {
                        *missed <= saved_contents && back.iter().all(|(_, contents)| contents != missed)
                    });
                    (0..count).for_each(|_| server.add(step, &mut contents));
                    // And once more, before the next misfortune.
                    (0..2).for_each(|_| reader.look(&server));
                }
                Step::Anew(count, step) => {
                    server = Model::default();
                    (saved, saved_contents) = (Model::default(), contents);
                    missed.clear();
                    (0..count).for_each(|_| server.add(step, &mut contents));
                    // And once more, before the next misfortune.
                    (0..2).for_each(|_| reader.look(&server));
                }
            }
        }
        reader.look(&server);
        while !server.after(reader.followed.cursor, 1).is_empty() {
            reader.read(&mut server, 7, |_| {});
        }
        for pair in reader.handed.windows(2) {
            let ((before, first, _), (after, second, _)) = (pair[0], pair[1]);
            prop_assert!(before < after || (before == after && first < second), "numbers rise: {:?}", pair);
        }
        let mut twice: Vec<u32> = reader.handed.iter().map(|(_, _, contents)| *contents).collect();
        twice.sort_unstable();
        prop_assert!(twice.is_sorted_by(|a, b| a < b), "nothing comes twice");
        // Whatever comes after entries that were missed begins anew. What a crash gave back was not missed.
        let came = |contents: &u32| twice.binary_search(contents).is_ok();
        for (contents, at) in missed.into_iter().filter(|(contents, _)| !came(contents)) {
            let told = reader.handed.len() <= at || reader.told.contains(&at);
            prop_assert!(told, "{} was missed after {} and that was not told: {:?}", contents, at, reader.told);
        }
        // And of what is there, nothing is left out but what a crash gave back, or where nobody can know what was cut.
        if reader.exact {
            for (_, contents) in &server.entries {
                prop_assert!(came(contents) || ever_missed.contains(contents), "{} is left out", contents);
            }
        }
    }

    #[test]
    fn deleted_entries_are_no_fault(
        steps in prop::collection::vec((1..5_usize, 0..8_usize, 1..6_usize, any::<bool>()), 1..30),
    ) {
        let (mut server, mut contents) = (Model::default(), 0);
        let mut reader = Reader::new(&server.info());
        for (add, delete, read, look) in steps {
            (0..add).for_each(|_| server.add(1, &mut contents));
            server.delete(delete);
            reader.read(&mut server, read, |_| {});
            if look {
                reader.look(&server);
            }
            prop_assert_eq!(reader.followed.generation, 0, "deleting makes no other stream");
        }
    }
}

/// A stream of entries 1 to 100, read up to its end.
fn read_through() -> (Model, Reader) {
    let (mut server, mut contents) = (Model::default(), 0);
    (0..100).for_each(|_| server.add(1, &mut contents));
    let mut reader = Reader::new(&server.info());
    reader.read(&mut server, 1000, |_| {});
    reader.look(&server);
    (server, reader)
}

#[test]
fn a_cut_is_found_exactly_and_is_another_epoch() {
    let (mut server, mut reader) = read_through();
    // The last forty are lost, and their ids given again.
    server.entries.truncate(60);
    (server.added, server.last_given) = (60, id(60));
    let mut contents = 1000;
    (0..50).for_each(|_| server.add(1, &mut contents));
    reader.look(&server);
    assert_eq!((reader.followed.generation, reader.followed.cursor), (1, id(60)));
    assert!(reader.exact);
    assert_eq!(reader.followed.next(), id(60).next_position());
    assert_ne!(epoch_of("1/trades", 1), epoch_of("1/trades", 0));
    assert_ne!(epoch_of("1/trades", 0), epoch_of("2/trades", 0), "the configured name is a part of it");
}

#[test]
fn who_starts_later_agrees() {
    let (mut server, reader) = read_through();
    let place = Place { position: reader.followed.next(), term: reader.followed.digest };
    let starts = |generation, place: Place| {
        let state = PartitionState {
            epoch: epoch_of("1/trades", generation),
            topic: "trades".into(),
            partition: 0,
            next: place.position,
            read_from: Sequence::ZERO,
            term: place.term,
        };
        [state].iter().collect::<Starts>()
    };
    let restored = |starts: &Starts| {
        known(starts, "1/trades").map(|(generation, place)| Followed::restored(generation, place))
    };
    let look =
        |server: &Model, followed: &Followed| followed.judge(server.at(followed.cursor), &server.info(), &[]);
    let followed = restored(&starts(0, place)).unwrap();
    assert_eq!(look(&server, &followed), Verdict::Same, "nothing happened");
    server.trim(100);
    assert_eq!(look(&server, &followed), Verdict::Same, "all was trimmed after it was read");
    let mut contents = 1000;
    server.add(1, &mut contents);
    assert_eq!(look(&server, &followed), Verdict::Trimmed, "nobody knows whether more was between");

    let (mut server, _) = read_through();
    server.entries.truncate(60);
    (server.added, server.last_given) = (60, id(60));
    assert_eq!(look(&server, &followed), Verdict::Lost, "the end is gone");
    server.add(1000, &mut contents);
    assert_eq!(look(&server, &followed), Verdict::Lost, "the entry read last is gone, and ids rose again");
    let mut anew = Model::default();
    anew.add(1000, &mut contents);
    assert_eq!(look(&anew, &followed), Verdict::Lost, "it never held what was read");
    let cut = followed.find_cut(&[], &anew.info());
    assert_eq!((cut.after, cut.first), (Id::ZERO, true), "all of it is new");
    // Two generations are known: the newest counts.
    let mut both = starts(0, place);
    both.add(&PartitionState {
        epoch: epoch_of("1/trades", 1),
        topic: "trades".into(),
        partition: 0,
        next: place.position,
        read_from: Sequence::ZERO,
        term: None,
    });
    assert_eq!(restored(&both).unwrap().generation, 1);
}

#[test]
fn lag_is_what_is_there_and_not_read() {
    let (mut server, mut reader) = read_through();
    assert_eq!(reader.followed.lag(&server.info()), 0);
    let mut contents = 1000;
    (0..30).for_each(|_| server.add(1, &mut contents));
    assert_eq!(reader.followed.lag(&server.info()), 30);
    reader.read(&mut server, 10, |_| {});
    assert_eq!(reader.followed.lag(&server.info()), 20);
}
