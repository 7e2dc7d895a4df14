"""Order books, from what the documentation says of them and with Python's decimal and zlib alone."""

import zlib
from decimal import Decimal

TOPS = {5: "5-1s", 20: "20-1s"}
EVERY = 1_000


class Book:
    def __init__(self):
        self.lose()

    def lose(self):
        self.known, self.last, self.time = False, None, 0
        self.asks, self.bids = {}, {}
        # Of each top: when it was told, and what.
        self.tops = {levels: [None, None] for levels in TOPS}
        self.unseen = set()

    def change(self, record):
        if record["all"]:
            self.asks, self.bids, self.known = {}, {}, True
        for side, levels in ((self.asks, record["asks"]), (self.bids, record["bids"])):
            for price, quantity in levels:
                side.pop(Decimal(price), None)
                if Decimal(quantity) != 0:
                    side[Decimal(price)] = (str(price), str(quantity))
        self.last, self.time = record["u"], record["t"]
        self.unseen = set(TOPS)

    def crossed(self):
        return self.asks and self.bids and min(self.asks) <= max(self.bids)

    def best(self, levels):
        asks = [self.asks[price] for price in sorted(self.asks)[:levels]]
        bids = [self.bids[price] for price in sorted(self.bids, reverse=True)[:levels]]
        return asks, bids

    def event(self, asks, bids, whole):
        numbers = [number.replace(".", "").lstrip("0") for side in self.best(10) for level in side for number in level]
        snapshot = ',"snapshot":true' if whole else ""
        checksum = zlib.crc32("".join(numbers).encode())
        return f'{{{sides(asks, bids)},"checksum":{checksum}{snapshot},"timestamp":{self.time}}}'


def sides(asks, bids):
    texts = [",".join(f'["{price}","{quantity}"]' for price, quantity in side) for side in (asks, bids)]
    return '"asks":[{}],"bids":[{}]'.format(*texts)


def expected():
    """Takes record after record, and gives what is told of books at it, by stream."""
    now, books = 0, {}
    record = yield
    while True:
        now = max(now, record["t"])
        book = books.setdefault(record["d"], Book())
        stream, told = "depth." + record["d"], {}
        follows = record["all"] or book.known and record["U"] <= book.last + 1 <= record["u"]
        old = not record["all"] and book.known and record["u"] <= book.last
        was_known = book.known
        if follows:
            book.change(record)
        if was_known and not follows and not old or follows and book.crossed():
            book.lose()
        if was_known and not book.known:
            lost = f'{{"asks":[],"bids":[],"incomplete":true,"timestamp":{now}}}'
            told |= {stream: lost} | {f"{stream}@{variant}": lost for variant in TOPS.values()}
        elif follows and book.known:
            if record["all"]:
                told[stream] = book.event(*book.best(None), True)
            elif record["asks"] or record["bids"]:
                told[stream] = book.event(record["asks"], record["bids"], False)
        for key, book in books.items():
            for levels in sorted(book.unseen):
                top = book.tops[levels]
                if top[0] is None or top[0] + EVERY <= now:
                    book.unseen.discard(levels)
                    best = book.best(levels)
                    if sides(*best) != top[1]:
                        top[:] = now, sides(*best)
                        told[f"depth.{key}@{TOPS[levels]}"] = book.event(*best, True)
        record = yield told
