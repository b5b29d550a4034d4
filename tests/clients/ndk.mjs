// NDK, and its package for reconciliation: what an application built on them sees of the gateway.
import assert from "node:assert/strict";
import { check, gateway, ids, Inbox, now, refusal, silence, soon, topicUrl, url, within } from "./harness.mjs";
import NDK, {
    NDKEvent,
    NDKPrivateKeySigner,
    NDKRelayAuthPolicies,
    NDKRelaySet,
} from "@nostr-dev-kit/ndk";
import { NDKSync } from "@nostr-dev-kit/sync";
import { matchFilters } from "nostr-tools/filter";

/** Events in memory, which the package for reconciliation demands. */
class Cache {
    locking = false;
    ready = true;
    events = new Map();
    relays = new Map();

    async setEvent(event) {
        this.events.set(event.id, event);
    }
    async query({ filters }) {
        const held = [...this.events.values()];
        return held.filter((event) => matchFilters(filters, event.rawEvent()));
    }
    async getRelayStatus(url) {
        return this.relays.get(url);
    }
    async updateRelayStatus(url, status) {
        this.relays.set(url, { ...this.relays.get(url), ...status });
    }
}

/** A connected instance, which signs with this signer and authenticates when asked to if there is one. */
async function connect(signer, cacheAdapter, at = url) {
    const ndk = new NDK({
        explicitRelayUrls: [at],
        enableOutboxModel: false,
        signer,
        cacheAdapter,
    });
    if (signer) ndk.relayAuthDefaultPolicy = NDKRelayAuthPolicies.signIn({ ndk, signer });
    const connected = new Promise((resolve) => ndk.pool.once("relay:ready", resolve));
    // The time after which a failed attempt to connect is repeated.
    ndk.connect(1_000);
    await within(10_000, "a connection", connected);
    const [relay] = ndk.pool.relays.values();
    return { ndk, relay, set: new NDKRelaySet(new Set([relay]), ndk) };
}

function disconnect({ ndk }) {
    for (const relay of ndk.pool.relays.values()) relay.disconnect();
}

async function event(signer, kind, content, tags = [], created_at = now()) {
    const event = new NDKEvent(undefined, { kind, content, tags, created_at });
    await event.sign(signer);
    return event;
}

const newSigner = () => NDKPrivateKeySigner.generate();

/** Publishes over a connection of its own, as nobody. */
async function publish(...events) {
    const client = await connect();
    for (const event of events) await send(client, event);
    disconnect(client);
}

async function send({ ndk, set }, event) {
    const copy = new NDKEvent(ndk, event.rawEvent());
    const relays = await copy.publish(set, 5_000);
    assert.equal(relays.size, 1);
}

/** What is stored for a filter, the newest first. */
async function stored({ ndk, set }, filter) {
    const options = { groupable: false, cacheUsage: "ONLY_RELAY" };
    const events = await within(10_000, "EOSE", ndk.fetchEvents(filter, options, set));
    return [...events].sort((a, b) => b.created_at - a.created_at);
}

/** Opens a subscription that stays. */
function subscribe({ ndk, set }, filter, inbox) {
    return ndk.subscribe(filter, {
        closeOnEose: false,
        groupable: false,
        cacheUsage: "ONLY_RELAY",
        relaySet: set,
        onEvent: inbox.push,
        onEose: () => inbox.push({ id: "EOSE" }),
    });
}

await check("publish", async () => {
    const client = await connect();
    const note = await event(newSigner(), 1, 'Grüße 👋🏽 \u0007 "quoted" \\', [["t", "a"]]);
    await send(client, note);
    const [found] = await stored(client, { ids: [note.id] });
    assert.deepEqual(found.rawEvent(), note.rawEvent());
    assert.ok(found.verifySignature(false));
    await send(client, note);
    disconnect(client);
});

