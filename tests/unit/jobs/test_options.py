"""Arguments of a job: literal text, YAML rules for everything else, errors that teach."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections import Counter
from pathlib import Path

import pytest
import yaml

import jobs
from jobs._cli.fields import option_keys
from jobs._cli.help import help_text
from jobs._cli.options import config_yaml, load_config, parse_command_line, with_option
from pipelines.edit.grid import SweepConfig
from pipelines.edit.picture import EditImageConfig
from pipelines.evaluate.config import EvaluateConfig
from pipelines.ingest.ingest import IngestConfig
from pipelines.ingest.scenes import ScenesConfig
from pipelines.output.compact import CompactConfig
from pipelines.output.config import EditJobConfig
from pipelines.output.status import StatusConfig
from pipelines.publish.publish import PublishConfig
from pipelines.score.config import ScoreConfig
from pipelines.synthesis.config import SynthesizeConfig
from vimaedit.config import EditConfig, Lora, ModelConfig, Windows
from vimaedit.errors import ConfigError
from vimaedit.miniature.training.options import TrainConfig
from vimaedit.models.files import recipe_config
from vimaedit.pipeline import ViMAEditPipeline

SETTINGS = (
    *(EditJobConfig, EvaluateConfig, ScoreConfig, SynthesizeConfig, EditImageConfig, SweepConfig),
    *(IngestConfig, CompactConfig, PublishConfig, StatusConfig, ScenesConfig, TrainConfig),
)
JOBS = Path(jobs.__file__).parent
REQUIRED = ("input", "output")
BASE = ["input=records", "output=edited"]

AWKWARD_TEXTS = [
    "no",
    "null",
    "~",
    "7",
    "1e3",
    "a cat # not a comment",
    "a: b",
    "[a cat](a dog)",
    "{x}",
    "$HOME and $5",
    "${oc.env:HOME}",
    "${unclosed",
    "\\${x} \\\\${y} ${z:1,2} back\\slash",
    "'single' \"double\"",
    "*alias &anchor !tag | > % @ `",
    " spaces kept ",
    "a=b=c",
    "Zoë, 猫",
    "first\nsecond",
    "???",
    "\\???",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptConfig:
    prompt: str = ""  # what the picture shows
    note: str | None = None
    words: list[str] = dataclasses.field(default_factory=list)


def load(*words: str) -> EditJobConfig:
    return load_config(EditJobConfig, parse_command_line([*BASE, *words]), REQUIRED)


def load_file(tmp_path: Path, text: str, *words: str) -> EditJobConfig:
    file = tmp_path / "options.yaml"
    file.write_text(text, encoding="utf-8")
    return load("--config", str(file), *words)


def error_of(*words: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(*words)
    return str(caught.value)


@pytest.mark.parametrize("text", AWKWARD_TEXTS)
def test_text_on_the_command_line_is_literal(text: str) -> None:
    config = load_config(PromptConfig, parse_command_line([f"prompt={text}", f"note={text}"]), ("prompt",))
    assert (config.prompt, config.note) == (text, text)


@pytest.mark.parametrize("text", AWKWARD_TEXTS)
def test_quoted_text_in_a_file_is_literal(tmp_path: Path, text: str) -> None:
    file = tmp_path / "options.yaml"
    file.write_text(yaml.safe_dump({"prompt": text, "note": text, "words": [text]}, allow_unicode=True), encoding="utf-8")
    config = load_config(PromptConfig, parse_command_line(["--config", str(file)]), ("prompt",))
    assert (config.prompt, config.note, config.words) == (text, text, [text])


@pytest.mark.parametrize("text", ["no", "0123", "1e3", "a $5 cat", "${x}"])
def test_plain_text_in_a_file_is_literal(tmp_path: Path, text: str) -> None:
    assert load_file(tmp_path, f"revision: {text}\n").revision == text


def test_an_empty_value_unsets_an_optional_text(tmp_path: Path) -> None:
    assert load_file(tmp_path, "image_root: pictures\n", "image_root=").image_root is None
    assert load_file(tmp_path, "image_root: null\n").image_root is None
    assert load_config(PromptConfig, parse_command_line(["prompt="]), ("prompt",)).prompt == ""


def test_other_types_follow_yaml() -> None:
    config = load(
        "model=random",
        "steps=7",
        "text_guidance=no",
        "thresholds.edit=3e-1",
        "windows.self=0.25",
        "windows={text: 0.5}",
        "limit=null",
        "actors=3",
        "batch_size=auto",
        "columns={image: picture}",
        "columns.source_prompt=the caption",
        "metrics=[unchanged]",
        "lora=[{path: a.safetensors, scale: 0.5}, {path: '${b}'}]",
        "canvas.size=136",
    )
    assert (config.steps, config.text_guidance, config.thresholds.edit, config.limit) == (7, False, 0.3, None)
    assert (config.windows.self, config.windows.text, config.windows.image) == (0.25, 0.5, 0.1)
    assert (config.actors, config.batch_size) == (3, "auto")
    assert (config.columns, config.metrics) == (
        {"image": "picture", "source_prompt": "the caption"},
        ["unchanged"],
    )
    assert config.lora == [Lora(path="a.safetensors", scale=0.5), Lora(path="${b}")]
    assert config.canvas.size == 136


def test_file_then_command_line(tmp_path: Path) -> None:
    text = "steps: 11\nwindows: {self: 0.3, text: 0.2}\nthresholds.critical: 0.9\nkeep_source: true\n"
    config = load_file(tmp_path, text, "steps=17", "windows.self=0.7")
    assert (config.steps, config.windows.self, config.windows.text) == (17, 0.7, 0.2)
    assert (config.thresholds.critical, config.keep_source) == (0.9, "true")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("stpes=3", "stpes: got an unknown key; did you mean steps?"),
        ("windows.slef=0.1", "windows.slef: got an unknown key; did you mean windows.self?"),
        ("windws.self=0.1", "windws: got an unknown key; did you mean windows.self?"),
        ("edit=0.1", "edit: got an unknown key; did you mean thresholds.edit?"),
        ("steps.more=1", "steps.more: got an unknown key; did you mean steps?"),
        ("qqq=1", "qqq: got an unknown key; --help lists all keys"),
        ("steps=many", "steps: got 'many'; allowed: integer"),
        ("steps=1.5", "steps: got 1.5; allowed: integer"),
        ("steps=", "steps: got None; allowed: integer"),
        ("steps=[1]", "steps: got a list; allowed: integer"),
        ("steps=true", "steps: got True; allowed: integer"),
        ("steps=2024-99-99", "steps: got '2024-99-99'; allowed: integer"),
        ("steps=[", "steps: got '[', which is not YAML (while parsing a flow node"),
        ("dry_run=perhaps", "dry_run: got 'perhaps'; allowed: true or false"),
        ("limit=few", "limit: got 'few'; allowed: integer or null"),
        ("limit=[3]", "limit: got a list; allowed: integer or null"),
        ("windows=3", "windows: got '3'; allowed: {self: number, text: number, image: number, feature: number}"),
        ("windows={slef: 1}", "windows.slef: got an unknown key; did you mean windows.self?"),
        ("metrics=clip", "metrics: got 'clip'; allowed: list of text"),
        ("columns=[a]", "columns: got a list; allowed: mapping of text to text"),
        ("columns={a: b, a: c}", "columns: got 'a' twice; allowed: every key once, as plain text"),
        ("columns={[a]: b}", "columns: got a key that is not text; allowed: every key once, as plain text"),
        ("lora=[{pth: x}]", "lora[0]: got an unknown key 'pth'; allowed: path, scale"),
        (
            "lora=[{path: x, scale: big}]",
            "lora: got [{'path': 'x', 'scale': 'big'}]; allowed: list of {path: text, scale: number}",
        ),
        ("lora=[{scale: 1}]", "lora: got an entry without a path; allowed: {path: FILE, scale: NUMBER}"),
        ("columns.image.bytes=b", "columns.image.bytes: got an unknown key"),
        (
            "metrics=[unchanged, mask]",
            "metrics: got 'mask'; allowed: clip, lpips, structure, background_psnr, background_ssim, ",
        ),
        ("device=cuda:1", "device: got cuda:1; allowed: auto, cpu, cuda (Ray gives every actor its GPU)"),
        ("device=cpu:x", "device: got 'cpu:x'; allowed: auto, cpu, cuda"),
        ("device=cuda:", "device: got 'cuda:'; allowed: auto, cpu, cuda"),
        ("lora=" + "[" * 3000, "lora: got '[[["),
        ("model=caf\udce9", "command line: got 'model=caf\\udce9', which is no UTF-8; allowed: UTF-8 text"),
        ("metrics=" + "x" * 5000, "metrics: got 'xxx"),
        ("steps=0", "steps: got 0; allowed: 1 to 999"),
        ("image_strength=.nan", "image_strength: got nan; allowed: 0.0 to 10.0"),
        ("actors=some", "actors: got 'some'; allowed: auto"),
        ("loud", "command line: got 'loud'; allowed: key=value ..."),
        ("--verbose", "command line: got '--verbose'; allowed: key=value ..."),
        ("--config", "--config: got nothing; allowed: --config FILE.yaml, once"),
    ],
)
def test_what_is_refused(word: str, message: str) -> None:
    error = error_of(word)
    assert error.startswith(message) and len(error) < 1000


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["steps=7", "steps=7"], "steps"),
        (["model=random", "model=miniature"], "model"),
        (["windows={self: 0.3}", "windows.self=0.5"], "windows.self"),
        (["columns={image: a}", "columns.image=b"], "columns.image"),
    ],
)
def test_an_option_given_twice_is_refused(words: list[str], name: str) -> None:
    assert error_of(*words) == f"{name}: got it twice; allowed: once"


def test_an_option_given_twice_in_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^windows\.self: got it twice; allowed: once$"):
        load_file(tmp_path, "windows.self: 0.3\nwindows: {self: 0.3}\n")


@pytest.mark.parametrize("job", sorted(path.stem for path in JOBS.glob("[!_]*.py")))
def test_every_job_refuses_a_key_given_twice(job: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert importlib.import_module(f"jobs.{job}").main(["output=a.parquet", "output=b.parquet"]) == 2
    assert capsys.readouterr() == ("", f"jobs.{job}: output: got it twice; allowed: once\n")


INTERPOLATED = "${oc.env:SECRET_KEY}"
NO_TEXT = [
    ("steps", "integer"),
    ("limit", "integer or null"),
    ("image_strength", "number"),
    ("dry_run", "true or false"),
    ("windows.self", "number"),
    ("windows", "{self: number, text: number, image: number, feature: number}"),
    ("columns", "mapping of text to text"),
    ("metrics", "list of text"),
]


@pytest.mark.parametrize(("name", "allowed"), NO_TEXT)
@pytest.mark.parametrize("text", [INTERPOLATED, "???", f"7{INTERPOLATED}"])
def test_what_may_be_no_text_is_never_interpolated(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, allowed: str, text: str
) -> None:
    monkeypatch.setenv("SECRET_KEY", "7")
    message = f"{name}: got {text!r}; allowed: {allowed}"
    assert error_of(f"{name}={text}") == message
    with pytest.raises(ConfigError) as caught:
        load_file(tmp_path, f"{name}: '{text}'\n")
    assert str(caught.value) == message


def test_text_is_never_interpolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bundle: Path) -> None:
    monkeypatch.setenv("SECRET_KEY", "7")
    assert load(f"negative_prompt={INTERPOLATED}").negative_prompt == INTERPOLATED
    assert load_file(tmp_path, f"negative_prompt: {INTERPOLATED}\n").negative_prompt == INTERPOLATED
    nested = load(
        f"columns={{image: '{INTERPOLATED}'}}", f"http_hosts=['{INTERPOLATED}']", f"lora=[{{path: '{INTERPOLATED}'}}]"
    )
    assert (nested.columns, nested.http_hosts) == ({"image": INTERPOLATED}, [INTERPOLATED])
    assert nested.lora == [Lora(path=INTERPOLATED)]
    with pytest.raises(ConfigError, match="actors: got .*SECRET_KEY}'; allowed: auto"):
        load(f"actors={INTERPOLATED}")
    write_recipe(bundle, {"negative_prompt": INTERPOLATED, "methods": {"p2p": {"negative_prompt": "\\" + INTERPOLATED}}})
    assert load(f"model={bundle}").negative_prompt == INTERPOLATED
    assert load(f"model={bundle}", "method=p2p").negative_prompt == "\\" + INTERPOLATED


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"steps": INTERPOLATED}, f"steps: got '{INTERPOLATED}'; allowed: integer"),
        ({"windows": {"self": INTERPOLATED}}, f"windows.self: got '{INTERPOLATED}'; allowed: number"),
        (
            {"image_root": "/", "steps": 3},
            "image_root: got an unknown key in the recipe of the model; allowed: options of an edit",
        ),
        ({"methods": {"vimaedit": {"output": "x"}}}, "output: got an unknown key in the recipe of the model; allowed: options"),
        ({"lora": []}, "lora: got an unknown key in the recipe of the model; allowed: options of an edit"),
    ],
)
def test_what_is_refused_in_a_recipe(bundle: Path, recipe: dict[str, object], message: str) -> None:
    write_recipe(bundle, recipe)
    assert error_of(f"model={bundle}").startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n", "which holds no mapping; allowed: key: value lines"),
        ("a: [\n", "which is not YAML (while parsing a flow node"),
        ("stepz: 3\n", "stepz: got an unknown key; did you mean steps?"),
        ("steps: 3\nsteps: 5\n", "--config: got 'steps' twice; allowed: every key once, as plain text"),
        ("output: [a]\n", "output: got a list; allowed: text"),
        ("steps: " + "[" * 3000 + "\n", "which is not YAML (it is nested too deeply)"),
        ('model: "a\\0b"\n', "model: got 'a\\x00b'; allowed: text without NUL"),
        ('model: "\\ud800"\n', "model: got '\\ud800', which is no UTF-8; allowed: UTF-8 text"),
    ],
)
def test_what_is_refused_in_a_file(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_file(tmp_path, text)
    assert message in str(caught.value)


def test_a_missing_file_and_a_second_file_are_refused() -> None:
    assert error_of("--config", "absent.yaml").startswith("--config: got absent.yaml, which cannot be read (")
    assert error_of("--config", "a.yaml", "--config", "b.yaml") == "--config: got two files; allowed: --config FILE.yaml, once"


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    assert load_file(tmp_path, "# nothing yet\n") == load()


def test_missing_keys_are_named() -> None:
    with pytest.raises(ConfigError, match=r"^output: got nothing; required: input=\.\.\. output=\.\.\.$"):
        load_config(EditJobConfig, parse_command_line(["input=records"]), REQUIRED)


def test_printed_options_read_back(tmp_path: Path) -> None:
    config = load("steps=19", "windows.image=0.4", "image_root=${a} # b", "lora=[{path: x}]", "actors=2")
    printed = config_yaml(config, REQUIRED)
    assert load_file(tmp_path, printed) == config
    assert printed.startswith("input: records\noutput: edited\nmodel: ")


@pytest.mark.parametrize(("text", "values"), [("[0.2, 0.6]", [0.2, 0.6]), ("[]", []), ("null", None)])
def test_a_list_or_null_reads_back(text: str, values: list[float] | None, tmp_path: Path) -> None:
    config = load_config(SynthesizeConfig, parse_command_line([*BASE, f"spread.self_window={text}"]), REQUIRED)
    assert config.spread.self_window == values
    (tmp_path / "printed.yaml").write_text(config_yaml(config, REQUIRED), encoding="utf-8")
    again = load_config(SynthesizeConfig, parse_command_line(["--config", str(tmp_path / "printed.yaml")]), REQUIRED)
    assert again == config


def test_printed_options_hide_credentials() -> None:
    printed = config_yaml(load("image_root=https://ann:hush@host/a?X-Amz-Signature=hush&x=1", "http_hosts=['s3://ann:hush@b']"))
    assert "hush" not in printed
    assert "https://***@host/a?X-Amz-Signature=***&x=1" in printed


def test_help_names_every_key_with_type_default_and_comment() -> None:
    text = help_text(EditJobConfig, name="edit", summary="Edit.", required=REQUIRED)
    lines = {line.split()[0]: line for line in text.splitlines() if line.startswith("  ")}
    assert set(lines) == {".".join(path) for path in option_keys(EditJobConfig)}
    assert {"windows.self", "thresholds.critical", "grounding_sides.cross", "lora"} < set(lines)
    assert "integer = 50" in lines["steps"]
    assert "folder, local or any fsspec URL" in lines["output"]
    assert "integer or text = auto" in lines["actors"]
    assert lines["dry_run"].split()[1:5] == ["true", "or", "false", "="]
    assert lines["windows.self"].endswith("(of SD 1.x half the latent's) and coarser")
    # Every option says what it is for, nested ones too.
    assert {key for key, line in lines.items() if len(line) < 67} == set()
    assert "integer or null = null" in lines["limit"] and lines["limit"].endswith("the first N requests only")
    fields = {field.name for config in (EditConfig, ModelConfig) for field in dataclasses.fields(config)}
    assert fields <= {key.split(".")[0] for key in lines}


@pytest.mark.parametrize("config_type", SETTINGS)
def test_every_option_of_every_job_says_what_it_is_for(config_type: type) -> None:
    lines = help_text(config_type, name="x", summary="", required=()).splitlines()
    assert [line for line in lines if line.startswith("  ") and len(line) < 67] == []


def test_an_option_of_several_jobs_is_declared_once() -> None:
    kinds = {kind for settings in SETTINGS for kind in settings.__mro__ if dataclasses.is_dataclass(kind)}
    declared = Counter(name for kind in kinds for name in vars(kind).get("__annotations__", ()))
    assert declared.total() <= 1.3 * len(declared), declared.most_common(20)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A folder that states a recipe as a bundle does; no weights are looked at before a run starts."""
    folder = tmp_path / "bundle"
    (folder / "sd").mkdir(parents=True)
    (folder / "sd" / "model_index.json").write_text("{}")
    write_recipe(folder, {"target_guidance": 4.0, "windows": {"self": 0.3}})
    return folder


