"""Conflation and combination, from what the documentation says of them."""

import json

CALM_EVERY = 10_000
GLOBAL_EVERY = 60_000


def conflated():
    """Of the trades of each key the newest price, by stream `calm.<key>`."""
    now = 0
    when, waiting = {}, {}
    record = yield
    while True:
        now = max(now, record["t"])
        waiting["calm." + record["s"]] = f'{{"price":"{record["p"]}"}}'
        due = [stream for stream in waiting if stream not in when or when[stream] + CALM_EVERY <= now]
        when |= dict.fromkeys(due, now)
        record = yield {stream: waiting.pop(stream) for stream in due}


def combined():
    """Last price and volume of all tickers, as `ticker.global`. Takes the tickers that were told at a record."""
    now, when, members = 0, None, {}
    changed = False
    tickers = yield
    while True:
        for stream, data in tickers.items():
            ticker = json.loads(data)
            now = max(now, ticker["closeTime"])
            member = f'{{"last":"{ticker["last"]}","volume":"{ticker["volume"]}"}}'
            name = stream.removeprefix("ticker.")
            changed = changed or members.get(name) != member
            members[name] = member
        told = {}
        if changed and (when is None or when + GLOBAL_EVERY <= now):
            told["ticker.global"] = "{" + ",".join(f'"{name}":{members[name]}' for name in sorted(members)) + "}"
            when, changed = now, False
        tickers = yield told