await check("forged", async () => {
    const client = await connect();
    const note = await event(newSigner(), 1, "forged");
    const { sig } = await event(newSigner(), 1, "another");
    const forged = new NDKEvent(client.ndk, { ...note.rawEvent(), sig });
    const refused = await refusal(forged.publish(client.set, 5_000));
    assert.match(refused.relayErrors, /Error: invalid: /);
    assert.deepEqual(await stored(client, { ids: [note.id] }), []);
    await send(client, note);
    disconnect(client);
});

await check("subscribe", async () => {
    const signer = newSigner();
    const old = await event(signer, 1, "old", [], now() - 100);
    const older = await event(signer, 1, "older", [], now() - 200);
    await publish(older, old);
    const client = await connect();
    const inbox = new Inbox();
    subscribe(client, { kinds: [1], authors: [signer.pubkey] }, inbox);
    await inbox.event({ id: "EOSE", content: "EOSE" });
    assert.deepEqual(ids(inbox.received), [old.id, older.id, "EOSE"]);
    const live = await event(signer, 1, "live");
    await publish(await event(newSigner(), 1, "somebody else's"), await event(signer, 7, "+"), live);
    await inbox.event(live);
    await silence();
    assert.deepEqual(ids(inbox.received), [old.id, older.id, "EOSE", live.id]);
    disconnect(client);
});

await check("topic", async () => {
    const signer = newSigner();
    const filter = { authors: [signer.pubkey] };
    const [inside, outside] = [await event(signer, 1, "inside"), await event(signer, 1, "outside")];
    const everything = await connect();
    // The library appends a slash to the URL.
    const topic = await connect(undefined, undefined, topicUrl);
    await send(topic, inside);
    await send(everything, outside);
    assert.deepEqual(ids(await stored(topic, filter)), [inside.id]);
    assert.equal((await stored(everything, filter)).length, 2);
    disconnect(topic);
    disconnect(everything);
});

for (const how of ["restart", "crash"]) {
    await check(how, async () => {
        const signer = newSigner();
        const filter = { kinds: [1], authors: [signer.pubkey] };
        const before = await event(signer, 1, "before", [], now() - 100);
        await publish(before);
        const client = await connect();
        const inbox = new Inbox();
        const subscription = subscribe(client, filter, inbox);
        await inbox.event(before);
        const back = new Promise((resolve) => client.ndk.pool.once("relay:ready", resolve));
        await gateway(how);
        await within(15_000, "the connection's return", back);
        const meanwhile = await event(signer, 1, "meanwhile", [], now() - 50);
        await publish(meanwhile);
        // The connection is the library's concern, to open the subscription again is the application's.
        subscription.stop();
        const after = new Inbox();
        subscribe(client, filter, after);
        await after.event({ id: "EOSE", content: "EOSE" });
        const live = await event(signer, 1, "live");
        await publish(live);
        await after.event(live);
        // What was acknowledged before is still there.
        assert.deepEqual(ids(after.received), [meanwhile.id, before.id, "EOSE", live.id]);
        disconnect(client);
    });
}

await check("alive", async () => {
    // How the library looks whether a connection lives after a computer has slept.
    const client = await connect();
    const inbox = new Inbox();
    const { connectivity } = client.relay;
    connectivity.netDebug = (text, _, direction) => {
        // It tells of connections, too, without a direction.
        if (direction) inbox.push({ direction, message: JSON.parse(text) });
    };
    connectivity.handlePossibleWake();
    const sent = await inbox.until("the question", ({ direction }) => direction === "send");
    const { message } = await inbox.until("the answer", ({ direction }) => direction === "recv");
    assert.deepEqual(message.slice(0, 2), ["EOSE", sent.message[1]]);
    disconnect(client);
});

const [me, from, stranger] = [newSigner(), newSigner(), newSigner()];
const toMe = [["p", me.pubkey]];
const wrapped = { kinds: [1059], "#p": [me.pubkey] };
const wrapFor = async (signer, content) =>
    await event(newSigner(), 1059, content, [["p", signer.pubkey]], now() - 1_000);
const wrap = await wrapFor(me, "wrapped");
const direct = await event(from, 4, "direct?iv=", toMe);

