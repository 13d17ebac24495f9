"""A lake has each row once, whoever stops or interferes."""

import os
import signal
import subprocess
import sys
import textwrap
import threading

import pyarrow as pa
import pytest
from deltalake import DeltaTable, Transaction, write_deltalake
from lakes import numbers, some

from drivetrain.core.schema import Field, Schema
from drivetrain.events.delta import Delta
from drivetrain.events.lake import lake as module
from drivetrain.events.lake.lake import Lake


def test_rows_and_positions_land_together_and_are_found_again(path):
    lake = Lake.open(path)
    assert lake.positions("w") == {}
    assert lake.append(some(0), "w", {"t/0": 2, "t/1": 1}) == 1
    assert lake.append(some(3), "w", {"t/1": 4}) == 2
    assert lake.append(some(0, 0), "w", {"t/0": 9}) == 3, "positions move without rows"
    again = Lake.open(path)
    assert again.positions("w") == {"t/0": 9, "t/1": 4}
    assert again.positions("v") == {}
    assert numbers(path) == list(range(6))


def test_positions_are_found_behind_a_checkpoint(path):
    lake = Lake.open(path)
    for number in range(5):
        lake.append(some(number, 1), "w", {f"t/{number}": number})
    lake.table.create_checkpoint()
    for commit in range(5):
        (path / "_delta_log" / f"{commit:020}.json").unlink()
    lake.append(some(5, 1), "w", {"t/5": 5})
    assert Lake.open(path).positions("w") == {f"t/{number}": number for number in range(6)}


def test_a_table_that_is_restored_to_an_earlier_version_keeps_its_positions(path):
    lake = Lake.open(path)
    for number in range(3):
        lake.append(some(number, 1), "w", {"t/0": number + 1})
    DeltaTable(path).restore(2)
    assert numbers(path) == [0, 1]
    assert Lake.open(path).positions("w") == {"t/0": 3}, "as docs/streams.md says"
    lake.append(some(3, 1), "w", {"t/0": 4})
    assert numbers(path) == [0, 1, 3]


def test_the_second_of_two_writers_by_mistake_is_refused_and_names_both(path):
    first, second = Lake.open(path), Lake.open(path)
    for lake in (first, second):
        lake.positions("w")
    first.append(some(0), "w", {"t/0": 3})
    due = r"found another process that appends as 'w': it has come to {'t/0': 3}, while this one "
    due += r"stood at {} and would go to {'t/0': 5}; allowed: one process"
    for _ in range(2):
        with pytest.raises(ValueError, match=due):
            second.append(some(0, 5), "w", {"t/0": 5})
    assert numbers(path) == [0, 1, 2]
    # Who asks where the writer stands has taken over, and the first is then the second.
    assert second.positions("w") == {"t/0": 3}
    second.append(some(3), "w", {"t/0": 6})
    with pytest.raises(ValueError, match="another process that appends as 'w'"):
        first.append(some(3), "w", {"t/0": 6})
    assert numbers(path) == list(range(6))


def test_a_second_writer_of_other_sources_is_one_too(path):
    first, second = Lake.open(path, Schema((Field("n", "int64"),))), Lake.open(path)
    first.append(some(0), "w", {"t/0": 3})
    second.append(some(0), "v", {"t/0": 3})
    third = Lake.open(path)
    third.positions("w")
    first.append(some(3), "w", {"t/1": 7})
    with pytest.raises(ValueError, match=r"it has come to {'t/0': 3, 't/1': 7}"):
        third.append(some(3), "w", {"t/2": 1})
    assert len(numbers(path)) == 9


