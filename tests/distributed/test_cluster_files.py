"""The files that start clusters: right by Ray's own schema, scheduler and AWS provider, closed, and pinned."""

from __future__ import annotations

import copy
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from run_helpers import ROOT

import trm_ray
from trm_ray.cli.submit import _find
from trm_ray.config import load_sweep

CLUSTER, AWS, KUBERAY, DOCKER = (
    ROOT / name for name in ("cluster.yaml", "jobs/aws.yaml", "jobs/kuberay.yaml", "jobs/Dockerfile")
)

Values = dict[str, Any]


class TemplateLoader(yaml.SafeLoader):
    """Reads CloudFormation's own tags as what they stand before."""


TemplateLoader.add_multi_constructor("!", lambda loader, tag, node: f"!{tag} {node.value}")


def loaded(path: Path) -> Values:
    found = yaml.load(path.read_text(encoding="utf-8"), TemplateLoader)
    assert isinstance(found, dict)
    return found


def changed(values: Values, **changes: Any) -> Values:
    """A copy with other values, by keys with `__` for dots; what is None is left out."""
    values = copy.deepcopy(values)
    for key, value in changes.items():
        *outer, last = key.split("__")
        place = values
        for name in outer:
            place = place[int(name)] if isinstance(place, list) else place[name]
        if value is None:
            del place[last]
        else:
            place[last] = value
    return values


# ---- cluster.yaml ------------------------------------------------------------------------------------------


@pytest.fixture
def cluster_file() -> Values:
    return loaded(CLUSTER)


def test_ray_accepts_the_cluster_file(cluster_file: Values):
    validate_config(prepare_config(cluster_file))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"idle_timeout_minute": 5}, "'idle_timeout_minute' was unexpected"),
        ({"head_node_type": "heads"}, "`head_node_type` must be one of"),
        ({"max_workers": "many"}, "'many' is not of type 'integer'"),
        ({"available_node_types__gpu_spot__min_workers": 10}, "smaller than the sum of `min_workers`"),
        ({"available_node_types__gpu_spot__node_config": None}, "'node_config' is a required property"),
        ({"available_node_types__gpu_spot__resources": {"GPU": "one"}}, "'one' is not of type 'integer'"),
        ({"provider__type": None}, "type"),
        ({"docker__container_name": None}, "Must provide a container & image name"),
    ],
)
def test_ray_refuses_a_cluster_file_with_a_mistake(cluster_file: Values, changes: Values, told: str):
    with pytest.raises(Exception, match=told):  # of many kinds
        validate_config(prepare_config(changed(cluster_file, **changes)))


