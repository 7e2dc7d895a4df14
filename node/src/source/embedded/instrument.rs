//! One symbol: its price steps, its order flow, its ticker.

use super::{
    book::{Book, NewOrder, Order, Owner, Placed, Side},
    random::Random,
};

/// Fair prices are kept in this many parts of a price step, so that small moves of coarse prices add up.
const FAIR_PARTS: i64 = 1024;
/// One order moves the fair price by up to this fraction of the base price: at 33 orders a second about 0.8 % an hour.
const MOVE_FRACTION: i64 = 25_000;
/// With every order the fair price returns by this fraction of its distance to the base price, so that it stays near.
const RETURN_FRACTION: i64 = 65_536;
/// Orders in the book from which on cancels outweigh new orders.
const TARGET_ORDERS: u64 = 250;
/// Levels below which a side gets new orders before anything else happens.
const MIN_LEVELS: usize = 10;
/// Orders on each side at the beginning.
const OPENING_ORDERS: usize = 40;
/// Levels of distance an order that must trade goes beyond the best price.
const REACH_LEVELS: i64 = 8;

/// How prices and quantities of a symbol look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Specification {
    pub symbol: String,
    pub price_decimals: u32,
    pub quantity_decimals: u32,
    /// In price steps.
    base_price: i64,
    /// Distance of usual price levels, in price steps.
    spacing: i64,
    /// A usual quantity, in quantity steps.
    lot: u64,
}

impl Specification {
    /// What is known of a symbol, or something plausible.
    pub(super) fn of(symbol: &str) -> Self {
        let (base_price, price_decimals, lot, quantity_decimals) = match symbol {
            "btc_usdt" => (674_205, 1, 1_800, 4),
            "eth_usdt" => (352_040, 2, 9_000, 4),
            "sol_usdt" => (16_835, 2, 400, 2),
            "bnb_usdt" => (5_921, 1, 900, 3),
            "xrp_usdt" => (21_437, 4, 12_000, 1),
            "doge_usdt" => (12_460, 5, 9_000, 0),
            other => {
                let hash = stable_hash(other);
                (10_000 + i64::try_from(hash % 90_000).unwrap_or(0), 2, 500 + hash % 1_000, 2)
            }
        };
        let spacing = (base_price / 40_000).max(1);
        Self { symbol: symbol.to_owned(), price_decimals, quantity_decimals, base_price, spacing, lot }
    }
}

/// FNV-1a: a stable number from a name.
fn stable_hash(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Prices since the market's origin, in price steps; volume in quantity steps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ticker {
    pub price: i64,
    pub open: i64,
    pub high: i64,
    pub low: i64,
    pub volume: u128,
}

/// What an order did, in the order of happening.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Happening {
    Placed(Placed),
    Cancelled(Order),
}

#[derive(Clone, Debug)]
pub(super) struct Instrument {
    pub(super) specification: Specification,
    pub(super) book: Book,
    /// None before the first trade.
    pub(super) ticker: Option<Ticker>,
    pub(super) next_trade: u64,
    /// The ticker changed since it was last told.
    pub(super) ticker_changed: bool,
    random: Random,
    fair: i64,
    /// How busy it is, in percent of the mean.
    activity: u64,
}

impl Instrument {
    pub(super) fn new(specification: Specification, random: Random) -> Self {
        let fair = specification.base_price * FAIR_PARTS;
        let mut instrument = Self {
            specification,
            book: Book::default(),
            ticker: None,
            next_trade: 1,
            ticker_changed: false,
            random,
            fair,
            activity: 100,
        };
        for _ in 0..OPENING_ORDERS {
            for side in [Side::Buy, Side::Sell] {
                let order = instrument.passive(side);
                instrument.book.place(order);
            }
        }
        instrument
    }

    /// How many orders come in one tick, when `millionths` of an order come on average.
    pub(super) fn arrivals(&mut self, millionths: u64) -> u64 {
        // Quiet and busy seconds of all kinds, 100 % on average.
        if self.random.once_in(200) {
            self.activity = 25 + 25 * self.random.below(7);
        }
        let expected = millionths * self.activity / 100;
        expected / 1_000_000 + u64::from(self.random.below(1_000_000) < expected % 1_000_000)
    }

