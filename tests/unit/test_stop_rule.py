from __future__ import annotations

from pipelines.progress import ProgressCounter


def counter(total: int = 1009, fraction: float = 0.5) -> ProgressCounter:
    return ProgressCounter(total, fraction)


def test_rows_are_counted_by_status() -> None:
    counted = counter(total=7)
    assert counted.add(["ok", "rejected", "ok"]) is None
    assert counted.state().done == 3 and counted.state().total == 7
    assert counted.state().counts == {"ok": 2, "rejected": 1}


def test_more_than_the_fraction_of_the_last_200_failed_stops_the_run() -> None:
    counted = counter()
    assert counted.add(["ok"] * 211 + ["failed"] * 100) is None
    reason = counted.add(["quarantined"])
    assert reason == "101 of the last 200 rows failed (stop_failed_fraction=0.5)"
    assert counted.add(["ok"]) == reason == counted.stop_reason()


def test_fewer_than_200_rows_stop_nothing() -> None:
    assert counter().add(["failed"] * 199) is None


def test_rejected_rows_stop_a_run_only_as_its_first_200() -> None:
    assert counter().add(["rejected"] * 199) is None
    assert counter().add(["rejected"] * 200) == "the first 200 rows were all rejected"
    assert counter().add(["ok"] + ["rejected"] * 500) is None


def test_a_run_with_no_row_left_is_judged_at_its_end_instead() -> None:
    assert counter(total=200).add(["failed"] * 200) is None


def test_a_fraction_of_one_never_stops() -> None:
    assert counter(fraction=1.0).add(["failed"] * 500) is None
