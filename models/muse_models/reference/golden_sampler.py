"""Golden vectors of the sampler's parts, without a model: `python -m muse_models.reference.golden_sampler --out FILE`.

Every f32 is written so that reading it as f64 and rounding to f32 gives it back to the bit. Logarithms may differ by a
unit in the last place between libraries; compare what contains them with a tolerance of 1e-6.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from . import guidance, rng, sampler, schedule
from .golden import write_golden

PHILOX_INPUTS = (
    ((0, 0, 0, 0), (0, 0)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)),
    ((63, 11, 3, 0), (1, 0)),
    ((4095, 7, 0, 1), (0x89ABCDEF, 0x01234567)),
)
"""The first three are the known answers that Random123 publishes."""

SCHEDULES = (
    ("cosine", 256, 24), ("cosine", 4096, 8), ("cosine", 64, 12), ("cosine", 256, 8), ("cosine", 24, 24),
    ("cosine", 5, 12), ("cosine", 1, 8), ("cosine", 0, 8), ("cosine", 96, 1),
    ("linear", 256, 24), ("linear", 24, 5), ("linear", 7, 7), ("arccos", 256, 24), ("arccos", 64, 12), ("arccos", 3, 2),
)

GRIDS = ((1, 1), (2, 3), (4, 6), (8, 8), (8, 12), (16, 16))


def philox_vectors() -> list[dict[str, Any]]:
    return [
        {"counter": list(counter), "key": list(key), "words": rng.philox(np.array(counter, np.uint32), key).tolist()}
        for counter, key in PHILOX_INPUTS
    ]


def draw_vectors() -> list[dict[str, Any]]:
    """Words of one position: how seed, step, image and stage enter counter and key."""
    asked = ((1, 0, 0, 0, "base"), (2**64 - 1, 5, 3, 2, "superres"), (0x0123456789ABCDEF, 23, 255, 7, "base"))
    return [
        {
            "seed": str(seed), "position": position, "step": step, "image_index": image, "stage": stage,
            "words": rng.draw(seed, np.array([position]), step, image, stage)[0].tolist(),
        }
        for seed, step, position, image, stage in asked
    ]


def uniform_vectors() -> list[dict[str, Any]]:
    words = np.array([0, 1, 511, 512, 0x12345678, 0x80000000, 0xFFFFFDFF, 0xFFFFFFFF], np.uint32)
    uniforms = rng.uniform(words)
    return [
        {"word": int(word), "uniform": float(u), "gumbel": float(g)}
        for word, u, g in zip(words, uniforms, rng.gumbel(uniforms), strict=True)
    ]


def exponential_vectors() -> list[dict[str, Any]]:
    """Down to the last argument whose exponential is not 0, and beyond."""
    random = np.random.default_rng(9)
    asked = np.concatenate([[0, -(2.0**-24), -0.34657, -0.34658, -1, -86.99, -87, -87.001, -200], -random.exponential(8, 200)])
    asked = asked.astype(np.float32)
    return [{"x": float(x), "exponential": float(e)} for x, e in zip(asked, sampler.exponential(asked), strict=True)]


def schedule_vectors() -> list[dict[str, Any]]:
    return [
        {
            "mask_schedule": name, "masked": masked, "steps": steps,
            "masked_after_step": schedule.masked_table(name, masked, steps),
        }
        for name, masked, steps in SCHEDULES
    ]


def guidance_vectors() -> list[dict[str, Any]]:
    asked = ((3.0, "linear", 12), (2.5, "linear", 7), (4.0, "constant", 3), (3.0, "linear", 1), (0.0, "linear", 4))
    return [
        {
            "guidance": t, "guidance_schedule": kind, "steps": steps,
            "weights": [float(guidance.weight(t, kind, step, steps)) for step in range(steps)],
        }
        for t, kind, steps in asked
    ]


def sample_vectors() -> list[dict[str, Any]]:
    """One position each; ties and extremes included."""
    random = np.random.default_rng(6)
    spread = (random.normal(size=12) * 3).astype(np.float32)
    ties = np.array([1.0, 2.5, 2.5, -1.0, 2.5, 0.0], np.float32)
    steep = np.array([0.0, 200.0, -200.0, 199.0], np.float32)
    asked = [
        (logits, word, temperature, top_k)
        for logits in (spread, ties, steep)
        for word in (0, 0x7FFFFFFF, 0xC0000000, 0xFFFFFFFF)
        for temperature, top_k in ((1.0, 0), (0.7, 3), (1.3, 1), (0.0, 0), (0.0, 2), (1.0, 50))
    ]
    vectors = []
    for logits, word, temperature, top_k in asked:
        u = rng.uniform(np.array([word], np.uint32))
        tokens, log_probability = sampler.sample(logits[None], u, temperature, top_k)
        vectors.append({
            "logits": [float(value) for value in logits], "word": word, "temperature": temperature, "top_k": top_k,
            "token": int(tokens[0]), "log_probability": float(log_probability[0]),
        })
    return vectors


def remask_vectors() -> list[dict[str, Any]]:
    """Which positions of a row are masked again; equal confidences included."""
    random = np.random.default_rng(8)
    spread = np.log(random.random(9)).astype(np.float32)
    flat = np.full(9, -1.25, np.float32)
    words = random.integers(0, 2**32, 9, dtype=np.uint32)
    return [
        {
            "log_probability": [float(value) for value in values], "words": words.tolist(), "tau": tau, "count": count,
            "masked": sampler.least_confident(values, rng.uniform(words), np.float32(tau), count).tolist(),
        }
        for values in (spread, flat)
        for tau in (0.0, 2.25)
        for count in (1, 4, 8)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    lists = {
        "philox": philox_vectors(),
        "draws": draw_vectors(),
        "uniforms": uniform_vectors(),
        "exponentials": exponential_vectors(),
        "schedules": schedule_vectors(),
        "guidance": guidance_vectors(),
        "halton": [{"grid": list(grid), "order": schedule.halton_order(*grid).tolist()} for grid in GRIDS],
        "samples": sample_vectors(),
        "remasks": remask_vectors(),
    }
    write_golden(arguments.out, {"specification": "docs/decoding.md"}, lists)
    print(f"{arguments.out}: {sum(map(len, lists.values()))} vectors")


if __name__ == "__main__":
    main()
