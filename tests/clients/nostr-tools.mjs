// nostr-tools: what its Relay and its SimplePool do with the gateway.
import assert from "node:assert/strict";
import { finalizeEvent, generateSecretKey, getPublicKey, verifyEvent } from "nostr-tools/pure";
import { Relay } from "nostr-tools/relay";
import { SimplePool } from "nostr-tools/pool";
import { nip77 } from "nostr-tools";
import { useWebSocketImplementation as useInPool } from "nostr-tools/pool";
import { useWebSocketImplementation as useInRelay } from "nostr-tools/relay";
import { WebSocket } from "ws";
import { check, gateway, ids, Inbox, now, refusal, silence, soon, topicUrl, url, within } from "./harness.mjs";

useInPool(WebSocket);
useInRelay(WebSocket);

const event = (key, kind, content, tags = [], created_at = now()) =>
    finalizeEvent({ kind, content, tags, created_at }, key);
const signer = (key) => async (template) => finalizeEvent(template, key);

/** Publishes over a connection of its own. */
async function publish(...events) {
    const relay = await Relay.connect(url);
    for (const event of events) await relay.publish(event);
    relay.close();
}

/** What is stored for a filter, in the order it came; an error if the relay refuses. */
function stored(relay, filter) {
    const events = [];
    const end = new Promise((resolve, reject) => {
        const subscription = relay.subscribe([filter], {
            onevent: (event) => events.push(event),
            oneose: () => subscription.close("done"),
            onclose: (reason) => (reason === "done" ? resolve(events) : reject(new Error(reason))),
        });
    });
    return within(10_000, JSON.stringify(filter), end);
}

/** A connection that is authenticated, the way an application does it that was refused. */
async function authenticated(key, at = url) {
    const relay = await Relay.connect(at);
    const refused = await refusal(stored(relay, { kinds: [1059], "#p": [getPublicKey(key)] }));
    assert.match(refused.message, /^auth-required: /);
    await within(5_000, "the OK to AUTH", relay.auth(signer(key)));
    return relay;
}

await check("publish", async () => {
    const relay = await Relay.connect(url);
    const note = event(generateSecretKey(), 1, 'Grüße 👋🏽 \u0007 "quoted" \\ 日本語', [["t", "a"]]);
    assert.equal(await relay.publish(note), "");
    const [found] = await stored(relay, { ids: [note.id] });
    assert.deepEqual(JSON.parse(JSON.stringify(found)), JSON.parse(JSON.stringify(note)));
    // The second copy is acknowledged as well.
    assert.match(await relay.publish(note), /^duplicate: /);
    relay.close();
});

await check("forged", async () => {
    const relay = await Relay.connect(url);
    const note = event(generateSecretKey(), 1, "forged");
    const forged = { ...note, sig: event(generateSecretKey(), 1, "another").sig };
    assert.match((await refusal(relay.publish(forged))).message, /^invalid: /);
    assert.deepEqual(await stored(relay, { ids: [note.id] }), []);
    // It did not take the place of the real one.
    await relay.publish(note);
    relay.close();
});

await check("subscribe", async () => {
    const key = generateSecretKey();
    const [old, older] = [100, 200].map((age) => event(key, 1, `${age}`, [], now() - age));
    await publish(older, old);
    const pool = new SimplePool();
    const inbox = new Inbox();
    const filter = { kinds: [1], authors: [getPublicKey(key)] };
    const subscription = pool.subscribe([url], filter, {
        onevent: inbox.push,
        oneose: () => inbox.push({ id: "EOSE" }),
    });
    await inbox.event({ id: "EOSE", content: "EOSE" });
    assert.deepEqual(ids(inbox.received), [old.id, older.id, "EOSE"]);
    const live = event(key, 1, "live");
    await publish(event(generateSecretKey(), 1, "somebody else's"), event(key, 7, "+"), live);
    assert.ok(verifyEvent(await inbox.event(live)));
    await silence();
    assert.deepEqual(ids(inbox.received), [old.id, older.id, "EOSE", live.id]);
    subscription.close();
    pool.destroy();
});

await check("topic", async () => {
    const key = generateSecretKey();
    const filter = { authors: [getPublicKey(key)] };
    const [inside, outside] = [event(key, 1, "inside"), event(key, 1, "outside")];
    const pool = new SimplePool();
    await Promise.all(pool.publish([topicUrl], inside));
    await Promise.all(pool.publish([url], outside));
    assert.deepEqual(ids(await pool.querySync([topicUrl], filter)), [inside.id]);
    assert.equal((await pool.querySync([url], filter)).length, 2);
    pool.destroy();
});