def write_recipe(folder: Path, recipe: dict[str, object]) -> None:
    (folder / "bundle.json").write_text(json.dumps({"name": "x", "recipe": recipe}))


def test_a_models_recipe_stands_between_the_defaults_and_what_is_given(bundle: Path, tmp_path: Path) -> None:
    job = load(f"model={bundle}")
    assert job.target_guidance == 4.0 and job.windows == Windows(self=0.3) and job.steps == EditConfig().steps
    assert load(f"model={bundle}", "windows.self=0.5", "target_guidance=9").windows.self == 0.5
    file = tmp_path / "options.yaml"
    file.write_text(f"model: {bundle}\ntarget_guidance: 2\n")
    job = load("--config", str(file))
    assert job.target_guidance == 2 and job.windows.self == 0.3
    assert load("model=random").target_guidance == EditConfig().target_guidance


def test_a_recipe_in_a_store_counts_too(bundle: Path) -> None:
    assert load(f"model=file://{bundle}").target_guidance == 4.0
    assert load("model=memory://nowhere/model").target_guidance == EditConfig().target_guidance


def test_a_recipe_of_unknown_options_is_refused(bundle: Path) -> None:
    write_recipe(bundle, {"magic": 1})
    with pytest.raises(ConfigError, match="magic: got an unknown key"):
        load(f"model={bundle}")
    with pytest.raises(ConfigError, match="model: got .* whose recipe does not fit .*; allowed: options of an edit"):
        recipe_config(str(bundle))
    (bundle / "bundle.json").write_text("{")
    with pytest.raises(ConfigError, match="whose bundle.json cannot be read"):
        load(f"model=file://{bundle}")