def test_the_page_s_lines_for_gcp_make_a_cluster_file_that_ray_accepts(cluster_file: Values):
    block = re.search(r"## GCP.*?```yaml\n(.*?)```", (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8"), re.S)
    assert block
    lines = yaml.safe_load(block[1])
    types = cluster_file["available_node_types"] | lines["available_node_types"]
    validate_config(prepare_config({**cluster_file, **lines, "available_node_types": types}))
    assert types["gpu_spot"].keys() == loaded(CLUSTER)["available_node_types"]["gpu_spot"].keys()
    assert lines["auth"].keys() == cluster_file["auth"].keys()


def launched(cluster_file: Values, *demands: Values, **state: Any) -> dict[str, int]:
    """What Ray's autoscaler starts for demands; a demand that no type can serve fails."""
    config = prepare_config(copy.deepcopy(cluster_file))
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=AutoscalingConfig(config, skip_content_hash=True).get_node_type_configs(),
        max_num_nodes=config["max_workers"],
        resource_requests=ResourceRequestUtil.group_by_count([ResourceRequestUtil.make(one) for one in demands]),
        **state,
    )
    reply = ResourceDemandScheduler().schedule(request)
    assert reply.infeasible_resource_requests == []
    return {launch.instance_type: launch.count for launch in reply.to_launch}


TRIAL = {"CPU": 1, "GPU": 1}


def test_nothing_runs_but_the_head_until_somebody_asks(cluster_file: Values):
    assert launched(cluster_file) == {}


def test_trials_get_spot_machines_and_others_where_there_are_none(cluster_file: Values):
    assert launched(cluster_file, *[TRIAL] * 5) == {"gpu_spot": 5}
    gone = {"gpu_spot": 0.0}
    assert launched(cluster_file, TRIAL, TRIAL, recoverable_resource_availabilities=gone) == {"gpu_on_demand": 2}
    assert launched(cluster_file, *[{"CPU": 1, "GPU": 0.2}] * 5) == {"gpu_spot": 1}


def test_data_is_read_on_a_machine_without_a_gpu(cluster_file: Values):
    assert launched(cluster_file, *[{"CPU": 1}] * 4) == {"cpu_data": 1}
    assert launched(cluster_file, {"CPU": 8}) == {"cpu_data": 1}


def test_all_that_may_run_at_once_does(cluster_file: Values):
    assert launched(cluster_file, *[TRIAL] * 8, {"CPU": 8}) == {"gpu_spot": 6, "gpu_on_demand": 2, "cpu_data": 1}


def cluster_problems(cluster: Values) -> list[str]:
    """What Ray accepts and we do not."""
    types, docker = cluster["available_node_types"], cluster["docker"]
    head = types[cluster["head_node_type"]]
    workers = [kind for kind in types.values() if kind is not head]
    starts = " ".join(cluster["head_start_ray_commands"])
    rules = {
        "a trial may land on the head": head["resources"].get("CPU") == 0 == head["resources"].get("GPU"),
        "a worker runs unasked": all(kind["min_workers"] == 0 for kind in workers),
        "idle machines stay": cluster["idle_timeout_minutes"] <= 10,
        "stopped machines stay": cluster["provider"]["cache_stopped_nodes"] is False,
        "the dashboard is open": "--dashboard-host=127.0.0.1" in starts,
        "no token is asked for": "-e RAY_AUTH_MODE=token" in docker["run_options"],
        "no token is there": "/home/ray/.ray/auth_token" in cluster["file_mounts"],
        "SSH takes no tunnel": "aws ssm start-session" in cluster["auth"]["ssh_proxy_command"],
        "Ray opens a port": "security_group" not in cluster["provider"]
        and all("LaunchTemplate" in kind["node_config"] for kind in types.values()),
        "a machine has Ray's wide role": all("IamInstanceProfile" in kind["node_config"] for kind in types.values()),
        "the image is not pinned": not docker["image"].endswith((":latest", ":nightly")) and ":" in docker["image"],
    }
    return [problem for problem, holds in rules.items() if not holds]


def test_the_cluster_is_closed_idle_for_nothing_and_trains_off_its_head(cluster_file: Values):
    assert cluster_problems(cluster_file) == []


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"available_node_types__head__resources": {"CPU": 4, "GPU": 0}}, "a trial may land on the head"),
        ({"available_node_types__gpu_spot__min_workers": 1}, "a worker runs unasked"),
        ({"idle_timeout_minutes": 60}, "idle machines stay"),
        ({"provider__cache_stopped_nodes": True}, "stopped machines stay"),
        ({"head_start_ray_commands": ["ray start --head --dashboard-host=0.0.0.0"]}, "the dashboard is open"),
        ({"docker__run_options": []}, "no token is asked for"),
        ({"file_mounts": {}}, "no token is there"),
        ({"auth__ssh_proxy_command": ""}, "SSH takes no tunnel"),
        ({"available_node_types__cpu_data__node_config__LaunchTemplate": None}, "Ray opens a port"),
        ({"available_node_types__head__node_config__IamInstanceProfile": None}, "a machine has Ray's wide role"),
        ({"docker__image": "rayproject/ray:latest"}, "the image is not pinned"),
    ],
)
def test_a_cluster_that_is_open_or_dear_is_told(cluster_file: Values, changes: Values, problem: str):
    assert cluster_problems(changed(cluster_file, **changes)) == [problem]


