"""The files in cluster/ and the Dockerfile agree with each other, with the recipes' fields and with what Ray reads."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from itertools import takewhile
from pathlib import Path
from typing import Any

import boto3
import kubernetes_validate
import pytest
import yaml
from botocore.client import BaseClient
from moto import mock_aws
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.kuberay import autoscaling_config
from ray.autoscaler._private.util import prepare_config, validate_config

from ray_pipeline import health, logs, recipe, runtime, s3, telemetry
from ray_pipeline.gemini import fanout
from ray_pipeline.recipe import Recipe

from . import commands, kustomize

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "cluster"
README = (ROOT / "README.md").read_text(encoding="utf-8")
BASE = CLUSTER / "kuberay" / "base"
OVERLAYS = ("base", "no-gpu", "one-node")
SELECTOR = "node.kubernetes.io/instance-type"
MACHINES = {
    "m7i.xlarge": (4, 16, 0), "m7i.4xlarge": (16, 64, 0), "g6e.4xlarge": (16, 128, 1), "g6e.48xlarge": (192, 1536, 8),
}  # fmt: skip
"""vCPUs, GiB and GPUs, as AWS states them."""
FIELDS: dict[str, dict[str, type]] = {
    "job": {"entrypoint": str, "backoffLimit": int, "shutdownAfterJobFinishes": bool, "ttlSecondsAfterFinished": int,
            "rayClusterSpec": dict, "submitterPodTemplate": dict, "submitterConfig": dict},
    "cluster": {"rayVersion": str, "authOptions": dict, "enableInTreeAutoscaling": bool, "autoscalerOptions": dict,
                "headGroupSpec": dict, "workerGroupSpecs": list},
    "autoscaler": {"version": str, "idleTimeoutSeconds": int, "resources": dict, "securityContext": dict},
    "head": {"rayStartParams": dict, "template": dict},
    "worker": {"groupName": str, "replicas": int, "minReplicas": int, "maxReplicas": int, "rayStartParams": dict,
               "template": dict},
}  # fmt: skip
"""Of `ray.io/v1`, those that we use, with their types, by KubeRay's API reference: no package here has its schema."""
KUBERNETES = "1.34"
"""The version whose schemas the rest is held against."""
HEALTH = "python -m ray_pipeline.health"


def by_name(overlay: str) -> dict[str, Any]:
    """What an overlay makes, by kind; of ConfigMaps and ServiceAccounts, by name."""
    found = kustomize.render(CLUSTER / "kuberay" / overlay)
    named = ("ConfigMap", "ServiceAccount")
    return {item["metadata"]["name"] if item["kind"] in named else item["kind"]: item for item in found}