def test_python_starts_from_the_recipe_too(bundle: Path) -> None:
    assert recipe_config(str(bundle)) == EditConfig(target_guidance=4.0, windows=Windows(self=0.3))
    assert ViMAEditPipeline(ModelConfig(model=str(bundle))).config.windows.self == 0.3
    assert ViMAEditPipeline(ModelConfig(model=str(bundle)), EditConfig()).config == EditConfig()


def test_a_method_brings_its_published_options_along(bundle: Path) -> None:
    job = load(f"model={bundle}", "method=p2p")
    # The model's own value for guidance is for its own editor; nothing that p2p states is left to it.
    assert (job.method, job.target_guidance, job.grounding, job.blend_weight) == ("p2p", 7.5, "local-blend", 2.0)
    assert (job.windows.self, job.thresholds.edit, job.image_guidance) == (0.6, 0.3, False)
    assert load(f"model={bundle}", "method=p2p", "target_guidance=3", "windows.self=0.1").windows == Windows(
        self=0.1, text=0.4, image=0.0
    )
    write_recipe(bundle, {"target_guidance": 4.0, "methods": {"p2p": {"target_guidance": 5.0}}})
    assert load(f"model={bundle}", "method=p2p").target_guidance == 5.0
    assert load(f"model={bundle}").target_guidance == 4.0
    write_recipe(bundle, {"method": "p2p"})
    assert load(f"model={bundle}").grounding == "local-blend"


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ConfigError, match="method: got 'p3p'; allowed: vimaedit, p2p, "):
        load("method=p3p")


