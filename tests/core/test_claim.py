"""Generations of a job that write in one directory in turn: a late one is held off."""

from pathlib import Path

import pytest

from drivetrain.core.claim import Claim, alone
from drivetrain.core.world import World


def claim(directory: Path, generation: int, job: str = "j") -> Claim:
    return Claim.of(directory, World(job=job, generation=generation))


def test_a_later_generation_takes_over_and_the_earlier_is_told(tmp_path: Path) -> None:
    first, second = claim(tmp_path, 1), claim(tmp_path, 2)
    first.take()
    first.check()
    second.take()
    for late in (first.check, first.take):
        with pytest.raises(ConnectionError, match=r"generation 1 .* has ended: generation 2 has"):
            late()
    second.check()


def test_what_an_earlier_one_writes_at_the_same_moment_stands_only_until_the_next_look(
    tmp_path: Path,
) -> None:
    first, second = claim(tmp_path, 1), claim(tmp_path, 2)
    first.take()
    held = (tmp_path / "generation.json").read_bytes()
    second.take()
    (tmp_path / "generation.json").write_bytes(held)  # it had looked before
    second.check()
    with pytest.raises(ConnectionError):
        first.check()


def test_another_job_is_another_matter(tmp_path: Path) -> None:
    before, after = claim(tmp_path, 9, "before"), claim(tmp_path, 1, "after")
    before.take()
    after.take()
    with pytest.raises(ConnectionError, match="another job has taken over"):
        before.check()


def test_where_there_are_no_generations_nothing_is_written(tmp_path: Path) -> None:
    none = claim(tmp_path, 0, "")
    none.take()
    none.check()
    assert not none.succeeds()
    assert not list(tmp_path.iterdir())


def test_one_directory_is_held_by_one_run(tmp_path: Path) -> None:
    for other in (World(), World(job="a")):
        with (
            alone(tmp_path, World()),
            pytest.raises(ValueError, match="another run is training this very system"),
            alone(tmp_path, other),
        ):
            raise AssertionError("two at once")
    with alone(tmp_path, World()):
        pass


def test_a_later_generation_does_not_wait_for_one_that_stands_still(tmp_path: Path) -> None:
    first, second = World(job="j", generation=1), World(job="j", generation=2)
    with (
        alone(tmp_path, first),
        alone(tmp_path, second),
        pytest.raises(ConnectionError, match="generation 2 has taken over"),
        alone(tmp_path, first),
    ):
        raise AssertionError("the late one went on")


def test_whoever_takes_a_directory_without_generations_holds_off_those_that_had_it(
    tmp_path: Path,
) -> None:
    late = claim(tmp_path, 3)
    late.take()
    claim(tmp_path, 0, "").take()
    with pytest.raises(ConnectionError, match="another job has taken over"):
        late.check()