for (const how of ["restart", "crash"]) {
    await check(how, async () => {
        const key = generateSecretKey();
        const pool = new SimplePool({ enablePing: true, enableReconnect: true });
        // The library's own steps begin with ten seconds.
        (await pool.ensureRelay(url)).resubscribeBackoff = [500];
        const inbox = new Inbox();
        const before = event(key, 1, "before", [], now() - 100);
        await publish(before);
        const filter = { kinds: [1], authors: [getPublicKey(key)] };
        const subscription = pool.subscribe([url], filter, { onevent: inbox.push });
        await inbox.event(before);
        await gateway(how);
        // Asked for again with `since`: what came meanwhile, then what is live.
        const meanwhile = event(key, 1, "meanwhile", [], now() - 50);
        await publish(meanwhile);
        await inbox.event(meanwhile);
        const live = event(key, 1, "live");
        await publish(live);
        await inbox.event(live);
        assert.deepEqual(ids(inbox.received), ids([before, meanwhile, live]));
        subscription.close();
        // What was acknowledged before is still there.
        const [found] = await pool.querySync([url], { ids: [before.id] });
        assert.equal(found.id, before.id);
        pool.destroy();
    });
}

await check("alive", async () => {
    // How the library looks whether a connection lives, in Node and in browsers.
    const relay = await Relay.connect(url);
    assert.ok(await within(5_000, "a pong", relay.waitForPingPong()));
    let closed;
    const { subscribe } = relay;
    relay.subscribe = (filters, params) =>
        subscribe.call(relay, filters, { ...params, onclose: (reason) => (closed = reason) });
    // Within the time in which the library would take silence for EOSE.
    assert.ok(await within(4_000, "EOSE", relay.waitForDummyReq()));
    assert.equal(closed, "closed by caller");
    relay.close();
});

const [me, stranger] = [generateSecretKey(), generateSecretKey()];
const wrapped = { kinds: [1059], "#p": [getPublicKey(me)] };
const toMe = [["p", getPublicKey(me)]];
const wrap = event(generateSecretKey(), 1059, "wrapped", toMe, now() - 1_000);
const from = generateSecretKey();
const direct = event(from, 4, "direct?iv=", toMe);

await check("auth", async () => {
    await publish(wrap, direct);
    const relay = await authenticated(me);
    assert.deepEqual(ids(await stored(relay, wrapped)), [wrap.id]);
    assert.deepEqual(ids(await stored(relay, { ids: [direct.id] })), [direct.id]);
    // Its author is a party as well.
    const author = await authenticated(from);
    assert.deepEqual(ids(await stored(author, { ids: [direct.id] })), [direct.id]);
    author.close();
    relay.close();
    // With the URL of a topic in the `relay` tag.
    const topic = await authenticated(me, topicUrl);
    assert.deepEqual(await stored(topic, wrapped), []);
    topic.close();
});

await check("auth live", async () => {
    // The pool authenticates when a subscription is refused, and asks again.
    const pool = new SimplePool();
    const inbox = new Inbox();
    const subscription = pool.subscribe([url], wrapped, {
        onevent: inbox.push,
        onauth: signer(me),
        onclose: (reasons) => inbox.push({ id: "CLOSED", reasons }),
    });
    await inbox.event(wrap);
    const live = event(generateSecretKey(), 1059, "live", toMe, now() - 2_000);
    const notMine = event(generateSecretKey(), 1059, "not mine", [["p", getPublicKey(stranger)]]);
    await publish(notMine, live);
    await inbox.event(live);
    assert.deepEqual(ids(inbox.received), [wrap.id, live.id]);
    subscription.close();
    pool.destroy();
});

await check("stranger", async () => {
    const asStranger = await authenticated(stranger);
    const asNobody = await Relay.connect(url);
    for (const relay of [asStranger, asNobody]) {
        const inbox = new Inbox();
        const filters = [wrapped, { ids: [wrap.id, direct.id] }, { kinds: [4] }, {}];
        const subscriptions = filters.map((filter) =>
            // Refused or empty: both are an answer.
            relay.subscribe([filter], { onevent: inbox.push, oneose() {}, onclose() {} }),
        );
        await silence();
        const live = event(generateSecretKey(), 1059, "live", toMe);
        const seen = event(generateSecretKey(), 1, "for all");
        await publish(live, seen);
        await inbox.event(seen);
        await silence();
        const guarded = inbox.received.filter(({ kind, tags }) =>
            [4, 1059].includes(kind) && !tags.some(([, p]) => p === getPublicKey(stranger)));
        assert.deepEqual(ids(guarded), []);
        for (const subscription of subscriptions) subscription.close();
        relay.close();
    }
});

