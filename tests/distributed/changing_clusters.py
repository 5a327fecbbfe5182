"""Clusters whose nodes come and go, each in a process of its own: `changing_clusters.py WHAT DATA FOLDER [PICTURE]`.

`elastic`: a run of one or two workers gets a node and loses both, one of them after a notice.
`autoscaling`: Ray's autoscaler finds nodes for a sweep that the head has no room for, and takes them away again.
Both leave `record.json` in FOLDER.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[level]) for level in (1, 2)]
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
os.environ["RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S"] = "0.5"
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "8"  # for which a run asks for workers on a lost node

import trm_ray.distributed  # noqa: E402, F401  # before Ray, whose import reads the settings that it makes

# isort: split
import ray  # noqa: E402
from rich.console import Console  # noqa: E402
from run_helpers import TINY_RUN, run_config  # noqa: E402

from trm_ray.config import SweepConfig  # noqa: E402
from trm_ray.distributed.faults import LocalNodes, free_port  # noqa: E402
from trm_ray.distributed.surroundings import own_cluster  # noqa: E402
from trm_ray.distributed.trainer import train_on_ray  # noqa: E402
from trm_ray.measure.selftest.ground import steps_at_risk  # noqa: E402
from trm_ray.programs.sweep import plan_sweep, start_sweep  # noqa: E402
from trm_ray.runs.folder import claim_folder, start_step  # noqa: E402
from trm_ray.runs.plan import RunPlan, plan_run  # noqa: E402
from trm_ray.training.checkpoint import checkpoint_step, checkpoints  # noqa: E402
from trm_ray.training.stopping import STOP_FILE, Interrupted  # noqa: E402

PATIENCE_S = 200.0
STEP_S = 0.04
HIT_AT, EVAL_EVERY = 23, 20  # steps
MOST_NODES = 3


def train_slowly() -> None:
    """Let every batch take a moment, as on a model worth a cluster; runs in each of Ray's processes."""
    import time

    from trm_ray.data.stream import RowStream

    gathered = RowStream._batch

    def slowly(self: Any, parts: Any) -> Any:
        time.sleep(STEP_S)
        return gathered(self, parts)

    RowStream._batch = slowly  # type: ignore[method-assign]


