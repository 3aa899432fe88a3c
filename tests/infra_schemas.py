"""Checks of the deployment files: against the schemas of KubeRay and of Ray's cluster launcher, and by the project's own rules.

Every check returns what is wrong as lines of text, so that a test can compare the whole of it.
"""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import yaml
from jsonschema import Draft7Validator

from jobs._cli.options import load_config, parse_command_line
from jobs.edit import REQUIRED
from pipelines.output.config import EditJobConfig
from vimaedit.errors import ConfigError

Document = dict[str, Any]

IMAGE = "registry.example.com/vimaedit"
GPU = "nvidia.com/gpu"
DRAIN_VARIABLE = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
LEAST_GRACE_S = 30
SECRET_NAME = re.compile(r"key|token|secret|password|passwd|credential", re.IGNORECASE)
SECRET_TEXT = re.compile(r"AKIA[0-9A-Z]{12,}|-----BEGIN|://[^/\s@]+:[^/\s@]+@|hf_[A-Za-z0-9]{20,}")
# Fields whose names only sound like it: taints and labels have keys, and a token mode or a secret's name is none.
PLAIN_FIELDS = {"key", "secretRef", "secretName", "secretKeyRef"}
PLACEHOLDER = "REPLACE_ME"


@dataclass(frozen=True, kw_only=True)
class Project:
    """What is stated elsewhere and must agree: the package's version, the pinned Ray, and each Dockerfile's text by kind."""

    version: str
    ray: str
    dockerfiles: dict[str, str]

    def image(self, kind: str) -> str:
        return f"{IMAGE}:{self.version}-ray{self.ray}-{kind}"


def read_project(repository: Path) -> Project:
    """Read the versions from where they are stated."""
    pins = dict(re.findall(r"^(\S+)==(\S+)$", (repository / "constraints.txt").read_text(), re.MULTILINE))
    return Project(
        version=tomllib.loads((repository / "pyproject.toml").read_text())["project"]["version"],
        ray=pins["ray"],
        dockerfiles={kind: (repository / f"infra/Dockerfile.{kind}").read_text() for kind in ("cpu", "gpu")},
    )


def read_yaml(path: Path) -> Document:
    """Read a file of one YAML document."""
    document: Document = yaml.safe_load(path.read_text())
    return document


def kuberay_schema(folder: Path, kind: str) -> Document:
    """Read the schema of a KubeRay kind: unknown fields are refused where the definition lists its fields."""
    schema: Document = json.loads((folder / f"{kind.lower()}s.v1.json").read_text())
    return schema


def launcher_schema() -> Document:
    """Read the schema of cluster-launcher files that Ray ships."""
    schema: Document = json.loads((Path(ray.__file__).parent / "autoscaler/ray-schema.json").read_text())
    return schema


def schema_problems(document: Document, schema: Document) -> list[str]:
    """Validate by JSON Schema, draft 7."""
    return [f"{error.json_path}: {error.message}" for error in Draft7Validator(schema).iter_errors(document)]


def dockerfile_problems(project: Project) -> list[str]:
    """The images build on the pinned Ray, and under the names that the manifests use."""
    problems = []
    for kind, text in project.dockerfiles.items():
        base = re.findall(r"^FROM (\S+)$", text, re.MULTILINE)
        if base != [f"rayproject/ray:{project.ray}-py311-{kind}"]:
            problems.append(f"Dockerfile.{kind}: FROM {base}, the pinned Ray is {project.ray}")
        if f" -t {project.image(kind)} ." not in text:
            problems.append(f"Dockerfile.{kind}: does not say how {project.image(kind)} is built")
    return problems


