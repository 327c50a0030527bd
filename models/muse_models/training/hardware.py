"""Which device a part trains on, and in what precision: the `device` and `precision` of a configuration."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Hardware:
    """A device, and the type that products are computed in there (None: f32 throughout)."""

    device: torch.device
    products: torch.dtype | None

    @classmethod
    def from_options(cls, options: dict[str, Any]) -> "Hardware":
        """Reads `device` ("cpu", "cuda", "cuda:1", …) and `precision` ("auto", "f32" or "bf16") of `[training]`.

        "auto" is bf16 where the device multiplies it faster than f32, else f32. Raises `ValueError` for a device that
        PyTorch does not find: there is no falling back to another.
        """
        device = torch.device(options.get("device", "cpu"))
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f'device "{device}" was asked for, and PyTorch finds no CUDA device')
        precision = options.get("precision", "auto")
        if precision not in ("auto", "f32", "bf16"):
            raise ValueError(f'precision "{precision}" is none of "auto", "f32" and "bf16"')
        if precision == "auto":
            precision = "bf16" if _multiplies_bf16(device) else "f32"
        return cls(device, torch.bfloat16 if precision == "bf16" else None)

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which a forward pass runs."""
        if self.products is None:
            return nullcontext()
        return torch.autocast(self.device.type, self.products)

    def __str__(self) -> str:
        return f"{self.device} in {'f32' if self.products is None else 'bf16'}"


def _multiplies_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    # Elsewhere a CPU widens every number first, and bf16 takes several times as long as f32.
    abilities = torch.backends.cpu.get_cpu_capability(), torch.cpu.get_capabilities()
    return bool(abilities[1].get("avx512_bf16") or abilities[1].get("amx_bf16"))
