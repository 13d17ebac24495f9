"""How a fuzz program is fed: its bytes in pieces, its first inputs, and atheris."""

import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FunctionType

RUNS, SECONDS = 4000, 15
"""What a test lets atheris do: so many inputs, or so long, whichever is over first."""


def cut(stream: bytes, whole: bool, chance: random.Random) -> list[bytes]:
    """A stream in one piece or in some."""
    if whole or not stream:
        return [stream]
    count = chance.choice((1, 2, 8, len(stream)))
    cuts = sorted(chance.randrange(len(stream) + 1) for _ in range(count))
    return [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]


def fuzz(
    arguments: list[str],
    run: Callable[[bytes], None],
    seeds: Iterable[bytes],
    watched: Iterable[FunctionType],
    words: Iterable[str],
) -> None:
    """Give a program inputs until libFuzzer's options say that it is enough.

    Args:
        arguments: of the command line, the program's name first.
        run: takes an input; raises if a rule is broken.
        seeds: the first inputs.
        watched: code whose branches an input should take.
        words: what inputs are made of, as libFuzzer's dictionaries write it.
    """
    import atheris

    with tempfile.TemporaryDirectory() as folder:
        corpus, known = Path(folder, "corpus"), Path(folder, "words")
        corpus.mkdir()
        for number, data in enumerate(seeds):
            (corpus / str(number)).write_bytes(data)
        known.write_text("".join(f'"{word}"\n' for word in words))
        more = [f"-dict={known}", "-max_len=1024", str(corpus)]
        given = any(not argument.startswith("-") for argument in arguments[1:])
        for function in watched:
            atheris.instrument_func(function)
        atheris.Setup([*arguments, *([] if given else more)], run)
        atheris.Fuzz()


def methods(*kinds: type) -> list[FunctionType]:
    """The functions of classes."""
    found = (value for kind in kinds for value in vars(kind).values())
    return [value for value in found if isinstance(value, FunctionType)]


def check_by_atheris(program: Path, folder: Path) -> None:
    """Let a program run for a while; an input that broke a rule would lie in the folder."""
    done = subprocess.run(
        [sys.executable, program, f"-runs={RUNS}", f"-max_total_time={SECONDS}", "-verbosity=0"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert list(folder.iterdir()) == []