@pytest.fixture(scope="module", params=OVERLAYS)
def rendered(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What each overlay makes; see `by_name`."""
    return by_name(request.param)


@pytest.fixture
def job(rendered: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = rendered["RayJob"]["spec"]
    return found


def pods(job: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The head's and the groups' pods by the group's name."""
    yield "head", job["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    for group in job["rayClusterSpec"]["workerGroupSpecs"]:
        yield group["groupName"], group["template"]["spec"]


def quantity(text: str) -> float:
    """CPUs, GPUs or GiB."""
    units = {"Gi": 1, "Mi": 1 / 1024, "m": 1 / 1000}
    unit = next((unit for unit in units if text.endswith(unit)), "")
    return float(text.removesuffix(unit)) * units.get(unit, 1)


def node_types(job: dict[str, Any]) -> dict[str, Any]:
    """What Ray's own autoscaler makes of the cluster."""
    made = autoscaling_config._derive_autoscaling_config_from_ray_cr(
        {"metadata": {"name": "c", "namespace": "n"}, "spec": job["rayClusterSpec"]}
    )
    types: dict[str, Any] = made["available_node_types"]
    return types


def on_cluster(rendered: dict[str, Any]) -> Recipe:
    """The recipe as the driver on this cluster reads it."""
    path = BASE / "recipe.yaml"
    assert yaml.safe_load(rendered["ray-pipeline-recipe"]["data"]["recipe.yaml"]) == yaml.safe_load(path.read_text())
    return recipe.read(path, environment=rendered["ray-pipeline-runtime"]["data"])


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl")
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubectl_makes_the_same_of_the_overlays(overlay: str) -> None:
    folder = CLUSTER / "kuberay" / overlay
    made = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, check=True).stdout

    def sort(found: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        return sorted(found, key=lambda one: (one["kind"], one["metadata"]["name"]))

    assert sort(kustomize.render(folder)) == sort(yaml.safe_load_all(made))


def test_only_fields_of_the_resource_are_used_and_have_its_types(job: dict[str, Any]) -> None:
    cluster = job["rayClusterSpec"]
    parts = [("job", job), ("cluster", cluster), ("autoscaler", cluster["autoscalerOptions"])]
    parts += [("head", cluster["headGroupSpec"]), *(("worker", group) for group in cluster["workerGroupSpecs"])]
    for kind, part in parts:
        assert {name: type(value) for name, value in part.items()}.items() <= FIELDS[kind].items()
        assert all(isinstance(value, str) for value in part.get("rayStartParams", {}).values())


def kubernetes_objects(rendered: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Everything that Kubernetes itself has a schema for; a pod template as the pod that is made from it.

    The autoscaler, whose resources and rights the cluster states, becomes a container of the head's pod.
    """
    job = rendered["RayJob"]["spec"]
    cluster = job["rayClusterSpec"]
    sidecar = {key: cluster["autoscalerOptions"][key] for key in ("resources", "securityContext")}
    head, *others = (
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"} | one["metadata"], "spec": one["spec"]}
        for one in (
            cluster["headGroupSpec"]["template"],
            job["submitterPodTemplate"],
            *(group["template"] for group in cluster["workerGroupSpecs"]),
        )
    )
    spec = head["spec"] | {"containers": [*head["spec"]["containers"], {"name": "autoscaler", **sidecar}]}
    yield from (head | {"spec": spec}, *others)
    yield from (one for one in rendered.values() if one["kind"] != "RayJob")


def test_kubernetes_takes_the_pods_and_everything_else(rendered: dict[str, Any]) -> None:
    found = list(kubernetes_objects(rendered))
    for one in found:
        kubernetes_validate.validate(one, KUBERNETES, strict=True)
    assert {one["kind"] for one in found} == {"Pod", "ServiceAccount", "NetworkPolicy", "ConfigMap"}


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("securityContext", "runAsUsers"), 1000),
        (("containers", 0, "env", 0, "valueFrom", "secretRef"), {}),
        (("containers", 0, "ports"), [{"containerPort": "8265"}]),
        (("tolerations",), {"key": "spot"}),
        (("volumes", 1, "emptyDir", "medium"), ["Memory"]),
    ],
)
def test_a_mistake_within_a_pod_is_seen(place: tuple[str | int, ...], value: Any) -> None:
    pod = next(kubernetes_objects(by_name("base")))
    *way, last = place
    part = pod["spec"]
    for key in way:
        part = part[key]
    part[last] = value
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_the_cluster_is_made_for_the_job_and_removed_after_it(job: dict[str, Any]) -> None:
    cluster = job["rayClusterSpec"]
    assert job["backoffLimit"] == 1, "a retry deletes the logs of what went wrong"
    assert job["shutdownAfterJobFinishes"] and job["ttlSecondsAfterFinished"] > 0
    assert cluster["authOptions"] == {"mode": "token"} and cluster["autoscalerOptions"]["version"] == "v2"
    assert cluster["enableInTreeAutoscaling"] and all(g["minReplicas"] == 0 for g in cluster["workerGroupSpecs"])


def test_every_pod_fits_its_machine_and_runs_without_rights(job: dict[str, Any]) -> None:
    for group, pod in pods(job):
        cpus, gib, gpus = MACHINES[pod["nodeSelector"][SELECTOR]]
        resources = [container["resources"] for container in pod["containers"]]
        if group == "head":
            resources.append(job["rayClusterSpec"]["autoscalerOptions"]["resources"])
        assert all(one["requests"] == one["limits"] for one in resources), "Ray counts limits, Kubernetes requests"
        asked = {key: sum(quantity(str(one["requests"].get(key, 0))) for one in resources)
                 for key in ("cpu", "memory", "nvidia.com/gpu")}  # fmt: skip
        assert asked["cpu"] <= cpus - 1 and asked["memory"] <= 0.9 * gib, "the node's own daemons need some"
        assert asked["nvidia.com/gpu"] == gpus, group
        assert pod["restartPolicy"] == "Never"
        assert pod["serviceAccountName"] == ("ray-pipeline" if group == "head" else "ray-pipeline-worker")
        shared = next(volume for volume in pod["volumes"] if volume["name"] == "shared-memory")["emptyDir"]
        assert shared["medium"] == "Memory" and quantity(shared["sizeLimit"]) <= 0.5 * asked["memory"]
        assert {"name": "shared-memory", "mountPath": "/dev/shm"} in pod["containers"][0]["volumeMounts"]


def test_workers_are_not_promised_the_memory_of_objects_and_of_ray_itself(job: dict[str, Any]) -> None:
    for group, (_, pod) in zip(job["rayClusterSpec"]["workerGroupSpecs"], list(pods(job))[1:], strict=True):
        limit = quantity(pod["containers"][0]["resources"]["limits"]["memory"])
        objects = quantity(pod["volumes"][0]["emptyDir"]["sizeLimit"])
        promised = node_types(job)[group["groupName"]]["resources"]["memory"] / 2**30
        assert 0.5 * limit < promised <= limit - objects


def test_no_container_has_rights(job: dict[str, Any]) -> None:
    bare = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    for _, pod in [*pods(job), ("submitter", job["submitterPodTemplate"]["spec"])]:
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 1000
        assert [container["securityContext"] for container in pod["containers"]] == [bare]
    assert job["rayClusterSpec"]["autoscalerOptions"]["securityContext"] == bare


def test_what_cannot_be_spared_is_on_demand_and_nothing_is_moved_to_save_nodes(job: dict[str, Any]) -> None:
    cluster = job["rayClusterSpec"]
    for one in (
        job["submitterPodTemplate"],
        *(g["template"] for g in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])),
    ):
        assert one["metadata"]["annotations"] == {"karpenter.sh/do-not-disrupt": "true"}
    bought = {group: pod["nodeSelector"]["karpenter.sh/capacity-type"] for group, pod in pods(job)}
    submitter = job["submitterPodTemplate"]["spec"]["nodeSelector"]["karpenter.sh/capacity-type"]
    assert bought.pop("head") == submitter == "on-demand"
    assert job["submitterConfig"]["backoffLimit"] > 2, "KubeRay ends the whole job with the last submitter"
    alone = any("g6e.48xlarge" in pod["nodeSelector"].values() for _, pod in pods(job))
    assert set(bought.values()) == {"on-demand" if alone else "spot"}


def test_secrets_are_named_and_not_written(rendered: dict[str, Any], job: dict[str, Any]) -> None:
    for group, pod in pods(job):
        variables = {one["name"]: one for one in pod["containers"][0].get("env", ())}
        assert all(set(one) == {"name", "valueFrom"} for one in variables.values())
        assert "GEMINI_API_KEY" in variables, f"{group}: an audit that compares meanings asks from GPU nodes too"
        assert "HF_TOKEN" in variables, "any of them may load a tokenizer or a base"
        for one in variables.values():
            optional = {"optional": True} if one["name"] == "HF_TOKEN" else {}
            assert one["valueFrom"] == {"secretKeyRef": {"name": "ray-pipeline", "key": one["name"]} | optional}
    assert "Secret" not in rendered
    assert not re.search(r"AIza|AKIA|BEGIN [A-Z ]*PRIVATE KEY", yaml.safe_dump_all(rendered.values()))


def test_all_nodes_have_the_one_image_and_the_submitter_its_version_of_ray(job: dict[str, Any]) -> None:
    chosen = yaml.safe_load((BASE / "kustomization.yaml").read_text())["images"][0]
    image = f"{chosen['newName']}:{chosen['newTag']}"
    assert {container["image"] for _, pod in pods(job) for container in pod["containers"]} == {image}
    assert yaml.safe_load((CLUSTER / "aws.yaml").read_text())["docker"]["image"] == image
    pinned = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned and job["rayClusterSpec"]["rayVersion"] == pinned[1]
    base = re.search(r"^ARG RAY_IMAGE=(rayproject/ray:(\S+)-py\d+)-\w+$", (ROOT / "Dockerfile").read_text(), re.M)
    assert base and base[2] == pinned[1]
    (submitter,) = job["submitterPodTemplate"]["spec"]["containers"]
    assert submitter["image"] == f"{base[1]}-cpu", "20 GB of GPU libraries for a pod that only submits"


def test_the_groups_offer_what_the_recipe_asks_for(rendered: dict[str, Any], job: dict[str, Any]) -> None:
    settings, types = on_cluster(rendered).runtime, node_types(job)
    assert types["headgroup"]["resources"]["CPU"] == 0, "no work on the head"
    assert rendered["ray-pipeline-runtime"]["data"][logs.VARIABLE] == logs.JSON
    model, asking = runtime.model_worker(settings), fanout.needs(settings)

    def holds(kind: dict[str, Any], wanted: dict[str, float]) -> int:
        return min(int(kind["resources"].get(name, 0) // amount) for name, amount in wanted.items())

    def placed(wanted: dict[str, float]) -> int:
        return sum(kind["max_workers"] * holds(kind, wanted) for kind in types.values())

    chosen = on_cluster(rendered)
    assert placed(model) >= max(settings.embed_workers, settings.score_workers)
    assert not settings.gpus_per_worker or chosen.train.workers == settings.score_workers, "GPUs that are paid for idle"
    assert placed(model) >= chosen.train.workers
    assert placed(asking) >= settings.translate_workers
    assert placed({"CPU": 1}) >= (settings.map_workers or 0)
    if len(types) > 2 and settings.gpus_per_worker:  # groups of their own
        for kind in types.values():
            gpus = kind["resources"].get("GPU", 0)
            assert not (gpus and holds(kind, asking)), "the fan-out starts no GPU node"
            assert not gpus or kind["resources"]["CPU"] == settings.cpus_per_worker * gpus, "taken whole"
            assert not gpus or kind["resources"]["accelerator_type:L40S"], "else the autoscaler starts none of a type"


def test_who_may_speak_to_the_cluster_is_limited(rendered: dict[str, Any], job: dict[str, Any]) -> None:
    policy = rendered["NetworkPolicy"]["spec"]
    assert policy["podSelector"] == {"matchLabels": {"ray-pipeline/role": "node"}}
    cluster = job["rayClusterSpec"]
    nodes = [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    assert all(one["metadata"]["labels"] == {"ray-pipeline/role": "node"} for one in nodes)
    assert job["submitterPodTemplate"]["metadata"]["labels"] == {"ray-pipeline/role": "submitter"}
    assert policy["policyTypes"] == ["Ingress"]
    outside = [rule for rule in policy["ingress"] if "ports" in rule]
    assert len(policy["ingress"]) - len(outside) == 1, "only the cluster's own pods reach every port"
    assert {port["port"] for rule in outside for port in rule["ports"]} == {8265, 8080}
    assert all(source.get("podSelector") for rule in policy["ingress"] for source in rule["from"])


def test_the_bucket_s_policy_grants_what_the_code_needs_and_no_more() -> None:
    statements = json.loads((CLUSTER / "s3-policy.json").read_text())["Statement"]
    granted = {action for statement in statements for action in statement["Action"]}
    assert granted == set(re.findall(r"s3:\w+", " ".join(s3.PERMISSIONS.values())))
    written = [statement for statement in statements if "s3:PutObject" in statement["Action"]]
    assert len(written) == 1 and not any("raw" in resource for resource in written[0]["Resource"])


def test_iam_takes_the_policies_and_who_may_have_the_roles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "none")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "none")
    mocked = mock_aws()
    mocked.start(reset=False)  # else the bucket of other tests goes
    try:
        iam = boto3.client("iam", "us-east-1")
        for name in ("eks", "ec2"):
            trust = (CLUSTER / f"{name}-trust.json").read_text()
            iam.create_role(RoleName=name, AssumeRolePolicyDocument=trust)
        for name in ("s3", "secret", "ec2-head"):
            policy = (CLUSTER / f"{name}-policy.json").read_text()
            iam.put_role_policy(RoleName="ec2", PolicyName=name, PolicyDocument=policy)
    finally:
        mocked.stop(remove_data=False)


def test_the_pods_accounts_may_have_the_role_in_the_namespace_of_the_guide(rendered: dict[str, Any]) -> None:
    (statement,) = json.loads((CLUSTER / "eks-trust.json").read_text())["Statement"]
    provider = statement["Principal"]["Federated"].split("oidc-provider/")[1]
    (namespace,) = re.findall(r"kubectl create namespace (\S+)", README)
    accounts = [one for one in rendered.values() if one["kind"] == "ServiceAccount"]
    trusted = {f"system:serviceaccount:{namespace}:{one['metadata']['name']}" for one in accounts}
    asked = statement["Condition"]["StringEquals"]
    assert set(asked.pop(f"{provider}:sub")) == trusted and asked == {f"{provider}:aud": "sts.amazonaws.com"}
    (role,) = {one["metadata"]["annotations"]["eks.amazonaws.com/role-arn"].split("/")[1] for one in accounts}
    assert (
        f"aws iam create-role --role-name {role} --assume-role-policy-document file://cluster/eks-trust.json" in README
    )


def test_the_nodes_on_ec2_may_read_the_secret_that_they_ask_for() -> None:
    raw = yaml.safe_load((CLUSTER / "aws.yaml").read_text())
    (statement,) = json.loads((CLUSTER / "secret-policy.json").read_text())["Statement"]
    started = " ".join(raw[f"{kind}_start_ray_commands"][-1] for kind in ("head", "worker"))
    names = set(re.findall(r"SecretId='([^']+)'", started))
    assert names and all(fnmatch(f"{statement['Resource'].split(':secret:')[0]}:secret:{name}-x", statement["Resource"])
                         for name in names)  # fmt: skip
    assert all(f"aws secretsmanager create-secret --name {name} " in README for name in names)
    profiles = {kind["node_config"]["IamInstanceProfile"]["Name"] for kind in raw["available_node_types"].values()}
    made = re.search(r"for role in ([\w -]+); do", README)
    assert made and set(made[1].split()) == profiles


def test_the_commands_of_the_guide_are_those_of_their_tools() -> None:
    found = list(commands.shown(commands.blocks(README)))
    for words in found:
        commands.expect_taken(words)
    called = Counter(words[0] for words in found)
    assert min(called[name] for name in ("aws", "docker", "helm", "kubectl", "ray", "python")) > 1


def calls_to_ec2(monkeypatch: pytest.MonkeyPatch, cluster: str) -> list[tuple[str, dict[str, Any]]]:
    """What Ray's provider asks of EC2 as a node starts, is looked at and ends."""
    asked: list[tuple[str, dict[str, Any]]] = []
    really = BaseClient._make_api_call

    def record(client: BaseClient, name: str, parameters: dict[str, Any]) -> Any:
        asked.append((f"{client.meta.service_model.service_name}:{name}", parameters))
        return really(client, name, parameters)

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "none")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "none")
    mocked = mock_aws()
    mocked.start(reset=False)  # else the bucket of other tests goes
    try:
        subnets = boto3.client("ec2", "us-east-1").describe_subnets()["Subnets"]
        machine = {"ImageId": "ami-0", "InstanceType": "m7i.xlarge", "SubnetIds": [subnets[0]["SubnetId"]]}
        monkeypatch.setattr(BaseClient, "_make_api_call", record)
        ec2 = AWSNodeProvider({"region": "us-east-1", "cache_stopped_nodes": False}, cluster)
        ec2.create_node(machine, {"ray-node-kind": "worker"}, 1)
        nodes = ec2.non_terminated_nodes({})
        ec2.set_node_tags(nodes[0], {"ray-node-status": "up-to-date"})
        ec2.terminate_nodes(nodes)
    finally:
        mocked.stop(remove_data=False)
    return asked


def test_the_head_on_ec2_may_do_what_ray_s_provider_does(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = yaml.safe_load((CLUSTER / "aws.yaml").read_text())
    statements = json.loads((CLUSTER / "ec2-head-policy.json").read_text())["Statement"]
    asked = calls_to_ec2(monkeypatch, raw["cluster_name"])
    granted = {action for statement in statements for action in statement["Action"]}
    assert granted == {name for name, _ in asked} | {"iam:PassRole"}, "the workers' instance profile needs the last"
    started = next(parameters for name, parameters in asked if name == "ec2:RunInstances")
    tags = {tag["Key"]: tag["Value"] for tag in started["TagSpecifications"][0]["Tags"]}
    ended = next(one for one in statements if "ec2:TerminateInstances" in one["Action"])
    assert ended["Condition"] == {"StringEquals": {"aws:ResourceTag/ray-cluster-name": tags["ray-cluster-name"]}}
    passed = next(one["Resource"] for one in statements if one["Action"] == ["iam:PassRole"])
    machines = {name: kind["node_config"] for name, kind in raw["available_node_types"].items()}
    workers = {machine["IamInstanceProfile"]["Name"] for name, machine in machines.items() if name != "head"}
    assert {passed.rsplit("/", 1)[1]} == workers, "the head's own role is not for it to give"


def test_the_command_on_aws_uses_the_nodes_it_pays_for() -> None:
    raw = (CLUSTER / "aws.yaml").read_text()
    lines = [line.removeprefix("#").strip(" \\") for line in raw.splitlines() if line.startswith("#")]
    given = [word for word in " ".join(lines).split() if re.match(r"(runtime|train)\.\w+=", word)]
    chosen = recipe.read(BASE / "recipe.yaml", given, environment={})
    types = yaml.safe_load(raw)["available_node_types"]
    gpus = types["gpu"]["max_workers"] * types["gpu"]["resources"]["GPU"]
    settings = chosen.runtime
    assert {settings.embed_workers, settings.score_workers, chosen.train.workers} == {gpus}
    assert settings.cpus_per_worker == types["gpu"]["resources"]["CPU"], "taken whole"
    cpu = {name: types["cpu"]["max_workers"] * amount for name, amount in types["cpu"]["resources"].items()}
    assert settings.translate_workers <= cpu["fanout"] and (settings.map_workers or 0) <= cpu["CPU"]
    lines = [line for line in (BASE / "runtime.env").read_text().splitlines() if line.startswith("RECIPE")]
    kubernetes = recipe.read(BASE / "recipe.yaml", environment=dict(line.split("=", 1) for line in lines)).runtime
    assert settings.model_copy(update={"map_workers": kubernetes.map_workers}) == kubernetes


def test_ray_s_launcher_accepts_the_cluster_on_aws() -> None:
    raw = yaml.safe_load((CLUSTER / "aws.yaml").read_text())
    made = prepare_config(raw)
    validate_config(made)
    types = made["available_node_types"]
    assert types["head"]["resources"]["CPU"] == 0 and "InstanceMarketOptions" not in types["head"]["node_config"]
    assert types["cpu"]["resources"]["fanout"] > 0 and "GPU" not in types["cpu"]["resources"]
    assert types["gpu"]["resources"]["GPU"] == 1 and "fanout" not in types["gpu"]["resources"]
    for name in ("cpu", "gpu"):
        machine = types[name]["node_config"]
        assert machine["InstanceMarketOptions"] == {"MarketType": "spot"} and types[name]["min_workers"] == 0
        assert types[name]["resources"]["CPU"] <= MACHINES[machine["InstanceType"]][0]
    started = [raw[f"{kind}_start_ray_commands"][-1] for kind in ("head", "worker")]
    assert not any("export GEMINI_API_KEY=" in command for command in started), "it would hide that there is none"
    assert all("unset OMP_NUM_THREADS && " in one.split("ray start")[0] for one in started), "the launcher exports 1"
    assert not made["head_setup_commands"] + made["worker_setup_commands"], "all is in the image"
    assert "--dashboard-host=127.0.0.1" in raw["head_start_ray_commands"][-1]
    assert "--env RAY_AUTH_MODE=token" in raw["docker"]["run_options"]
    assert list(raw["file_mounts"]) == ["/home/ray/.ray/auth_token"]


def instructions() -> list[tuple[str, str]]:
    """Of the Dockerfile: (instruction, rest), with continued lines joined."""
    text = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in lines]


def test_the_image_has_no_secret_no_root_and_a_small_context() -> None:
    found = instructions()
    assert [rest for name, rest in found if name == "USER"][-1] == "1000" and not any(n == "ENV" for n, _ in found)
    assert not [rest for name, rest in found if name == "ARG" and re.search("KEY|TOKEN|SECRET", rest)]
    copied = {item for name, rest in found if name == "COPY" and "--from" not in rest for item in rest.split()[1:-1]}
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == let_in and all((ROOT / item).exists() for item in copied)


def test_both_images_are_imported_as_they_are_built_and_vllm_keeps_our_pins(tmp_path: Path) -> None:
    found = instructions()
    stages = [place for place, (name, _) in enumerate(found) if name == "FROM"]
    app, vllm = found[stages[1] : stages[2]], found[stages[2] : stages[3]]
    assert ("RUN", HEALTH) in app and not any(name == "HEALTHCHECK" for name, _ in found)
    refusal, install = (rest for name, rest in vllm if name == "RUN")
    assert install.endswith(f"-c vllm-constraints.txt && {HEALTH}")
    for index, code in (("", 0), ("https://example.com/cu129", 1)):
        done = subprocess.run(["bash", "-euc", refusal], env={"TORCH_INDEX": index}, capture_output=True)
        assert done.returncode == code
    shutil.copy(ROOT / "constraints.txt", tmp_path)
    subprocess.run(["bash", "-euc", install.split(" && ")[0]], cwd=tmp_path, check=True)
    pins = (tmp_path / "vllm-constraints.txt").read_text()
    assert "\nray==" in pins and "\ntransformers==" not in pins


def test_the_list_of_dependencies_is_the_project_s_with_its_pins(tmp_path: Path) -> None:
    command = next(rest for name, rest in instructions() if name == "RUN" and "requirements.txt" in rest)
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    environment = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "FAISS": "gpu"}
    subprocess.run(["bash", "-euc", command], cwd=tmp_path, env=environment, check=True)
    wanted = {re.split(r"[\[<>=]", line)[0] for line in (tmp_path / "requirements.txt").read_text().split()}
    assert {"ray", "torch", "faiss-gpu", "deepspeed", "google-genai"} <= wanted and "faiss-cpu" not in wanted
    pins = (tmp_path / "constraints.txt").read_text()
    assert all(f"\n{name}==" in pins for name in ("torch", "faiss-cpu", "faiss-gpu", "boto3"))
    named = {package for package in health.PACKAGES.values() if package and package != "ray-pipeline"}
    assert named <= wanted, "the health command imports what the project depends on"


