"""
When a replica that still runs is taken for dead.
"""

from milkrun_engine.dispatch.watchdog import Watchdog


def test_silence_has_a_bound_and_a_beat_ends_it() -> None:
    dog = Watchdog(60.0)
    assert [None] * 4 == [dog.passed(15.0, rows_in_flight=0) for _ in range(4)]
    dog.heard()
    assert [None] * 4 == [dog.passed(15.0, rows_in_flight=0) for _ in range(4)]
    assert "no sign of life for 75 s" in str(dog.passed(15.0, rows_in_flight=0))


def test_an_engine_that_lives_may_take_half_an_hour_for_a_row_and_no_longer() -> None:
    dog = Watchdog(60.0)
    for _ in range(1_800 // 15):
        assert dog.passed(15.0, rows_in_flight=1) is None
        dog.heard()
    assert "none of its rows for 1815 s" in str(dog.passed(15.0, rows_in_flight=1))


def test_slow_rows_make_it_more_patient() -> None:
    dog = Watchdog(60.0)
    dog.finished(3, 200.0)
    for _ in range(20 * 200 // 50):
        assert dog.passed(50.0, rows_in_flight=1) is None
        dog.heard()
    assert dog.passed(50.0, rows_in_flight=1)


def test_a_replica_without_rows_is_not_stuck() -> None:
    dog = Watchdog(60.0)
    for _ in range(200):
        assert dog.passed(50.0, rows_in_flight=0) is None
        dog.heard()
