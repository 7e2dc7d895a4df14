"""What operators tell, computed once more from what the documentation says of them and with Python's decimal and zlib alone.

Usage: operators.py RECORDS TOLD. RECORDS has a JSON object on each line: a trade {"s": key, "p": price, "q": quantity, "t": ms} or
an update of a book {"d": key, "asks": levels, "bids": levels, "U": first id, "u": last id, "all": whole, "t": ms}. TOLD has what tickmesh
told, as [number of the record, stream, data]. Every record is gone through; the first difference ends it.
"""

import json
import sys
from decimal import getcontext

import operators_depth
import operators_items
import operators_trades

getcontext().prec = 200


def expected(records):
    trades, calm, combined = operators_trades.expected(), operators_items.conflated(), operators_items.combined()
    books = operators_depth.expected()
    for machine in (trades, calm, combined, books):
        next(machine)
    for number, record in enumerate(records):
        if "d" in record:
            told = books.send(record)
        else:
            told = trades.send(record)
            tickers = {stream: data for stream, data in told.items() if stream.startswith("ticker.")}
            told |= calm.send(record)
            if tickers:
                told |= combined.send(tickers)
        for stream in sorted(told):
            yield [number, stream, told[stream]]


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        records = [json.loads(line, parse_float=str) for line in file]
    count = 0
    with open(sys.argv[2], encoding="utf-8") as file:
        for ours in expected(records):
            theirs = json.loads(file.readline() or "null")
            if ours != theirs:
                sys.exit(f"expected {ours}\n but told {theirs}")
            count += 1
        if file.readline():
            sys.exit("more was told than expected")
    print(f"{len(records)} records, {count} events: all the same")


main()
