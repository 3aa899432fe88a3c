"""From scored edits to numbers, verdicts and tables."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.scenes.marks import AttributeReading, RoundTripScore, SceneScore
from pipelines.scenes.report import difference_text, markdown, plain_text, report_tables
from pipelines.scenes.table import Claim, Found, compare, judge_claim, make_numbers, summarise, trade
from pipelines.tables import Table
from vimaedit.scenes.reading.judge_compare import Comparison


def score(number: int, **values: Any) -> SceneScore:
    base: dict[str, Any] = {"id": f"r{number}", "category": "1_change_object", "status": "ok", "error_message": None}
    base |= {"local": True, "determined": True, "mask_iou": 0.5, "background_psnr": 30.0 + number, "seconds": 0.5}
    return SceneScore(**{**base, **values})


def trip(number: int, read: str = "star") -> RoundTripScore:
    readings = [
        AttributeReading(name="style", wanted="sketch", read="sketch"),
        AttributeReading(name="objects.0.shape", wanted="star", read=read),
        AttributeReading(name="objects.1.shape", wanted="moon", read="moon"),
    ]
    drawn = [AttributeReading(name=each.name, wanted=each.wanted, read=each.wanted) for each in readings]
    return RoundTripScore(id=f"r{number}", psnr=33.0 + number, background_psnr=31.0 + number, rendered=drawn, returned=readings)


def drawn(*objects: dict[str, bool], style: bool = True, num_missing: int = 0, num_extra: int = 0) -> Comparison:
    return Comparison(
        scene={"style": style}, objects=objects, matches=(0,) * len(objects), num_missing=num_missing, num_extra=num_extra
    )


FACTS = {
    "split": "test",
    "records": 7,
    "scenes_seed": 0,
    "picture_px": 128,
    "seed": 0,
    "steps": 4,
    "model": "random",
    "model_warning": "random weights",
    "model_digest": "m1",
    "config_digest": "c1",
    "scoring_clip": None,
    "processor": "2 x one",
    "versions": {"python": "3.11"},
}


def numbers() -> dict[str, Any]:
    default = [score(n, success=n < 5, edited_right=True, others_unchanged=n < 5) for n in range(7)]
    worse = [score(n, success=False, mask_iou=0.25, background_psnr=32.0 + n) for n in range(6)]
    worse.append(score(6, status="failed", error_message="boom", mask_iou=0.0, background_psnr=None, seconds=None))
    return make_numbers(
        scores={"default": default, "cross-attention": worse},
        trips=[trip(n, read="moon" if n == 3 else "star") for n in range(7)],
        drawn=[
            drawn({"shape": True, "colour": True}),
            drawn({"shape": True, "colour": False}),
            drawn({"shape": True, "colour": True}, style=False),
            drawn({"shape": True, "colour": True}, num_extra=1),
            drawn({"shape": True, "colour": True}, {"shape": False, "colour": False}, num_missing=1),
        ],
        found=[Found(name="scoring CLIP", found=9, total=10)],
        source_clip=None,
        facts=FACTS,
    )


def test_a_row_that_is_not_ok_counts_as_no_success() -> None:
    found = summarise([score(0, success=True), score(1, status="rejected", mask_iou=0.0, background_psnr=None, seconds=None)])
    assert found["rows"] == 2 and found["not_ok"] == 1 and found["statuses"] == {"ok": 1, "rejected": 1}
    assert found["success"]["value"] == 0.5
    assert found["mask_iou"] == 0.25 and found["background_psnr"] == 30.0 and found["seconds"] == 0.5
    assert found["clip"] is None


def test_differences_are_paired() -> None:
    variant = numbers()["variants"][1]
    differences = variant["differences"]
    assert differences["success"]["value"] == pytest.approx(-5 / 7) and differences["success"]["pairs"] == 7
    assert differences["background_psnr"] == {"value": 2.0, "low": 2.0, "high": 2.0, "pairs": 6}
    assert differences["mask_iou"]["value"] == pytest.approx((6 * -0.25 - 0.5) / 7)
    assert differences["clip"] is None
    assert variant["background_to_round_trip"] == {"value": 1.0, "low": 1.0, "high": 1.0, "pairs": 6}


def test_rows_of_other_records_are_no_pairs() -> None:
    with pytest.raises(AssertionError):
        compare([score(0), score(1)], [score(1), score(0)], "success")


def test_verdicts_follow_from_the_intervals() -> None:
    assert numbers()["verdicts"] == [
        {"variant": "cross-attention", "success": "worse", "background_psnr": "better", "mask_iou": "worse", "clip": None}
    ]
    judged = {each["measure"]: each["here"] for each in numbers()["claims"]}
    assert judged == {"success": "holds", "background_psnr": "does not hold", "mask_iou": "holds"}


def test_an_interval_around_zero_leaves_a_claim_undecided() -> None:
    claim = Claim(variant="a", measures=("success",), direction=1, text="more")
    variants = [{"variant": "a", "differences": {"success": {"value": 0.1, "low": -0.1, "high": 0.3, "pairs": 9}}}]
    assert [each["here"] for each in judge_claim(claim, variants)] == ["undecided"]


def test_the_model_is_described_by_its_round_trip_its_reader_and_what_it_draws() -> None:
    model = numbers()["model"]
    assert model["round_trip"] == {"psnr": 36.0, "least_psnr": 33.0, "background_psnr": 34.0}
    assert model["reader"] == [
        {"attribute": "style", "readings": 7, "rendered": 1.0, "returned": 1.0},
        {"attribute": "shape", "readings": 14, "rendered": 1.0, "returned": pytest.approx(13 / 14)},
    ]
    one, two = model["text_to_image"]
    assert (one["objects"], one["pictures"], one["all_right"]["value"]) == (1, 4, 0.25)
    assert one["attributes"] == {"style": 0.75, "shape": 1.0, "colour": 0.75} and (one["missing"], one["extra"]) == (0.0, 0.25)
    assert (two["objects"], two["all_right"]["value"], two["attributes"]["shape"], two["missing"]) == (2, 0.0, 0.5, 1.0)
    assert model["retrieval"][0]["value"] == 0.9


def test_everything_stands_in_the_text() -> None:
    text = plain_text(numbers())
    for line in (
        "model: random, digest m1",
        "warning: random weights",
        "scoring CLIP: none (scoring_clip unset), so no CLIP values",
    ):
        assert line in text.splitlines()
    (row,) = [line for line in text.splitlines() if line.startswith("cross-attention") and "failed" in line]
    assert "1 failed" in row and "0.0 [0.0, 35.4]" in row and "+1.0 [+1.0, +1.0]" in row
    assert "cross-attention alone grounds worse by every measure" in text
    titles = [table.title for table in report_tables(numbers())]
    assert titles[:3] == ["Variants", "Paired differences to the default", "Default by category"] and len(titles) == 9
    assert [line for line in markdown(numbers()).splitlines() if line.startswith("## ")] == [f"## {title}" for title in titles]


def test_tables_are_aligned() -> None:
    table = Table(title="T", columns=("name", "n"), rows=(("a", "1"), ("longer", "23")), note="end")
    assert table.text().splitlines() == ["T", "name     n", "------  --", "a        1", "longer  23", "end"]
    assert table.markdown().splitlines() == [
        *("## T", "", "| name | n |", "| --- | ---: |", "| a | 1 |", "| longer | 23 |", "", "end")
    ]
    assert difference_text({"value": 0.125, "low": -0.5, "high": 1.0}, 1, 100) == "+12.5 [-50.0, +100.0]"
    assert difference_text(None, 1) == "-"


def test_the_front_holds_what_no_other_variant_beats() -> None:
    def variant(name: str, seconds: float | None, success: float, target: float) -> dict:
        values = {"seconds": seconds, "target_psnr": target, "background_psnr": 30.0}
        return {"variant": name, "success": {"value": success}, **values}

    measured = [
        variant("default", 5.0, 0.5, 25.0),
        variant("same, slower", 6.0, 0.5, 25.0),
        variant("faster, worse", 1.0, 0.2, 20.0),
        variant("fast, no worse than the faster", 1.5, 0.2, 20.0),
        variant("never ok", None, 0.0, 30.0),
    ]
    rows = trade(measured, {each["variant"]: "an editor" for each in measured})
    assert [row["front"] for row in rows] == [True, False, True, False, False]
    assert rows[0]["success"] == 0.5 and rows[0]["editor"] == "an editor"
