#!/usr/bin/env python3
"""The Celery peer of `muse-bench queue`: a chain of two tasks that do nothing, `base` and `superres`, each with a queue of its
own; tasks are acknowledged late, so that none is lost with its worker, and results are not kept.

    celery_chain.py --redis /path/to/socket --database 9

reads lines {"do": "adds" | "flow", "jobs": 1000, "in_flight": 8, "bytes": 1024} and answers each with {"seconds": …}; the
first line that it writes names its versions.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import celery
import kombu
import redis

QUEUES = ("base", "superres")

app = celery.Celery("celery_chain")
app.conf.update(
    broker_url=os.environ.get("CELERY_CHAIN_BROKER"),
    broker_connection_retry_on_startup=True,
    task_acks_late=True,
    task_ignore_result=True,
    task_routes={f"celery_chain.{name}": {"queue": name} for name in QUEUES},
    worker_prefetch_multiplier=16,
)


@app.task(name="celery_chain.base")
def base(request):
    return request


@app.task(name="celery_chain.superres")
def superres(request):
    return None


class Peer:
    """A producer in this process, and a worker in another."""

    def __init__(self, socket: str, database: int, pool: str, concurrency: int) -> None:
        self.redis = redis.Redis(unix_socket_path=socket, db=database)
        if self.redis.dbsize() > 0:
            raise SystemExit(f"database {database} is not empty")
        app.conf.broker_url = f"redis+socket://{socket}?virtual_host={database}"
        app.conf.broker_pool_limit = 64
        command = [
            sys.executable, "-m", "celery", "-A", "celery_chain", "worker", "--loglevel", "ERROR", "--pool", pool,
            "--concurrency", str(concurrency), "--queues", ",".join(QUEUES),
            "--without-gossip", "--without-mingle", "--without-heartbeat",
        ]  # fmt: skip
        # It warns of root with every start, on the terminal of whoever measures.
        environment = {**os.environ, "CELERY_CHAIN_BROKER": app.conf.broker_url, "PYTHONWARNINGS": "ignore"}
        folder = Path(__file__).resolve().parent
        self.worker = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        self.flow({"jobs": 1, "in_flight": 1, "bytes": 1})

    def adds(self, task: dict) -> dict:
        """Submissions alone: to a queue that no worker reads."""
        seconds = self._produce(task, lambda data: base.apply_async((data,), queue="adds"))
        self.redis.delete("adds")
        return {"seconds": seconds}

    def flow(self, task: dict) -> dict:
        """From the first submission until nothing is queued nor unacknowledged."""
        begun = time.perf_counter()
        self._produce(task, lambda data: (base.s(data) | superres.s()).apply_async())
        # Kombu pops a message and notes it as unacknowledged in two steps: only what is seen twice is seen.
        empty = 0
        while empty < 2:
            if self.worker.poll() is not None:
                raise SystemExit(f"the Celery worker ended with {self.worker.returncode}")
            time.sleep(0.01)
            empty = 0 if self._left() > 0 else empty + 1
        return {"seconds": time.perf_counter() - begun}

    def _produce(self, task: dict, submit) -> float:
        data = "x" * task["bytes"]
        with ThreadPoolExecutor(task["in_flight"]) as threads:
            begun = time.perf_counter()
            for _ in threads.map(lambda _: submit(data), range(task["jobs"])):
                pass
            return time.perf_counter() - begun

    def _left(self) -> int:
        pipeline = self.redis.pipeline(transaction=True)
        for queue in QUEUES:
            pipeline.llen(queue)
        pipeline.hlen("unacked")
        return sum(pipeline.execute())

    def stop(self) -> None:
        self.worker.terminate()
        self.worker.wait(timeout=30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--redis", required=True, help="the server's Unix socket")
    parser.add_argument("--database", type=int, default=9)
    parser.add_argument("--pool", default="threads")
    parser.add_argument("--concurrency", type=int, default=8)
    arguments = parser.parse_args()
    peer = Peer(arguments.redis, arguments.database, arguments.pool, arguments.concurrency)
    try:
        versions = f"Celery {celery.__version__}, Kombu {kombu.__version__}, redis-py {redis.__version__}"
        python = ".".join(str(part) for part in sys.version_info[:3])
        print(json.dumps({"versions": f"{versions}, Python {python}"}), flush=True)
        tasks = {"adds": peer.adds, "flow": peer.flow}
        for line in sys.stdin:
            task = json.loads(line)
            print(json.dumps(tasks[task["do"]](task)), flush=True)
    finally:
        peer.stop()


if __name__ == "__main__":
    main()
