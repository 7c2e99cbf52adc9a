"""Manifests, cluster files and image: one version everywhere, only fields that exist, and enough resources for what they
start."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from cluster.cli import app
from pipeline.errors import UserError
from pipeline.recipe import Recipe, parse_recipe
from trainers.running.capacity import Node, check_nodes, pieces
from trainers.running.preflight import check_elastic, check_render, check_resources

ROOT = Path(__file__).parents[3]
KUBERAY, RAY_UP = ROOT / "cluster" / "deploy" / "kuberay", ROOT / "cluster" / "deploy" / "ray_up"
OVERLAYS = ("cpu", "gpu", "gcs-fault-tolerance")
_NAME, _COMPONENT = "app.kubernetes.io/name", "app.kubernetes.io/component"
_SECRET = re.compile(r"(password|secret|token|access_?key|credential)", re.IGNORECASE)
_KUSTOMIZE = shutil.which("kubectl") or shutil.which("kustomize")

needs_kustomize = pytest.mark.skipif(_KUSTOMIZE is None, reason="neither kubectl nor kustomize is on the PATH")

Object = dict[str, Any]


def base() -> list[Object]:
    """The objects as they are written, before any overlay."""
    listed = yaml.safe_load((KUBERAY / "base/kustomization.yaml").read_text())["resources"]
    return [document for name in listed for document in yaml.safe_load_all((KUBERAY / "base" / name).read_text())]


@cache
def overlay(name: str) -> list[Object]:
    """The objects as they reach a cluster."""
    assert _KUSTOMIZE is not None
    words = [_KUSTOMIZE, "kustomize"] if Path(_KUSTOMIZE).name == "kubectl" else [_KUSTOMIZE, "build"]
    done = subprocess.run([*words, str(KUBERAY / "overlays" / name)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def clusters(objects: list[Object]) -> Iterator[tuple[Object, Object]]:
    """Each Ray object with the cluster that it makes."""
    for item in objects:
        if item["kind"] == "RayCluster":
            yield item, item["spec"]
        elif item["kind"] in ("RayJob", "RayCronJob"):
            yield item, job_of(item)["rayClusterSpec"]


def job_of(item: Object) -> Object:
    return item["spec"]["jobTemplate"] if item["kind"] == "RayCronJob" else item["spec"]


def pods(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    """Every pod template's spec, with where it stands."""
    for item, cluster in clusters(objects):
        name = item["metadata"]["name"]
        yield f"{name} head", cluster["headGroupSpec"]["template"]["spec"]
        for group in cluster["workerGroupSpecs"]:
            yield f"{name} {group['groupName']}", group["template"]["spec"]
        if item["kind"] != "RayCluster":
            yield f"{name} submitter", job_of(item)["submitterPodTemplate"]["spec"]


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for inner in value.values():
            yield from texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from texts(inner)
    elif isinstance(value, str):
        yield value


# One version everywhere


