"""The same numbers in every run on one machine, and no trace in the caller's generators."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

import torch

from drivetrain.train.loop.uncompiled import choose_deterministic


@contextmanager
def repeatable(
    seed: int, device: str, *, deterministic: bool = True, compiles: bool = False
) -> Iterator[None]:
    """Seed torch's generators and choose deterministic kernels; both are put back after.

    An operation that has no deterministic kernel is used all the same, and torch warns of it.

    Args:
        seed: of the generators.
        device: as torch names it.
        deterministic: whether kernels must be.
        compiles: whether torch's compiler makes some of them.
    """
    if compiles:
        import_module("torch._inductor.config")
    where = torch.device(device)
    cuda = where.type == "cuda"
    chosen = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory  # pyright: ignore[reportAttributeAccessIssue]
    with torch.random.fork_rng(devices=[where] if cuda else []):
        torch.default_generator.manual_seed(seed)
        if cuda:
            torch.cuda.manual_seed(seed)
        try:
            if deterministic:
                choose_deterministic(True, warn_only=True)
                # Filling what is written next anyway costs time and makes nothing repeatable.
                torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
            yield
        finally:
            choose_deterministic(chosen, warn_only=warned)
            torch.utils.deterministic.fill_uninitialized_memory = filled  # pyright: ignore[reportAttributeAccessIssue]
