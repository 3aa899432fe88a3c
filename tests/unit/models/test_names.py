"""What an option names: absolute paths, and names that read as paths are no hub ids."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.cluster.weights import with_absolute_names
from pipelines.options import Networks
from pipelines.score.networks import MetricNetworks
from vimaedit.config import Lora, ModelConfig
from vimaedit.errors import ConfigError
from vimaedit.models.names import absolute_name, split_hub_id


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "models" / "mine").mkdir(parents=True)
    (tmp_path / "miniature").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["models/mine", "./models/mine", "models/../models/mine", "models/mine/"])
def test_a_path_is_made_absolute(here: Path, name: str) -> None:
    assert absolute_name(name) == str(here / "models" / "mine")


def test_what_reads_as_a_path_is_made_absolute_though_nothing_is_there(here: Path) -> None:
    assert absolute_name("./none") == str(here / "none") and absolute_name("~/none") == str(Path.home() / "none")
    assert absolute_name("weights/one.safetensors") == str(here / "weights" / "one.safetensors")


@pytest.mark.parametrize(
    "name", ["owner/name", "owner/name/models/file.safetensors", "s3://bucket/model", "miniature", "random"]
)
def test_hub_ids_urls_and_built_in_names_stay(here: Path, name: str) -> None:
    assert absolute_name(name) == name


def test_every_option_that_names_weights_is_made_absolute(here: Path) -> None:
    mine, there = "models/mine", str(here / "models" / "mine")
    model = ModelConfig(model=mine, ip_adapter=mine, clip=mine, model_config=mine, lora=[Lora(path=mine, scale=0.5)])
    named = with_absolute_names(model)
    assert named == ModelConfig(
        model=there, ip_adapter=there, clip=there, model_config=there, lora=[Lora(path=there, scale=0.5)]
    )
    networks = MetricNetworks.of(Networks(scoring_clip=mine, dino=mine, lpips=mine, lpips_heads=None), ("clip",))
    assert networks.weights == {"scoring_clip": there, "dino": there, "lpips": there, "lpips_heads": None}


@pytest.mark.parametrize(
    "name", ["./owner/name", "../name", "~/name", "/a/b", "loras/x.safetensors", "owner\\name", "name", "a/"]
)
def test_what_reads_as_a_path_is_no_hub_id(here: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="^model: got .* which is no file or folder here; allowed: "):
        split_hub_id("model", name)


def test_the_name_of_a_folder_here_is_no_owner_of_a_hub_id(here: Path) -> None:
    assert split_hub_id("model", "owner/name/sub/file.bin") == ("owner/name", "sub/file.bin")
    with pytest.raises(
        ConfigError, match="'models/sd15', which is no file or folder here, though there is a folder 'models'; allowed: "
    ):
        split_hub_id("model", "models/sd15")