def versions() -> tuple[str, str]:
    """The versions of this project and of Ray, from the files that state them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    ray = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert ray is not None
    return project, ray[1]


def test_ray_has_one_version() -> None:
    _, ray = versions()
    found = {cluster["rayVersion"] for _, cluster in clusters(base())}
    found |= set(re.findall(r"ARG RAY_VERSION=(\S+)", (ROOT / "cluster/deploy/image/Dockerfile").read_text()))
    assert found == {ray}


def test_images_carry_the_projects_version() -> None:
    project, _ = versions()
    tags = {f"{project}-cpu", f"{project}-gpu"}
    files = [*KUBERAY.rglob("*.yaml"), *RAY_UP.glob("*.yaml"), ROOT / "cluster/deploy/image/Dockerfile"]
    text = "\n".join(path.read_text() for path in files)
    assert set(re.findall(r"your-registry/pseudolabel:(\S+)", text)) == tags
    assert set(re.findall(r"newTag: ([^\s}]+)", text)) == tags
    assert set(re.findall(r"image\.version=(\S+)", text)) == {project}


@needs_kustomize
@pytest.mark.parametrize("name", OVERLAYS)
def test_overlays_set_the_image_everywhere(name: str) -> None:
    project, _ = versions()
    wanted = f"your-registry/pseudolabel:{project}-{'cpu' if name == 'cpu' else 'gpu'}"
    assert {container["image"] for _, pod in pods(overlay(name)) for container in pod["containers"]} == {wanted}


def test_the_image_takes_what_the_package_is_made_of() -> None:
    text = (ROOT / "cluster/deploy/image/Dockerfile").read_text()
    copied = {word for line in re.findall(r"^COPY --chown=\S+ (.*) \S+$", text, re.MULTILINE) for word in line.split()}
    assert {"pyproject.toml", "constraints.txt", "pipeline", "trainers", "cluster", "pseudolabel"} <= copied
    assert [name for name in copied if not (ROOT / name).exists()] == []
    ignored = (ROOT / "cluster/deploy/image/Dockerfile.dockerignore").read_text().split()
    assert {line.removeprefix("!") for line in ignored if line.startswith("!")} == copied
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    asked = re.search(r"'\.\[(.*)\]'", text)
    assert asked is not None
    assert set(asked[1].split(",")) <= extras.keys()


# What they start


def recipe_of(words: list[str], recipes: dict[str, str]) -> Recipe:
    (path,) = (word for word in words if word.startswith("/recipes/"))
    return parse_recipe(yaml.safe_load(recipes[path.removeprefix("/recipes/")]), path)


def room(cluster: Object) -> list[tuple[int, float, float]]:
    """Pods at most, and CPUs and GPUs of each, of every group."""
    found = []
    for group in cluster["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        found.append((group["maxReplicas"], float(limits["cpu"]), float(limits.get("nvidia.com/gpu", 0))))
    return found


def starts(objects: list[Object], recipes: dict[str, str]) -> int:
    """Check every entry point against the command line, its recipe, and its cluster's resources; returns how many."""
    count = 0
    for item, cluster in clusters(objects):
        if item["kind"] == "RayCluster":
            continue
        program, command, *rest = shlex.split(job_of(item)["entrypoint"])
        scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
        module, _, function = scripts[program].partition(":")
        assert callable(getattr(import_module(module), function))
        group: Any = get_command(app)
        context = group.make_context("pseudolabel", [command, *rest])
        known = group.get_command(context, command)
        assert known is not None, command
        known.make_context(command, list(rest), parent=context)
        recipe, groups = recipe_of(rest, recipes), room(cluster)
        check = check_render if command == "render" else check_resources
        check(recipe, sum(n * cpus for n, cpus, _ in groups), sum(n * gpus for n, _, gpus in groups))
        check_nodes(pieces(recipe, command == "pretrain"), [Node(cpus, gpus) for n, cpus, gpus in groups for _ in range(n)])
        count += 1
    return count


def written_recipes() -> dict[str, str]:
    return {path.name: path.read_text() for path in (KUBERAY / "base/recipes").glob("*.yaml")}


def test_entry_points_exist_and_their_plans_fit() -> None:
    assert starts(base(), written_recipes()) == 3


@needs_kustomize
@pytest.mark.parametrize("name", OVERLAYS)
def test_entry_points_of_overlays_exist_and_their_plans_fit(name: str) -> None:
    objects = overlay(name)
    (recipes,) = (item["data"] for item in objects if item["kind"] == "ConfigMap")
    assert starts(objects, recipes) == 3


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("pseudolabel pretrain", "pseudolabel pretain"),
        ("pretrain /recipes", "pretrain --sett a=1 /recipes"),
        ("/recipes/pretrain.yaml", "/recipes/gone.yaml"),
        ("pseudolabel pretrain", "pseudolabl pretrain"),
    ],
)
def test_a_wrong_entry_point_would_be_found(old: str, new: str) -> None:
    objects = base()
    for item, _ in clusters(objects):
        if item["metadata"]["name"] == "pseudolabel-pretrain":
            item["spec"]["entrypoint"] = item["spec"]["entrypoint"].replace(old, new)
    with pytest.raises(Exception, match=r"pretain|--sett|gone|pseudolabl"):
        starts(objects, written_recipes())


def test_a_plan_that_does_not_fit_would_be_found() -> None:
    recipes = {name: text.replace("actors: ", "actors: 1000") for name, text in written_recipes().items()}
    with pytest.raises(Exception, match="the cluster has"):
        starts(base(), recipes)


def test_jobs_end_and_are_tried_again() -> None:
    for item in base():
        if item["kind"] in ("RayJob", "RayCronJob"):
            job = job_of(item)
            assert job["shutdownAfterJobFinishes"] is True
            assert job["activeDeadlineSeconds"] > job["preRunningDeadlineSeconds"] > 0
            assert job["backoffLimit"] >= 1  # every entry point resumes
            assert job["submitterConfig"]["backoffLimit"] <= 1


def test_autoscaler_and_groups_of_training() -> None:
    for item, cluster in clusters(base()):
        assert cluster["enableInTreeAutoscaling"] is True
        assert cluster["autoscalerOptions"]["version"] == "v2"
        assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        names = [group["groupName"] for group in cluster["workerGroupSpecs"]]
        assert names == (["renderers"] if "render" in item["metadata"]["name"] else ["trainers", "renderers"])