# ---- pinned versions ---------------------------------------------------------------------------------------


def test_every_file_pins_the_ray_and_the_trm_ray_of_here(cluster_file: Values):
    base = rf"rayproject/ray:{re.escape(ray.__version__)}-py3\d+-gpu"
    docker = DOCKER.read_text(encoding="utf-8")
    for image in (cluster_file["docker"]["image"], re.findall(r"^FROM (\S+)$", docker, re.M)[0]):
        assert re.fullmatch(base, image)
    kuberay = KUBERAY.read_text(encoding="utf-8")
    assert loaded(KUBERAY)["spec"]["rayClusterSpec"]["rayVersion"] == ray.__version__
    wheels = re.findall(r"trm_ray-([0-9.]+)-py3", CLUSTER.read_text(encoding="utf-8") + docker)
    images = re.findall(r"trm-ray:([0-9][0-9.]*)", kuberay + docker)
    assert len(wheels) >= 5
    assert len(images) >= 4
    assert {*wheels, *images} == {trm_ray.__version__}
    assert f'version = "{trm_ray.__version__}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


# ---- jobs/aws.yaml -----------------------------------------------------------------------------------------


def statements(template: Values, resource: str) -> list[Values]:
    properties = template["Resources"][resource]["Properties"]
    documents = [properties.get("PolicyDocument"), *(one["PolicyDocument"] for one in properties.get("Policies", []))]
    return [statement for document in documents if document for statement in document["Statement"]]


def test_roles_may_do_what_this_cluster_needs_and_no_more(cluster_file: Values):
    template = loaded(AWS)
    types = cluster_file["available_node_types"]
    workers = {kind["node_config"]["InstanceType"] for name, kind in types.items() if name != "head"}
    storage, head = statements(template, "StoragePolicy"), statements(template, "HeadRole")
    assert {str(statement["Resource"]) for statement in storage} == {"!GetAtt Storage.Arn", "!Sub ${Storage.Arn}/*"}
    assert all("*" not in action for statement in storage for action in statement["Action"])
    limits = {
        condition: value
        for statement in head
        for tests in statement.get("Condition", {}).values()
        for condition, value in tests.items()
    }
    assert set(limits["ec2:InstanceType"]) == workers
    assert limits["aws:ResourceTag/ray-cluster-name"] == cluster_file["cluster_name"]
    unlimited = [statement["Action"] for statement in head if statement["Resource"] == "*"]
    assert unlimited == ["ec2:Describe*"]
    assert all("Policies" not in template["Resources"][role]["Properties"] for role in ("WorkerRole",))


def test_no_machine_hears_anybody_but_the_others():
    resources = loaded(AWS)["Resources"]
    assert "SecurityGroupIngress" not in resources["Closed"]["Properties"]
    rules = [one["Properties"] for one in resources.values() if one["Type"] == "AWS::EC2::SecurityGroupIngress"]
    assert [(rule["SourceSecurityGroupId"], "CidrIp" in rule) for rule in rules] == [("!GetAtt Closed.GroupId", False)]


