//! A limit order book with price-time priority. Integers only: prices and quantities are counts of the instrument's
//! smallest steps. Ordered maps only: the same orders give the same book on every machine.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Most price levels on one side. The worst are cancelled beyond that, so that a snapshot of the whole book is a few
/// kilobytes and every difference after it makes sense to whoever holds it.
pub const MAX_LEVELS: usize = 100;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Buy,
    Sell,
}

impl Side {
    pub fn name(self) -> &'static str {
        match self {
            Self::Buy => "buy",
            Self::Sell => "sell",
        }
    }

    pub fn opposite(self) -> Self {
        match self {
            Self::Buy => Self::Sell,
            Self::Sell => Self::Buy,
        }
    }

    /// The price `by` worse for whoever waits on this side, better for whoever trades with him: lower for a buyer.
    pub fn away(self, price: i64, by: i64) -> i64 {
        match self {
            Self::Buy => price - by,
            Self::Sell => price + by,
        }
    }
}

/// A demo user's order: who, and the number he knows it by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    pub user: usize,
    pub order: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    pub id: u64,
    pub side: Side,
    pub price: i64,
    pub quantity: u64,
    pub remaining: u64,
    pub owner: Option<Owner>,
}

/// An order before it has a number.
#[derive(Clone, Copy, Debug)]
pub struct NewOrder {
    pub side: Side,
    /// The worst price it takes.
    pub price: i64,
    pub quantity: u64,
    pub owner: Option<Owner>,
    /// Whether what does not trade at once stays in the book.
    pub rests: bool,
}

/// A trade with one resting order, as both are after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fill {
    pub maker: Order,
    pub taker: Order,
    /// The maker's.
    pub price: i64,
    pub quantity: u64,
}

/// What became of a new order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// As it is in the end.
    pub order: Order,
    pub fills: Vec<Fill>,
    /// Orders that left the book untraded: what did not rest, and those of levels beyond [`MAX_LEVELS`].
    pub cancelled: Vec<Order>,
}

/// Price levels, best first: (price, quantity); quantity zero where the level is gone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Levels {
    pub asks: Vec<(i64, u64)>,
    pub bids: Vec<(i64, u64)>,
}

#[derive(Clone, Debug, Default)]
pub struct Book {
    bids: BTreeMap<i64, Level>,
    asks: BTreeMap<i64, Level>,
    orders: BTreeMap<u64, Order>,
    changed_bids: BTreeSet<i64>,
    changed_asks: BTreeSet<i64>,
    next_id: u64,
}

#[derive(Clone, Debug, Default)]
struct Level {
    total: u64,
    /// Oldest first.
    queue: VecDeque<u64>,
}

impl Book {
    /// Trades a new order with what is in the book, best price and oldest first, and lets the rest of it wait.
    pub fn place(&mut self, new: NewOrder) -> Placed {
        self.next_id += 1;
        let NewOrder { side, price, quantity, owner, rests } = new;
        let mut order = Order { id: self.next_id, side, price, quantity, remaining: quantity, owner };
        let mut fills = Vec::new();
        while order.remaining > 0 {
            let Some(fill) = self.fill(&mut order) else { break };
            fills.push(fill);
        }
        let mut cancelled = Vec::new();
        if order.remaining > 0 {
            if rests {
                self.rest(order.clone());
                self.prune(side, &mut cancelled);
            } else {
                cancelled.push(order.clone());
            }
        }
        Placed { order, fills, cancelled }
    }

    /// Takes an order out of the book.
    pub fn cancel(&mut self, id: u64) -> Option<Order> {
        let order = self.orders.remove(&id)?;
        let levels = self.side_mut(order.side);
        if let Some(level) = levels.get_mut(&order.price) {
            level.queue.retain(|waiting| *waiting != id);
            level.total = level.total.saturating_sub(order.remaining);
            if level.queue.is_empty() {
                levels.remove(&order.price);
            }
        }
        self.changed(order.side).insert(order.price);
        Some(order)
    }

