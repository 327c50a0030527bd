"""Averages snapshots offline: `python -m muse_models.transformer.average --config configs/base.toml --decay 0.7`.

Prints the held-out cross-entropy of the last snapshot, of the average that the run kept, and of the offline average for
every `--decay`, and writes the best of them to `<work-dir>/<name>/averaged.pt`, which the export takes in place of
`checkpoint.pt`.
"""

import argparse
from pathlib import Path
from typing import Any

import torch

from ..text.pretrain import load_encoder
from ..training import checkpoint
from ..training.config import default_work_dir, load_config
from ..training.hardware import Hardware
from ..training.snapshots import offline_average, snapshot_files
from .config import TransformerConfig
from .dataset import TokenShards
from .model import build
from .train import evaluate


def compare(config: dict[str, Any], work_dir: Path, decays: list[float], batches: int) -> dict[str, float]:
    """Held-out cross-entropy by name of the candidate; writes the best. Raises `FileNotFoundError` without a run."""
    folder = work_dir / config["name"]
    saved = checkpoint.load(folder / "checkpoint.pt")
    if saved is None:
        raise FileNotFoundError(folder / "checkpoint.pt")
    files = snapshot_files(folder)
    candidates = {"average of the run": saved["model"], "last weights": saved["live"]}
    for decay in decays:
        # The run's last weights are its latest snapshot.
        states = (checkpoint.load(path)["live"] for path in files)
        candidates[f"offline average, decay {decay:g}"] = offline_average([*states, saved["live"]], decay)
    hardware = Hardware.from_options(config["training"])
    model = build(TransformerConfig.from_dict(saved["config"]["model"])).to(hardware.device).eval()
    encoder = load_encoder(work_dir).to(hardware.device)
    held_out = TokenShards(work_dir / "tokens" / "evaluation", 0, model.config.is_superres)
    figures = {}
    for name, weights in candidates.items():
        model.load_state_dict(weights)
        figures[name] = evaluate(model, encoder, held_out, config["training"], hardware, batches)["held-out/ce"]
        print(f"{name:32} held-out cross-entropy {figures[name]:.4f}", flush=True)
    best = min(figures, key=figures.get)
    checkpoint.save(folder / "averaged.pt", {
        "model": candidates[best], "config": saved["config"], "step": saved["step"], "seen": saved["seen"],
    })
    print(f"{folder / 'averaged.pt'}: {best}, of {len(files) + 1} snapshots", flush=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--work-dir", type=Path, default=default_work_dir())
    parser.add_argument("--decay", type=float, action="append", help="of one snapshot to the next (0.7)")
    parser.add_argument("--batches", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    compare(load_config(arguments.config), arguments.work_dir, arguments.decay or [0.7], arguments.batches)


if __name__ == "__main__":
    main()
