// Refuses events that mention too many people: one note, a thousand notifications.
import config from "nostr-gateway:plugin/config@0.1.0";

const DEFAULT_MOST = 20;

let most;

export const filter = {
  // An exception is the error of `init`: its text is for the operator.
  init() {
    const value = JSON.parse(config.get("most") ?? DEFAULT_MOST);
    if (!Number.isInteger(value) || value < 1) throw "config.most: want a number from 1 on";
    most = value;
  },

  evaluate(event, _context) {
    const mentioned = new Set();
    for (const [name, key] of event.tags) {
      if (name === "p" && key !== undefined) mentioned.add(key);
    }
    if (mentioned.size <= most) return { tag: "accept" };
    return { tag: "reject", val: `mentions ${mentioned.size} people, more than ${most}` };
  },
};