/** A connection on which these events for the signer have been read, so it is authenticated. */
async function authenticated(signer, filter, expected) {
    const client = await connect(signer);
    const inbox = new Inbox();
    const subscription = subscribe(client, filter, inbox);
    // Refused, authenticated and asked again, all by the library.
    for (const event of expected) await inbox.event(event);
    subscription.stop();
    return client;
}

await check("auth", async () => {
    await publish(wrap, direct);
    const nobody = await connect();
    const refused = new Inbox();
    subscribe(nobody, wrapped, refused).on("closed", (_, reason) => refused.push({ reason }));
    const challenge = new Promise((resolve) => nobody.relay.once("auth", resolve));
    const { reason } = await refused.until("CLOSED", (item) => "reason" in item);
    assert.match(reason, /^auth-required: /);
    await within(5_000, "a challenge", challenge);
    disconnect(nobody);
    const asMe = await authenticated(me, wrapped, [wrap]);
    assert.deepEqual(ids(await stored(asMe, { ids: [direct.id] })), [direct.id]);
    disconnect(asMe);
    // With the URL of a topic in the `relay` tag, and a slash at its end.
    const topic = await connect(me, undefined, topicUrl);
    const authed = new Promise((resolve) => topic.relay.once("authed", resolve));
    subscribe(topic, wrapped, new Inbox());
    await within(5_000, "the OK to AUTH", authed);
    assert.deepEqual(await stored(topic, wrapped), []);
    disconnect(topic);
    // Its author is a party as well.
    disconnect(await authenticated(from, { kinds: [4], authors: [from.pubkey] }, [direct]));
});

await check("auth live", async () => {
    const client = await connect(me);
    const inbox = new Inbox();
    subscribe(client, wrapped, inbox);
    await inbox.event(wrap);
    const live = await wrapFor(me, "live");
    await publish(await wrapFor(newSigner(), "not mine"), live);
    await inbox.event(live);
    const got = inbox.received.filter(({ kind }) => kind === 1059);
    assert.deepEqual(ids(got), [wrap.id, live.id]);
    disconnect(client);
});

await check("stranger", async () => {
    const toStranger = await wrapFor(stranger, "to the stranger");
    await publish(toStranger);
    const own = { kinds: [1059], "#p": [stranger.pubkey] };
    for (const client of [await connect(), await authenticated(stranger, own, [toStranger])]) {
        const inbox = new Inbox();
        for (const filter of [wrapped, { ids: [wrap.id, direct.id] }, { kinds: [4] }, { limit: 100 }])
            subscribe(client, filter, inbox);
        await silence();
        const live = await wrapFor(me, "live");
        const seen = await event(newSigner(), 1, "for all");
        await publish(live, seen);
        await inbox.event(seen);
        await silence();
        const told = inbox.received.filter(({ id }) => [wrap.id, direct.id, live.id].includes(id));
        assert.deepEqual(ids(told), []);
        disconnect(client);
    }
});

await check("count", async () => {
    const signer = newSigner();
    for (const n of [1, 2, 3]) await publish(await event(signer, 1, `${n}`, [["t", `${n % 2}`]]));
    const client = await connect();
    const author = { authors: [signer.pubkey] };
    const count = async (filters) => {
        const { count, relayResults } = await client.ndk.count(filters, {}, client.set);
        assert.equal(relayResults.size, 1, "the relay did not answer");
        return count;
    };
    assert.equal(await count(author), 3);
    assert.equal(await count({ ...author, "#t": ["1"] }), 2);
    // An event that two filters match counts once (NIP-45).
    assert.equal(await count([author, { ...author, kinds: [1] }]), 3);
    assert.equal(await count({ ...author, kinds: [7] }), 0);
    disconnect(client);
});

