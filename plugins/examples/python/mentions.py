"""Refuses events that mention too many people: one note, a thousand notifications."""

import json

from componentize_py_types import Err
from wit_world import exports
from wit_world.imports import config
from wit_world.imports.types import Context, Event, Verdict, Verdict_Accept, Verdict_Reject

DEFAULT_MOST = 20


class Filter(exports.Filter):
    most = DEFAULT_MOST

    def init(self) -> None:
        value = json.loads(config.get("most") or str(DEFAULT_MOST))
        if type(value) is not int or value < 1:
            # The error of `init`: its text is for the operator.
            raise Err("config.most: want a number from 1 on")
        Filter.most = value

    def evaluate(self, event: Event, context: Context) -> Verdict:
        mentioned = {tag[1] for tag in event.tags if len(tag) > 1 and tag[0] == "p"}
        if len(mentioned) <= self.most:
            return Verdict_Accept()
        return Verdict_Reject(f"mentions {len(mentioned)} people, more than {self.most}")