def test_training_on_gpus_is_elastic_within_its_nodes() -> None:
    recipe = parse_recipe(yaml.safe_load((KUBERAY / "overlays/gpu/recipes/pretrain.yaml").read_text()))
    (cluster,) = (cluster for item, cluster in clusters(base()) if item["metadata"]["name"] == "pseudolabel-pretrain")
    trainers, renderers = cluster["workerGroupSpecs"]
    patches = yaml.safe_load((KUBERAY / "overlays/gpu/kustomization.yaml").read_text())["patches"]
    most, pod, _ = (patch["value"] for patch in yaml.safe_load(patches[0]["patch"]))
    limits = pod["limits"]
    spec = recipe.training
    assert trainers["minReplicas"] <= spec.least_workers < spec.most_workers <= most
    training = [Node(float(limits["cpu"]), float(limits["nvidia.com/gpu"]))] * spec.most_workers
    rendering = [Node(float(renderers["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"]))]
    check_elastic(recipe, training + rendering * renderers["maxReplicas"])
    with pytest.raises(UserError, match="leave 0 CPUs"):
        check_elastic(recipe, [Node(6.0, 1.0)])


# Hardening


def test_no_pod_may_more_than_it_needs() -> None:
    for where, pod in pods(base()):
        security = pod["securityContext"]
        assert (security["runAsNonRoot"], security["seccompProfile"]) == (True, {"type": "RuntimeDefault"}), where
        assert security["runAsUser"] > 0, where
        assert pod["automountServiceAccountToken"] is where.endswith(" head"), where
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys(), where
        assert not [volume for volume in pod["volumes"] if "hostPath" in volume], where
        for container in pod["containers"]:
            inner = container["securityContext"]
            assert inner["readOnlyRootFilesystem"] is True, where
            assert inner["allowPrivilegeEscalation"] is False, where
            assert inner["capabilities"] == {"drop": ["ALL"]}, where
            assert container["resources"]["limits"].keys() >= {"cpu", "memory"}, where
            assert "/tmp" in [mount["mountPath"] for mount in container["volumeMounts"]], where
    for _, cluster in clusters(base()):
        inner = cluster["autoscalerOptions"]["securityContext"]
        assert (inner["readOnlyRootFilesystem"], inner["allowPrivilegeEscalation"]) == (True, False)
        assert cluster["authOptions"] == {"mode": "token"}


def secrets_in(value: Any) -> Iterator[str]:
    """Names that look like a secret's and have a value in place of a reference."""
    if isinstance(value, dict):
        if _SECRET.search(str(value.get("name", ""))) and isinstance(value.get("value"), str):
            yield value["name"]
        for key, inner in value.items():
            if _SECRET.search(key) and isinstance(inner, str) and not key.endswith("Name"):
                yield key
            yield from secrets_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from secrets_in(inner)


def test_secrets_are_references() -> None:
    files = [*KUBERAY.rglob("*.yaml"), *RAY_UP.glob("*.yaml")]
    for path in files:
        for document in yaml.safe_load_all(path.read_text()):
            assert list(secrets_in(document)) == [], path
            assert not [text for text in texts(document) if re.search(r"AKIA[0-9A-Z]{16}|-----BEGIN|://[^/\s]*@", text)], path
    assert list(secrets_in({"env": [{"name": "AWS_SECRET_ACCESS_KEY", "value": "x"}]})) == ["AWS_SECRET_ACCESS_KEY"]
    assert list(secrets_in({"redisPassword": "x"})) == ["redisPassword"]


@needs_kustomize
def test_the_redis_password_is_a_reference() -> None:
    for item, cluster in clusters(overlay("gcs-fault-tolerance")):
        if item["kind"] == "RayCronJob":  # the next night's job does the rest
            continue
        options = cluster["gcsFaultToleranceOptions"]
        assert options["redisPassword"].keys() == {"valueFrom"}, item["metadata"]["name"]


def test_the_network_policy_lets_nobody_in_who_is_not_named() -> None:
    (policy,) = (item["spec"] for item in base() if item["kind"] == "NetworkPolicy")
    assert policy["policyTypes"] == ["Ingress"]
    assert policy["podSelector"] == {"matchLabels": {_NAME: "pseudolabel"}}
    for rule in policy["ingress"]:
        assert rule["from"]
        assert all(peer["podSelector"]["matchLabels"] for peer in rule["from"])
        within = rule["from"] == [{"podSelector": {"matchLabels": {_NAME: "pseudolabel"}}}]
        assert within or {port["port"] for port in rule["ports"]} <= {8265, 8080}
    for item, cluster in clusters(base()):
        templates = [cluster["headGroupSpec"]["template"], *(group["template"] for group in cluster["workerGroupSpecs"])]
        templates += [] if item["kind"] == "RayCluster" else [job_of(item)["submitterPodTemplate"]]
        assert {template["metadata"]["labels"][_NAME] for template in templates} == {"pseudolabel"}
