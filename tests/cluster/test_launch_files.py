"""cluster/: every file is valid for what reads it, asks for the pinned versions, and keeps Ray's token on."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml
from launch_files import CLUSTER, KUBERNETES, RAY_KINDS, ROOT, SCHEMAS, locked, manifests, pods, ray_clusters, strict

from megu_dist.cli import VERBS
from megu_dist.config.compose import load
from megu_dist.config.validate import check
from megu_dist.errors import UserError
from megu_dist.jobs.paths import settle
from megu_dist.oracle import build
from megu_dist.oracle.serve import app_name

AUTOSCALER = [CLUSTER / f"{name}.yaml" for name in ("aws", "gcp", "onprem")]
SCRIPTS = sorted(CLUSTER.glob("*.sh"))
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def tool(name: str) -> str:
    found = ROOT / ".venv" / "bin" / name
    path = str(found) if found.is_file() else shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def passes(*words: object) -> None:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("file", AUTOSCALER, ids=lambda file: file.stem)
def test_autoscaler_files_fit_rays_schema(file: Path) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load(file.read_text())
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(config, schema)
    prepared = prepare_config(config)
    validate_config(prepared)
    assert prepared["head_node_type"] in prepared["available_node_types"]


@pytest.mark.parametrize("file", AUTOSCALER, ids=lambda file: file.stem)
def test_autoscaler_files_start_ray_with_a_token_and_a_dashboard_on_loopback(file: Path) -> None:
    config = yaml.safe_load(file.read_text())
    starts = [c for key in ("head", "worker") for c in config[f"{key}_start_ray_commands"] if "ray start" in c]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token ray start" in start and "chmod 600" in start for start in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert config["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"


@pytest.mark.parametrize("name", [n for n, d in manifests().items() if d["kind"] in RAY_KINDS])
def test_manifests_fit_kuberays_schemas(name: str) -> None:
    document = manifests()[name]
    file = SCHEMAS / f"ray.io_{RAY_KINDS[document['kind']]}.yaml"
    if not file.is_file():
        pytest.skip("the schemas of KubeRay are not here")
    versions = yaml.safe_load(file.read_text())["spec"]["versions"]
    (version,) = [v for v in versions if document["apiVersion"] == f"ray.io/{v['name']}"]
    assert version["served"]
    schema = strict(version["schema"]["openAPIV3Schema"]["properties"]["spec"])
    jsonschema.validate(document["spec"], schema)
    with pytest.raises(jsonschema.ValidationError):  # the check is one: a mistyped key is found
        jsonschema.validate({**document["spec"], "rayVersoin": "2"}, schema)


@pytest.mark.parametrize("name", ray_clusters())
def test_ray_clusters_keep_the_token_on_and_pods_unprivileged(name: str) -> None:
    cluster = ray_clusters()[name]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    for pod in pods(cluster):
        assert pod["metadata"]["labels"]["app.kubernetes.io/part-of"] == "megu"  # what the network policy selects
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        (container,) = pod["spec"]["containers"]
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert {"name": "shared", "mountPath": "/shared"} in container["volumeMounts"]
        (claim,) = [v["persistentVolumeClaim"]["claimName"] for v in pod["spec"]["volumes"] if v["name"] == "shared"]
        assert claim == manifests()["storage.yaml PersistentVolumeClaim"]["metadata"]["name"]
        needs, limits = container["resources"]["requests"], container["resources"]["limits"]
        assert needs["memory"] == limits["memory"]  # never evicted for using what it asked for
        assert ("nvidia.com/gpu" in limits) == container["image"].endswith("-cuda")
    assert any("nvidia.com/gpu" in pod["spec"]["containers"][0]["resources"]["limits"] for pod in pods(cluster))


def test_the_network_policy_lets_only_labelled_pods_reach_the_job_server() -> None:
    spec = manifests()["networkpolicy.yaml NetworkPolicy"]["spec"]
    assert spec["podSelector"]["matchLabels"] == {"app.kubernetes.io/part-of": "megu"}
    assert spec["policyTypes"] == ["Ingress"]
    others = [rule for rule in spec["ingress"] if rule["from"] != [{"podSelector": spec["podSelector"]}]]
    assert [port["port"] for rule in others for port in rule["ports"]] == [8265]
    assert all("podSelector" in source for rule in others for source in rule["from"])


def test_no_manifest_holds_a_secret() -> None:
    for name, document in manifests().items():
        assert document["kind"] != "Secret", name
        for container in (c for c in walk(document) if isinstance(c, dict) and "env" in c):
            stated = [one["name"] for one in container["env"] if "valueFrom" not in one]
            assert not re.search("TOKEN|KEY|SECRET|PASSWORD", " ".join(stated)), name


def walk(node: Any) -> Any:
    yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else []:
        yield from walk(child)


def test_the_jobs_words_are_settings_that_megu_takes() -> None:
    words = shlex.split(manifests()["rayjob.yaml RayJob"]["spec"]["entrypoint"])
    assert words[:3] == ["python", "-m", "megu_dist.jobs.inside"]
    assert words[3:5] == ["--version", VERSION]
    verb, *settings = words[words.index("--") + 1 :]
    composed = load(settings, VERBS[verb].defaults)
    check(composed.settings)
    assert settle(composed.settings, None, "unlearn") == ([], {})  # every path is one that all nodes have
    gpus = ray_clusters()["rayjob.yaml RayJob"]["workerGroupSpecs"][0]["maxReplicas"]
    assert composed.settings.train.num_workers <= gpus


def test_the_service_runs_the_oracle_under_the_name_that_fills_look_for() -> None:
    from ray.serve.schema import ServeDeploySchema

    config = yaml.safe_load(manifests()["rayservice.yaml RayService"]["spec"]["serveConfigV2"])
    deployed = ServeDeploySchema.model_validate(config)
    (application,) = deployed.applications
    assert application.name == app_name(build.settings(application.args))
    assert application.route_prefix is None
    assert deployed.http_options.host == "127.0.0.1"
    built = build.app(application.args)
    assert built._bound_deployment.name == "oracle"
    with pytest.raises(UserError, match=application.name):
        build.app({**application.args, "name": "another"})


def test_images_and_versions_are_those_of_the_lock_file() -> None:
    ray_version = locked("ray")
    files = [*CLUSTER.glob("*.yaml"), *KUBERNETES.glob("*.yaml"), CLUSTER / "Dockerfile"]
    tags = {tag for file in files for tag in re.findall(r"megu-dist:(\S+)", file.read_text())}
    assert tags == {f"{VERSION}-ray{ray_version}-{variant}" for variant in ("cpu", "cuda")}
    for name, cluster in ray_clusters().items():
        assert cluster["rayVersion"] == ray_version, name


def test_the_dockerfile_is_clean_and_installs_the_locked_versions_without_root() -> None:
    passes(tool("hadolint"), CLUSTER / "Dockerfile")
    text = (CLUSTER / "Dockerfile").read_text()
    installs = re.findall(r"pip install (.*)", text)
    assert installs
    assert all("--constraint requirements.lock" in install for install in installs)
    assert {f"base-{variant}" for variant in ("cpu", "cuda")} <= set(
        re.findall(r"^FROM \S+ AS (\S+)$", text, re.MULTILINE)
    )
    assert re.findall(r"^USER (\S+)$", text, re.MULTILINE) == ["1000"]
    assert "RAY_AUTH_MODE=token" in text
    ignored = (ROOT / ".dockerignore").read_text().split()
    for copied in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE):
        assert all(f"!{name}" in ignored and (ROOT / name).exists() for name in copied.split()), copied


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_scripts_are_clean(script: Path) -> None:
    passes("bash", "-n", script)
    passes(tool("shellcheck"), script)


def test_the_local_clusters_script_says_what_it_wants() -> None:
    for words, part in (([], "number of nodes"), (["three"], "number of nodes"), (["0"], "between 1 and")):
        done = subprocess.run([str(CLUSTER / "local.sh"), *words], capture_output=True, text=True)
        assert done.returncode == 2
        assert part in done.stderr or "root" in done.stderr
