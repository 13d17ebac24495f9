"""The processes of a job as copies of a model that several of them hold together."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from drivetrain.launch.local import Local
from drivetrain.train.together.mesh import check_ways

WORKER = Path(__file__).with_name("mesh_worker.py")
SIZE = 4


@pytest.mark.slow
def test_each_process_has_its_copy_its_part_and_bounded_waits_for_both(
    job_of: Any, tmp_path: Path
) -> None:
    job = job_of(tmp_path, SIZE, {})
    command = (sys.executable, "-W", "error", str(WORKER), str(tmp_path))
    assert Local(grace=20).start(replace(job, command=command)) == 0
    found = [json.loads((tmp_path / f"told-{rank}.json").read_text()) for rank in range(SIZE)]
    for ways in (1, 2, 4):
        for rank in range(SIZE):
            told = found[rank][str(ways)]
            copy, part, copies = rank // ways, rank % ways, SIZE // ways
            assert told["whole"] == [rank, SIZE]
            assert told["data"] == told["shard"] == [copy, copies]
            assert told["model"] == [part, ways]
            assert told["streams"] == [copy, rank]
            same_part = [float(1 + other) for other in range(part, SIZE, ways)]
            same_copy = [float(1 + other) for other in range(copy * ways, (copy + 1) * ways)]
            assert told["sums"] == [10.0, sum(same_part), sum(same_copy)]
            assert told["gathered"] == same_part

    for rank in range(SIZE):
        pieces = found[rank]["pieces"]
        # Cut in a copy: both parts of the first copy; equal everywhere: the leader.
        assert pieces["writes"] == [rank < 2, rank == 0, rank == 0, rank == 0]
        assert pieces["offsets"] == [4 * (rank % 2), 0]
        # Each tensor's norm counts once, whoever holds it: three equal ones make one of norm 1.
        assert pieces["squares"][1:] == pytest.approx([1 / 3, 1 / 3])
        assert found[rank]["sent"] == [400, 400]
    halves = [found[rank]["pieces"]["squares"][0] for rank in (0, 1)]
    assert sum(halves) == pytest.approx(1 / 3)

    lost = [json.loads((tmp_path / f"lost-{rank}.json").read_text()) for rank in (0, 1, 2)]
    (neighbour,) = lost[2]
    assert neighbour.startswith("rank 2 of 4 waited for rank 3 in vain: it has ended or stands")
    (same,) = lost[1]
    assert same.startswith("rank 1 of 4 waited for rank 3 in vain: it has ended or stands still")
    assert lost[0] == []


def test_processes_that_hold_no_whole_copy_are_refused() -> None:
    for size in (1, 3, 6):
        check_ways("TensorParallel.ways", 3, size)
    with pytest.raises(
        ValueError,
        match=r"TensorParallel: processes of the site: found 4, allowed: a multiple of 3, which "
        r"TensorParallel.ways is \(3, 6, \.\.\.\), or 1",
    ):
        check_ways("TensorParallel.ways", 3, 4)