await check("count guarded", async () => {
    const nobody = await connect();
    // The library does not listen for CLOSED here, so a refusal is a timeout, and that a count of 0.
    const asNobody = await nobody.ndk.count(wrapped, { timeout: 1_000 }, nobody.set);
    assert.equal(asNobody.count, 0);
    disconnect(nobody);
    const asMe = await authenticated(me, wrapped, [wrap]);
    const held = (await stored(asMe, wrapped)).length;
    assert.ok(held > 0);
    assert.equal((await asMe.ndk.count(wrapped, {}, asMe.set)).count, held);
    disconnect(asMe);
});

await check("search", async () => {
    const signer = newSigner();
    const found = await event(signer, 1, "A purple ostrich sings at midnight");
    await publish(found, await event(signer, 1, "A green heron sleeps"));
    const client = await connect();
    const search = async (text) => ids(await stored(client, { authors: [signer.pubkey], search: text }));
    assert.deepEqual(await soon(() => search("purple ostrich")), [found.id]);
    // NIP-50: extensions that are not supported are ignored.
    assert.deepEqual(await search("ostrich language:en"), [found.id]);
    assert.deepEqual(await search("walrus"), []);
    disconnect(client);
});

/** Reconciles and fetches what is needed. An error when the library gives up on the relay. */
async function sync(client, filter) {
    const errors = [];
    const phases = [];
    const result = await new NDKSync(client.ndk).sync(filter, {
        relaySet: client.set,
        onRelayError: (_, error) => errors.push(error.message),
        onNegotiationProgress: (_, { phase }) => phases.push(phase),
    });
    assert.deepEqual(errors, []);
    // Otherwise it has asked with REQ, because the NIP-11 document has no 77.
    assert.ok(phases.includes("closing"), `no negentropy: ${phases}`);
    return result;
}

await check("negentropy", async () => {
    const signer = newSigner();
    const notes = async (count, what) => {
        const all = Array.from({ length: count }, (_, n) =>
            event(signer, 1, `${what} ${n}`, [], now() - n * 7));
        return await Promise.all(all);
    };
    const [both, theirs, ours] = [await notes(60, "both"), await notes(20, "theirs"), await notes(10, "ours")];
    await publish(...both, ...theirs);
    const cache = new Cache();
    for (const event of [...both, ...ours]) await cache.setEvent(event);
    const client = await connect(undefined, cache);
    const filter = { kinds: [1], authors: [signer.pubkey] };
    const { events, need, have } = await sync(client, filter);
    assert.deepEqual([...need].sort(), ids(theirs).sort());
    assert.deepEqual(ids(events).sort(), ids(theirs).sort());
    assert.deepEqual([...have].sort(), ids(ours).sort());
    await publish(...ours);
    const again = await sync(client, filter);
    assert.deepEqual([again.need.size, again.have.size], [0, 0]);
    // A list of filters, which overlap.
    const reaction = await event(signer, 7, "+");
    await publish(reaction);
    const more = await sync(client, [filter, { authors: [signer.pubkey] }, { kinds: [7], authors: [signer.pubkey] }]);
    assert.deepEqual([[...more.need], more.have.size], [[reaction.id], 0]);
    disconnect(client);
});

await check("negentropy guarded", async () => {
    const nobody = await connect(undefined, new Cache());
    const told = await sync(nobody, wrapped).then(
        ({ need }) => [...need],
        (error) => error.message,
    );
    assert.ok(Array.isArray(told) || told.includes("auth-required: "), told);
    assert.deepEqual(Array.isArray(told) ? told : [], []);
    disconnect(nobody);
    // A filter without kinds reveals nothing either.
    const again = await connect(undefined, new Cache());
    assert.equal((await sync(again, { "#p": [me.pubkey] })).need.size, 0);
    disconnect(again);
    // The library does not authenticate for a sync that is refused: it has to be before.
    const asMe = await authenticated(me, wrapped, [wrap]);
    const held = ids(await stored(asMe, wrapped)).sort();
    asMe.ndk.cacheAdapter = new Cache();
    assert.deepEqual([...(await sync(asMe, wrapped)).need].sort(), held);
    disconnect(asMe);
});

process.exit();
