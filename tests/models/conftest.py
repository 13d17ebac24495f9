"""One fitted schema with a feature of every kind, and made inputs for it."""

import numpy as np
import pytest
import torch

from drivetrain.core.schema import FeatureField, FeatureSchema


@pytest.fixture
def features() -> FeatureSchema:
    return FeatureSchema(
        (
            FeatureField(name="amount", kind="dense"),
            FeatureField(name="hour", kind="dense", width=2),
            FeatureField(name="carrier", kind="index", cardinality=5),
            FeatureField(name="pair", kind="index", width=2, cardinality=4),
            FeatureField(name="words", kind="bag", width=3, cardinality=6),
            FeatureField(name="photo", kind="tensor", shape=(2, 8, 8)),
        )
    )


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    """Four rows; the second has a padded bag, the third an empty one."""
    generator = np.random.default_rng(3)
    index = np.stack([generator.integers(0, n, 4) for n in (5, 4, 4)], 1)
    arrays = {
        "dense": generator.normal(size=(4, 3)).astype(np.float32),
        "index": index,
        "words": np.array([[1, 5, 2], [3, 0, 0], [0, 0, 0], [5, 5, 0]]),
        "photo": generator.normal(size=(4, 2, 8, 8)).astype(np.float32),
    }
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
