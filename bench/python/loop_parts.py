#!/usr/bin/env python3
"""Where the time of a picture goes in `plain_loop`: each graph, and what Python does around them.

    loop_parts.py --bundle bundles/demo --threads 1 --batch 4

With one thread this is what a core spends on a picture, so it bounds what any server on the same graphs can gain over as many of
these loops as there are cores. `muse-bench engine --threads 1` says the same of the engine.
"""

import argparse
import statistics
import time
from collections import Counter
from pathlib import Path

from plain_loop import Model

PROMPTS = ["a red star", "two blue cats on a yellow background", "a fox", "a green circle to the left of a dog"]


class Timed:
    """Stands in for a session and adds up the seconds of its runs."""

    def __init__(self, session, name: str, seconds: Counter) -> None:
        self._session, self._name, self._seconds = session, name, seconds

    def run(self, *arguments):
        begun = time.perf_counter()
        outputs = self._session.run(*arguments)
        self._seconds[self._name] += time.perf_counter() - begun
        return outputs

    def get_inputs(self):
        return self._session.get_inputs()

    def get_outputs(self):
        return self._session.get_outputs()


def timed(model: Model) -> Counter:
    """Has every session of `model` timed; the counter holds seconds by graph."""
    seconds = Counter()
    model.encoder = Timed(model.encoder, "text", seconds)
    model.conditions = [Timed(session, "conditioning", seconds) for session in model.conditions]
    model.steps = [Timed(session, "passes", seconds) for session in model.steps]
    model.decoder = Timed(model.decoder, "pixels", seconds)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=4, help="pictures together (%(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="medians are over so many batches (%(default)s)")
    arguments = parser.parse_args()
    model = Model(arguments.bundle, arguments.threads)
    seconds = timed(model)
    prompts = [PROMPTS[index % len(PROMPTS)] for index in range(arguments.batch)]
    model.make(prompts, 0)
    rounds = []
    for seed in range(1, arguments.rounds + 1):
        seconds.clear()
        begun = time.perf_counter()
        model.make(prompts, seed)
        whole = time.perf_counter() - begun
        rounds.append({**seconds, "around them": whole - sum(seconds.values()), "all": whole})
    for part in rounds[0]:
        milliseconds = statistics.median(one[part] for one in rounds) / arguments.batch * 1000
        print(f"{part:14} {milliseconds:7.1f} ms a picture")


if __name__ == "__main__":
    main()
