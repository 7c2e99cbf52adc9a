"""Manifests and cluster files against the schemas of KubeRay and of Ray, with unknown fields refused."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.cluster.deploy.test_manifests import OVERLAYS, RAY_UP, Object, base, needs_kustomize, overlay

needs_crds = pytest.mark.skipif(
    not os.environ.get("KUBERAY_CRDS"), reason="KUBERAY_CRDS does not name a folder of KubeRay's CRDs (ray.io_*.yaml)"
)


def closed(schema: Any) -> Any:
    """A Kubernetes OpenAPI schema as a JSON schema that refuses fields it does not know."""
    if isinstance(schema, list):
        return [closed(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(value) for key, value in schema.items()}
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    if "properties" in schema and schema.get("type") == "object" and not schema.get("x-kubernetes-preserve-unknown-fields"):
        found.setdefault("additionalProperties", False)
    if schema.get("nullable") and isinstance(schema.get("type"), str):
        found["type"] = [schema["type"], "null"]
    return found


@pytest.fixture(scope="session")
def crds() -> dict[str, Any]:
    """Validators of the kinds of ray.io/v1."""
    found = {}
    for path in Path(os.environ["KUBERAY_CRDS"]).glob("ray.io_*.yaml"):
        definition = yaml.safe_load(path.read_text())["spec"]
        (version,) = (version for version in definition["versions"] if version["name"] == "v1")
        schema = closed(version["schema"]["openAPIV3Schema"])
        schema["properties"]["metadata"] = {"type": "object"}  # Kubernetes' own
        found[definition["names"]["kind"]] = jsonschema.Draft202012Validator(schema)
    return found


def refusals(objects: list[Object], crds: dict[str, Any]) -> list[str]:
    return [
        f"{item['metadata']['name']}: {'/'.join(map(str, error.absolute_path))}: {error.message[:200]}"
        for item in objects
        if item["kind"].startswith("Ray")
        for error in crds[item["kind"]].iter_errors(item)
    ]


@needs_crds
def test_manifests_have_only_fields_that_kuberay_knows(crds: dict[str, Any]) -> None:
    objects = base()
    assert {item["kind"] for item in objects} == {"RayJob", "RayCronJob", "RayCluster", "NetworkPolicy"}
    assert refusals(objects, crds) == []


@needs_crds
@needs_kustomize
@pytest.mark.parametrize("name", OVERLAYS)
def test_overlays_have_only_fields_that_kuberay_knows(crds: dict[str, Any], name: str) -> None:
    assert refusals(overlay(name), crds) == []


@needs_crds
@pytest.mark.parametrize(
    "path",
    ["spec/entrypont", "spec/rayClusterSpec/rayVersoin", "spec/rayClusterSpec/headGroupSpec/template/spec/containers/0/imgae"],
)
def test_a_field_that_does_not_exist_would_be_found(crds: dict[str, Any], path: str) -> None:
    (item,) = (copy.deepcopy(one) for one in base() if one["metadata"]["name"] == "pseudolabel-pretrain")
    *parents, last = path.split("/")
    place: Any = item
    for key in parents:
        place = place[int(key) if key.isdigit() else key]
    place[last] = "x"
    assert [line for line in refusals([item], crds) if last in line]


@pytest.fixture(scope="session")
def ray_schema() -> dict[str, Any]:
    import ray.autoscaler

    return json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())


@pytest.mark.parametrize("name", ["aws", "gcp"])
def test_cluster_files_have_only_fields_that_ray_knows(ray_schema: dict[str, Any], name: str) -> None:
    config = yaml.safe_load((RAY_UP / f"{name}.yaml").read_text())
    jsonschema.Draft7Validator(ray_schema).validate(config)
    types = config["available_node_types"]
    assert config["head_node_type"] in types
    assert types["head"]["resources"]["CPU"] == 0
    assert sum(kind.get("max_workers", 0) for kind in types.values()) <= config["max_workers"]
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft7Validator(ray_schema).validate({**config, "max_wokers": 3})


@pytest.mark.parametrize("name", ["aws", "gcp"])
def test_rays_own_reader_takes_the_cluster_files(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(yaml.safe_load((RAY_UP / f"{name}.yaml").read_text())))