await check("count", async () => {
    const key = generateSecretKey();
    await publish(...[1, 2, 3].map((n) => event(key, 1, `counted ${n}`, [["t", `${n % 2}`]])));
    const relay = await Relay.connect(url);
    const count = (...filters) => within(5_000, "COUNT", relay.count(filters, {}));
    const author = { authors: [getPublicKey(key)] };
    assert.equal(await count(author), 3);
    assert.equal(await count({ ...author, "#t": ["1"] }), 2);
    // An event that two filters match counts once (NIP-45).
    assert.equal(await count(author, { ...author, kinds: [1] }), 3);
    assert.equal(await count({ ...author, kinds: [7] }), 0);
    relay.close();
});

await check("count guarded", async () => {
    const relay = await Relay.connect(url);
    const count = (relay) => within(5_000, "COUNT", relay.count([wrapped], {}));
    // NIP-45: a refusal is CLOSED, and the library's promise is rejected by it.
    const asNobody = await count(relay).catch((error) => error.message);
    assert.ok(asNobody === 0 || /^auth-required: /.test(asNobody), `${asNobody}`);
    relay.close();
    const asMe = await authenticated(me);
    assert.ok((await count(asMe)) >= 1);
    asMe.close();
});

await check("search", async () => {
    const key = generateSecretKey();
    const author = { authors: [getPublicKey(key)] };
    const found = event(key, 1, "A purple ostrich sings at midnight");
    const other = event(key, 1, "A green heron sleeps");
    await publish(found, other);
    const relay = await Relay.connect(url);
    const search = async (text) => ids(await stored(relay, { ...author, search: text }));
    assert.deepEqual(await soon(() => search("purple ostrich")), [found.id]);
    // NIP-50: extensions that are not supported are ignored.
    assert.deepEqual(await search("ostrich language:en"), [found.id]);
    assert.deepEqual(await search("walrus"), []);
    relay.close();
});

/** Reconciles what is held with what the relay has: the ids that one has and the other lacks. */
function sync(relay, held, filter) {
    const storage = new nip77.NegentropyStorageVector();
    for (const { id, created_at } of held) storage.insert(created_at, id);
    storage.seal();
    const [have, need] = [[], []];
    const end = new Promise((resolve, reject) => {
        const sync = new nip77.NegentropySync(relay, storage, filter, {
            onhave: (id) => have.push(id),
            onneed: (id) => need.push(id),
            onclose: (reason) => (reason ? reject(new Error(reason)) : resolve()),
        });
        // The library calls a NEG-ERR a success: its reason is only seen here.
        const custom = sync.subscription.oncustom;
        sync.subscription.oncustom = (message) =>
            message[0] === "NEG-ERR" ? reject(new Error(message[2])) : custom(message);
        sync.start();
    });
    return within(10_000, "negentropy", end.then(() => ({ have: have.sort(), need: need.sort() })));
}

await check("negentropy", async () => {
    const key = generateSecretKey();
    const filter = { kinds: [1], authors: [getPublicKey(key)] };
    const notes = (count, what) =>
        Array.from({ length: count }, (_, n) => event(key, 1, `${what} ${n}`, [], now() - n * 7));
    const [both, theirs, ours] = [notes(150, "both"), notes(40, "theirs"), notes(30, "ours")];
    await publish(...both, ...theirs);
    const relay = await Relay.connect(url);
    const notices = [];
    relay.onnotice = (text) => notices.push(text);
    const { have, need } = await sync(relay, [...both, ...ours], filter);
    assert.deepEqual(have, ids(ours).sort());
    assert.deepEqual(need, ids(theirs).sort());
    // It closes with NEG-CLOSE and with a CLOSE of an id that was never a REQ: no cause to complain.
    await silence();
    assert.deepEqual(notices, []);
    // The connection is still good for everything else, also for a second one.
    assert.deepEqual(ids(await stored(relay, { ids: need })).sort(), need);
    await publish(...ours);
    const again = await sync(relay, [...both, ...ours, ...theirs], filter);
    assert.deepEqual(again, { have: [], need: [] });
    relay.close();
});

await check("negentropy guarded", async () => {
    const ask = async (relay) =>
        await sync(relay, [], wrapped).then(
            ({ need }) => need,
            (error) => error.message,
        );
    const nobody = await Relay.connect(url);
    const asNobody = await ask(nobody);
    assert.ok(Array.isArray(asNobody) || /^auth-required: /.test(asNobody), `${asNobody}`);
    assert.deepEqual(Array.isArray(asNobody) ? asNobody : [], []);
    // A filter without kinds reveals nothing either.
    const { need } = await sync(nobody, [], { "#p": [getPublicKey(me)] });
    assert.deepEqual(need, []);
    nobody.close();
    const asMe = await authenticated(me);
    assert.ok((await ask(asMe)).includes(wrap.id));
    asMe.close();
});

process.exit();
