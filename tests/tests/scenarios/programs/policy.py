#!/usr/bin/env python3
"""A write policy for strfry that does what an event's content says."""

import json
import os
import subprocess
import sys
import time


def verdict(request):
    event = request["event"]
    word, _, rest = event["content"].partition(":")
    answer = {"id": event["id"], "action": "accept"}
    if word == "reject":
        answer |= {"action": "reject", "msg": rest}
    elif word == "shadow":
        answer["action"] = "shadowReject"
    elif word == "about":
        about = {key: request.get(key) for key in ("type", "sourceType", "sourceInfo", "authed")}
        about["late"] = abs(time.time() - request["receivedAt"]) > 60
        answer |= {"action": "reject", "msg": json.dumps(about)}
    elif word == "environment":
        told = {"names": sorted(os.environ), "folder": os.path.basename(os.getcwd())}
        answer |= {"action": "reject", "msg": json.dumps(told)}
    elif word == "pid":
        answer |= {"action": "reject", "msg": str(os.getpid())}
    elif word == "say":
        for number in range(int(rest)):
            print(f"line {number} \x1b[31m", file=sys.stderr, flush=True)
    elif word == "sleep":
        time.sleep(float(rest))
    elif word == "hang":
        # It has a child that nobody else would end.
        child = subprocess.Popen(["sleep", "1000"])
        print(f"child {child.pid}", file=sys.stderr, flush=True)
        time.sleep(1000)
    elif word == "other":
        answer["id"] = "00" * 32
    elif word == "maybe":
        answer["action"] = "maybe"
    elif word == "garbage":
        return "I think so"
    elif word == "long":
        return "x" * 1_000_000
    elif word == "exit":
        print("I have had enough", file=sys.stderr, flush=True)
        sys.exit(3)
    elif word == "twice":
        print(json.dumps(answer), flush=True)
    return json.dumps(answer)


for line in sys.stdin:
    print(verdict(json.loads(line)), flush=True)
