#!/usr/bin/env python3
"""How a step graph is best divided among threads: each operator by all of them, or rows side by side with a thread each.

    lanes.py --bundle bundles/demo --stage base --lanes 2

prints, for passes of several sizes, milliseconds with all threads in every operator (asleep between operators, or waiting awake for
50 µs) and with the rows in lanes; medians over rounds in which all take turns. Rows are guided pairs that share a grid, half
of the positions masked. This is the measurement behind `runtime.lanes` and `runtime.lane_rows` (docs/operations.md, "Threads").
"""

import argparse
import statistics
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime

ROWS = (1, 2, 4, 8, 16, 32)
TYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(bool)": np.bool_}


def session(path: Path, threads: int, spin_us: int = 0) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin_us > 0)))
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(spin_us))
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def inputs(graph: onnxruntime.InferenceSession, rows: int, positions: int, random: np.random.Generator) -> dict:
    """What a pass of `rows` rows takes, two to a grid."""
    grids = max(1, rows // 2)
    made = {}
    for given in graph.get_inputs():
        rest = given.shape[1:]
        match given.name:
            case "tokens":
                made[given.name] = random.integers(0, 8, (grids, positions))
            case "grids":
                made[given.name] = np.arange(rows) % grids
            case "positions":
                masked = [row * positions + random.permutation(positions)[: positions // 2] for row in range(rows)]
                made[given.name] = np.concatenate(masked)
            case name if "mask" in name:
                made[name] = np.ones([rows, *rest], TYPES[given.type])
            case name:
                made[name] = random.standard_normal([rows, *rest]).astype(TYPES[given.type])
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--stage", choices=("base", "superres"), default="base")
    parser.add_argument("--lanes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    stage = tomllib.loads((arguments.bundle / "bundle.toml").read_text())[arguments.stage]
    path, positions = arguments.bundle / stage["step"], stage["grid"][0] * stage["grid"][1]
    asleep, awake, lane = (
        session(path, arguments.lanes),
        session(path, arguments.lanes, 50),
        session(path, 1),
    )
    random = np.random.default_rng(0)
    helpers = ThreadPoolExecutor(arguments.lanes)
    print("rows  together  together, 50 us awake  in lanes  gain")
    for rows in ROWS:
        whole = inputs(lane, rows, positions, random)
        parts = [inputs(lane, max(1, rows // arguments.lanes), positions, random) for _ in range(min(rows, arguments.lanes))]

        def side_by_side(parts: list[dict] = parts) -> None:
            list(helpers.map(lambda part: lane.run(None, part), parts))

        ways = {
            "together": lambda whole=whole: asleep.run(None, whole),
            "awake": lambda whole=whole: awake.run(None, whole),
            "lanes": side_by_side,
        }
        times: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(arguments.rounds):
            for way, run in ways.items():
                run()
                passes = max(2, 40 // rows)
                begun = time.perf_counter()
                for _ in range(passes):
                    run()
                times[way].append((time.perf_counter() - begun) / passes * 1e3)
        medians = {way: statistics.median(seen) for way, seen in times.items()}
        gain = medians["together"] / medians["lanes"]
        print(f"{rows:4}  {medians['together']:8.2f}  {medians['awake']:21.2f}  {medians['lanes']:8.2f}  {gain:4.2f}")


if __name__ == "__main__":
    main()
