"""Candles and tickers, from what the documentation says of them and with Python's decimal alone."""

from decimal import ROUND_HALF_EVEN, Decimal

INTERVALS = {"1m": 60_000, "5m": 300_000, "1h": 3_600_000}
CANDLE_EVERY = 5_000
TICKER_EVERY = 60_000
MINUTE = 60_000


def plain(number):
    return format(number, "f")


class Span:
    """What trades come to, in the order of the log."""

    def __init__(self, price, quantity):
        self.open = self.high = self.low = self.close = price
        self.volume, self.quote, self.count = quantity, price * quantity, 1

    def add(self, price, quantity):
        self.high = price if price > self.high else self.high
        self.low = price if price < self.low else self.low
        self.close = price
        self.volume += quantity
        self.quote += price * quantity
        self.count += 1


def candle(start, span, closed):
    opened, high, low, close = map(plain, (span.open, span.high, span.low, span.close))
    return (
        f'{{"start":{start},"open":"{opened}","high":"{high}","low":"{low}","close":"{close}","volume":"{plain(span.volume)}",'
        f'"quoteVolume":"{plain(span.quote)}","trades":{span.count},"closed":{str(closed).lower()}}}'
    )


def ticker(minutes, last, now, first):
    spans = [minutes[minute] for minute in sorted(minutes)]
    opened = spans[0].open if spans else last
    # Of two spellings the first: max and min take it.
    high = max((span.high for span in spans), default=last)
    low = min((span.low for span in spans), default=last)
    volume = sum((span.volume for span in spans), Decimal(0))
    quote = sum((span.quote for span in spans), Decimal(0))
    change = last - opened
    # No negative zero.
    percent = (change * 100 / opened).quantize(Decimal("0.01"), ROUND_HALF_EVEN) + 0
    texts = [plain(number) for number in (opened, high, low, last, volume, quote, change, percent)]
    return (
        '{{"open":"{}","high":"{}","low":"{}","last":"{}","volume":"{}","quoteVolume":"{}",'
        '"trades":{},"change":"{}","changePercent":"{}","openTime":{},"closeTime":{}}}'
    ).format(*texts[:6], sum(span.count for span in spans), *texts[6:], first, now)


def expected():
    """Takes record after record, and gives what candles and tickers tell at it, by stream."""
    now = 0
    candles = {}  # (key, interval) -> [start, span, when told, changed since]
    tickers = {}  # key -> [{minute: span}, when told, changed since, last]
    record = yield
    while True:
        key, price, quantity, time = record["s"], Decimal(record["p"]), Decimal(record["q"]), record["t"]
        before, now = now, max(now, time)
        closing = {}
        for name, length in INTERVALS.items():
            start = time - time % length
            if start + length > before:
                held = candles.get((key, name))
                if held and held[0] < start:
                    closing[key, name] = [candle(held[0], held[1], True)]
                    held = None
                if held:
                    held[1].add(price, quantity)
                    held[3] = True
                else:
                    candles[key, name] = [start, Span(price, quantity), None, True]
        told = {}
        for place, held in sorted(candles.items()):
            start, span, when, changed = held
            parts = closing.get(place, [])
            if start + INTERVALS[place[1]] <= now:
                parts.append(candle(start, span, True))
                del candles[place]
            elif changed and (when is None or when + CANDLE_EVERY <= now):
                parts.append(candle(start, span, False))
                held[2:] = [now, False]
            if parts:
                told["candles.{}@{}".format(*place)] = '{"candles":[' + ",".join(parts) + "]}"

        first = max(now - now % MINUTE - 1439 * MINUTE, 0)
        if time - time % MINUTE >= before - before % MINUTE - 1439 * MINUTE:
            held = tickers.setdefault(key, [{}, None, True, price])
            minute = time - time % MINUTE
            if minute in held[0]:
                held[0][minute].add(price, quantity)
            else:
                held[0][minute] = Span(price, quantity)
            held[2], held[3] = True, held[0][max(held[0])].close
        for name, held in tickers.items():
            gone = [minute for minute in held[0] if minute < first]
            for minute in gone:
                del held[0][minute]
            held[2] = held[2] or bool(gone)
            if held[2] and (held[1] is None or held[1] + TICKER_EVERY <= now):
                told["ticker." + name] = ticker(held[0], held[3], now, first)
                held[1:3] = [now, False]
        record = yield told
