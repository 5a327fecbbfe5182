"""Ray's private parts are where one file of ours looks for them, and no other file looks for any. No cluster needed."""

import ast
import importlib
import inspect
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from packaging.version import Version
from run_helpers import ROOT

HOME = ROOT / "trm_ray" / "distributed" / "ray_internals.py"
_TRAIN = "ray.train.v2._internal"
# What `ray_internals.py` takes from Ray, and what for.
USES = {
    "ray._private.ray_constants.ENABLE_RAY_CLUSTER": "keeping a cluster of this machine on 127.0.0.1",
    "ray._private.services.ConsolePopen": "starting Ray's processes in a session of their own",
    "ray._raylet.Config.initialize": "settings made after Ray's import",
    "ray.job_config.JobConfig": "where workers look for modules",
    "ray._private.worker._global_node": "addresses and folders of this machine's Ray",
    "ray._private.node.Node.address_info": "the dashboard's address",
    "ray._private.node.Node.get_logs_dir_path": "naming the folder of Ray's logs in messages",
    "ray._private.node.Node.get_session_dir_path": "counting temporary files in the selftest",
    "ray.experimental.internal_kv._internal_kv_put": "notes of the state of a run's controller",
    "ray.experimental.internal_kv._internal_kv_get": "notes of the state of a run's controller",
    "ray.experimental.internal_kv._internal_kv_del": "notes of the state of a run's controller",
    "ray.experimental.internal_kv._initialize_internal_kv": "notes after another cluster of the process has ended",
    "ray._private.worker.global_worker": "killing a controller that nobody waits for",
    "ray._raylet.CoreWorker.kill_actor": "killing a controller that nobody waits for",
    "ray.ActorID.from_hex": "killing a controller that nobody waits for",
    "ray._private.internal_api.get_memory_info_reply": "how much the object stores hold",
    "ray._private.state.state._connect_and_get_accessor": "who asked for a placement group",
    "ray._raylet.GlobalStateAccessor.get_placement_group_table": "who asked for a placement group",
    "ray.core.generated.gcs_pb2.PlacementGroupTableData.FromString": "who asked for a placement group",
    "ray.core.generated.gcs_pb2.PlacementGroupTableData.CREATED": "whether a placement group is held",
    f"{_TRAIN}.execution.callback.ControllerCallback.after_controller_start": "hearing of a run's controller",
    f"{_TRAIN}.execution.callback.ControllerCallback.after_controller_state_update": "hearing of its states",
    f"{_TRAIN}.constants.ENV_VARS_TO_PROPAGATE": "which cluster Ray Train cleans up in",
    f"{_TRAIN}.execution.context.get_train_context": "saving before a node is preempted",
    f"{_TRAIN}.exceptions.UserExceptionWithTraceback": "the error of a worker without Ray's words around it",
    "ray.job_submission.JobSubmissionClient._do_request": "reaching a near job server without a proxy",
    "ray.job_submission.JobSubmissionClient.get_address": "reaching a near job server without a proxy",
    "ray._raylet.GcsClient": "losing a node with notice in the selftest",
    "ray._raylet.InnerGcsClient.drain_node": "losing a node with notice in the selftest",
    "ray.core.generated.autoscaler_pb2.DrainNodeReason.Value": "losing a node with notice in the selftest",
}
_PRIVATE = re.compile(
    r"ray\.(?:_|core\.|experimental|\w+(?:\.\w+)*\._)"  # what begins with `_` at any depth, and what Ray generates
)


def lacking(name: str, use: str) -> str:
    return f"Ray {ray.__version__} has no {name}: trm_ray/distributed/ray_internals.py uses it for {use}"


def find(name: str, use: str) -> Any:
    """Resolve a dotted name: as many modules as there are, then attributes."""
    first, *rest = name.split(".")
    found = importlib.import_module(first)
    for depth, part in enumerate(rest, start=1):
        if not hasattr(found, part):
            try:
                importlib.import_module(".".join([first, *rest[:depth]]))
            except ImportError:
                pytest.fail(lacking(name, use))
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("name", USES)
def test_ray_has_what_is_used_of_it(name: str):
    find(name, USES[name])


def test_what_ray_lacks_is_said_in_a_clear_line():
    for name in ("ray._private.no_module.thing", "ray._private.worker._no_thing", "ray.no_module"):
        with pytest.raises(pytest.fail.Exception, match=rf"^Ray {ray.__version__} has no {name}: .* for testing$"):
            find(name, "testing")


# ---- what a name alone does not tell -------------------------------------------------------------------------