def kuberay_problems(document: Document, project: Project) -> list[str]:
    """Apply the project's rules to a RayJob or RayCluster."""
    problems = list(credential_problems(document))
    spec = document["spec"]
    if document["kind"] == "RayJob":
        problems += _job_problems(spec, project)
        spec = spec["rayClusterSpec"]
    if spec.get("rayVersion") != project.ray:
        problems.append(f"rayVersion: {spec.get('rayVersion')!r}, the images hold {project.ray!r}")
    if not spec.get("enableInTreeAutoscaling") or spec["autoscalerOptions"].get("version") != "v2":
        problems.append("autoscaling: off, or not version v2")
    if spec.get("authOptions", {}).get("mode") != "token":
        problems.append("authOptions: the dashboard runs what anybody sends it")
    head = spec["headGroupSpec"]
    problems += _group_problems("head", head, project, container="ray-head")
    if str(head["rayStartParams"].get("num-cpus")) != "0":
        problems.append("head: offers CPUs to Ray, so that work lands beside the driver")
    for group in spec["workerGroupSpecs"]:
        problems += _worker_problems(group, project)
    return problems


def _job_problems(spec: Document, project: Project) -> Iterator[str]:
    yield from entrypoint_problems(spec["entrypoint"])
    if not spec.get("shutdownAfterJobFinishes"):
        yield "shutdownAfterJobFinishes: the cluster outlives its job"
    if spec.get("backoffLimit", 0) > 0 and not re.search(r"\bresume=(if-possible|always)\b", spec["entrypoint"]):
        yield "backoffLimit: attempts without a resume that goes on"
    if "entrypointNumCpus" in spec or "entrypointNumGpus" in spec:
        yield "entrypointNumCpus: the driver waits for a node that offers CPUs"
    environment = yaml.safe_load(spec["runtimeEnvYAML"])
    if not all(isinstance(value, str) for value in environment.get("env_vars", {}).values()):
        yield "runtimeEnvYAML: env_vars takes strings"
    pod = spec["submitterPodTemplate"]["spec"]
    if pod["restartPolicy"] not in ("Never", "OnFailure"):
        yield f"submitter: restartPolicy {pod['restartPolicy']}"
    yield from _container_problems("submitter", pod["containers"][0], project.image("cpu"))


def entrypoint_problems(entrypoint: str) -> Iterator[str]:
    """Whether the job accepts the words of the command as the shell would pass them."""
    words = shlex.split(entrypoint)
    if words[:3] != ["python", "-m", "jobs.edit"]:
        yield f"entrypoint: runs {' '.join(words[:3])}"
        return
    try:
        job = load_config(EditJobConfig, parse_command_line(words[3:]), REQUIRED)
    except ConfigError as error:
        yield f"entrypoint: {error}"
        return
    for name in ("input", "output"):
        if "://" not in getattr(job, name):
            yield f"entrypoint: {name}={getattr(job, name)} is a path of one pod"
    if job.device != "cuda":
        yield f"entrypoint: device={job.device} does not wait for a GPU worker"


def _worker_problems(group: Document, project: Project) -> Iterator[str]:
    name = group["groupName"]
    yield from _group_problems(name, group, project, container="ray-worker")
    if not group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]:
        yield f"{name}: replicas {group['replicas']} outside {group['minReplicas']} to {group['maxReplicas']}"
    pod = group["template"]["spec"]
    grace_s = pod.get("terminationGracePeriodSeconds", LEAST_GRACE_S)
    environment = {entry["name"]: entry.get("value") for entry in pod["containers"][0].get("env", [])}
    drain_s = float(environment.get(DRAIN_VARIABLE) or LEAST_GRACE_S)
    if grace_s <= max(LEAST_GRACE_S, drain_s):
        yield f"{name}: terminationGracePeriodSeconds {grace_s}, and Ray drains for {drain_s:g} s"
    if "spot" in name:
        if GPU not in pod["containers"][0]["resources"]["limits"]:
            yield f"{name}: no {GPU}"
        tainted = {toleration["key"] for toleration in pod.get("tolerations", [])}
        if GPU not in tainted or not any("spot" in key for key in tainted):
            yield f"{name}: does not tolerate the taints of spot machines with GPUs"


