// What the programs for Node have in common: the words that the runner knows, and waiting with an end.
import assert from "node:assert/strict";
import { createInterface } from "node:readline";
import { WebSocket } from "ws";

// Node 20 has none of its own; both libraries take the global one.
globalThis.WebSocket = WebSocket;

/** The relay's URL. */
export const url = process.argv[2];

/** The URL of a topic that the gateway is in. */
export const topicUrl = `${url}topic/one%20two`;

/** Seconds since the Unix epoch. */
export const now = () => Math.floor(Date.now() / 1000);

/** How long an answer that must come may take, in milliseconds. */
const PATIENCE = 15_000;
/** How long is waited for what must not come. */
const SILENCE = 500;

const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();

/** Runs one check and tells the runner how it went. */
export async function check(name, body) {
    try {
        await within(25_000, name, body());
        console.log(`ok ${name}`);
    } catch (error) {
        console.log(`not ok ${name}: ${String(error?.message ?? error).split("\n")[0]}`);
        console.error(name, error);
    }
}

/** Has the gateway go and come back: "restart" or "crash". */
export async function gateway(how) {
    console.log(how);
    const { value } = await lines.next();
    assert.equal(value, "restarted");
}

/** The result of a promise, or an error after so many milliseconds. */
export async function within(ms, what, promise) {
    let timer;
    const late = new Promise((_, reject) => {
        timer = setTimeout(() => reject(new Error(`did not come within ${ms} ms: ${what}`)), ms);
    });
    return await Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/** What a subscription receives, in order, and waiting for it. */
export class Inbox {
    received = [];
    #waiting = [];

    push = (item) => {
        this.received.push(item);
        for (const look of [...this.#waiting]) look();
    };

    /** Waits for something that satisfies `wanted`, also if it came before. */
    async until(what, wanted) {
        let look;
        const found = new Promise((resolve) => {
            look = () => {
                const item = this.received.find(wanted);
                if (item !== undefined) resolve(item);
            };
            this.#waiting.push(look);
            look();
        });
        const end = () => this.#waiting.splice(this.#waiting.indexOf(look), 1);
        return await within(PATIENCE, what, found).finally(end);
    }

    /** Waits for the event with this id. */
    event(event) {
        return this.until(`event ${event.content}`, (item) => item.id === event.id);
    }
}

/** Leaves the relay the time to send what it must not send. */
export const silence = () => new Promise((resolve) => setTimeout(resolve, SILENCE));

/** Asks until an answer has something in it, for a while: an index may be a moment behind. */
export async function soon(ask) {
    const end = Date.now() + 5_000;
    for (;;) {
        const answer = await ask();
        if (answer.length > 0 || Date.now() > end) return answer;
        await new Promise((resolve) => setTimeout(resolve, 100));
    }
}

/** The reason why a promise was refused. */
export async function refusal(promise) {
    try {
        await promise;
    } catch (error) {
        return error;
    }
    assert.fail("it was accepted");
}

/** The ids of events. */
export const ids = (events) => events.map((event) => event.id);
