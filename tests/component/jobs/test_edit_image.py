"""`jobs.edit_image` on the built-in random model: files, frames, masks, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs._cli.values import parse_blend_words
from jobs.edit_image import main
from pipelines.edit.sheet import CELL_PX, GAP_PX, HEADER_PX
from tests.command_lines import instead
from tests.hosted import write_pix2pix
from tests.segmenters import red_and_blue, write_owlvit
from vimaedit import BlendPhrase, ConfigError
from vimaedit.config import ModelConfig
from vimaedit.engine.hosted import load_hosted_editor
from vimaedit.recipes import method_config
from vimaedit.scenes.render import object_pixels, render_scene
from vimaedit.scenes.sampling import sample_scene
from vimaedit.scenes.scenes import SPLIT_SEEDS
from vimaedit.types import EditRequest

WIDE = (384, 256)


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    scene = render_scene(sample_scene(SPLIT_SEEDS["test"].start), 256)
    Image.fromarray(np.pad(scene, ((0, 0), (64, 64), (0, 0)), mode="edge")).save(tmp_path / "wide.png")
    return [
        f"image={tmp_path / 'wide.png'}",
        "source_prompt=an orange triangle on a wooden table",
        "target_prompt=an orange heart on a wooden table",
        f"output={tmp_path / 'results' / 'edited.png'}",
        "steps=2",
    ]


@pytest.mark.parametrize(("frame", "size"), [("canvas", (128, 128)), ("original", WIDE)])
def test_picture_and_sheet_in_both_frames(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], frame: str, size: tuple[int, int]
) -> None:
    assert main(instead(words, f"frame={frame}", "blend_words=triangle heart")) == 0
    edited = Image.open(tmp_path / "results" / "edited.png")
    sheet = Image.open(tmp_path / "results" / "edited_sheet.png")
    assert edited.size == size
    shown = edited.resize((CELL_PX, round(CELL_PX * size[1] / size[0])), Image.Resampling.LANCZOS)
    left, top = GAP_PX + 3 * (CELL_PX + GAP_PX), HEADER_PX + (CELL_PX - shown.height) // 2
    cell = sheet.crop((left, top, left + shown.width, top + shown.height))
    assert np.abs(np.asarray(cell, int) - np.asarray(shown, int)).mean() < 1
    if frame == "original":
        original = np.asarray(Image.open(tmp_path / "wide.png"))
        margin = (WIDE[0] - WIDE[1]) // 2
        assert np.array_equal(np.asarray(edited)[:, :margin], original[:, :margin])
        assert not np.array_equal(np.asarray(edited)[:, margin:-margin], original[:, margin:-margin])
    assert "changed: triangle -> heart\n" in capsys.readouterr().out


def test_a_given_mask_is_the_edit_mask(words: list[str], tmp_path: Path) -> None:
    mask = np.zeros((WIDE[1], WIDE[0]), dtype=np.uint8)
    mask[:, WIDE[0] // 2 :] = 7
    Image.fromarray(mask).save(tmp_path / "mask.png")
    assert main(instead(words, "grounding=given", f"given_mask={tmp_path / 'mask.png'}")) == 0
    sheet = Image.open(tmp_path / "results" / "edited_sheet.png").convert("L")
    left, middle = GAP_PX + CELL_PX + GAP_PX, CELL_PX // 2
    panel = np.asarray(sheet.crop((left, HEADER_PX, left + CELL_PX, HEADER_PX + CELL_PX)))
    assert (panel[:, : middle - 8] == 0).all() and (panel[:, middle + 8 :] == 255).all()


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("output=s3://bucket/edited.png", "output: got 's3://bucket/edited.png'; allowed: a file name that ends in .png"),
        ("output=edited.jpg", "output: got 'edited.jpg'; allowed: a file name that ends in .png"),
        ("frame=whole", "frame: got 'whole'; allowed: canvas, original"),
        ("image=absent.png", "image: got 'absent.png'; allowed: a file that exists"),
        ("blend_words=cat", "blend_words: got 'cat' (1 word); allowed: two words"),
        ("blend_words=[cat]", "blend_words: got '[cat]'; allowed: two words, or [{source: PHRASE, target: PHRASE}, ...]"),
        (
            "grounding=given",
            "given_mask: got None with grounding=given; allowed: both given_mask=FILE and grounding=given, or neither",
        ),
        ("given_mask=m.png", "given_mask: got 'm.png' with grounding=vimaedit; allowed: both"),
    ],
)
def test_what_is_refused(words: list[str], capsys: pytest.CaptureFixture[str], word: str, message: str) -> None:
    assert main(instead(words, word)) == 2
    assert capsys.readouterr().err.startswith(f"jobs.edit_image: {message}")


def test_a_missing_mask_file_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(instead(words, "grounding=given", "given_mask=absent.png")) == 2
    assert capsys.readouterr().err == "jobs.edit_image: given_mask: got 'absent.png'; allowed: a file that exists\n"


def refusal(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(words) == 2
    return capsys.readouterr().err


def test_no_file_that_is_read_is_written_over(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = (tmp_path / "wide.png").read_bytes()
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "wide_sheet.png").write_bytes(picture)
    allowed = "allowed: another file name\n"
    for name in ("wide.png", "link/wide.png"):
        error = refusal(instead(words, f"output={tmp_path / name}"), capsys)
        assert f"which writes over image={tmp_path / 'wide.png'}; {allowed}" in error
    sheet = [f"image={tmp_path / 'wide_sheet.png'}", f"output={tmp_path / 'wide.png'}"]
    assert f"which writes over image={tmp_path / 'wide_sheet.png'}; {allowed}" in refusal(instead(words, *sheet), capsys)
    mask = [f"output={tmp_path / 'mask.png'}", f"given_mask={tmp_path / 'mask.png'}", "grounding=given"]
    assert f"which writes over given_mask={tmp_path / 'mask.png'}; {allowed}" in refusal(instead(words, *mask), capsys)
    assert (tmp_path / "wide.png").read_bytes() == (tmp_path / "wide_sheet.png").read_bytes() == picture


def test_an_output_that_cannot_be_written_is_refused_before_the_edit(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder.png").mkdir()
    assert "which is a folder; allowed: a file name" in refusal(instead(words, f"output={tmp_path / 'folder.png'}"), capsys)
    error = refusal(instead(words, f"output={tmp_path / 'wide.png' / 'edited.png'}", "steps=999"), capsys)
    assert error.startswith(f"jobs.edit_image: output: got {str(tmp_path / 'wide.png')!r}, where nothing can be")


def test_blend_words_as_words_or_phrases() -> None:
    assert parse_blend_words("cat dog") == (BlendPhrase(source="cat", target="dog"),)
    assert parse_blend_words("") == ()
    assert parse_blend_words("[{source: a tabby cat, target: no}, {target: hat}]") == (
        BlendPhrase(source="a tabby cat", target="no"),
        BlendPhrase(source=None, target="hat"),
    )
    assert parse_blend_words("[{source: null, target: dog}, {source: 'null', target: }]") == (
        BlendPhrase(source=None, target="dog"),
        BlendPhrase(source="null", target=None),
    )


@pytest.mark.parametrize(
    "text", ["[", "[7]", "[{}]", "[{from: a}]", "[{source: [a]}]", "[{source: null}]", "[{[a]: b}]", "[" * 3000]
)
def test_other_lists_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="^blend_words: got "):
        parse_blend_words(text)


def test_a_segmenter_finds_the_mask(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(render_scene(red_and_blue(), 128)).save(tmp_path / "scene.png")
    folder = write_owlvit(tmp_path / "colours", sees_colours=True)
    asked = [f"image={tmp_path / 'scene.png'}", "source_prompt=a red square", "target_prompt=a red cat", "image_guidance=false"]
    options = ["grounding=segmenter", f"segmenter.detector={folder}", "segmenter.model=", "segmenter.threshold=0.5"]
    words = instead(words, *asked, *options)
    assert main([*words, "blend_words=[{source: red square, target: red cat}]"]) == 0
    sheet = Image.open(tmp_path / "results" / "edited_sheet.png").convert("L")
    left = GAP_PX + CELL_PX + GAP_PX
    panel = np.asarray(sheet.crop((left, HEADER_PX, left + CELL_PX, HEADER_PX + CELL_PX)).resize((128, 128))) > 127
    truth = object_pixels(red_and_blue(), 0, 128)
    assert (panel & truth).sum() / (panel | truth).sum() > 0.65
    assert main(instead(words, "source_prompt=a green star", "segmenter.missing=reject")) == 2
    assert "segmenter: got 'green star', not seen in the picture; allowed: words" in capsys.readouterr().err


def test_a_hosted_pipeline_edits_by_the_instruction(words: list[str], tmp_path: Path) -> None:
    model = write_pix2pix(tmp_path / "model")
    options = [f"model={model}", "method=pipeline", "steps=1", "instruction=make it blue"]
    assert main(instead(words, *options)) == 0
    edited = np.asarray(Image.open(tmp_path / "results" / "edited.png"))
    editor = load_hosted_editor(
        method_config("pipeline", steps=1), ModelConfig(model=str(model), device="cpu", dtype="float32"), batches=False
    )
    picture = np.asarray(Image.open(tmp_path / "wide.png"))
    request = EditRequest(id="a", image=picture, source_prompt="a", target_prompt="b", instruction="make it blue")
    (result,) = editor([request])
    assert result is not None and result.image is not None and np.array_equal(result.image, edited)
    assert main(instead(words, *options[:-1], "pipeline.template=make it red")) == 0
    assert not np.array_equal(np.asarray(Image.open(tmp_path / "results" / "edited.png")), edited)
