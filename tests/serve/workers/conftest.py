"""Several workers behind one supervisor, for one test."""

import pytest
from several import Several, point


@pytest.fixture
def several(tiny, tmp_path):
    """Starts supervisors that end with the test."""
    started = []

    def start(**options):
        alias = tmp_path / "alias"
        point(alias, tiny)
        started.append(Several(alias, options))
        return started[-1]

    yield start
    for one in started:
        one.child.kill()
        one.child.communicate()
