//! The market as a whole: a clock of ticks, the instruments, the demo users, and the log they write.
//!
//! A record is a pure function of the settings and its partition and position: the market moves in ticks of
//! [`TICK_MS`], everything in a tick happens in a fixed order, and chance comes from seeded generators that are part of
//! the state. So a clone of a [`Market`] writes the same records again, byte for byte.

use std::collections::BTreeMap;

use super::{
    book::{Order, Owner, Side},
    instrument::{Happening, Instrument, Specification},
    random::Random,
    render,
};

/// Time of one matching cycle, in milliseconds: small groups of orders, as real engines do it.
pub const TICK_MS: u64 = 5;
/// Ticks from one difference of a book to the next: 50 ms.
const DEPTH_TICKS: u64 = 10;
/// Ticks from one ticker to the next: 250 ms.
const TICKER_TICKS: u64 = 50;
/// Ticks from one whole book, and from one global ticker, to the next: 1 s.
const SECOND_TICKS: u64 = 1000 / TICK_MS;
/// Symbols do not all tell their books in the same tick: each is this much later than the one before.
const PHASE_TICKS: u64 = 3;

/// The demo users. Their orders go through the same books as everyone's.
pub const USERS: [&str; 2] = ["alice", "bob"];
/// Ticks between two actions of a user, on average: 1 s.
const USER_TICKS: u64 = SECOND_TICKS;
/// Open orders a user has at most.
const USER_OPEN_ORDERS: usize = 8;

/// Stream number of the generator that drives the users; instruments have their index.
const USER_RANDOM: u64 = u64::MAX;

/// What makes a market the one it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    pub seed: u64,
    pub symbols: Vec<String>,
    /// Orders per second over all symbols.
    pub rate: u64,
    /// When it opens, in milliseconds since 1970 UTC.
    pub origin_ms: u64,
}

impl Setting {
    /// One for each symbol, one for `ticker.global`, one for the orders of users.
    pub fn partitions(&self) -> usize {
        self.symbols.len() + 2
    }
}

/// A record that a market wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    pub partition: usize,
    pub position: u64,
    pub time_ms: u64,
    pub value: String,
}

/// Which records are wanted; the others are only counted, which costs much less than writing them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    Nothing,
    Everything,
    Range { partition: usize, from: u64, until: u64 },
}

/// Takes the records that are wanted.
#[derive(Clone, Debug)]
pub struct Collector {
    want: Want,
    pub records: Vec<Written>,
}

impl Collector {
    pub fn new(want: Want) -> Self {
        Self { want, records: Vec::new() }
    }

    fn wants(&self, partition: usize, position: u64) -> bool {
        match self.want {
            Want::Nothing => false,
            Want::Everything => true,
            Want::Range { partition: wanted, from, until } => {
                partition == wanted && (from..until).contains(&position)
            }
        }
    }
}

#[derive(Clone, Debug)]
pub struct Market {
    origin_ms: u64,
    /// Millionths of an order that come for one symbol in one tick.
    millionths: u64,
    tick: u64,
    instruments: Vec<Instrument>,
    users: Vec<User>,
    random: Random,
    next_user_order: u64,
    /// The position of the next record of each partition.
    positions: Vec<u64>,
}

/// A user's open orders: his number of it → instrument and the book's number.
#[derive(Clone, Debug, Default)]
struct User {
    open: BTreeMap<u64, (usize, u64)>,
}

/// Where the records of one tick go.
struct Log<'a> {
    positions: &'a mut [u64],
    collector: &'a mut Collector,
    time_ms: u64,
}

impl Log<'_> {
    fn write(&mut self, partition: usize, value: impl FnOnce(u64) -> String) {
        let Some(next) = self.positions.get_mut(partition) else { return };
        let position = *next;
        *next += 1;
        if self.collector.wants(partition, position) {
            let value = value(self.time_ms);
            self.collector.records.push(Written { partition, position, time_ms: self.time_ms, value });
        }
    }
}

impl Market {
    pub fn new(setting: &Setting) -> Self {
        let instruments: Vec<Instrument> = setting
            .symbols
            .iter()
            .zip(0..)
            .map(|(symbol, index)| {
                Instrument::new(Specification::of(symbol), Random::new(setting.seed, index))
            })
            .collect();
        let symbols = u64::try_from(instruments.len()).unwrap_or(1).max(1);
        Self {
            origin_ms: setting.origin_ms,
            millionths: setting.rate * 1_000 * TICK_MS / symbols,
            tick: 0,
            instruments,
            users: vec![User::default(); USERS.len()],
            random: Random::new(setting.seed, USER_RANDOM),
            next_user_order: 1,
            positions: vec![0; setting.partitions()],
        }
    }

    /// Ticks that have happened.
    pub fn tick(&self) -> u64 {
        self.tick
    }

    /// When the next tick happens, in milliseconds since 1970 UTC.
    pub fn next_ms(&self) -> u64 {
        self.origin_ms.saturating_add(self.tick.saturating_mul(TICK_MS))
    }

    /// The position of the next record of each partition.
    pub fn positions(&self) -> &[u64] {
        &self.positions
    }