def test_appends_compactions_and_new_columns_of_others_between_do_no_harm(path):
    lake, other = Lake.open(path), Lake.open(path)
    lake.append(some(0), "w", {"t/0": 3})
    write_deltalake(path, some(100), mode="append")
    lake.append(some(3), "w", {"t/0": 6})
    Lake.open(path).compact()
    lake.append(some(6), "w", {"t/0": 9})
    other.append(some(200, note=["a", "b", "c"]), "v", {"x": 1})
    lake.append(some(9, mark=[1.5, 2.5, 3.5]), "w", {"t/0": 12})
    assert numbers(path) == [*range(12), 100, 101, 102, 200, 201, 202]
    assert Delta(path).schema.names == ("n", "note", "mark")
    assert lake.positions("w") == {"t/0": 12}


def test_threads_of_as_many_writers_lose_nothing(path):
    Lake.open(path, Schema((Field("n", "int64"),)))
    failures = []

    def write(number):
        try:
            lake = Lake.open(path)
            for step in range(5):
                rows = some(100 * number + step, 1)
                lake.append(rows, f"w{number}", {"t": step + 1})
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert numbers(path) == [100 * number + step for number in range(4) for step in range(5)]


def test_positions_do_not_go_back_nor_stay_where_rows_come(path):
    lake = Lake.open(path)
    lake.append(some(0), "w", {"t/0": 3})
    with pytest.raises(ValueError, match=r"positions of 'w', 't/0': found 2, allowed: at least 3"):
        lake.append(some(0), "w", {"t/0": 2})
    with pytest.raises(ValueError, match="these rows are in the table already"):
        lake.append(some(0), "w", {"t/0": 3})
    with pytest.raises(ValueError, match="an int64 from 0"):
        lake.append(some(0), "w", {"t/1": -1})
    with pytest.raises(ValueError, match="a name without '/'"):
        lake.append(some(0), "w/x", {"t/0": 4})
    with pytest.raises(ValueError, match="a name without '/'"):
        lake.append(some(0), "", {"t/0": 4})
    assert numbers(path) == [0, 1, 2]


def test_rows_without_a_writer_are_kept_account_of_by_nobody(path):
    lake = Lake.open(path)
    assert lake.append(some(0)) == 1
    assert lake.append(some(0)) == 2
    assert numbers(path) == [0, 0, 1, 1, 2, 2]


def test_an_append_whose_answer_was_lost_counts_once(path, monkeypatch):
    import deltalake

    lake = Lake.open(path)
    lake.append(some(0), "w", {"t/0": 3})
    write = deltalake.write_deltalake

    def lost(*given, **named):
        write(*given, **named)
        raise deltalake.exceptions.DeltaError("Generic S3 error: connection reset")

    with monkeypatch.context() as patched:
        patched.setattr(deltalake, "write_deltalake", lost)
        assert lake.append(some(3), "w", {"t/0": 6}) == 2, "found out at once"
        patched.setattr(Lake, "reload", lambda self: (_ for _ in ()).throw(OSError("gone too")))
        with pytest.raises(OSError, match="connection reset"):
            lake.append(some(6), "w", {"t/0": 9})
    assert lake.append(some(6), "w", {"t/0": 9}) == 3, "the same rows again"
    assert lake.append(some(9), "w", {"t/0": 12}) == 4
    assert numbers(path) == list(range(12))
    assert Lake.open(path).positions("w") == {"t/0": 12}


@pytest.mark.parametrize(("writer", "due"), [("w", {"t/0": 6}), ("w", {}), ("", {})])
def test_an_append_is_in_doubt_until_the_log_was_read(path, monkeypatch, writer, due):
    import deltalake

    lake = Lake.open(path)
    lake.append(some(0), writer, {"t/0": 3} if due else {})
    write = deltalake.write_deltalake

    def lost(*given, **named):
        write(*given, **named)
        raise deltalake.exceptions.DeltaError("Generic S3 error: connection reset")

    def away(*given):
        raise OSError("the log is away")

    def doubtful(rows, positions):
        with monkeypatch.context() as patched:
            patched.setattr(deltalake, "write_deltalake", lost)
            patched.setattr(module, "actions", away)
            with pytest.raises(OSError, match="connection reset"):
                lake.append(rows, writer, positions)
            with pytest.raises(OSError, match="the log is away"):
                lake.append(rows, writer, positions)

    doubtful(some(3), due)
    assert lake.append(some(3), writer, due) == 2, "the same rows again"
    assert numbers(path) == list(range(6))
    doubtful(some(6), {"t/0": 9} if due else {})
    assert lake.append(some(9), writer, {"t/0": 12} if due else {}) == 4, "other rows"
    assert numbers(path) == list(range(12))
    assert lake.positions("w") == ({"t/0": 12} if due else {})


