"""The import direction: jobs -> pipelines -> vimaedit, never back."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

FORBIDDEN = {
    "vimaedit": {"ray", "omegaconf", "fsspec", "s3fs", "pipelines", "jobs", "tests"},
    "pipelines": {"diffusers", "omegaconf", "jobs", "tests"},
    "jobs": {"diffusers", "tests"},
}


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line number and top-level package of every absolute import, also of those inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.lineno, node.module.split(".")[0]


def module_level_imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield what importing the module imports: everything outside functions and `if TYPE_CHECKING`."""
    stack: list[ast.AST] = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            continue
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from imports(node)
        stack.extend(ast.iter_child_nodes(node))


def sources(repository: Path, package: str) -> list[Path]:
    files = sorted((repository / package).rglob("*.py"))
    assert files, f"no Python file under {package}/"
    return files


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_no_package_imports_against_the_direction(repository: Path, package: str) -> None:
    wrong = [
        f"{path.relative_to(repository)}:{line} imports {name}"
        for path in sources(repository, package)
        for line, name in imports(ast.parse(path.read_text()))
        if name in FORBIDDEN[package]
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", ["pipelines", "jobs"])
def test_torch_is_imported_only_where_it_runs(repository: Path, package: str) -> None:
    wrong = [
        f"{path.relative_to(repository)}:{line} imports {name} at module level"
        for path in sources(repository, package)
        for line, name in module_level_imports(ast.parse(path.read_text()))
        if name == "torch"
    ]
    assert not wrong, "\n".join(wrong)


def test_every_form_of_import_is_seen() -> None:
    tree = ast.parse(
        "import ray.data\ndef f():\n    from s3fs import core\nfrom . import jobs\nif TYPE_CHECKING:\n    import torch\n"
    )
    assert sorted(imports(tree)) == [(1, "ray"), (3, "s3fs"), (6, "torch")]
    assert sorted(module_level_imports(tree)) == [(1, "ray")]


def modules_after(statement: str, repository: Path) -> set[str]:
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_importing_vimaedit_is_light(repository: Path) -> None:
    loaded = modules_after("import vimaedit", repository)
    assert "vimaedit" in loaded
    assert not loaded & {"diffusers", "transformers", "ray", "omegaconf", "fsspec", "s3fs"}


def test_importing_a_job_loads_no_model_code(repository: Path) -> None:
    loaded = modules_after("import jobs.edit, jobs.edit_image", repository)
    assert "jobs" in loaded
    assert not loaded & {"diffusers", "transformers", "torch"}


def test_small_actors_do_without_ray_data(repository: Path) -> None:
    loaded = modules_after("import pipelines.cluster.counter, pipelines.edit.deaths", repository)
    assert {"ray", "pipelines.edit.deaths"} <= loaded and not loaded & {"ray.data", "torch"}
