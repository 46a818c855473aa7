"""
A few random-kill runs, and a short mix of every fault; `tests/measure chaos` makes hundreds, and a long mix.
"""

from pathlib import Path

import pytest
from measure import chaos_kills, chaos_mix

pytestmark = pytest.mark.engine


@pytest.mark.parametrize("seed", [1, 2])
def test_random_kills_break_no_promise(tmp_path: Path, seed: int) -> None:
    """Twenty jobs end rightly, each once, whoever dies meanwhile."""
    result = chaos_kills.run(seed, tmp_path)
    assert {"server", "replica", "receiver"} >= result["faults"].keys()
    assert 2 <= sum(result["faults"].values()), "nothing was killed"
    assert (20, []) == (result["jobs"], result["violations"])
    assert [0, 0, 0] == [result[name] for name in ("rows_lost", "rows_doubled", "not_terminal")]


def test_a_mix_of_faults_breaks_no_promise(tmp_path: Path) -> None:
    """Two engines on one Postgres; whatever else fails beside kills, the same is true."""
    result = chaos_mix.run("postgres", 0.25, tmp_path, seed=9)
    assert 3 <= sum(result["faults"].values()), "nothing was hurt"
    assert [] == result["violations"]
    assert [0, 0, 0] == [result[name] for name in ("rows_lost", "rows_doubled", "not_terminal")]
