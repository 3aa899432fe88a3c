"""Deployment files: valid by their schemas and by the project's rules, and every kind of mistake is caught."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray.autoscaler._private.util import prepare_config

from pipelines.cluster.place import auto_batch_size
from tests.infra_schemas import (
    PLACEHOLDER,
    Document,
    Project,
    credential_problems,
    dockerfile_problems,
    entrypoint_problems,
    kuberay_problems,
    kuberay_schema,
    launcher_problems,
    launcher_schema,
    read_project,
    read_yaml,
    schema_problems,
)

KUBERAY = ("rayjob", "raycluster")
LAUNCHER = ("aws", "gcp")
Change = Callable[[Document], None]


@pytest.fixture(scope="module")
def project(repository: Path) -> Project:
    return read_project(repository)


@pytest.fixture(scope="module")
def schemas(repository: Path) -> Path:
    folder = repository.parent / "shared" / "schemas"
    if not folder.is_dir():
        pytest.skip("no KubeRay schemas at ../shared/schemas")
    return folder


@pytest.fixture(scope="module")
def documents(repository: Path) -> dict[str, Document]:
    files = [*(repository / "infra/kuberay").glob("*.yaml"), *((repository / f"infra/{name}.yaml") for name in LAUNCHER)]
    return {path.name.split(".")[0]: read_yaml(path) for path in files}


def changed(document: Document, change: Change) -> Document:
    result = copy.deepcopy(document)
    change(result)
    return result


def put(path: str, value: Any) -> Change:
    """Set the value at a path such as `spec.groups.0.name`; dots within a key are written as `%`."""

    def change(document: Any) -> None:
        *parents, last = [part.replace("%", ".") for part in path.split(".")]
        for part in parents:
            document = document[int(part)] if isinstance(document, list) else document[part]
        document[int(last) if isinstance(document, list) else last] = value

    return change


def drop(path: str) -> Change:
    def change(document: Any) -> None:
        *parents, last = path.split(".")
        for part in parents:
            document = document[int(part)] if isinstance(document, list) else document[part]
        del document[last]

    return change


def test_the_images_are_built_from_the_pinned_ray_under_the_names_in_use(project: Project) -> None:
    assert not dockerfile_problems(project)
    older = dataclasses.replace(project, ray="2.59.0")
    assert dockerfile_problems(older) == [
        "Dockerfile.cpu: FROM ['rayproject/ray:2.60.0-py311-cpu'], the pinned Ray is 2.59.0",
        "Dockerfile.cpu: does not say how registry.example.com/vimaedit:0.1.0-ray2.59.0-cpu is built",
        "Dockerfile.gpu: FROM ['rayproject/ray:2.60.0-py311-gpu'], the pinned Ray is 2.59.0",
        "Dockerfile.gpu: does not say how registry.example.com/vimaedit:0.1.0-ray2.59.0-gpu is built",
    ]


@pytest.mark.parametrize("name", KUBERAY)
def test_kuberay_manifests_are_valid(documents: dict[str, Document], schemas: Path, name: str) -> None:
    assert not schema_problems(documents[name], kuberay_schema(schemas, name))


@pytest.mark.parametrize("name", KUBERAY)
def test_kuberay_manifests_follow_the_rules(documents: dict[str, Document], project: Project, name: str) -> None:
    assert not kuberay_problems(documents[name], project)


CLUSTER = "spec.rayClusterSpec"
HEAD = f"{CLUSTER}.headGroupSpec"
WORKERS = f"{CLUSTER}.workerGroupSpecs.0"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("spec.entryPoint", "true"), "$.spec: Additional properties are not allowed ('entryPoint' was unexpected)"),
        (put(f"{CLUSTER}.rayversion", "2"), f"$.{CLUSTER}: Additional properties are not allowed ('rayversion' was"),
        (
            put(f"{HEAD}.template.spec.containers.0.volumemounts", []),
            f"$.{HEAD}.template.spec.containers[0]: Additional properties are not allowed ('volumemounts' was",
        ),
        (put(f"{HEAD}.rayStartParams.num-cpus", 0), f"$.{HEAD}.rayStartParams['num-cpus']: 0 is not of type 'string'"),
        (put("spec.runtimeEnvYAML", {"env_vars": {}}), "$.spec.runtimeEnvYAML: {'env_vars': {}} is not of type 'string'"),
        (put("spec.backoffLimit", "2"), "$.spec.backoffLimit: '2' is not of type 'integer'"),
        (put(f"{CLUSTER}.authOptions.mode", "off"), f"$.{CLUSTER}.authOptions.mode: 'off' is not one of ['disabled', 'token']"),
        (drop(f"{CLUSTER}.headGroupSpec"), f"$.{CLUSTER}: 'headGroupSpec' is a required property"),
        (
            put(f"{WORKERS}.template.spec.containers.0.env", [{"name": "A", "value": 90}]),
            f"$.{CLUSTER}.workerGroupSpecs[0].template.spec.containers[0].env[0].value: 90 is not of type 'string'",
        ),
    ],
)
def test_the_schema_catches(documents: dict[str, Document], schemas: Path, change: Change, message: str) -> None:
    (problem,) = schema_problems(changed(documents["rayjob"], change), kuberay_schema(schemas, "rayjob"))
    assert problem.startswith(message)


POD = f"{WORKERS}.template.spec"
BUILT = "registry.example.com/vimaedit:0.1.0-ray2.60.0"


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        (put(f"{CLUSTER}.rayVersion", "2.61.0"), ["rayVersion: '2.61.0', the images hold '2.60.0'"]),
        (put(f"{CLUSTER}.enableInTreeAutoscaling", False), ["autoscaling: off, or not version v2"]),
        (drop(f"{CLUSTER}.authOptions"), ["authOptions: the dashboard runs what anybody sends it"]),
        (put(f"{HEAD}.rayStartParams.num-cpus", 0), ["head: rayStartParams takes strings, got {'num-cpus': 0}"]),
        (put(f"{HEAD}.rayStartParams.num-cpus", "4"), ["head: offers CPUs to Ray, so that work lands beside the driver"]),
        (put(f"{POD}.containers.0.name", "worker"), ["gpu-spot: the first container is worker, not ray-worker"]),
        (put(f"{POD}.containers.0.image", f"{BUILT}-cpu"), [f"gpu-spot: image {BUILT}-cpu, built is {BUILT}-gpu"]),
        (put(f"{HEAD}.template.spec.containers.0.image", "vimaedit"), [f"head: image vimaedit, built is {BUILT}-cpu"]),
        (
            put(f"{POD}.containers.0.resources", {"limits": {"nvidia.com/gpu": "1"}, "requests": {"nvidia.com/gpu": "2"}}),
            ["gpu-spot: limits {'nvidia.com/gpu': '1'} differ from requests {'nvidia.com/gpu': '2'}"],
        ),
        (
            drop(f"{POD}.containers.0.resources.requests"),
            [
                "gpu-spot: limits {'cpu': '8', 'memory': '32Gi', 'ephemeral-storage': '100Gi', 'nvidia.com/gpu': '1'} "
                "differ from requests None"
            ],
        ),
        (
            put(f"{POD}.terminationGracePeriodSeconds", 60),
            ["gpu-spot: terminationGracePeriodSeconds 60, and Ray drains for 90 s"],
        ),
        (
            drop(f"{POD}.terminationGracePeriodSeconds"),
            ["gpu-spot: terminationGracePeriodSeconds 30, and Ray drains for 90 s"],
        ),
        (put(f"{POD}.tolerations", []), ["gpu-spot: does not tolerate the taints of spot machines with GPUs"]),
        (put(f"{POD}.restartPolicy", "Always"), ["gpu-spot: restartPolicy Always; the autoscaler needs Never"]),
        (drop(f"{POD}.containers.0.envFrom"), ["gpu-spot: no credentials of the object store"]),
        (put(f"{POD}.containers.0.volumeMounts.0.readOnly", False), ["gpu-spot: /models is not mounted read-only"]),
        (
            put(f"{POD}.volumes.0.persistentVolumeClaim.readOnly", False),
            ["gpu-spot: claim vimaedit-models is another one, or not read-only"],
        ),
        (put(f"{POD}.volumes.1.name", "tmp"), ["gpu-spot: mounts ray, which is no volume"]),
        (put(f"{WORKERS}.replicas", 9), ["gpu-spot: replicas 9 outside 0 to 8"]),
        (put("spec.shutdownAfterJobFinishes", False), ["shutdownAfterJobFinishes: the cluster outlives its job"]),
        (put("spec.entrypointNumCpus", 1), ["entrypointNumCpus: the driver waits for a node that offers CPUs"]),
        (put("spec.runtimeEnvYAML", "env_vars: {A: 10}"), ["runtimeEnvYAML: env_vars takes strings"]),
        (put("spec.submitterPodTemplate.spec.restartPolicy", "Always"), ["submitter: restartPolicy Always"]),
        (
            put("spec.entrypoint", "python -m jobs.edit input=s3://a output=s3://b device=cuda resume=never"),
            ["backoffLimit: attempts without a resume that goes on"],
        ),
        (
            put(f"{POD}.containers.0.env", [{"name": "AWS_SECRET_ACCESS_KEY", "value": "abc"}]),
            [
                f"{CLUSTER}.workerGroupSpecs[0].template.spec.containers[0].env[0]: "
                "AWS_SECRET_ACCESS_KEY has its value in plain text"
            ],
        ),
    ],
)
def test_the_rules_catch(documents: dict[str, Document], project: Project, change: Change, messages: list[str]) -> None:
    problems = kuberay_problems(changed(documents["rayjob"], change), project)
    assert problems == messages


def test_a_spot_group_needs_a_gpu(documents: dict[str, Document], project: Project) -> None:
    def change(document: Document) -> None:
        for amounts in document["spec"]["workerGroupSpecs"][1]["template"]["spec"]["containers"][0]["resources"].values():
            del amounts["nvidia.com/gpu"]

    assert kuberay_problems(changed(documents["raycluster"], change), project) == [
        f"gpu-spot: image {BUILT}-gpu, built is {BUILT}-cpu",
        "gpu-spot: no nvidia.com/gpu",
    ]


@pytest.mark.parametrize(
    ("entrypoint", "message"),
    [
        (
            "python -m jobs.edit input=s3://a output=s3://b device=cuda stpes=3",
            "entrypoint: stpes: got an unknown key; did you mean steps?",
        ),
        (
            "python -m jobs.edit input=s3://a output=s3://b device=cuda steps=many",
            "entrypoint: steps: got 'many'; allowed: integer",
        ),
        ("python -m jobs.edit input=s3://a device=cuda", "entrypoint: output: got nothing; required: input=... output=..."),
        ("python -m jobs.edit input=/data output=s3://b device=cuda", "entrypoint: input=/data is a path of one pod"),
        ("python -m jobs.edit input=s3://a output=s3://b", "entrypoint: device=auto does not wait for a GPU worker"),
        ("python edit.py", "entrypoint: runs python edit.py"),
    ],
)
def test_an_entrypoint_is_read_by_the_jobs_own_options(entrypoint: str, message: str) -> None:
    assert list(entrypoint_problems(entrypoint)) == [message]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"env": [{"name": "HF_TOKEN", "value": "x"}]}, "env[0]: HF_TOKEN has its value in plain text"),
        ({"stringData": {"AWS_SECRET_ACCESS_KEY": "x"}}, "stringData.AWS_SECRET_ACCESS_KEY: has its value in plain text"),
        ({"command": "s5cmd --endpoint-url https://me:pass@store ls"}, "command: holds what looks like a credential"),
        ({"note": "AKIAIOSFODNN7EXAMPLE"}, "note: holds what looks like a credential"),
        ({"runtimeEnvYAML": "env_vars:\n  HF_TOKEN: abc"}, "runtimeEnvYAML: HF_TOKEN has its value in plain text"),
        ({"setup": ["export AWS_SECRET_ACCESS_KEY=abc"]}, "setup[0]: AWS_SECRET_ACCESS_KEY has its value in plain text"),
    ],
)
def test_credentials_in_plain_text_are_found(document: Document, message: str) -> None:
    assert list(credential_problems(document)) == [message]


def test_the_runtime_environment_holds_no_credentials(repository: Path) -> None:
    assert not list(credential_problems(read_yaml(repository / "infra/runtime_env.yaml")))


def test_the_examples_hold_what_the_manifests_ask_for(documents: dict[str, Document]) -> None:
    secret, claim = documents["secret"], documents["models"]
    assert (secret["kind"], secret["metadata"]["name"]) == ("Secret", "vimaedit-object-store")
    assert set(secret["stringData"].values()) == {PLACEHOLDER}
    assert (claim["kind"], claim["metadata"]["name"]) == ("PersistentVolumeClaim", "vimaedit-models")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]  # head and workers are on several nodes
    assert not list(credential_problems(secret)) + list(credential_problems(claim))


@pytest.mark.parametrize("name", LAUNCHER)
def test_launcher_files_are_valid(documents: dict[str, Document], project: Project, name: str) -> None:
    assert not schema_problems(documents[name], launcher_schema())
    assert not launcher_problems(documents[name], project)


@pytest.mark.parametrize("name", LAUNCHER)
def test_the_launcher_takes_its_files_and_adds_no_setup(documents: dict[str, Document], name: str) -> None:
    prepared = prepare_config(copy.deepcopy(documents[name]))
    assert prepared["worker_setup_commands"] == []  # the defaults would install another Ray
    assert prepared["head_setup_commands"] == documents[name]["head_setup_commands"]
    assert prepared["available_node_types"].keys() == {"head", "gpu_spot"}
    starts = prepared["head_start_ray_commands"] + prepared["worker_start_ray_commands"]
    assert [re.findall(r"--metrics-export-port=(\d+)", line) for line in starts if "ray start" in line] == [["8080"], ["8080"]]


@pytest.mark.parametrize(
    ("name", "change", "messages"),
    [
        ("aws", put("max_worker", 3), ["$: Additional properties are not allowed ('max_worker' was unexpected)"]),
        ("aws", put("max_workers", "3"), ["$.max_workers: '3' is not of type 'integer'"]),
        ("gcp", put("docker.images", "x"), ["$.docker: Additional properties are not allowed ('images' was unexpected)"]),
        ("gcp", drop("provider.type"), ["$.provider: 'type' is a required property"]),
    ],
)
def test_the_launcher_schema_catches(documents: dict[str, Document], name: str, change: Change, messages: list[str]) -> None:
    assert schema_problems(changed(documents[name], change), launcher_schema()) == messages


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("aws", put("docker.worker_image", f"{BUILT}-cpu"), f"docker.worker_image: {BUILT}-cpu, built is {BUILT}-gpu"),
        ("aws", drop("available_node_types.gpu_spot.node_config.InstanceMarketOptions"), "gpu_spot: is not on spot"),
        ("gcp", put("available_node_types.gpu_spot.node_config.scheduling", []), "gpu_spot: is not on spot"),
        ("gcp", put("available_node_types.head.node_config.scheduling", [{"preemptible": True}]), "head: is on spot"),
        ("aws", put("available_node_types.gpu_spot.resources", {"CPU": 8}), "gpu_spot: offers no GPU"),
        ("aws", put("available_node_types.gpu_spot.max_workers", 9), "gpu_spot: 0 to 9 of 8 workers"),
        (
            "aws",
            put("available_node_types.head.resources", {}),
            "head: offers CPUs to Ray, so that work lands beside the driver",
        ),
        ("aws", put("provider.aws_secret_access_key", "x"), "provider.aws_secret_access_key: has its value in plain text"),
    ],
)
def test_the_launcher_rules_catch(
    documents: dict[str, Document], project: Project, name: str, change: Change, message: str
) -> None:
    assert launcher_problems(changed(documents[name], change), project) == [message]


def test_the_runbook_gives_commands_that_the_job_takes(repository: Path) -> None:
    text = (repository / "infra/RUNBOOK.md").read_text().replace("\\\n", " ")
    commands = re.findall(r"(?<!`)python -m jobs\.edit [^\n`]+", text)
    assert len(commands) >= 3
    for command in commands:
        command = re.sub(r" model=s3://\S+", " model=random", command)  # a bundle by URL is asked for its options
        remarks = [line for line in entrypoint_problems(command) if "path of one pod" not in line and "device=auto" not in line]
        assert not remarks, command


def test_the_runbook_lists_its_sections(repository: Path) -> None:
    text = (repository / "infra/RUNBOOK.md").read_text()
    sections = re.findall(r"^## (.+)$", text, re.MULTILINE)
    anchors = [re.sub(r"[^\w -]", "", section.lower()).replace(" ", "-") for section in sections]
    assert re.findall(r"^- \[(.+)\]\(#(.+)\)$", text, re.MULTILINE) == list(zip(sections, anchors, strict=True))


def test_the_runbook_states_the_batch_sizes_of_the_code_and_what_its_formula_gives(repository: Path) -> None:
    text = (repository / "infra/RUNBOOK.md").read_text()
    (work,) = re.findall(r"seconds/row   = ([\d.]+) TFLOP x", text)
    row = r"^\| \w+[^|]*\| (\d+)[^|]*\| (\d+) GB \| (\d+) \| ([\d.]+) \| ([\d,]+) \|"
    rows = re.findall(row, text, re.MULTILINE)
    assert len(rows) == 6
    for peak, memory, batch, seconds, rows_per_hour in rows:
        wanted = float(work) / (0.3 * float(peak))
        assert float(seconds) == pytest.approx(wanted, rel=0.03)
        assert float(rows_per_hour.replace(",", "")) == pytest.approx(3600 / wanted, rel=0.02)
        usable_gib = 0.92 * int(memory)  # in GiB, less what the device keeps for itself
        assert auto_batch_size(usable_gib) == int(batch)