    /// One action of the many who trade here.
    pub(super) fn act(&mut self) -> Option<Happening> {
        let reach = self.specification.base_price * FAIR_PARTS / MOVE_FRACTION;
        self.fair += self.random.around(reach.max(1));
        self.fair += (self.specification.base_price * FAIR_PARTS - self.fair) / RETURN_FRACTION;
        for side in [Side::Buy, Side::Sell] {
            if self.book.level_count(side) < MIN_LEVELS {
                let order = self.passive(side);
                return Some(self.place(order));
            }
        }
        let side = if self.random.percent(50) { Side::Buy } else { Side::Sell };
        let count = self.book.order_count() as u64;
        let cancel_percent = (45 * count / TARGET_ORDERS).min(60);
        if self.random.percent(cancel_percent) {
            let (first, last) = self.book.id_range()?;
            let from = first + self.random.below((last - first + 1).min(u64::from(u32::MAX)));
            // Users cancel their own.
            let id = self.book.order_from(from).filter(|order| order.owner.is_none())?.id;
            return self.book.cancel(id).map(Happening::Cancelled);
        }
        let order = if self.random.percent(18) { self.aggressive(side, None)? } else { self.passive(side) };
        Some(self.place(order))
    }

    pub(super) fn place(&mut self, order: NewOrder) -> Happening {
        let placed = self.book.place(order);
        for fill in &placed.fills {
            let start = Ticker { price: 0, open: fill.price, high: fill.price, low: fill.price, volume: 0 };
            let ticker = self.ticker.get_or_insert(start);
            ticker.price = fill.price;
            ticker.high = ticker.high.max(fill.price);
            ticker.low = ticker.low.min(fill.price);
            ticker.volume += u128::from(fill.quantity);
            self.ticker_changed = true;
        }
        Happening::Placed(placed)
    }

    /// An order of a user: from a little better than the best price to some levels behind it; sometimes one that trades
    /// at once.
    pub(super) fn user_order(&mut self, side: Side, owner: Owner) -> Option<NewOrder> {
        if self.random.percent(25) {
            return self.aggressive(side, Some(owner));
        }
        let best = self.book.best(side)?;
        let levels = 2 + self.random.around(3);
        let price = side.away(best, self.specification.spacing * levels);
        let quantity = self.quantity();
        Some(NewOrder { side, price: price.max(1), quantity, owner: Some(owner), rests: true })
    }

    /// An order that waits for others. Near the fair price they are many and small, far from it few and large; some go
    /// one step before the best, if there is room.
    fn passive(&mut self, side: Side) -> NewOrder {
        let spacing = self.specification.spacing.unsigned_abs();
        let (distance, factor) = match self.random.below(100) {
            0..20 => (None, 1),
            20..70 => (Some(1 + self.random.below(8 * spacing)), 1),
            70..92 => (Some(4 * spacing + self.random.below(30 * spacing)), 2),
            _ => (Some(20 * spacing + self.random.below(70 * spacing)), 5),
        };
        let from_fair =
            |distance: u64| side.away(self.fair / FAIR_PARTS, i64::try_from(distance).unwrap_or(1));
        let price = match (distance, self.book.best(side), self.book.best(side.opposite())) {
            (None, Some(best), Some(other)) if best.abs_diff(other) > 1 => side.away(best, -1),
            (distance, ..) => from_fair(distance.unwrap_or(1)),
        };
        let quantity = self.quantity() * factor;
        NewOrder { side, price: price.max(1), quantity, owner: None, rests: true }
    }

    /// An order that trades at once.
    fn aggressive(&mut self, side: Side, owner: Option<Owner>) -> Option<NewOrder> {
        let best = self.book.best(side.opposite())?;
        let price = side.opposite().away(best, REACH_LEVELS * self.specification.spacing);
        let quantity = self.quantity() * (1 + self.random.below(2));
        Some(NewOrder { side, price: price.max(1), quantity, owner, rests: false })
    }

    /// Mostly less than the usual quantity, now and then much more.
    fn quantity(&mut self) -> u64 {
        let lot = self.specification.lot;
        let most = if self.random.percent(5) { lot * 8 } else { lot };
        1 + self.random.below(most)
    }
}
