"""What a run says of itself at its end, and a dry run before."""

from __future__ import annotations

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
