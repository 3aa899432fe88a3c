"""What is written twice stays equal: pins, ranges, image tags, console scripts."""

from __future__ import annotations

import importlib
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement


@pytest.fixture(scope="module")
def project(repository: Path) -> dict[str, Any]:
    return tomllib.loads((repository / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def pins(repository: Path) -> dict[str, str]:
    lines = [line for line in (repository / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("==") for line in lines)


def test_every_direct_dependency_is_pinned_within_its_range(project: dict[str, Any], pins: dict[str, str]) -> None:
    requirements = [Requirement(text) for text in project["dependencies"] + project["optional-dependencies"]["dev"]]
    assert {requirement.name for requirement in requirements} == set(pins)
    wrong = [str(requirement) for requirement in requirements if pins[requirement.name] not in requirement.specifier]
    assert not wrong


def test_the_runtime_environment_installs_the_pinned_versions(
    repository: Path, project: dict[str, Any], pins: dict[str, str]
) -> None:
    installed = dict(line.split("==") for line in yaml.safe_load((repository / "infra/runtime_env.yaml").read_text())["pip"])
    assert installed.items() <= pins.items()
    # Ray itself, and what its images bring, must stay what the node runs.
    missing = {Requirement(text).name for text in project["dependencies"]} - installed.keys()
    assert missing == {"ray", "numpy", "PyYAML"}


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_images_run_the_pinned_ray(repository: Path, pins: dict[str, str], kind: str) -> None:
    lines = (repository / f"infra/Dockerfile.{kind}").read_text().splitlines()
    assert [line for line in lines if line.startswith("FROM")] == [f"FROM rayproject/ray:{pins['ray']}-py311-{kind}"]


def test_console_scripts_name_a_main_of_a_job(repository: Path, project: dict[str, Any]) -> None:
    jobs = {path.stem for path in (repository / "jobs").glob("[a-z]*.py")}
    assert set(project["scripts"]) == {f"vimaedit-{name.replace('_', '-')}" for name in jobs}
    for script, entry in project["scripts"].items():
        module, function = entry.split(":")
        assert module == script.replace("vimaedit-", "jobs.").replace("-", "_")
        assert callable(getattr(importlib.import_module(module), function))


def test_the_version_is_stated_once_for_all(project: dict[str, Any]) -> None:
    assert importlib.import_module("vimaedit").__version__ == project["version"]
