"""The Python package of nostr-sdk: what its client does with the gateway."""

import asyncio
import sys
import tempfile
from datetime import timedelta

from nostr_sdk import (
    ClientBuilder,
    Event,
    EventBuilder,
    Filter,
    Keys,
    Kind,
    NostrLmdb,
    RelayMessageEnum,
    RelayOptions,
    RelayUrl,
    ReqTarget,
    SignerAuthenticator,
    SyncDirection,
    SyncOptions,
    Tag,
    Timestamp,
    uniffi_set_event_loop,
)

URL = RelayUrl.parse(sys.argv[1])
TOPIC_URL = RelayUrl.parse(f"{sys.argv[1]}topic/one%20two")
# How long an answer that must come may take, and how long is waited for what must not come.
PATIENCE = timedelta(seconds=15)
SILENCE = 0.5


def event(keys, kind, content, tags=(), age=0):
    builder = EventBuilder(Kind(kind), content).tags([Tag.parse(tag) for tag in tags])
    at = Timestamp.from_secs(Timestamp.now().as_secs() - age)
    return builder.custom_created_at(at).finalize(keys)


def by(keys):
    return Filter().kind(Kind(1)).author(keys.public_key())


def wrap_for(keys, content):
    return event(Keys.generate(), 1059, content, [["p", keys.public_key().to_hex()]], 1_000)


def ids(events):
    return [event.id().to_hex() for event in events]


def holds(condition, what):
    if not condition:
        raise AssertionError(what)


async def connect(keys=None, database=None, url=URL):
    """A connected client that authenticates with these keys when it is asked to, and its relay."""
    builder = ClientBuilder()
    if keys is not None:
        builder = builder.authenticator(SignerAuthenticator(keys))
    if database is not None:
        builder = builder.database(database)
    client = builder.build()
    # The shortest that the library allows.
    options = RelayOptions().retry_interval(timedelta(seconds=5)).adjust_retry_interval(False)
    await client.add_relay(url, opts=options)
    connected = await client.try_connect(PATIENCE)
    holds(not connected.failed, f"cannot connect: {connected.failed}")
    return client, await client.relay(url)


async def publish(*events):
    """Publishes over a connection of its own, as nobody."""
    client, relay = await connect()
    for one in events:
        await relay.send_event(one)
    await client.shutdown()


async def fetch(relay, query):
    return await relay.fetch_events(query, timeout=PATIENCE)


async def count(relay, query):
    # The library begins to listen after it has sent: it misses an answer that comes at once.
    for _ in range(5):
        try:
            return await relay.count_events(query, timedelta(seconds=1))
        except Exception as error:
            last = error
    raise AssertionError(f"no answer to COUNT: {last}")


class Inbox:
    """What a client is told, in order: ids of events, and EOSE."""

    def __init__(self, client):
        self.all = []
        self.came = asyncio.Condition()
        self.task = asyncio.create_task(self.read(client.notifications()))

    async def read(self, notifications):
        while (notification := await notifications.next()) is not None:
            if not notification.is_MESSAGE():
                continue
            message = notification.message.as_enum()
            async with self.came:
                if message.is_EVENT_MSG():
                    self.all.append(message.event.id().to_hex())
                elif message.is_END_OF_STORED_EVENTS():
                    self.all.append("EOSE")
                self.came.notify_all()

    async def until(self, wanted):
        async with self.came:
            waiting = self.came.wait_for(lambda: wanted in self.all)
            try:
                await asyncio.wait_for(waiting, PATIENCE.total_seconds())
            except asyncio.TimeoutError:
                raise AssertionError(f"{wanted} did not come; got {self.all}") from None

    async def event(self, one):
        await self.until(one.id().to_hex())


async def check_publish():
    client, relay = await connect()
    note = event(Keys.generate(), 1, 'Grüße 👋🏽 \u0007 "quoted" \\', [["t", "a"]])
    output = await client.send_event(note)
    holds(len(output.success) == 1, f"refused: {output.failed}")
    found = await fetch(relay, Filter().id(note.id()))
    holds([one.as_json() for one in found] == [note.as_json()], f"{found} is stored")
    await relay.send_event(note)
    await client.shutdown()


async def check_forged():
    client, relay = await connect()
    note = event(Keys.generate(), 1, "forged")
    other = event(Keys.generate(), 1, "another")
    forged = Event.from_json(note.as_json().replace(note.signature(), other.signature()))
    try:
        await relay.send_event(forged)
    except Exception as error:
        holds("invalid: " in str(error), error)
    else:
        raise AssertionError("it was accepted")
    holds(await fetch(relay, Filter().id(note.id())) == [], "it was stored")
    await relay.send_event(note)
    await client.shutdown()