def test_an_append_that_failed_may_be_followed_by_any_other(path, monkeypatch):
    import deltalake

    lake = Lake.open(path)
    lake.append(some(0), "w", {"t/0": 3})

    def failing(*given, **named):
        raise deltalake.exceptions.DeltaError("Generic S3 error: 503")

    with monkeypatch.context() as patched:
        patched.setattr(deltalake, "write_deltalake", failing)
        with pytest.raises(OSError, match="orders: Generic S3 error: 503"):
            lake.append(some(3), "w", {"t/0": 6})
    assert lake.append(some(3, 1), "w", {"t/0": 4}) == 2
    assert numbers(path) == [0, 1, 2, 3]


def test_many_appends_go_through_handles_that_are_opened_anew(path, monkeypatch):
    monkeypatch.setattr(module, "REOPEN", 3)
    lake = Lake.open(path)
    for number in range(10):
        lake.append(some(number, 1), "w", {"t": number + 1})
        write_deltalake(path, some(100 + number, 1), mode="append")
    assert numbers(path) == [*range(10), *range(100, 110)]
    assert lake.positions("w") == {"t": 10}


WRITER = """
    import sys
    import pyarrow as pa
    from drivetrain.events.lake.lake import Lake

    lake = Lake.open(sys.argv[1])
    done = lake.positions("w").get("t", 0)
    while True:
        lake.append(pa.table({"n": list(range(done, done + 2))}), "w", {"t": done + 2})
        done += 2
        print(done, flush=True)
"""


@pytest.mark.slow
def test_a_writer_that_is_killed_at_any_moment_goes_on_with_each_row_once(path):
    command = [sys.executable, "-c", textwrap.dedent(WRITER), str(path)]
    for appends in (1, 4, 2):
        with subprocess.Popen(command, stdout=subprocess.PIPE) as running:
            for _ in range(appends):
                assert running.stdout.readline()
            os.kill(running.pid, signal.SIGKILL)
        kept = numbers(path)
        assert kept == list(range(len(kept)))
        assert Lake.open(path).positions("w") == {"t": len(kept)}


def test_a_table_that_forgets_positions_takes_rows_that_nobody_keeps_account_of_only(path):
    forgets = {"delta.setTransactionRetentionDuration": "interval 1 hour"}
    columns = pa.schema([("n", pa.int64())])
    DeltaTable.create(path, columns, configuration=forgets, raise_if_key_not_exists=False)
    lake = Lake.open(path)
    lake.append(some(0))
    with pytest.raises(
        ValueError, match="setTransactionRetentionDuration: found 'interval 1 hour'"
    ):
        lake.positions("w")
    with pytest.raises(ValueError, match="positions are never forgotten"):
        lake.append(some(3), "w", {"t": 3})
    assert numbers(path) == [0, 1, 2]


def test_positions_of_a_writer_without_turns_are_seen_too(path):
    """As a driver of Spark leaves them that commits by itself."""
    from deltalake import CommitProperties

    moves = CommitProperties(app_transactions=[Transaction("w/t/0", 5)])
    write_deltalake(path, some(0), commit_properties=moves)
    lake = Lake.open(path)
    assert lake.positions("w") == {"t/0": 5}
    moves = CommitProperties(app_transactions=[Transaction("w/t/0", 8)])
    write_deltalake(path, some(5), mode="append", commit_properties=moves)
    with pytest.raises(ValueError, match=r"it has come to {'t/0': 8}, while this one stood at"):
        lake.append(some(5), "w", {"t/0": 8})