def test_another_method_takes_only_what_was_not_chosen() -> None:
    config = load("model=random", "steps=10", "windows.text=0.7", "target_guidance=3")
    other = with_option(config, "method", "edit-friendly-p2p")
    assert (other.method, other.steps, other.skip, other.target_guidance) == ("edit-friendly-p2p", 10, 0.24, 3.0)
    assert (other.windows.text, other.windows.self, other.blend) == (0.7, 0.6, "none")
    back = with_option(other, "method", "vimaedit")
    assert back == config


def load_words(*words: str) -> EditJobConfig:
    return load_config(EditJobConfig, parse_command_line([*words, "output=out"]), REQUIRED)


def load_inputs(tmp_path: Path, text: str, more: str = "output: out\n") -> EditJobConfig:
    file = tmp_path / "options.yaml"
    file.write_text(text + more, encoding="utf-8")
    return load_config(EditJobConfig, parse_command_line(["--config", str(file)]), REQUIRED)


@pytest.mark.parametrize(
    ("text", "given"),
    [
        ("a.parquet", "a.parquet"),
        ("[a.parquet, 'b, c#1.parquet', no, 7]", ["a.parquet", "b, c#1.parquet", "no", "7"]),
        ("[one]", ["one"]),
        ("[ab]*/[cd].parquet", "[ab]*/[cd].parquet"),
        ("[a-c]/[d]", "[a-c]/[d]"),
    ],
)
def test_an_input_is_one_or_a_list(text: str, given: str | list[str], tmp_path: Path) -> None:
    assert load_words(f"input={text}").input == given
    config = load_inputs(tmp_path, f"input: {given!r}\n")
    assert config.input == given
    assert load_inputs(tmp_path, config_yaml(config), "") == config


