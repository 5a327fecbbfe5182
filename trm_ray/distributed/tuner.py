"""A sweep: scenarios × grid × seeds as concurrent Tune trials, the bad ones stopped early by ASHA."""

from __future__ import annotations

import json
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.search import BasicVariantGenerator
from ray.tune.trainable import wrap_function

from trm_ray.config import SweepConfig, with_overrides
from trm_ray.config.trials import TrialNames
from trm_ray.distributed.cluster import RoomWatch, check_resources, may_grow, ray_cluster, worker_resources
from trm_ray.distributed.dataset import ray_storage
from trm_ray.distributed.ray_internals import HEAD_NODE
from trm_ray.distributed.scheduler import ASHA, PLAN, STOPPED_BY, build_scheduler
from trm_ray.distributed.trainer import build_trainer, load_splits, outcome_of
from trm_ray.distributed.waiting import Clock, await_worker, has_room, wait_beside
from trm_ray.distributed.worker import train_trial
from trm_ray.replacement import RUN, drop_replaced, is_ours
from trm_ray.reporting.console import SweepDisplay
from trm_ray.reporting.run_log import read_run
from trm_ray.runs.folder import claim_folder
from trm_ray.runs.hopeless import REASONS, past_hope
from trm_ray.runs.plan import RunPlan
from trm_ray.storage import is_whole, remove_tree, retried
from trm_ray.training.checkpoint import FINAL_MODEL, MANIFEST_FILE, checkpoint_step, has_checkpoint
from trm_ray.training.optim import NonFiniteError
from trm_ray.training.stopping import STOP_FILE, Interrupted, StopFile, StopSignals

# Tune's own notes on the experiment. A resume does not read them: the trials' folders are the truth.
NOTES = ".tune"
# Marks the folder of a trial that was stopped for good.
STOPPED = "stopped_early.json"
# In the words of a `NonFiniteError`.
_STEP = re.compile(r"\bstep=(\d+)")


@dataclass(frozen=True)
class Outcome:
    """How a sweep ended: trials that failed, with the reason."""

    failed: dict[str, str]


class Round(Protocol):
    """Trials that are run together: one a plan, in the order of `sweep.variants()`."""

    @property
    def sweep(self) -> SweepConfig: ...  # noqa: D102
    @property
    def runs(self) -> list[RunPlan]: ...  # noqa: D102


def run_sweep(
    first: Round,
    rounds: Iterable[Round],
    folder: Path,
    display: SweepDisplay,
    begin: Callable[[], None] = lambda: None,
) -> Outcome:
    """Run every plan of each round as a trial; each trial's folder is an ordinary run folder inside `folder`.

    Trials that are already there go on from their last checkpoint. They report again what they had reported, so that
    the scheduler knows where they stand.

    Args:
        first: holds the data and the `ray` section that all rounds use.
        rounds: are run one after the other in one Ray session; the next is asked for when the one before has ended.
        display: is told of every trial's start, results and end.
        begin: is called when Ray is there and has room: begins to write the sweep's folder.

    Raises:
        Interrupted: Ctrl-C or SIGTERM came, and the running trials have saved where they stood.
    """
    plans = first.runs
    for plan in plans:
        _ = plan.holds_train  # a split that can be read neither way is refused at once
    failed: dict[str, str] = {}
    # Signals are taken over once Ray is there, since its start takes SIGTERM.
    with ray_cluster(plans[0].config.ray.address), StopSignals(folder / STOP_FILE):
        check_resources(plans[0].config)
        stop_file, watch = StopFile(folder / STOP_FILE), _Watch(first.sweep, plans, folder, display)

        def look() -> None:
            if stop_file.requested():
                raise Interrupted(f"{watch.num_left} trials did not finish")

        with RoomWatch(plans[0].config, watch.num_at_once, display.tell):
            await_worker(plans[0].config.ray.start_timeout_s, look)
            different = {_data_key(plan): plan for plan in plans}
            data = wait_beside(lambda: {key: load_splits(plan) for key, plan in different.items()}, look)
            begin()
        for one in rounds:
            watch = _Watch(one.sweep, one.runs, folder, display)
            _run_round(one, folder, watch, data)
            failed = {name: why for name, why in failed.items() if name not in watch.ended} | watch.failed
    return Outcome(failed)


