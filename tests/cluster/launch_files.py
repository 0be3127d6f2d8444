"""The launch files, their container images and the pinned versions, as the tests of cluster/ read them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
KUBERNETES = CLUSTER / "kubernetes"
SCHEMAS = ROOT.parent / "shared" / "data" / "kuberay"
RAY_KINDS = {"RayCluster": "rayclusters", "RayJob": "rayjobs", "RayService": "rayservices"}


def manifests() -> dict[str, dict[str, Any]]:
    """Each document of cluster/kubernetes by its file and kind."""
    found = {}
    for file in sorted(KUBERNETES.glob("*.yaml")):
        for document in yaml.safe_load_all(file.read_text()):
            found[f"{file.name} {document['kind']}"] = document
    return found


def ray_clusters() -> dict[str, dict[str, Any]]:
    """The RayClusterSpec of each of KubeRay's kinds."""
    place = {"RayCluster": [], "RayJob": ["rayClusterSpec"], "RayService": ["rayClusterConfig"]}
    found = {}
    for name, document in manifests().items():
        if document["kind"] in place:
            spec = document["spec"]
            for key in place[document["kind"]]:
                spec = spec[key]
            found[name] = spec
    return found


def pods(cluster: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Pod templates of head and workers."""
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        yield group["template"]


def locked(package: str) -> str:
    """The version of requirements.lock."""
    found = re.search(rf"^{re.escape(package)}==(\S+)$", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert found, package
    return found[1]


def strict(schema: Any) -> Any:
    """A CRD's schema under which an unknown key is a mistake, as ``kubectl --validate=strict`` has it."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    out = {key: strict(value) for key, value in schema.items()}
    if "properties" in schema and "additionalProperties" not in schema and isinstance(schema["properties"], dict):
        out["additionalProperties"] = bool(schema.get("x-kubernetes-preserve-unknown-fields", False))
    if schema.get("x-kubernetes-int-or-string"):
        out = {"type": ["integer", "string"]}
    return out
