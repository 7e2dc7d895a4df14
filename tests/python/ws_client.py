"""A WebSocket client that was not written here (the `websockets` package) against a running tickmesh.

TICKMESH_WS_URL names the endpoint, as in ws://127.0.0.1:8080/ws; its market must have trades and depth of btc_usdt.
"""

import asyncio
import contextlib
import json
import os
import unittest
import urllib.error
import urllib.request

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

URL = os.environ["TICKMESH_WS_URL"]
TRADES = "trades.btc_usdt"
DEPTH = "depth.btc_usdt"

# Far longer than anything takes: what is not there by then does not come.
DEADLINE_SECONDS = 20
# Enough to see an order, soon there at the demo's rate.
EVENTS = 20
# RFC 6455 section 7.4.1.
NORMAL, POLICY_VIOLATION, MESSAGE_TOO_BIG = 1000, 1008, 1009
# The edge closes after so many protocol errors in a row.
ERRORS_IN_A_ROW = 10
MAX_SEQUENCE = 2**53 - 1


class Client:
    """One connection, with what it received and nobody asked for yet."""

    def __init__(self, socket, welcome):
        self.socket = socket
        self.welcome = welcome

    async def send(self, **message):
        await self.socket.send(json.dumps(message))

    async def receive(self):
        frame = await asyncio.wait_for(self.socket.recv(), DEADLINE_SECONDS)
        assert isinstance(frame, str), f"a binary frame: {frame!r}"
        return json.loads(frame)

    async def until(self, event):
        """The next control message of a kind, and the data before it."""
        data = []
        async with asyncio.timeout(DEADLINE_SECONDS):
            while True:
                message = await self.receive()
                if "event" not in message:
                    data.append(message)
                elif message["event"] == event:
                    return message, data
                else:
                    assert message["event"] == "heartbeat", f"{message} while waiting for {event}"

    async def events(self, count, stream):
        """The next data messages of a stream."""
        found = []
        async with asyncio.timeout(DEADLINE_SECONDS):
            while len(found) < count:
                message = await self.receive()
                if message.get("stream") == stream and "event" not in message:
                    found.append(message)
        return found


@contextlib.asynccontextmanager
async def client():
    async with connect(URL, open_timeout=DEADLINE_SECONDS) as socket:
        first = json.loads(await asyncio.wait_for(socket.recv(), DEADLINE_SECONDS))
        assert first["event"] == "welcome", first
        yield Client(socket, first)