def _data_key(plan: RunPlan) -> tuple[Any, ...]:
    """Name what `load_splits` gives for a plan."""
    return plan.train_paths, plan.test_paths, plan.holds_train


def _run_round(one: Round, folder: Path, watch: _Watch, data: dict[Any, Any]) -> None:
    for notes in folder.glob(f"{NOTES}*"):
        remove_tree(notes, ignore_errors=True)
    clock = Clock(one.runs[0].config.ray.start_timeout_s)
    try:
        with RoomWatch(one.runs[0].config, watch.num_at_once, watch.tell):
            _tuner(one.sweep, one.runs, folder, watch, data, clock).fit()
    finally:
        watch.remove_staging()
    if watch.num_left and watch.in_vain:
        raise clock.error()
    if watch.num_left:
        raise Interrupted(f"{watch.num_left} trials did not finish")


class _Stopper(tune.Stopper):
    """End the sweep once it was asked to stop and the trials that ran then are done with saving.

    Also where there is room for a trial and no worker comes up, which the clock tells.
    """

    def __init__(self, stop_file: Path, watch: _Watch, clock: Clock, stop_on: Sequence[str]):
        self._stop_file, self._watch, self._clock, self._stop_on = StopFile(stop_file), watch, clock, stop_on
        self._losses: dict[str, dict[int, float]] = {}  # by trial and step: after a fault a trial reports again
        self._to_wait_for: set[str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {}  # as `_Watch`

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Stop a trial that is past hope."""
        if "eval/loss" not in result:
            return False
        losses = self._losses.setdefault(trial_id, {})
        losses[result["step"]] = result["eval/loss"]
        reason = past_hope(list(losses.values()), self._watch.num_tokens[trial_id], self._stop_on)
        if reason is not None:
            self._watch.past_hope[trial_id] = reason
        return reason is not None

    def stop_all(self) -> bool:
        """Tell whether all is saved. A trial that Tune starts in the meantime has nothing to save."""
        if self._to_wait_for is None:
            if not self._stop_file.requested():
                return self._waits_in_vain()
            self._to_wait_for = set(self._watch.running)
        return not self._to_wait_for & self._watch.running

    def _waits_in_vain(self) -> bool:
        if self._watch.running or not has_room(None):
            self._clock.reset()
        self._watch.in_vain = self._clock.is_over
        return self._watch.in_vain


@dataclass(frozen=True)
class _Mark:
    """Where a trial was stopped for good, and by what: ASHA, or one of `stop_on`."""

    step: int
    by: str

    @classmethod
    def read(cls, folder: Path) -> _Mark | None:
        """Read the mark in a trial's folder, if there is one."""
        file = folder / STOPPED
        return cls(**json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None

    def write(self, folder: Path) -> None:
        """Leave the mark in a trial's folder."""
        (folder / STOPPED).write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")

    @property
    def told(self) -> str:
        """The state, for the table of trials."""
        how = f": {REASONS[self.by]}" if self.by in REASONS else " early"
        return f"stopped{how} at step {self.step}"


class _Watch(TrialProgressCallback):
    """Pass Tune's events on to the display, and leave a mark in the folder of a trial that was stopped early.

    It stands in the place of Tune's own display, which prints a line for a trial that ends without a result.
    """

    def __init__(self, sweep: SweepConfig, plans: list[RunPlan], folder: Path, display: SweepDisplay):
        self._sweep, self._plans, self._folder, self._display = sweep, plans, folder, display
        self.failed: dict[str, str] = {}
        self.running: set[str] = set()
        self.num_tokens: dict[str, int] = {}  # of each trial's vocabulary
        self.past_hope: dict[str, str] = {}  # why a trial is being stopped, if not by ASHA
        self.ended: set[str] = set()
        self.in_vain = False  # whether trials were waited for too long
        self._staging: Path | None = None
        self._stands = False

    @property
    def num_left(self) -> int:
        """Trials that have not ended."""
        return len(self._plans) * self._sweep.num_samples - len(self.ended)

    def num_at_once(self) -> int:
        """Trials that would run now if there was room for all."""
        return min(self.num_left, self._sweep.max_concurrent_trials or self.num_left)

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks for a restore that we never ask for; a display cannot be pickled

    def tell(self, text: str) -> None:
        """Say what concerns no single trial."""
        self._display.tell(text)

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        """Remember where Tune has put its files."""
        if trials:
            self._staging = Path(trials[0].storage.experiment_driver_staging_path).parent

    def remove_staging(self) -> None:
        """Remove the trials' working folders and copies of Tune's notes, which it leaves in Ray's temporary folder."""
        if self._staging is not None:
            shutil.rmtree(self._staging, ignore_errors=True)

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Show that a trial runs."""
        plan = self._plans[trial.config[PLAN]]
        self.running.add(str(trial))
        self.num_tokens[trial.trial_id] = plan.info.vocab_size
        self._display.started(str(trial), self._folder / str(trial), plan.num_steps)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Show an evaluation."""
        if "eval/loss" in result:
            self._display.reported(str(trial), result)
        self._drop_replaced(trial)

    def _drop_replaced(self, trial: Trial) -> None:
        """Let an old sweep go, which this one replaces, once a trial has saved something."""
        if not self._stands and has_checkpoint(self._folder / str(trial)):
            drop_replaced(self._folder)
            self._stands = True

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Show the end of a trial, which the scheduler may have brought about."""
        self.running.discard(str(trial))
        folder = self._folder / str(trial)
        if retried(lambda: is_whole(folder / FINAL_MODEL, MANIFEST_FILE), folder, done="read"):
            self.ended.add(str(trial))
            self._display.ended(str(trial), "finished")
            return
        mark = retried(lambda: _Mark.read(folder), folder, done="read")
        if mark is None and retried((self._folder / STOP_FILE).exists, self._folder, done="read"):
            self._display.ended(str(trial), "interrupted")
            return
        self.ended.add(str(trial))
        if mark is None:
            mark = _Mark((trial.last_result or {}).get("step", 0), self.past_hope.get(trial.trial_id, ASHA))
            retried(partial(mark.write, folder), folder)
        self._display.ended(str(trial), mark.told)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Show why a trial failed."""
        self.running.discard(str(trial))
        self.ended.add(str(trial))
        # Not `trial.get_error()`: Tune copies the file to where that looks only after this call.
        trace = Path(trial.error_file).read_text(encoding="utf-8") if trial.error_file else "unknown error"
        self.failed[str(trial)] = trace.strip().splitlines()[-1]
        self._display.ended(str(trial), "failed")


def _tuner(
    sweep: SweepConfig, plans: list[RunPlan], folder: Path, watch: _Watch, data: dict[Any, Any], clock: Clock
) -> tune.Tuner:
    names = TrialNames(sweep)

    def name(trial: Trial) -> str:
        return names.of(trial.trial_id, plans[trial.config[PLAN]].config, trial.config)

    return tune.Tuner(
        _trial_class(plans, folder, data, sweep),
        param_space={PLAN: tune.grid_search(list(range(len(plans)))), **_distributions(sweep)},
        tune_config=tune.TuneConfig(
            metric=sweep.asha.metric,
            mode=sweep.asha.mode,
            scheduler=build_scheduler(sweep, plans),
            # Seeded: a resumed sweep samples the same trials. The limit stands here because Tune passes its own one by
            # where a search algorithm is given.
            search_alg=BasicVariantGenerator(
                random_state=min(sweep.seeds),
                max_concurrent=sweep.max_concurrent_trials or _most_concurrent(plans[0]),
            ),
            num_samples=sweep.num_samples,
            # A trial of one worker takes over the process of one that has ended, and with it imports and data.
            reuse_actors=plans[0].config.ray.most_workers <= 1,
            trial_dirname_creator=name,
            trial_name_creator=name,
        ),
        run_config=tune.RunConfig(
            # Of its own: two sweeps that begin in the same second would share a folder of temporary files.
            name=f"{NOTES}-{secrets.token_hex(4)}",
            **ray_storage(folder),
            callbacks=[watch],
            stop=_Stopper(folder / STOP_FILE, watch, clock, sweep.stop_on),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=plans[0].config.ray.max_failures or 0),
        ),
    )


def _distributions(sweep: SweepConfig) -> dict[str, Any]:
    return {
        key: getattr(tune, spec.kind)(*([list(spec.values)] if spec.kind == "choice" else spec.values))
        for key, spec in sweep.random_space().items()
    }


def _most_concurrent(plan: RunPlan) -> int:
    """Say how many trials of several workers fit; 0 leaves it to Tune, which counts those of one worker.

    A cluster that may grow is asked for all of them: its autoscaler answers to what waits.
    """
    if plan.config.ray.most_workers <= 1 or may_grow(plan.config):
        return 0
    there, asked = ray.cluster_resources(), worker_resources(plan.config)
    return max(
        1, min(int(there.get(kind, 0) / (amount * plan.config.ray.most_workers)) for kind, amount in asked.items())
    )


def _trial_class(plans: list[RunPlan], folder: Path, data: dict[Any, Any], sweep: SweepConfig) -> type[Any]:
    """Build the class of the actor that Tune starts for a trial, or for one trial after the other."""
    several = plans[0].config.ray.most_workers > 1

    def run(parameters: dict[str, Any], data: dict[Any, Any]) -> None:
        sampled = {key: value for key, value in parameters.items() if key != PLAN}
        _run_trial(plans[parameters[PLAN]], sampled, folder, data, several, sweep)

    run_with_data = tune.with_parameters(run, data=data)  # through the object store, once for all trials
    # A trial with workers of its own only waits for them.
    resources = {HEAD_NODE: 0.001} if several else {k.lower(): v for k, v in worker_resources(plans[0].config).items()}
    base: Any = wrap_function(tune.with_resources(run_with_data, resources))

    class Trial(base):
        """What Ray's dashboard and logs call `Trial`, or where it belongs to one trial alone by that one's name."""

        __qualname__ = "Trial"  # without this, every one would be `run`

        def __repr__(self) -> str:
            return self.trial_name if several else "Trial"

    return Trial


def _run_trial(
    plan: RunPlan,
    sampled: dict[str, Any],
    folder: Path,
    data: dict[Any, Any],
    several: bool,
    sweep: SweepConfig,
) -> None:
    """Train one trial, in this process.

    Args:
        sampled: keys of the plan's config with the trial's own values.
        folder: the sweep's.
        several: on workers of its own instead, by an inner TorchTrainer.
        sweep: with its `stop_on`. A trial that ends for such a reason has ended well: Tune does not try it again. One
            that ASHA had stopped goes on where there is no ASHA any more.
    """
    place = folder / tune.get_context().get_trial_name()
    plan = plan.vary(with_overrides(plan.config, {**sampled, "log_dir": str(place)}), place)
    latest = claim_folder(plan, resume=is_ours(plan.folder, RUN))
    mark = _Mark.read(plan.folder)
    if mark is not None and mark.by == ASHA and not sweep.asha.enabled:
        (plan.folder / STOPPED).unlink()
        mark = None
    if latest is not None:
        _report_again(plan.folder, checkpoint_step(latest), {} if mark is None else {STOPPED_BY: mark.by})
    if mark is not None or is_whole(plan.folder / FINAL_MODEL, MANIFEST_FILE):
        return
    try:
        _train(plan, latest, folder / STOP_FILE, data[_data_key(plan)], several)
    except NonFiniteError as error:  # it would come again
        if "non_finite" not in sweep.stop_on:
            raise
        step = _STEP.search(str(error))
        mark = _Mark(int(step[1]) if step else 0, "non_finite")
        retried(partial(mark.write, plan.folder), plan.folder)


def _train(plan: RunPlan, latest: Path | None, stop_file: Path, data: tuple[Any, Any], several: bool) -> None:
    train, test = data
    if several:
        trainer = build_trainer(plan, train, test, stop_file, [TuneReportCallback()])
        with suppress(Interrupted):  # before there were workers
            outcome_of(trainer, plan, stop_file)
    else:
        train_trial(plan, latest, train, test, stop_file)


def _report_again(folder: Path, last_step: int, ending: dict[str, str]) -> None:
    """Report the evaluations that a trial made before its sweep was interrupted, and with the last how it had ended."""
    rows = [row for row in read_run(folder).rows if "eval/loss" in row and row["step"] <= last_step]
    for row in rows:
        tune.report({**row, **(ending if row is rows[-1] else {})})
