#!/usr/bin/env python3
"""The bundle's graphs behind mosec: a Python model server with dynamic batching.

    MUSE_BUNDLE=bundles/demo MUSE_PROCESSES=2 MUSE_THREADS=1 MUSE_BATCH=4 mosec_server.py --address 127.0.0.1 --port 8000

POST /inference with {"prompt": "a red star", "seed": 7} answers with a PNG. Requests that wait together share a batch of `plain_loop`, up
to MUSE_BATCH of them in each of MUSE_PROCESSES worker processes, which have MUSE_THREADS threads in an operator.
"""

import json
import os
from pathlib import Path

from mosec import Server, Worker
from plain_loop import Model


class Pictures(Worker):
    """One copy of the model."""

    resp_mime_type = "image/png"

    def __init__(self) -> None:
        super().__init__()
        self._model = Model(Path(os.environ["MUSE_BUNDLE"]), int(os.environ["MUSE_THREADS"]))

    def deserialize(self, data: bytes) -> dict:
        return json.loads(data)

    def serialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: list[dict] | dict) -> list[bytes] | bytes:
        if isinstance(data, dict):
            return self._model.make([data["prompt"]], data["seed"])[0]
        return self._model.make([one["prompt"] for one in data], data[0]["seed"])


if __name__ == "__main__":
    server = Server()
    server.append_worker(
        Pictures,
        num=int(os.environ["MUSE_PROCESSES"]),
        max_batch_size=int(os.environ["MUSE_BATCH"]),
        max_wait_time=5,
        timeout=60,
    )
    server.run()