def joined(address: str) -> None:
    hook = {"worker_process_setup_hook": train_slowly}
    quiet = ray.LoggingConfig(log_level="ERROR")
    ray.init(address=address, runtime_env=hook, logging_level="ERROR", logging_config=quiet, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False


def until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not after {PATIENCE_S:g} s: {what}")
        time.sleep(0.1)


def rows(folder: Path) -> list[dict[str, float]]:
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class Training(threading.Thread):
    """A run beside the main thread, which alone can add nodes."""

    def __init__(self, plan: RunPlan):
        super().__init__(daemon=True)
        self.plan, self.error, self.told = plan, None, []
        claim_folder(plan)
        self.start()

    def run(self) -> None:
        try:
            train_on_ray(self.plan, self.told.append)
        except BaseException as error:
            self.error = error

    def until(self, holds: Callable[[dict[str, float]], bool], what: str) -> int:
        """Wait for the newest row to be so; return its step."""

        def reached() -> bool:
            if self.error is not None:
                raise self.error
            return bool(rows(self.plan.folder)) and holds(rows(self.plan.folder)[-1])

        until(reached, what)
        return int(rows(self.plan.folder)[-1]["step"])


# ---- nodes that are lost and added -----------------------------------------------------------------------


def elastic(data: Path, folder: Path) -> dict[str, Any]:
    """Train with one worker; get a node, lose one unannounced, and the other after a notice; stop."""
    with LocalNodes(1) as nodes:
        joined(nodes.address)
        record = _resized(nodes, data, folder / "run")
        ray.shutdown()
        return record


def _resized(nodes: LocalNodes, data: Path, folder: Path) -> dict[str, Any]:
    words = ["ray.num_workers=[1,2]", "ray.resize_check_s=2", "global_batch_size=9"]
    same_at_any_length = ["max_steps=100000", "lr_min_ratio=1", "lr=1e-3"]
    often = [f"eval_interval={EVAL_EVERY}", "log_interval=1", "keep_last=null"]
    training = Training(plan_run(run_config(data, folder, *words, *same_at_any_length, *often)))
    marks = {}

    def workers(count: int) -> Callable[[dict[str, float]], bool]:
        return lambda row: row["throughput/num_workers"] == count

    marks["begun"] = training.until(lambda row: row["step"] > HIT_AT, "one worker trains")
    gained_at = time.monotonic()
    nodes.add()
    marks["gained"] = training.until(workers(2), "two workers go on")
    grown_at = time.monotonic()
    marks["hit"] = training.until(lambda row: row["step"] > marks["gained"] + HIT_AT, "they come further")
    lost_at = time.monotonic()
    nodes.lose()
    marks["lost"] = training.until(lambda row: workers(1)(row) and row["step"] > marks["hit"], "one goes on")
    shrunk_at = time.monotonic()
    nodes.announce_loss(60)
    until(lambda: _waits(folder), "the step under way is saved")
    marks["noticed"], marks["at_risk"] = checkpoint_step(checkpoints(folder)[0]), steps_at_risk(folder)
    nodes.lose()
    until(lambda: bool(training.told), "a word that room is missing")
    (folder / STOP_FILE).touch()
    training.join(PATIENCE_S)
    assert isinstance(training.error, Interrupted), training.error
    seconds = {"shrink_s": shrunk_at - lost_at, "grow_s": grown_at - gained_at}
    return {**marks, **seconds, "stopped": start_step(training.plan), "told": training.told}


def _waits(folder: Path) -> bool:
    """Tell whether a run stands still at a step that is saved."""

    def at() -> tuple[int, int]:
        return len(rows(folder)), max(map(checkpoint_step, checkpoints(folder)), default=0)

    before = at()
    time.sleep(20 * STEP_S)
    return before == at() and before[1] >= before[0]


# ---- nodes that the autoscaler brings --------------------------------------------------------------------


def autoscaling(data: Path, folder: Path, num_trials: int = 2, node_cpus: int = 1) -> dict[str, Any]:
    with autoscaling_head(node_cpus) as address:
        joined(address)
        watch, console = NodeWatch(folder / "sweep"), Console(file=(folder / "printed.txt").open("w"), width=200)
        swept = start_sweep(
            plan_sweep(_sweep(data, folder / "sweep", address, num_trials)), console, resume=False, overwrite=False
        )
        ended_s = watch.seconds()
        until(lambda: watch.seen[-1]["nodes"] == 0, "idle nodes are taken away")
        time.sleep(3)  # and none comes back
        watch.end()
        ray.shutdown()
    return {"failed": swept.outcome.failed, "seen": watch.seen, "ended_s": ended_s, "node_cpus": node_cpus}


def _sweep(data: Path, folder: Path, address: str, num_trials: int) -> SweepConfig:
    kinds = ("baseline", "constant", "linear", "exponential", "curriculum")[:num_trials]
    told = {"max_steps": 400, "eval_interval": 100, "log_interval": 10, "ray.address": address, "keep_last": 1}
    return SweepConfig.model_validate(
        {
            "scenarios": [f"deep_supervision_{kind}" for kind in kinds],
            "overrides": {**TINY_RUN, "data_paths": [str(data)], "deep_supervision_weight": 0.5, **told},
            "asha": {"enabled": False},
            "log_dir": str(folder),
        }
    )


class NodeWatch(threading.Thread):
    """Count nodes and training trials twice a second."""

    def __init__(self, sweep: Path):
        super().__init__(daemon=True)
        self._sweep, self._began, self._end = sweep, time.monotonic(), threading.Event()
        self.seen: list[dict[str, float]] = [{"seconds": 0.0, "nodes": 0, "trials": 0}]
        self.start()

    def seconds(self) -> float:
        return time.monotonic() - self._began

    def end(self) -> None:
        self._end.set()
        self.join()

    def run(self) -> None:
        while not self._end.wait(0.5):
            nodes = sum(node["Alive"] for node in ray.nodes()) - 1  # without the head
            begun = len(list(self._sweep.glob("*/metrics.jsonl")))
            trials = begun - len(list(self._sweep.glob("*/final_model")))
            self.seen.append({"seconds": self.seconds(), "nodes": nodes, "trials": trials})


def draw(record: dict[str, Any], path: Path) -> None:
    """Draw nodes and training trials over time."""
    from matplotlib.figure import Figure

    from trm_ray.reporting.pictures.style import MUTED, SCENARIO_COLOURS, legend_above, room_for_notes, save, styled

    seen, end = record["seen"], record["ended_s"]
    with styled(), room_for_notes():
        figure = Figure(figsize=(8, 3.2), dpi=110, layout="constrained")
        axes = figure.subplots()
        seconds = [look["seconds"] for look in seen]
        for name, colour in (("nodes", SCENARIO_COLOURS["linear"]), ("trials", SCENARIO_COLOURS["constant"])):
            nodes = f"worker nodes of {record['node_cpus']} CPUs"
            told = {"nodes": nodes, "trials": "trials that train, 1 CPU each"}[name]
            axes.step(seconds, [look[name] for look in seen], where="post", color=colour, label=told)
        axes.axvline(end, color=MUTED, linestyle=":", linewidth=1.2)
        axes.annotate("sweep ends", (end, 5.35), (-4, 0), textcoords="offset points", ha="right", color=MUTED)
        axes.set(xlabel="seconds", ylim=(0, 5.8), xlim=(0, seconds[-1]), title="A sweep on a head without CPUs")
        legend_above(axes)
        save(figure, path)


HEAD_ID = "f" * 51 + "00000"
_HEAD_TYPE = "ray.head.default"  # as the fake provider calls it


@contextmanager
def autoscaling_head(node_cpus: int) -> Iterator[str]:
    """Start a head without CPUs whose autoscaler runs Ray's fake nodes; yield its address."""
    with own_cluster(), _autoscaling_head(node_cpus) as address:
        yield address


@contextmanager
def _autoscaling_head(node_cpus: int) -> Iterator[str]:
    place, port = Path(tempfile.mkdtemp(prefix="scale-")), free_port()
    (place / "cluster.json").write_text(json.dumps(_cluster_of_fake_nodes(port, node_cpus)))
    made_for_tests = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_enable_autoscaler_v2": "0"}
    made_for_tests["RAY_prestart_worker_first_driver"] = "0"  # processes that nobody asked for
    named = {"RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID, "RAY_CLOUD_INSTANCE_ID": HEAD_ID}
    words = ["--head", "--block", f"--port={port}", "--node-ip-address=127.0.0.1", "--num-cpus=0"]
    words += [
        "--include-dashboard=false",
        "--dashboard-agent-listen-port=0",
        f"--ray-client-server-port={free_port()}",
    ]
    words += ["--min-worker-port=0", "--max-worker-port=0", "--object-store-memory=200000000", "--disable-usage-stats"]
    words += [f"--temp-dir={place / 'ray'}", f"--autoscaling-config={place / 'cluster.json'}"]
    head = subprocess.Popen(
        [sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start", *words],
        env={**os.environ, **made_for_tests, **named},
        stdout=(place / "head.log").open("w"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        until(lambda: _answers(port), f"the head answers: {(place / 'head.log').read_text()}")
        time.sleep(2)  # from its first answer to the point where it takes drivers
        yield f"127.0.0.1:{port}"
    finally:
        _end(head, place)


def _cluster_of_fake_nodes(port: int, node_cpus: int) -> dict[str, Any]:
    provider = {"type": "fake_multinode", "gcs_address": f"127.0.0.1:{port}", "head_node_id": HEAD_ID}
    provider |= dict.fromkeys(("launch_multiple", "use_node_id_as_ip", "disable_node_updaters"), True)
    worker = {"resources": {"CPU": node_cpus}, "node_config": {}, "min_workers": 0, "max_workers": MOST_NODES}
    nothing = ("head_setup", "worker_setup", "setup", "initialization", "head_start_ray", "worker_start_ray")
    return {
        "cluster_name": "fake",
        "max_workers": MOST_NODES,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 0.2,
        "provider": {**provider, "disable_launch_config_check": True},
        "available_node_types": {
            _HEAD_TYPE: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": worker,
        },
        "head_node_type": _HEAD_TYPE,
        **{f"{name}_commands": [] for name in nothing},
        **{"file_mounts": {}, "auth": {}, "cluster_synced_files": [], "file_mounts_sync_continuously": False},
        **{"rsync_exclude": [], "rsync_filter": []},
    }


def _answers(port: int) -> bool:
    with socket.socket() as knock:
        return knock.connect_ex(("127.0.0.1", port)) == 0


def _end(head: subprocess.Popen[bytes], place: Path) -> None:
    """End the head, its children and the fake nodes, which name its folder in their arguments; nobody else."""
    import psutil

    mine = {process.pid for process in psutil.Process(head.pid).children(recursive=True)} | {head.pid}
    for process in psutil.process_iter(["cmdline"]):
        if str(place) in " ".join(process.info["cmdline"] or []):
            mine.add(process.pid)
    for pid in mine:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    head.wait()
    shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is ended
    what, data, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    # The picture shows five trials on nodes of two CPUs; two on nodes of one need as many kinds of processes.
    sizes = (5, 2) if sys.argv[4:] else (2, 1)
    record = elastic(data, folder) if what == "elastic" else autoscaling(data, folder, *sizes)
    (folder / "record.json").write_text(json.dumps(record, indent=2) + "\n")
    for picture in sys.argv[4:]:
        draw(record, Path(picture))
    os._exit(0)