    /// Lets one tick happen.
    pub fn step(&mut self, collector: &mut Collector) {
        let time_ms = self.next_ms();
        let mut positions = std::mem::take(&mut self.positions);
        let mut log = Log { positions: &mut positions, collector, time_ms };
        for user in 0..self.users.len() {
            if self.random.once_in(USER_TICKS) {
                self.user_acts(user, &mut log);
            }
        }
        for index in 0..self.instruments.len() {
            for _ in 0..self.instruments[index].arrivals(self.millionths) {
                if let Some(happening) = self.instruments[index].act() {
                    self.tell(index, &happening, &mut log);
                }
            }
            self.tell_levels(index, &mut log);
        }
        if self.tick.is_multiple_of(SECOND_TICKS) {
            let all = self.instruments.iter().filter_map(|i| Some((&i.specification, i.ticker.as_ref()?)));
            log.write(self.instruments.len(), |time_ms| render::tickers(all, time_ms));
        }
        self.positions = positions;
        self.tick += 1;
    }

    fn user_acts(&mut self, user: usize, log: &mut Log<'_>) {
        let open = &self.users[user].open;
        let oldest = open.first_key_value().map(|(_, place)| *place);
        if let Some((index, id)) = oldest
            && (open.len() >= USER_OPEN_ORDERS || self.random.percent(25))
        {
            if let Some(order) = self.instruments[index].book.cancel(id) {
                self.tell(index, &Happening::Cancelled(order), log);
            }
            return;
        }
        let index = usize::try_from(self.random.below(self.instruments.len() as u64)).unwrap_or(0);
        let side = if self.random.percent(50) { Side::Buy } else { Side::Sell };
        let owner = Owner { user, order: self.next_user_order };
        self.next_user_order += 1;
        if let Some(order) = self.instruments[index].user_order(side, owner) {
            let happening = self.instruments[index].place(order);
            self.tell(index, &happening, log);
        }
    }

    /// Writes what an order did: trades, and what concerns the orders of users.
    fn tell(&mut self, index: usize, happening: &Happening, log: &mut Log<'_>) {
        let placed = match happening {
            Happening::Placed(placed) => placed,
            Happening::Cancelled(order) => return self.tell_user(index, order, "cancelled", log),
        };
        if placed.order.owner.is_some() {
            let accepted = Order { remaining: placed.order.quantity, ..placed.order.clone() };
            self.tell_user(index, &accepted, "accepted", log);
        }
        for fill in &placed.fills {
            let instrument = &mut self.instruments[index];
            let id = instrument.next_trade;
            instrument.next_trade += 1;
            let specification = &instrument.specification;
            log.write(index, |time_ms| {
                render::trade(specification, id, fill.taker.side, fill.price, fill.quantity, time_ms)
            });
            for order in [&fill.maker, &fill.taker] {
                let status = if order.remaining == 0 { "filled" } else { "partially_filled" };
                self.tell_user(index, order, status, log);
            }
        }
        for order in &placed.cancelled {
            self.tell_user(index, order, "cancelled", log);
        }
    }

    /// Writes what became of a user's order, and remembers whether it is open.
    fn tell_user(&mut self, index: usize, order: &Order, status: &str, log: &mut Log<'_>) {
        let Some(owner) = order.owner else { return };
        let (Some(user), Some(name)) = (self.users.get_mut(owner.user), USERS.get(owner.user)) else {
            return;
        };
        match status {
            "filled" | "cancelled" => user.open.remove(&owner.order),
            _ => user.open.insert(owner.order, (index, order.id)),
        };
        let specification = &self.instruments[index].specification;
        log.write(self.instruments.len() + 1, |time_ms| {
            render::order(specification, name, owner.order, order, status, time_ms)
        });
    }

    /// Writes the differences of a book, the whole book and the ticker, each when its time has come. A whole book comes
    /// directly after the differences up to it, so it holds exactly what came before it in the partition.
    fn tell_levels(&mut self, index: usize, log: &mut Log<'_>) {
        let phase = self.tick + PHASE_TICKS * index as u64;
        let instrument = &mut self.instruments[index];
        let specification = &instrument.specification;
        let whole = self.tick == 0 || phase.is_multiple_of(SECOND_TICKS);
        if whole || phase.is_multiple_of(DEPTH_TICKS) {
            let changes = instrument.book.take_changes();
            if !changes.asks.is_empty() || !changes.bids.is_empty() {
                log.write(index, |time_ms| render::levels("depth", specification, &changes, time_ms));
            }
        }
        if whole {
            let book = instrument.book.levels();
            log.write(index, |time_ms| render::whole_depth(specification, &book, time_ms));
            log.write(index, |time_ms| render::levels("book", specification, &book, time_ms));
        }
        if phase.is_multiple_of(TICKER_TICKS) && instrument.ticker_changed {
            instrument.ticker_changed = false;
            if let Some(ticker) = &instrument.ticker {
                log.write(index, |time_ms| render::ticker(specification, ticker, time_ms));
            }
        }
    }
}

#[cfg(test)]
mod tests;