def _group_problems(name: str, group: Document, project: Project, *, container: str) -> Iterator[str]:
    wrong = {key: value for key, value in group["rayStartParams"].items() if not isinstance(value, str)}
    if wrong:
        yield f"{name}: rayStartParams takes strings, got {wrong}"
    pod = group["template"]["spec"]
    first = pod["containers"][0]
    if first["name"] != container:
        yield f"{name}: the first container is {first['name']}, not {container}"
    if pod.get("restartPolicy") != "Never":
        yield f"{name}: restartPolicy {pod.get('restartPolicy')}; the autoscaler needs Never"
    gpus = GPU in first["resources"].get("limits", {})
    yield from _container_problems(name, first, project.image("gpu" if gpus else "cpu"))
    if [source.get("secretRef", {}).get("name") for source in first.get("envFrom", [])] != ["vimaedit-object-store"]:
        yield f"{name}: no credentials of the object store"
    volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
    for mount in first.get("volumeMounts", []):
        if mount["name"] not in volumes:
            yield f"{name}: mounts {mount['name']}, which is no volume"
    models = [mount for mount in first.get("volumeMounts", []) if mount["mountPath"] == "/models"]
    if not models or not all(mount.get("readOnly") for mount in models):
        yield f"{name}: /models is not mounted read-only"
    for volume in volumes.values():
        if claim := volume.get("persistentVolumeClaim"):
            if claim["claimName"] != "vimaedit-models" or not claim.get("readOnly"):
                yield f"{name}: claim {claim['claimName']} is another one, or not read-only"


def _container_problems(name: str, container: Document, image: str) -> Iterator[str]:
    if container["image"] != image:
        yield f"{name}: image {container['image']}, built is {image}"
    resources = container["resources"]
    if not resources.get("limits") or resources["limits"] != resources.get("requests"):
        yield f"{name}: limits {resources.get('limits')} differ from requests {resources.get('requests')}"


def launcher_problems(document: Document, project: Project) -> list[str]:
    """Apply the project's rules to a cluster-launcher file."""
    problems = list(credential_problems(document))
    docker = document["docker"]
    for field, kind in (("image", "gpu"), ("head_image", "cpu"), ("worker_image", "gpu")):
        if docker.get(field) != project.image(kind):
            problems.append(f"docker.{field}: {docker.get(field)}, built is {project.image(kind)}")
    types = document["available_node_types"]
    head = types[document["head_node_type"]]
    if head["resources"].get("CPU") != 0:
        problems.append("head: offers CPUs to Ray, so that work lands beside the driver")
    if _is_spot(head["node_config"]):
        problems.append("head: is on spot")
    for name, node in types.items():
        if name == document["head_node_type"]:
            continue
        if not _is_spot(node["node_config"]):
            problems.append(f"{name}: is not on spot")
        if node["resources"].get("GPU", 0) < 1:
            problems.append(f"{name}: offers no GPU")
        if not node["min_workers"] <= node["max_workers"] <= document["max_workers"]:
            problems.append(f"{name}: {node['min_workers']} to {node['max_workers']} of {document['max_workers']} workers")
    return problems


def _is_spot(node: Document) -> bool:
    market = node.get("InstanceMarketOptions", {}).get("MarketType")
    return market == "spot" or {"preemptible": True} in node.get("scheduling", [])


def credential_problems(document: Any, path: str = "") -> Iterator[str]:
    """Find credentials in plain text: values of variables and fields with telling names, and texts that look like one."""
    if isinstance(document, dict):
        name = document.get("name")
        if isinstance(name, str) and SECRET_NAME.search(name) and "value" in document:
            yield f"{path}: {name} has its value in plain text"
        for key, value in document.items():
            inner = f"{path}.{key}" if path else str(key)
            if isinstance(value, str) and key not in PLAIN_FIELDS and SECRET_NAME.search(str(key)) and value != PLACEHOLDER:
                yield f"{inner}: has its value in plain text"
            yield from credential_problems(value, inner)
    elif isinstance(document, list):
        for index, value in enumerate(document):
            yield from credential_problems(value, f"{path}[{index}]")
    elif isinstance(document, str):
        if SECRET_TEXT.search(document):
            yield f"{path}: holds what looks like a credential"
        # A command or a runtime environment is YAML or shell within a string.
        for found in re.finditer(r"([\w.]+)[ \t]*[:=][ \t]*[\"']?([^\s\"']+)", document):
            if re.search(r"(?i)(secret|token|password|access_key)", found[1]) and found[2] != PLACEHOLDER:
                yield f"{path}: {found[1]} has its value in plain text"