def test_the_states_of_ray_trains_controller_have_the_names_that_are_waited_for():
    from trm_ray.distributed import ray_internals

    states = find(f"{_TRAIN}.execution.controller.state", "the states of a run's controller")
    named = {state.state_name: state for state in states.TrainControllerStateType}
    used = {*ray_internals.WITHOUT_WORKERS, *ray_internals.ENDED, ray_internals.RESIZING}
    assert used <= set(named), lacking(f"state {used - set(named)}", "waiting for workers")
    assert {name for name, state in named.items() if state.is_terminal} == set(ray_internals.ENDED)
    for state in (states.ResizingState(scaling_decision=None), states.RunningState(), states.FinishedState()):
        assert ray_internals.state_name(state) == type(state).__name__.removesuffix("State").upper()


@pytest.mark.skipif(Version(ray.__version__) < Version("2.60"), reason="tells workers of no preemption")
def test_a_worker_asks_its_context_for_a_preemption():
    context = find(f"{_TRAIN}.execution.context.TrainContext", "saving before a node is preempted")
    found = inspect.get_annotations(context)
    assert "preemption_context" in found, lacking("TrainContext.preemption_context", "saving before a preemption")
    info = inspect.getsource(find(f"{_TRAIN}.execution.context.PreemptionContext", "saving before a preemption"))
    assert "preemption_info" in info, lacking("PreemptionContext.preemption_info", "saving before a preemption")


def test_the_error_of_a_worker_is_found_in_what_ray_train_wraps_it_in():
    from trm_ray.distributed.ray_internals import raised_by_worker

    error = ValueError("too small")
    wrapped = find(f"{_TRAIN}.exceptions.UserExceptionWithTraceback", "errors of workers")(error, "Traceback …")
    assert raised_by_worker(wrapped) is error, lacking("UserExceptionWithTraceback._base_exc", "errors of workers")
    assert raised_by_worker(error) is error


def test_a_connected_process_has_the_clients_that_are_asked():
    worker = find("ray._private.worker", "notes, and killing a controller")
    connect = inspect.getsource(worker.connect)
    for name in ("gcs_client", "core_worker"):
        assert f"worker.{name} = " in connect, lacking(f"ray._private.worker.Worker.{name}", "notes and controllers")
    address_info = inspect.getsource(find("ray._private.node.Node", "the dashboard's address").address_info.fget)
    assert '"webui_url"' in address_info, lacking("Node.address_info['webui_url']", "the dashboard's address")


def test_workers_look_for_modules_where_a_job_config_says():
    from trm_ray.distributed.ray_internals import job_config

    assert hasattr(ray.job_config.JobConfig(), "_py_driver_sys_path"), lacking("_py_driver_sys_path", "modules")
    assert list(job_config(["/a", "/b"])._get_proto_job_config().py_driver_sys_path) == ["/a", "/b"]
    assert "_py_driver_sys_path.extend(" in inspect.getsource(ray._private.worker.connect), "as `_Places` relies on"


def test_ray_starts_processes_by_what_is_replaced_and_has_it_back():
    from trm_ray.distributed.ray_internals import new_process_session

    services = find("ray._private.services", "starting processes")
    assert "ConsolePopen(" in inspect.getsource(services.start_ray_process)
    before = services.ConsolePopen
    with new_process_session():
        started = services.ConsolePopen([sys.executable, "-c", "import os; assert os.getsid(0) == os.getpid()"])
        assert started.wait(30) == 0
    assert services.ConsolePopen is before


def test_a_cluster_listens_where_a_constant_says_and_the_constant_comes_back():
    from trm_ray.distributed.ray_internals import on_loopback

    constants = find("ray._private.ray_constants", "127.0.0.1")
    services = find("ray._private.services", "127.0.0.1")
    before = constants.ENABLE_RAY_CLUSTER
    assert "ray_constants.ENABLE_RAY_CLUSTER" in inspect.getsource(services), lacking("ENABLE_RAY_CLUSTER", "127.0.0.1")
    with on_loopback(only=True):
        assert constants.ENABLE_RAY_CLUSTER is False
    with on_loopback(only=False):
        assert constants.ENABLE_RAY_CLUSTER is before
    assert constants.ENABLE_RAY_CLUSTER is before


def test_the_head_node_has_the_resource_that_keeps_trials_on_it():
    from trm_ray.distributed.ray_internals import HEAD_NODE

    name = "ray._common.constants.HEAD_NODE_RESOURCE_NAME"
    assert find(name, "trials that only wait for workers") == HEAD_NODE


def test_a_node_of_the_selftest_is_lost_by_settings_that_ray_knows():
    from trm_ray.distributed.ray_internals import LOST_SOON

    ((option, settings),) = LOST_SOON.items()
    assert option in inspect.signature(find("ray._private.parameter.RayParams", "the selftest")).parameters
    for name in settings:
        find(f"ray._raylet.Config.{name}", "losing a node soon in the selftest")
    reasons = find("ray.core.generated.autoscaler_pb2.DrainNodeReason", "losing a node with notice")
    assert "DRAIN_NODE_REASON_PREEMPTION" in reasons.keys()  # noqa: SIM118, as it is no dict


