"""What a device can do, asked before it is needed."""

import os
import shutil
import warnings

import torch
from torch import nn

from drivetrain.core.errors import wrong


def check_bfloat16(device: str) -> None:
    """Refuse bfloat16 where products would be emulated.

    Raises:
        ValueError: the device has no bfloat16.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        able = torch.cuda.is_bf16_supported(including_emulation=False)
    elif kind == "cpu":
        able = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    else:
        able = True  # nobody can be asked; torch itself refuses what it can't do
    if not able:
        raise wrong("precision", "bfloat16", f"float32 on {device!r}, which multiplies no bfloat16")


def check_compiler(device: str) -> None:
    """Refuse ``compile`` on a CPU without a C++ compiler.

    Raises:
        ValueError: there is none.
    """
    if torch.device(device).type != "cpu":
        return
    names = [os.environ.get("CXX", ""), "g++", "clang++"]
    if not any(name and shutil.which(name) for name in names):
        raise wrong("compile", True, "False where no C++ compiler (g++, clang++, $CXX) is found")


def compiled(model: nn.Module) -> nn.Module:
    """The model through ``torch.compile``; the two share their weights."""
    with warnings.catch_warnings():
        # The compiler's own modules still use what torch itself has deprecated.
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.compile(model)  # pyright: ignore[reportReturnType]
