"""What a run says of itself at its end, and a dry run before."""

from __future__ import annotations

from pipelines.cluster.losses import Loss
from pipelines.output.summary import DryRunReport, RunSummary


def test_the_summary_names_every_status_the_rate_and_the_places() -> None:
    summary = RunSummary(
        exit_code=5,
        counts={"ok": 11, "rejected": 3, "failed": 5},
        rows=19,
        edited=19,
        seconds=7.6,
        units=2,
        data="s3://bucket/edited/data",
        run_json=None,
        sheet="s3://bucket/edited/sheet.png",
        stop_reason="101 of the last 200 rows failed (stop_failed_fraction=0.5)",
        warnings=(),
    )
    assert summary.text().splitlines() == [
        "19 rows in 7.6 s (2.50 rows/s): 11 ok, 3 rejected, 5 failed, 0 quarantined",
        "data:   s3://bucket/edited/data",
        "sheet:  s3://bucket/edited/sheet.png",
        "stopped early: 101 of the last 200 rows failed (stop_failed_fraction=0.5)",
    ]


def test_the_summary_names_reasons_and_why_the_exit_code_is_not_0() -> None:
    kinds = [("missing_image", 40), ("wrong_type", 2), ("a", 1), ("b", 1), ("c", 3), ("d", 1), ("e", 1)]
    summary = RunSummary(
        exit_code=3,
        counts={"rejected": 49},
        rows=49,
        edited=0,
        seconds=7.0,
        units=2,
        data="out/data",
        run_json="out/run.json",
        sheet=None,
        stop_reason=None,
        warnings=(),
        losses={kind: Loss(status="rejected", count=count, example=f"record {kind}") for kind, count in kinds},
        exit_reason="49 of 49 rows were rejected, more than max_rejected_fraction=0.5",
    )
    assert summary.text().splitlines() == [
        "0 of 49 rows in 7.0 s (0.00 rows/s): 0 ok, 49 rejected, 0 failed, 0 quarantined",
        "lost:   40 rejected: missing_image, such as record missing_image",
        "lost:   3 rejected: c, such as record c",
        "lost:   2 rejected: wrong_type, such as record wrong_type",
        "lost:   1 rejected: a, such as record a",
        "lost:   1 rejected: b, such as record b",
        "lost:   2 for 2 other reasons",
        "data:   out/data",
        "report: out/run.json",
        "exit code 3: 49 of 49 rows were rejected, more than max_rejected_fraction=0.5",
    ]
    assert summary.reasons() == [*summary.text().splitlines()[1:7], summary.text().splitlines()[-1]]


def test_the_dry_run_says_what_a_run_would_be() -> None:
    report = DryRunReport(
        files=3,
        unreadable_files=1,
        requests=7_331,
        units=17,
        requests_per_unit=448,
        batch_size=8,
        actors=2,
        device="cuda",
        dtype="float16",
        model_digest="m1",
        config_digest="c1",
        rows_per_hour=3_665.5,
        output_gb=5.1317,
        warnings=(),
    )
    assert report.text().splitlines() == [
        "input:  3 files, 1 unreadable, 7331 edits",
        "plan:   17 units of up to 448 edits, batches of 8",
        "place:  2 actors, cuda, float16",
        "digest: config c1, model m1",
        "sample: 3666 rows/h, so 2.00 h and 5.132 GB of output",
        "dry run: nothing was written",
    ]