def test_the_loggers_of_the_job_client_are_those_that_are_silenced():
    from trm_ray.distributed.ray_internals import TALKATIVE_LOGGERS

    for name in TALKATIVE_LOGGERS:
        module = find(name, "silencing requests and uploads")
        assert any(value is logging.getLogger(name) for value in vars(module).values()), lacking(
            f"logger {name}", "silencing requests and uploads"
        )


def test_a_job_client_does_something_around_each_request():
    from trm_ray.distributed.ray_internals import AroundRequests

    steps: list[str] = []

    class Server:
        def _do_request(self, method: str, *, data: bytes) -> str:
            steps.append(f"{method} {data!r}")
            return "answer"

    class Client(AroundRequests, Server):
        @contextmanager
        def around_request(self) -> Iterator[None]:
            steps.append("before")
            yield
            steps.append("after")

    assert Client()._do_request("GET", data=b"x") == "answer"
    assert steps == ["before", "GET b'x'", "after"]
    client = find("ray.job_submission.JobSubmissionClient", "the job server")
    for call in (client.get_job_info, client.list_jobs, client.stop_job, client.submit_job, client.get_job_logs):
        assert "self._do_request(" in inspect.getsource(call), lacking(f"_do_request in {call}", "requests")


def test_the_yaml_for_ray_data_names_classes_that_there_are():
    def classes(node: Any) -> Iterator[str]:
        for key, value in node.items():
            if isinstance(value, dict):
                yield from classes(value)
            elif key in ("class", "()"):
                yield value

    names = list(classes(yaml.safe_load(HOME.with_name("quiet_data.yaml").read_text(encoding="utf-8"))))
    assert len(names) == 3
    for name in names:
        assert inspect.isclass(find(name, "quiet_data.yaml")), name


# ---- the file itself -----------------------------------------------------------------------------------------


def private_names(path: Path) -> set[str]:
    """What a file imports or reaches of Ray's private parts: in imports, dotted names and strings."""
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    texts: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            texts |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            texts |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute):
            texts.add(ast.unparse(node))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts.add(node.value)
    return {text for text in texts if _PRIVATE.match(text) and re.fullmatch(r"[\w.]+", text)}


def foreign_attributes(path: Path) -> set[str]:
    """The attributes beginning with `_` that a file reaches in what is not its own class."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    found = {ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute) and re.match(r"_[a-z]", node.attr)}
    return {text for text in found if not text.startswith(("self._", "cls._", "os._exit"))}


def test_no_other_file_uses_private_parts_of_ray():
    files = {*(ROOT / "trm_ray").rglob("*.py"), *(ROOT / "jobs").rglob("*.py")} - {HOME}
    assert {path.name: found for path in files if (found := private_names(path))} == {}
    beside = files & set(HOME.parent.glob("*.py"))
    assert {path.name: found for path in beside if (found := foreign_attributes(path))} == {}


def test_all_that_the_file_imports_of_ray_is_in_the_table_of_its_uses():
    known = {*USES, "ray._private.runtime_env.packaging"}  # the last is a logger
    lost = {
        name
        for name in private_names(HOME)
        if not any(f"{name}.".startswith(f"{one}.") or f"{one}.".startswith(f"{name}.") for one in known)
    }
    assert lost == set(), f"{lost} are used without a line in USES"


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import ray._private.worker", {"ray._private.worker"}),
        ("from ray.experimental import internal_kv", {"ray.experimental.internal_kv"}),
        ("from ray.train.v2._internal.constants import X", {"ray.train.v2._internal.constants.X"}),
        ("from ray.core.generated import gcs_pb2", {"ray.core.generated.gcs_pb2"}),
        ("import ray\nray._raylet.Config", {"ray._raylet.Config", "ray._raylet"}),
        ("LOGGER = 'ray._private.log'", {"ray._private.log"}),
        ("import ray.data\nfrom ray.util import state\nray.train.report({})\nself._ray.x", set()),
    ],
)
def test_private_parts_are_recognised(tmp_path: Path, source: str, found: set[str]):
    (tmp_path / "some.py").write_text(source)
    assert private_names(tmp_path / "some.py") == found


def test_the_file_says_which_ray_it_was_tested_with():
    from trm_ray.distributed import ray_internals

    (version,) = re.findall(r"^ray==(\S+)", (ROOT / "jobs" / "constraints.txt").read_text(encoding="utf-8"), re.M)
    assert f"Tested with Ray {version}," in (ray_internals.__doc__ or "")


def test_commands_on_jobs_do_not_wait_for_ray_train():
    code = "import sys, trm_ray.distributed.jobs; sys.exit('ray.train' in sys.modules or 'ray.data' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_a_name_that_the_file_does_not_have_is_told_as_usual():
    from trm_ray.distributed import ray_internals

    assert ray_internals.ControllerCallback.__module__ == f"{_TRAIN}.execution.callback"
    with pytest.raises(AttributeError, match=r"^module 'trm_ray.*' has no attribute 'no_such'$"):
        _ = ray_internals.no_such