def test_a_list_of_inputs_may_be_written_line_by_line_and_holds_no_credentials(tmp_path: Path) -> None:
    assert load_inputs(tmp_path, "input:\n- a.parquet\n- 7\n").input == ["a.parquet", "7"]
    with pytest.raises(ConfigError, match="input: got 's3://\\*\\*\\*@bucket', which holds credentials"):
        load_words("input=[a.parquet, 's3://key:hush@bucket']")


def test_nothing_is_interpolated_in_a_list_of_inputs() -> None:
    with pytest.raises(ConfigError, match="input: got a list with '..'; allowed: such a text alone"):
        load_words("input=['${oc.env:HOME}', b]")


def test_what_lies_there_is_no_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "[a, b]").mkdir()
    assert load_words("input=[a, b]").input == "[a, b]"


@pytest.mark.parametrize(
    "word", ["steps=010", "seed=0123", "limit=0100", "seed=1:30", "thresholds.edit=1:30.5", "batch_size=08"]
)
def test_a_number_that_yaml_reads_in_another_base_is_refused(word: str) -> None:
    with pytest.raises(ConfigError, match=f"^{word.partition('=')[0]}: got '{word.partition('=')[2]}'; allowed: "):
        load(word)
    assert load("seed=0", "steps=1_0", "thresholds.edit=0.50").seed == 0


@pytest.mark.parametrize("option", ["output", "input", "model"])
def test_a_path_that_no_file_can_have_is_refused(option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from jobs.edit import main

    words = {"input": str(tmp_path), "output": str(tmp_path / "out"), "model": "random"} | {option: str(tmp_path / ("n" * 300))}
    assert main([f"{key}={value}" for key, value in words.items()]) == 2
    assert "nnnn" in (error := capsys.readouterr().err) and "Traceback" not in error