async def check_subscribe():
    keys = Keys.generate()
    old, older = event(keys, 1, "old", age=100), event(keys, 1, "older", age=200)
    await publish(older, old)
    client, _ = await connect()
    inbox = Inbox(client)
    await client.subscribe(ReqTarget.auto([by(keys)]))
    await inbox.until("EOSE")
    holds(inbox.all == [*ids([old, older]), "EOSE"], inbox.all)
    live = event(keys, 1, "live")
    await publish(event(Keys.generate(), 1, "somebody else's"), event(keys, 7, "+"), live)
    await inbox.event(live)
    await asyncio.sleep(SILENCE)
    holds(inbox.all == [*ids([old, older]), "EOSE", *ids([live])], inbox.all)
    await client.shutdown()


async def check_topic():
    keys = Keys.generate()
    inside, outside = event(keys, 1, "inside"), event(keys, 1, "outside")
    everything, root = await connect()
    client, topic = await connect(url=TOPIC_URL)
    await topic.send_event(inside)
    await root.send_event(outside)
    found = ids(await fetch(topic, by(keys)))
    holds(found == ids([inside]), f"{found} is in the topic")
    holds(len(await fetch(root, by(keys))) == 2, "not all is in the root")
    await client.shutdown()
    await everything.shutdown()


async def comes_back_after(how):
    keys = Keys.generate()
    before = event(keys, 1, "before", age=100)
    await publish(before)
    client, relay = await connect()
    inbox = Inbox(client)
    await client.subscribe(ReqTarget.auto([by(keys)]))
    await inbox.event(before)
    print(how, flush=True)
    answer = await asyncio.to_thread(sys.stdin.readline)
    holds(answer == "restarted\n", answer)
    # The subscription is opened again by the library.
    meanwhile = event(keys, 1, "meanwhile", age=50)
    await publish(meanwhile)
    await inbox.event(meanwhile)
    live = event(keys, 1, "live")
    await publish(live)
    await inbox.event(live)
    # What was acknowledged before is still there.
    holds(ids(await fetch(relay, Filter().id(before.id()))) == ids([before]), "it was lost")
    await client.shutdown()


async def check_restart():
    await comes_back_after("restart")


async def check_crash():
    await comes_back_after("crash")


ME, FROM = Keys.generate(), Keys.generate()
TO_ME = [["p", ME.public_key().to_hex()]]
WRAP = wrap_for(ME, "wrapped")
DIRECT = event(FROM, 4, "direct?iv=", TO_ME)
WRAPPED = Filter().kind(Kind(1059)).pubkey(ME.public_key())


async def check_auth():
    await publish(WRAP, DIRECT)
    nobody, relay = await connect()
    try:
        found = await fetch(relay, WRAPPED)
    except Exception as error:
        holds("auth-required: " in str(error), error)
    else:
        raise AssertionError(f"nobody is given {ids(found)}")
    await nobody.shutdown()
    # The library authenticates and asks again by itself.
    client, relay = await connect(ME)
    holds(ids(await fetch(relay, WRAPPED)) == ids([WRAP]), "the gift wrap is not found")
    holds(ids(await fetch(relay, Filter().id(DIRECT.id()))) == ids([DIRECT]), "nor the message")
    await client.shutdown()
    # With the URL of a topic in the `relay` tag.
    client, relay = await connect(ME, url=TOPIC_URL)
    holds(await fetch(relay, WRAPPED) == [], "it is in a public topic")
    await client.shutdown()
    # Its author is a party as well.
    client, relay = await connect(FROM)
    sent = Filter().kind(Kind(4)).author(FROM.public_key())
    holds(ids(await fetch(relay, sent)) == ids([DIRECT]), "the author does not find it")
    await client.shutdown()


async def check_auth_live():
    client, _ = await connect(ME)
    inbox = Inbox(client)
    # The library notes a subscription after it has sent it: one that is refused at once may not be
    # opened again, and the application has to.
    for _ in range(2):
        await client.subscribe(ReqTarget.auto([WRAPPED]))
        await asyncio.sleep(2)
        if inbox.all:
            break
    await inbox.event(WRAP)
    live = wrap_for(ME, "live")
    await publish(wrap_for(Keys.generate(), "not mine"), live)
    await inbox.event(live)
    got = [one for one in dict.fromkeys(inbox.all) if one != "EOSE"]
    holds(got == ids([WRAP, live]), got)
    await client.shutdown()


async def check_stranger():
    stranger = Keys.generate()
    to_stranger = wrap_for(stranger, "to the stranger")
    await publish(to_stranger)
    for keys in (None, stranger):
        client, relay = await connect(keys)
        if keys is not None:
            own = Filter().kind(Kind(1059)).pubkey(stranger.public_key())
            holds(ids(await fetch(relay, own)) == ids([to_stranger]), "its own are not found")
        inbox = Inbox(client)
        by_id = Filter().ids([WRAP.id(), DIRECT.id()])
        for query in (WRAPPED, by_id, Filter().kind(Kind(4)), Filter().limit(100)):
            await client.subscribe(ReqTarget.auto([query]))
        await asyncio.sleep(SILENCE)
        live, seen = wrap_for(ME, "live"), event(Keys.generate(), 1, "for all")
        await publish(live, seen)
        await inbox.event(seen)
        await asyncio.sleep(SILENCE)
        told = [one for one in ids([WRAP, DIRECT, live]) if one in inbox.all]
        holds(not told, f"a stranger is given {told}")
        await client.shutdown()