class ForeignClient(unittest.IsolatedAsyncioTestCase):
    async def close_of(self, connection):
        """How the edge closes the connection: code and reason."""
        with self.assertRaises(ConnectionClosed) as closed:
            async with asyncio.timeout(DEADLINE_SECONDS):
                while True:
                    await connection.socket.recv()
        self.assertIsNotNone(closed.exception.rcvd, "the connection was cut, not closed")
        return closed.exception.rcvd

    async def test_welcome_says_where_the_client_is_and_what_it_may(self):
        async with client() as connection:
            for name in ("connection", "node", "region"):
                self.assertIsInstance(connection.welcome[name], str)
                self.assertTrue(connection.welcome[name], name)
            for limit in ("streams", "message_bytes", "queue_frames", "queue_bytes"):
                self.assertGreater(connection.welcome["limits"][limit], 0, limit)

    async def test_subscribe_data_unsubscribe_silence(self):
        async with client() as connection:
            await connection.send(action="subscribe", id=1, streams=[TRADES, DEPTH])
            subscribed, early = await connection.until("subscribed")
            self.assertEqual(early, [], "data before the confirmation")
            self.assertEqual(subscribed["id"], 1)
            self.assertEqual(sorted(subscribed["streams"]), sorted([TRADES, DEPTH]))
            self.assertEqual(subscribed["rejected"], [])

            last = {name: at["sequence"] for name, at in subscribed["positions"].items()}
            seen = {TRADES: 0, DEPTH: 0}
            async with asyncio.timeout(DEADLINE_SECONDS):
                while min(seen.values()) < EVENTS:
                    self.check_order(await connection.receive(), last, seen)

            await connection.send(action="unsubscribe", id="two", streams=[TRADES, DEPTH])
            unsubscribed, rest = await connection.until("unsubscribed")
            for message in rest:
                self.check_order(message, last, seen)
            self.assertEqual(unsubscribed["id"], "two")
            stands = {name: at["sequence"] for name, at in unsubscribed["positions"].items()}
            self.assertEqual(stands, last, "where the streams stood")
            # A heartbeat says that nothing was written for a while.
            _, late = await connection.until("heartbeat")
            self.assertEqual(late, [], "data after the end of the subscription")

    def check_order(self, message, last, seen):
        if message.get("event") == "heartbeat":
            return
        self.assertNotIn("event", message)
        stream, sequence = message["stream"], message["sequence"]
        self.assertIn(stream, seen)
        self.assertLessEqual(sequence, MAX_SEQUENCE)
        # A snapshot replaces what was before, wherever that stood.
        if stream in last and not message.get("snapshot"):
            self.assertEqual(message["previous"], last[stream], f"a gap or a duplicate before {message}")
            self.assertGreater(sequence, last[stream])
        self.assertIsInstance(message["data"], dict)
        last[stream] = sequence
        seen[stream] += 1

    async def test_two_clients_receive_the_same(self):
        async with client() as one, client() as other:
            for connection in (one, other):
                await connection.send(action="subscribe", streams=[TRADES])
                await connection.until("subscribed")
            first, second = await asyncio.gather(one.events(EVENTS, TRADES), other.events(EVENTS, TRADES))
            shared = {m["sequence"] for m in first} & {m["sequence"] for m in second}
            self.assertTrue(shared, "the two saw different times")
            by_sequence = {m["sequence"]: m for m in second}
            for message in first:
                if message["sequence"] in shared:
                    self.assertEqual(message, by_sequence[message["sequence"]])

    async def test_bad_streams_are_rejected_one_by_one(self):
        async with client() as connection:
            await connection.send(action="subscribe", streams=["Trades.BTC", "nothing.btc_usdt", TRADES])
            subscribed, _ = await connection.until("subscribed")
            self.assertEqual(subscribed["streams"], [TRADES])
            rejected = {rejection["stream"]: rejection for rejection in subscribed["rejected"]}
            self.assertEqual(sorted(rejected), ["Trades.BTC", "nothing.btc_usdt"])
            for rejection in rejected.values():
                self.assertEqual(rejection["code"], "unknown_stream")
                self.assertTrue(rejection["message"])

    async def test_streams_lists_the_subscriptions(self):
        async with client() as connection:
            await connection.send(action="streams", id=True)
            listed, _ = await connection.until("streams")
            self.assertEqual((listed["id"], listed["streams"], listed["positions"]), (True, [], {}))
            await connection.send(action="subscribe", streams=[TRADES])
            await connection.until("subscribed")
            await connection.events(1, TRADES)
            await connection.send(action="streams", id=2)
            listed, _ = await connection.until("streams")
            self.assertEqual(listed["streams"], [TRADES])
            self.assertEqual(list(listed["positions"]), [TRADES])

    async def test_pings_of_both_kinds_are_answered(self):
        async with client() as connection:
            await connection.send(action="ping", id=1.5)
            pong, _ = await connection.until("pong")
            self.assertEqual(pong["id"], 1.5)
            self.assertGreater(pong["timestamp"], 1_600_000_000_000)
            await asyncio.wait_for(await connection.socket.ping(b"payload"), DEADLINE_SECONDS)

    async def test_bad_requests_are_errors_and_the_connection_goes_on(self):
        async with client() as connection:
            for frame, code in [
                ("not JSON", "bad_request"),
                ("[1]", "bad_request"),
                ('{"action":"dance","id":7}', "unknown_action"),
                ('{"action":"subscribe","id":7}', "bad_request"),
                (b'{"action":"ping"}', "bad_request"),
            ]:
                await connection.socket.send(frame)
                error, _ = await connection.until("error")
                self.assertEqual(error["code"], code, frame)
                self.assertTrue(error["message"])
                self.assertEqual(error.get("id"), 7 if "7" in str(frame) else None)
            await connection.send(action="ping", id=8)
            pong, _ = await connection.until("pong")
            self.assertEqual(pong["id"], 8)

    async def test_errors_in_a_row_close_the_connection(self):
        async with client() as connection:
            for _ in range(ERRORS_IN_A_ROW):
                await connection.socket.send("not JSON")
            closed = await self.close_of(connection)
            self.assertEqual(closed.code, POLICY_VIOLATION)
            self.assertTrue(closed.reason)

    async def test_a_message_too_large_closes_the_connection(self):
        async with client() as connection:
            limit = connection.welcome["limits"]["message_bytes"]
            with contextlib.suppress(ConnectionClosed):
                await connection.socket.send("x" * (limit + 1))
            closed = await self.close_of(connection)
            self.assertEqual(closed.code, MESSAGE_TOO_BIG)

    async def test_the_edge_answers_a_close(self):
        async with client() as connection:
            await connection.send(action="subscribe", streams=[TRADES])
            await connection.until("subscribed")
            await asyncio.wait_for(connection.socket.close(NORMAL, "done"), DEADLINE_SECONDS)
            self.assertEqual(connection.socket.close_code, NORMAL)

    async def test_a_plain_request_is_no_upgrade(self):
        http = URL.replace("ws", "http", 1)
        with self.assertRaises(urllib.error.HTTPError) as refused:
            await asyncio.to_thread(urllib.request.urlopen, http, None, DEADLINE_SECONDS)
        with refused.exception as answer:
            self.assertIn(answer.code, range(400, 500))


if __name__ == "__main__":
    unittest.main()