def test_the_dashboard_shows_the_counters_that_workers_keep() -> None:
    shown = json.loads((CLUSTER / "grafana-dashboard.json").read_text())
    asked = " ".join(target["expr"] for panel in shown["panels"] for target in panel["targets"])
    source = (ROOT / "ray_pipeline" / "gemini" / "quota_actor.py").read_text()
    listed = re.search(r"names = \(([^)]*)\)", source)
    assert listed
    kept = {*telemetry.NAMES, *(f"gemini_{name}" for name in re.findall(r"\w+", listed[1]))}
    named = re.findall(r"\bray_(?!io_cluster)\w+", asked)
    of_ray = {"ray_object_store_memory"}  # which tests/test_telemetry.py finds at a node's port
    assert set(named) == {f"ray_{name}_total" for name in kept} | of_ray
    assert len(named) == asked.count('ray_io_cluster=~"$cluster"')
    assert "rate(" in asked and "[1m]" not in asked, "shorter than two scrapes of Prometheus' default"
    monitor = yaml.safe_load((CLUSTER / "kuberay" / "pod-monitor.yaml").read_text())["spec"]
    assert monitor["selector"] == {"matchLabels": {"ray-pipeline/role": "node"}}
    (endpoint,) = monitor["podMetricsEndpoints"]
    assert endpoint["relabelings"][0]["targetLabel"] == "ray_io_cluster"
    head = yaml.safe_load((BASE / "rayjob.yaml").read_text())["spec"]["rayClusterSpec"]["headGroupSpec"]
    assert endpoint["port"] in {port["name"] for port in head["template"]["spec"]["containers"][0]["ports"]}
    assert len({panel["id"] for panel in shown["panels"]}) == len(shown["panels"])


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_the_image_s_pip_steps_make_an_environment_in_which_everything_imports(tmp_path: Path) -> None:
    """The Dockerfile's own commands, stage after stage, in an empty environment, for CPUs."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    place = tmp_path / "sources"
    place.mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"PATH": f"{tmp_path / 'venv' / 'bin'}{os.pathsep}{os.environ['PATH']}", "FAISS": "cpu"}
    for name, rest in takewhile(lambda one: one != ("FROM", "app AS vllm"), instructions()):
        if name == "COPY" and "--from" not in rest:
            for item in rest.split()[1:-1]:
                shutil.copytree(ROOT / item, place / item) if (ROOT / item).is_dir() else shutil.copy(
                    ROOT / item, place
                )
        if name == "RUN" and rest != HEALTH:
            subprocess.run(["bash", "-euc", rest], cwd=place, env=environment, check=True)
    command = ["bash", "-euc", HEALTH]  # from a folder without the sources, as in the image
    told = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    said = [line.split()[0] for line in told.splitlines()]  # DeepSpeed may have a warning among them
    assert [name for name in said if name in health.PACKAGES] == list(health.PACKAGES)