async def check_count():
    keys = Keys.generate()
    await publish(*(event(keys, 1, f"{n}", [["t", f"{n % 2}"]]) for n in range(3)))
    client, relay = await connect()
    for query, expected in (
        (by(keys), 3),
        (by(keys).hashtag("0"), 2),
        (by(keys).hashtag("2"), 0),
    ):
        counted = await count(relay, query)
        holds(counted == expected, f"{query.as_json()} has {counted}")
    await client.shutdown()


async def check_count_guarded():
    client, relay = await connect()
    # The library does not listen for CLOSED here, so a refusal is a timeout; and see `count`.
    for _ in range(3):
        try:
            counted = await relay.count_events(WRAPPED, timedelta(seconds=SILENCE))
        except Exception:
            counted = 0
        holds(counted == 0, f"nobody is told of {counted}")
    await client.shutdown()
    client, relay = await connect(ME)
    held = len(await fetch(relay, WRAPPED))
    counted = await count(relay, WRAPPED)
    holds(counted == held > 0, f"{counted} of {held}")
    await client.shutdown()


async def check_search():
    keys = Keys.generate()
    found = event(keys, 1, "A purple ostrich sings at midnight")
    await publish(found, event(keys, 1, "A green heron sleeps"))
    client, relay = await connect()
    # The index may be a moment behind.
    for _ in range(50):
        if await fetch(relay, by(keys).search("ostrich")):
            break
        await asyncio.sleep(0.1)
    # NIP-50: extensions that are not supported are ignored.
    for text, expected in (
        ("purple ostrich", [found]),
        ("ostrich language:en", [found]),
        ("walrus", []),
    ):
        events = await fetch(relay, by(keys).search(text))
        holds(ids(events) == ids(expected), f"{text} finds {len(events)}")
    await client.shutdown()


async def check_negentropy():
    keys = Keys.generate()

    def notes(count, what):
        return [event(keys, 1, f"{what} {n}", age=n * 7) for n in range(count)]

    both, theirs, ours = notes(150, "both"), notes(40, "theirs"), notes(30, "ours")
    await publish(*both, *theirs)
    with tempfile.TemporaryDirectory() as folder:
        database = await NostrLmdb.open(folder)
        for one in both + ours:
            await database.save_event(one)
        client, relay = await connect(database=database)
        options = SyncOptions().direction(SyncDirection.BOTH)
        output = await client.sync(by(keys), opts=options)
        holds(not output.failed, output.failed)
        holds(not any(output.report.send_failures.values()), output.report.send_failures)

        def same(told, events):
            return sorted(one.to_hex() for one in told) == sorted(ids(events))

        holds(same(output.report.received, theirs), f"received {len(output.report.received)}")
        holds(same(output.report.sent, ours), f"sent {len(output.report.sent)}")
        all_of_them = await fetch(relay, by(keys).limit(500))
        holds(len(all_of_them) == 220, f"the relay has {len(all_of_them)}")
        again = (await client.sync(by(keys), opts=options)).report
        holds(not again.local and not again.remote, again)
        await client.shutdown()


async def check_negentropy_guarded():
    client, relay = await connect()
    dry = SyncOptions().dry_run()
    try:
        told = (await relay.sync(WRAPPED, items=[], opts=dry)).remote
    except Exception as error:
        holds("auth-required: " in str(error), error)
        told = []
    # A filter without kinds reveals nothing either.
    told += (await relay.sync(Filter().pubkey(ME.public_key()), items=[], opts=dry)).remote
    holds(not told, f"nobody is told of {told}")
    await client.shutdown()
    # The library does not authenticate for a sync that is refused: it has to be before.
    client, relay = await connect(ME)
    held = ids(await fetch(relay, WRAPPED))
    told = (await relay.sync(WRAPPED, items=[], opts=dry)).remote
    holds(sorted(one.to_hex() for one in told) == sorted(held), f"{len(told)} of {len(held)}")
    await client.shutdown()


CHECKS = {
    "publish": check_publish,
    "forged": check_forged,
    "subscribe": check_subscribe,
    "topic": check_topic,
    "restart": check_restart,
    "crash": check_crash,
    "auth": check_auth,
    "auth live": check_auth_live,
    "stranger": check_stranger,
    "count": check_count,
    "count guarded": check_count_guarded,
    "search": check_search,
    "negentropy": check_negentropy,
    "negentropy guarded": check_negentropy_guarded,
}


async def main():
    # The library calls back from threads of its own.
    uniffi_set_event_loop(asyncio.get_running_loop())
    for name, check in CHECKS.items():
        try:
            await asyncio.wait_for(check(), 40)
            print(f"ok {name}", flush=True)
        except Exception as error:
            reason = str(error).replace("\n", " ") or repr(error)
            print(f"not ok {name}: {reason}", flush=True)


asyncio.run(main())
