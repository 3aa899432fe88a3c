from __future__ import annotations

from collections.abc import Sequence

from pipelines.cluster.counter import ProgressCounter
from pipelines.cluster.losses import Loss, Outcome


def rows(statuses: Sequence[str]) -> list[Outcome]:
    return [(status, None, None) for status in statuses]


def counter(*unit_rows: int, fraction: float = 0.5) -> ProgressCounter:
    return ProgressCounter({f"u{number}": rows for number, rows in enumerate(unit_rows)}, fraction)


def test_rows_are_counted_by_status() -> None:
    counted = counter(7)
    assert counted.add("u0", 0, rows(["ok", "rejected", "ok"])) is None
    assert counted.state().done == 3 and counted.state().total == 7
    assert counted.state().counts == {"ok": 2, "rejected": 1}


def test_more_than_the_fraction_of_the_last_200_failed_stops_the_run() -> None:
    counted = counter(1009)
    assert counted.add("u0", 0, rows(["ok"] * 211 + ["failed"] * 100)) is None
    reason = counted.add("u0", 311, rows(["quarantined"]))
    assert reason == "101 of the last 200 rows failed (stop_failed_fraction=0.5)"
    assert counted.add("u0", 312, rows(["ok"])) == reason == counted.stop_reason()


def test_fewer_than_200_rows_stop_nothing() -> None:
    assert counter(1009).add("u0", 0, rows(["failed"] * 199)) is None


def test_rejected_rows_stop_a_run_only_as_its_first_200() -> None:
    assert counter(1009).add("u0", 0, rows(["rejected"] * 199)) is None
    assert counter(1009).add("u0", 0, rows(["rejected"] * 200)) == "the first 200 rows were all rejected"
    assert counter(1009).add("u0", 0, rows(["ok"] + ["rejected"] * 500)) is None


def test_a_run_with_no_row_left_is_judged_at_its_end_instead() -> None:
    assert counter(307).add("u0", 0, rows(["failed"] * 307)) is None


def test_a_fraction_of_one_never_stops() -> None:
    assert counter(1009, fraction=1.0).add("u0", 0, rows(["failed"] * 500)) is None


def test_a_unit_is_judged_after_all_units_before_it() -> None:
    counted = counter(3, 211, 997)
    assert counted.add("u1", 0, rows(["rejected"] * 211)) is None
    assert counted.state().done == 211
    assert counted.add("u0", 0, rows(["rejected", "rejected"])) is None
    assert counted.add("u0", 2, rows(["rejected"])) == "the first 200 rows were all rejected"
    healthy = counter(3, 211, 997)
    healthy.add("u1", 0, rows(["rejected"] * 211))
    assert healthy.add("u0", 0, rows(["ok"] * 3)) is None


def test_a_unit_that_is_done_again_counts_once() -> None:
    counted = counter(150, 997)
    counted.add("u0", 0, rows(["failed"] * 7))
    counted.add("u0", 0, rows(["failed"] * 3))
    counted.add("u0", 3, rows(["failed"] * 11))
    assert counted.state().counts == {"failed": 14}
    counted.add("u0", 14, rows(["failed"] * 136))
    assert counted.add("u0", 0, rows(["failed"] * 150)) is None  # after the whole unit was judged
    assert counted.state().done == 150


def test_a_hopeless_run_on_many_actors_is_stopped_by_its_first_units() -> None:
    counted = counter(*[61] * 640)
    reasons = [counted.add(f"u{number}", 0, rows(["failed"] * 61)) for number in reversed(range(64))]
    assert reasons[-1] == "200 of the last 200 rows failed (stop_failed_fraction=0.5)"
    assert counted.state().counts == {"failed": 64 * 61}


def test_reasons_are_counted_once_with_their_first_example() -> None:
    counted = counter(7)
    missing = [("rejected", "missing_image", f"record '{name}': image: got 'https://u:p@h/{name}'") for name in "abc"]
    counted.add("u0", 0, [*missing[:2], ("ok", None, None)])
    counted.add("u0", 1, [missing[1], ("ok", None, None), missing[2], ("failed", "OSError", "away\n")])
    assert counted.state().losses == {
        "missing_image": Loss(status="rejected", count=3, example="record 'a': image: got 'https://***@h/a'"),
        "OSError": Loss(status="failed", count=1, example="away\\n"),
    }
