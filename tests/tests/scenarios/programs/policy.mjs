#!/usr/bin/env node
// A write policy for strfry that does what an event's content says.

import { createInterface } from "node:readline";

const lines = createInterface({ input: process.stdin, terminal: false });

lines.on("line", (line) => {
  const request = JSON.parse(line);
  const { id, content } = request.event;
  const [word, ...rest] = content.split(":");
  const answer = { id, action: "accept" };
  if (word === "reject") Object.assign(answer, { action: "reject", msg: rest.join(":") });
  if (word === "shadow") answer.action = "shadowReject";
  if (word === "about") {
    const { type, sourceType, sourceInfo, authed = null } = request;
    const late = Math.abs(Date.now() / 1000 - request.receivedAt) > 60;
    const about = { type, sourceType, sourceInfo, authed, late };
    Object.assign(answer, { action: "reject", msg: JSON.stringify(about) });
  }
  if (word === "pid") Object.assign(answer, { action: "reject", msg: String(process.pid) });
  const say = () => console.log(JSON.stringify(answer));
  if (word === "sleep") setTimeout(say, 1000 * Number(rest[0]));
  else if (word !== "hang") say();
});