    /// The first order in the book with this number or a later one.
    pub fn order_from(&self, id: u64) -> Option<&Order> {
        self.orders.range(id..).next().map(|(_, order)| order)
    }

    /// The oldest and the newest number given out to an order that is in the book.
    pub fn id_range(&self) -> Option<(u64, u64)> {
        Some((*self.orders.first_key_value()?.0, *self.orders.last_key_value()?.0))
    }

    #[cfg(test)]
    fn orders(&self) -> impl Iterator<Item = &Order> {
        self.orders.values()
    }

    pub fn order_count(&self) -> usize {
        self.orders.len()
    }

    pub fn best(&self, side: Side) -> Option<i64> {
        match side {
            Side::Buy => self.bids.last_key_value(),
            Side::Sell => self.asks.first_key_value(),
        }
        .map(|(price, _)| *price)
    }

    pub fn level_count(&self, side: Side) -> usize {
        match side {
            Side::Buy => self.bids.len(),
            Side::Sell => self.asks.len(),
        }
    }

    /// The whole book.
    pub fn levels(&self) -> Levels {
        let of = |(price, level): (&i64, &Level)| (*price, level.total);
        Levels { asks: self.asks.iter().map(of).collect(), bids: self.bids.iter().rev().map(of).collect() }
    }

    /// The levels that changed since the last call, as they are now.
    pub fn take_changes(&mut self) -> Levels {
        let total = |levels: &BTreeMap<i64, Level>, price| levels.get(&price).map_or(0, |level| level.total);
        let asks = std::mem::take(&mut self.changed_asks);
        let bids = std::mem::take(&mut self.changed_bids);
        Levels {
            asks: asks.into_iter().map(|price| (price, total(&self.asks, price))).collect(),
            bids: bids.into_iter().rev().map(|price| (price, total(&self.bids, price))).collect(),
        }
    }

    /// One trade of `taker` with the best order of the other side, if their prices meet.
    fn fill(&mut self, taker: &mut Order) -> Option<Fill> {
        let maker_side = taker.side.opposite();
        let price = self.best(maker_side)?;
        let meets = match taker.side {
            Side::Buy => price <= taker.price,
            Side::Sell => price >= taker.price,
        };
        if !meets {
            return None;
        }
        let id = *self.side_mut(maker_side).get(&price)?.queue.front()?;
        let maker = self.orders.get_mut(&id)?;
        let quantity = taker.remaining.min(maker.remaining);
        taker.remaining -= quantity;
        maker.remaining -= quantity;
        let maker = maker.clone();
        if maker.remaining == 0 {
            self.orders.remove(&id);
        }
        let levels = self.side_mut(maker_side);
        if let Some(level) = levels.get_mut(&price) {
            level.total = level.total.saturating_sub(quantity);
            if maker.remaining == 0 {
                level.queue.pop_front();
            }
            if level.queue.is_empty() {
                levels.remove(&price);
            }
        }
        self.changed(maker_side).insert(price);
        Some(Fill { maker, taker: taker.clone(), price, quantity })
    }

    fn rest(&mut self, order: Order) {
        let level = self.side_mut(order.side).entry(order.price).or_default();
        level.total += order.remaining;
        level.queue.push_back(order.id);
        self.changed(order.side).insert(order.price);
        self.orders.insert(order.id, order);
    }

    fn prune(&mut self, side: Side, cancelled: &mut Vec<Order>) {
        while self.level_count(side) > MAX_LEVELS {
            let worst = match side {
                Side::Buy => self.bids.first_key_value(),
                Side::Sell => self.asks.last_key_value(),
            };
            let Some((_, level)) = worst else { return };
            for id in level.queue.clone() {
                cancelled.extend(self.cancel(id));
            }
        }
    }

    fn side_mut(&mut self, side: Side) -> &mut BTreeMap<i64, Level> {
        match side {
            Side::Buy => &mut self.bids,
            Side::Sell => &mut self.asks,
        }
    }