@pytest.mark.slow
def test_ray_starts_every_type_of_machine_in_a_stand_in_for_aws(
    cluster_file: Values, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    moto = pytest.importorskip("moto")
    boto3 = pytest.importorskip("boto3")
    region = cluster_file["provider"]["region"]
    monkeypatch.setenv("HOME", str(tmp_path))  # where Ray puts its SSH key
    for name, value in {"ACCESS_KEY_ID": "none", "SECRET_ACCESS_KEY": "none", "DEFAULT_REGION": region}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    with moto.mock_aws():
        ec2 = boto3.client("ec2", region)
        image = ec2.describe_images()["Images"][0]["ImageId"]
        # The stand-in knows no such parameter, so that it gets the image itself.
        template = re.sub(
            r"Type: AWS::SSM::\S+\n    Default: \S+", f"Type: String\n    Default: {image}", AWS.read_text()
        )
        bucket = {"ParameterKey": "Bucket", "ParameterValue": "results-of-ours"}
        stack = {"StackName": "trm-ray", "TemplateBody": template, "Capabilities": ["CAPABILITY_NAMED_IAM"]}
        cloud = boto3.client("cloudformation", region)
        cloud.create_stack(**stack, Parameters=[bucket])
        made = cloud.describe_stacks(StackName="trm-ray")["Stacks"][0]
        assert made["Outputs"][0]["OutputValue"] == "s3://results-of-ours"
        started = start_one_of_each(cluster_file)
        groups = {group["GroupId"] for machine in started.values() for group in machine.security_groups}
        rules = ec2.describe_security_groups(GroupIds=sorted(groups))["SecurityGroups"]
    assert {name: machine.instance_type for name, machine in started.items()} == {
        name: kind["node_config"]["InstanceType"] for name, kind in cluster_file["available_node_types"].items()
    }
    assert {name for name, machine in started.items() if machine.instance_lifecycle == "spot"} == {"gpu_spot"}
    profiles = {name: machine.iam_instance_profile["Arn"].partition("/")[2] for name, machine in started.items()}
    assert profiles == {name: "trm-ray-head" if name == "head" else "trm-ray-worker" for name in started}
    (group,) = rules
    assert [rule["IpRanges"] + rule["Ipv6Ranges"] for rule in group["IpPermissions"]] == [[]]


def start_one_of_each(cluster_file: Values) -> dict[str, Any]:
    """Let Ray's AWS provider complete the cluster file and start a machine of every type."""
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    config = bootstrap_aws(prepare_config(cluster_file))
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    started = {}
    for name, kind in config["available_node_types"].items():
        (machine,) = provider.create_node(dict(kind["node_config"]), {"ray-user-node-type": name}, 1).values()
        started[name] = machine
    return started


# ---- jobs/kuberay.yaml -------------------------------------------------------------------------------------

QUANTITY = r"[0-9]+(\.[0-9]+)?(m|Ki|Mi|Gi|Ti)?"


def kuberay_problems(job: Values) -> list[str]:
    """What is missing in a RayJob, is of another type than the API wants, or is open."""
    spec = job["spec"]
    cluster = spec.get("rayClusterSpec", {})
    head, workers = cluster.get("headGroupSpec", {}), cluster.get("workerGroupSpecs", [])
    told = [] if (job.get("apiVersion"), job.get("kind")) == ("ray.io/v1", "RayJob") else ["it is no RayJob"]
    texts = {"entrypoint": spec, "runtimeEnvYAML": spec, "rayVersion": cluster}
    told += [f"{key} is no text" for key, place in texts.items() if not isinstance(place.get(key), str)]
    numbers = ("backoffLimit", "activeDeadlineSeconds", "ttlSecondsAfterFinished")
    told += [f"{key} is no number" for key in numbers if not isinstance(spec.get(key), int)]
    if spec.get("submissionMode") not in ("K8sJobMode", "HTTPMode", "SidecarMode"):
        told.append("submissionMode is unknown")
    if spec.get("shutdownAfterJobFinishes") is not True:
        told.append("the cluster outlives its job")
    if (
        cluster.get("enableInTreeAutoscaling") is not True
        or cluster.get("autoscalerOptions", {}).get("version") != "v2"
    ):
        told.append("nothing scales")
    if cluster.get("authOptions") != {"mode": "token"}:
        told.append("no token is asked for")
    if head.get("rayStartParams", {}).get("num-cpus") != "0":
        told.append("a trial may land on the head")
    told += [problem for group in (head, *workers) for problem in group_problems(group)]
    for group in workers:
        counts = [group.get(key) for key in ("minReplicas", "replicas", "maxReplicas")]
        if not all(type(count) is int for count in counts) or counts[:2] != [0, 0] or counts[2] < 1:
            told.append(f"{group.get('groupName')} does not scale up from nothing")
    if not any("nvidia.com/gpu" in container(group)["resources"]["limits"] for group in workers):
        told.append("nobody has a GPU")
    return told


def container(group: Values) -> Values:
    found = group["template"]["spec"]["containers"][0]
    assert isinstance(found, dict)
    return found


def group_problems(group: Values) -> list[str]:
    """What is wrong with the pods of a group."""
    name, pod, one = group.get("groupName", "head"), group["template"]["spec"], container(group)
    amounts = one["resources"]
    started = group["rayStartParams"]
    rights, own = pod.get("securityContext", {}), one.get("securityContext", {})
    rules: dict[str, Callable[[], bool]] = {
        "runs as root": lambda: rights.get("runAsNonRoot") is True and rights.get("runAsUser", 0) > 0,
        "may gain rights": lambda: own == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "restarts by itself": lambda: pod.get("restartPolicy") == "Never",
        "has no account": lambda: isinstance(pod.get("serviceAccountName"), str),
        "has no image": lambda: ":" in one.get("image", ""),
        "shares its machine": lambda: amounts["requests"] == amounts["limits"],
        "asks for no amount": lambda: (
            all(isinstance(amount, str) and re.fullmatch(QUANTITY, amount) for amount in amounts["limits"].values())
            and {"cpu", "memory"} <= set(amounts["limits"])
        ),
        "starts Ray with values that are no text": lambda: all(isinstance(value, str) for value in started.values()),
    }
    return [f"{name} {problem}" for problem, holds in rules.items() if not holds()]


def test_the_rayjob_has_what_kuberay_wants_and_is_closed():
    assert kuberay_problems(loaded(KUBERAY)) == []


IN_GPU = "spec__rayClusterSpec__workerGroupSpecs__0"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"apiVersion": "ray.io/v1alpha1"}, "it is no RayJob"),
        ({"spec__entrypoint": None}, "entrypoint is no text"),
        ({"spec__runtimeEnvYAML": {"env_vars": {}}}, "runtimeEnvYAML is no text"),
        ({"spec__backoffLimit": "1"}, "backoffLimit is no number"),
        ({"spec__submissionMode": "K8SJobMode"}, "submissionMode is unknown"),
        ({"spec__shutdownAfterJobFinishes": False}, "the cluster outlives its job"),
        ({"spec__rayClusterSpec__enableInTreeAutoscaling": None}, "nothing scales"),
        ({"spec__rayClusterSpec__authOptions": None}, "no token is asked for"),
        ({"spec__rayClusterSpec__headGroupSpec__rayStartParams__num-cpus": "4"}, "a trial may land on the head"),
        ({f"{IN_GPU}__minReplicas": 1}, "gpu does not scale up from nothing"),
        ({f"{IN_GPU}__maxReplicas": "8"}, "gpu does not scale up from nothing"),
        ({f"{IN_GPU}__rayStartParams": {"num-cpus": 4}}, "gpu starts Ray with values that are no text"),
        ({f"{IN_GPU}__template__spec__securityContext": {}}, "gpu runs as root"),
        ({f"{IN_GPU}__template__spec__restartPolicy": "Always"}, "gpu restarts by itself"),
    ],
)
def test_a_rayjob_with_a_mistake_is_told(changes: Values, problem: str):
    assert kuberay_problems(changed(loaded(KUBERAY), **changes)) == [problem]


def test_what_the_rayjob_runs_is_a_sweep_of_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    program, *words = shlex.split(loaded(KUBERAY)["spec"]["entrypoint"])
    leaf, names = _find(words)
    assert (program, names) == ("trm-ray", ["sweep"])
    given = leaf.make_context("trm-ray sweep", words[1:]).params
    assert given["resume"] is True
    monkeypatch.chdir(tmp_path)
    shared = [word.replace("s3://BUCKET", "/mnt/shared") for word in given["overrides"]]
    assert load_sweep(given["config_name"], shared).overrides["ray.use_gpu"] is True
