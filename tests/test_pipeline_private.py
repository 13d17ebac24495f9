"""What a private training spent stands in the bundle, and is shown."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import drivetrain as dt
from drivetrain.cli import main
from drivetrain.core.metric import Emitted, Note
from drivetrain.core.site import Site
from drivetrain.declaration import load
from drivetrain.features.examples import Examples
from drivetrain.pipeline import run


def test_epsilon_and_delta_stand_in_the_manifest_repeat_and_are_shown(
    declared: Callable[..., Path], site: Site, capsys: Any
) -> None:
    declaration = load(declared())
    private = dt.Private(clip_norm=1.0, delta=1e-4, noise_multiplier=1.2)
    train = replace(declaration.train, privacy=private, batch_size=50)
    system = replace(declaration, train=train, compress=(), probes=())
    heard: list[Emitted] = []
    bundle = run(system, site, emit=heard.append)
    assert bundle is not None
    figures = bundle.manifest.metrics
    assert 0 < figures["privacy/epsilon"] < 10
    assert figures["privacy/delta"] == 1e-4
    assert figures["privacy/noise_multiplier"] == 1.2
    # Every raw column is watched, and three features were fitted.
    assert figures["privacy/unprotected_columns"] == len(bundle.manifest.inputs.names)
    told = "\n".join(n.text for n in heard if isinstance(n, Note) and n.warning)
    assert "epsilon is that of the weights alone" in told
    assert "amount" in told

    again = run(system, site)  # what was trained is read, and says the same of itself
    assert again is not None
    assert again.digest == bundle.digest

    assert main(["show", str(bundle.path)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"privacy/epsilon {figures['privacy/epsilon']:.6g}" in shown
    assert "privacy/delta 0.0001" in shown


def test_rows_are_drawn_from_the_cache_that_every_training_reads(
    declared: Callable[..., Path], site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    declaration = load(declared())
    private = dt.Private(clip_norm=1.0, delta=1e-4, epsilon=3.0, seed_for_tests=1)
    train = replace(declaration.train, privacy=private)
    drawn: list[int] = []
    take = Examples.take

    def noting(self: Examples, split: Any, rows: Any) -> Any:
        drawn.append(len(rows))
        return take(self, split, rows)

    monkeypatch.setattr(Examples, "take", noting)
    bundle = run(replace(declaration, train=train, compress=(), probes=()), site)
    assert bundle is not None
    assert 2.9 < bundle.manifest.metrics["privacy/epsilon"] <= 3.0
    assert len(set(drawn)) > 1  # Poisson batches vary in size