    fn changed(&mut self, side: Side) -> &mut BTreeSet<i64> {
        match side {
            Side::Buy => &mut self.changed_bids,
            Side::Sell => &mut self.changed_asks,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn limit(side: Side, price: i64, quantity: u64) -> NewOrder {
        NewOrder { side, price, quantity, owner: None, rests: true }
    }

    #[test]
    fn best_price_first_then_oldest() {
        let mut book = Book::default();
        let dear = book.place(limit(Side::Sell, 102, 5)).order.id;
        let first = book.place(limit(Side::Sell, 101, 5)).order.id;
        let second = book.place(limit(Side::Sell, 101, 5)).order.id;
        let placed = book.place(limit(Side::Buy, 102, 12));
        let trades: Vec<_> = placed.fills.iter().map(|f| (f.maker.id, f.price, f.quantity)).collect();
        assert_eq!(trades, [(first, 101, 5), (second, 101, 5), (dear, 102, 2)]);
        assert_eq!(book.levels(), Levels { asks: vec![(102, 3)], bids: vec![] });
    }

    #[test]
    fn the_worst_levels_beyond_the_bound_are_cancelled() {
        let mut book = Book::default();
        for price in 0..MAX_LEVELS as i64 {
            assert!(book.place(limit(Side::Buy, 1000 + price, 1)).cancelled.is_empty());
        }
        let placed = book.place(limit(Side::Buy, 5000, 1));
        assert_eq!(placed.cancelled.iter().map(|order| order.price).collect::<Vec<_>>(), [1000]);
        let unwanted = book.place(limit(Side::Buy, 1, 7));
        assert_eq!(unwanted.cancelled, [unwanted.order], "the new order itself may be the worst");
        assert_eq!(book.level_count(Side::Buy), MAX_LEVELS);
    }

    #[derive(Clone, Debug)]
    enum Act {
        Place(NewOrder),
        Cancel(u64),
    }

    fn act() -> impl Strategy<Value = Act> {
        let side = prop_oneof![Just(Side::Buy), Just(Side::Sell)];
        let place =
            (side, 1..300_i64, 1..50_u64, any::<bool>()).prop_map(|(side, price, quantity, rests)| {
                Act::Place(NewOrder { side, price, quantity, owner: None, rests })
            });
        prop_oneof![3 => place, 1 => (0..400_u64).prop_map(Act::Cancel)]
    }

    proptest! {
        #[test]
        fn never_crossed_nothing_lost_and_differences_are_exact(acts in prop::collection::vec(act(), 1..400)) {
            let mut book = Book::default();
            let (mut submitted, mut traded, mut cancelled) = (0, 0, 0);
            let mut copy: [BTreeMap<i64, u64>; 2] = Default::default();
            for (number, act) in acts.into_iter().enumerate() {
                match act {
                    Act::Place(new) => {
                        submitted += new.quantity;
                        let placed = book.place(new);
                        traded += placed.fills.iter().map(|fill| fill.quantity).sum::<u64>();
                        cancelled += placed.cancelled.iter().map(|order| order.remaining).sum::<u64>();
                    }
                    Act::Cancel(id) => cancelled += book.cancel(id).map_or(0, |order| order.remaining),
                }
                if let (Some(bid), Some(ask)) = (book.best(Side::Buy), book.best(Side::Sell)) {
                    prop_assert!(bid < ask, "crossed: {bid} {ask}");
                }
                let resting: u64 = book.orders().map(|order| order.remaining).sum();
                // Each trade takes the same quantity from two orders.
                prop_assert_eq!(submitted, 2 * traded + cancelled + resting);
                if number % 7 == 0 {
                    let changes = book.take_changes();
                    for (side, levels) in [(0, changes.asks), (1, changes.bids)] {
                        for (price, quantity) in levels {
                            copy[side].insert(price, quantity);
                        }
                        copy[side].retain(|_, quantity| *quantity > 0);
                    }
                    let levels = book.levels();
                    prop_assert_eq!(copy[0].clone().into_iter().collect::<Vec<_>>(), levels.asks);
                    prop_assert_eq!(copy[1].clone().into_iter().rev().collect::<Vec<_>>(), levels.bids);
                }
            }
        }
    }
}
