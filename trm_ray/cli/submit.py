"""`trm-ray submit`, `jobs` and `grafana`: commands on a cluster, through Ray's job server, and a look at their runs."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from trm_ray.cli.common import FAILED, HELP, INTERRUPTED, app, complain, jobs_app, reported
from trm_ray.reporting.terminal import as_it_is, say, show

if TYPE_CHECKING:
    from trm_ray.distributed.jobs import Client, Job
    from trm_ray.distributed.submission import Submission

# The two lines with which Ray begins the log of every job.
_RAY_S_OWN = r"^Running entrypoint for job |\bjob_manager\.py:\d+ -- Runtime env is setting up\.$"
Address = Annotated[
    str | None,
    typer.Option(metavar="URL", help="Job server, e.g. http://127.0.0.1:8265; by default RAY_API_SERVER_ADDRESS."),
]
JobName = Annotated[str, typer.Argument(metavar="JOB", help="Its name, as `trm-ray jobs list` shows it.")]


# What follows the command's name is the command's.
@app.command(context_settings={"allow_interspersed_args": False})
@reported
def submit(
    command: Annotated[list[str], typer.Argument(metavar="COMMAND", help="A trm-ray command and what it takes.")],
    address: Address = None,
    detach: Annotated[bool, typer.Option("--detach", help="Do not follow the job's log.")] = False,
    cpus: Annotated[
        float, typer.Option(min=0, help="CPUs for the command itself, on any node; 0 = beside Ray, on the head node.")
    ] = 0,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs for the command itself, on any node.")] = 0,
    pip: Annotated[
        bool, typer.Option("--pip", help="Install trm-ray's dependencies on the nodes; otherwise their image has them.")
    ] = False,
) -> None:
    """Run a trm-ray command on a cluster, with this trm-ray and these configs, and follow its log.

    Results must lie on storage that all nodes see. Options of `submit` stand before COMMAND.

    Example: `trm-ray submit sweep --config-name five_scenarios ray.storage_path=/mnt/shared ray.use_gpu=true`
    """
    submission = _planned(command)
    from trm_ray.distributed import jobs

    client = jobs.connect(address)
    name = jobs.submit(client, submission, cpus=cpus, gpus=gpus, pip=pip)
    _say(f"Submitted {name}")
    if submission.results:
        _say(f"Results: {submission.results}")
    if detach:
        _say(f"Follow it: trm-ray jobs logs {name} --follow")
    else:
        _follow(client, name)


def _planned(command: Sequence[str]) -> Submission:
    """Parse a command as it would be here, so that a mistake costs no trip to the cluster."""
    from trm_ray.distributed.submission import plan_submission

    leaf, names = _find(command)
    words = list(command[len(names) :])
    context = leaf.make_context(" ".join(("trm-ray", *names)), [*words], **HELP)
    labels = {
        param.name: param.opts[0] if param.opts[0].startswith("-") else param.name.upper() for param in leaf.params
    }
    return plan_submission(names, words, {labels.get(name, name): value for name, value in context.params.items()})


def _find(command: Sequence[str]) -> tuple[Any, list[str]]:
    """Find a command and the words that name it."""
    from typer.main import get_command

    from trm_ray.config.errors import did_you_mean

    found: Any = get_command(app)
    names: list[str] = []
    while inner := getattr(found, "commands", None):
        word = command[len(names)] if len(command) > len(names) else ""
        there = [name for name in inner if names or name not in ("submit", "jobs")]
        if word not in there and names and found.invoke_without_command:  # `bench` measures, and has commands besides
            break
        if not names and word in inner and word not in there:
            raise ValueError(f"`trm-ray {word}` runs here and cannot be submitted; leave `submit` out")
        if word not in there:
            given = " ".join(["trm-ray submit", *names, word]).strip()
            raise ValueError(f"`{given}` names no command; {did_you_mean(word, there)} ({', '.join(there)})")
        found, names = inner[word], [*names, word]
    return found, names


def _follow(client: Client, name: str) -> None:
    """Show a job's log to its end, and end as it did; a Ctrl-C leaves it running unless that is not wanted."""
    from trm_ray.distributed import jobs

    log = jobs.JobLog(client, name, _show)
    try:
        job = log.follow()
    except KeyboardInterrupt as interrupt:
        code = getattr(interrupt, "exit_code", INTERRUPTED)
        if code != INTERRUPTED or not _stop_too():  # nobody answers to another signal
            _say(f"{name} goes on; `trm-ray jobs logs {name} --follow` shows it, `trm-ray jobs stop {name}` stops it")
            raise typer.Exit(code) from None
        jobs.stop(client, name)
        _say(f"{name} {log.follow().state}; the same command with --resume goes on")
        raise typer.Exit(INTERRUPTED) from None
    if job.succeeded:
        fetched = f"; its results: trm-ray jobs fetch {name}" if job.results else ""
        _say(f"{name} succeeded{fetched}")
    else:
        _end_badly(job)


def _stop_too() -> bool:
    """Ask whether a job is to be stopped; nobody there to answer means no."""
    if not sys.stdin.isatty():
        return False
    try:
        return typer.confirm("\nStop the job too? It saves first", default=False, err=True)
    except typer.Abort:  # another Ctrl-C
        return False


def _end_badly(job: Job) -> NoReturn:
    again = "; the same command with --resume goes on" if job.command.split()[0] in ("train", "sweep") else ""
    complain(f"{job.name} was stopped{again}" if job.state == "stopped" else f"{job.name} failed: {job.cause}")
    raise typer.Exit(FAILED)


def _show(text: str) -> None:
    """Print what a job printed, without what Ray says when it starts one."""
    lines = text.splitlines(keepends=True)
    typer.echo("".join(line for line in lines if not re.search(_RAY_S_OWN, line)), nl=False)


def _say(text: str) -> None:
    say(Console(), text)


@jobs_app.command("list")
@reported
def list_jobs(address: Address = None) -> None:
    """List the cluster's jobs, the latest last.

    Example: `trm-ray jobs list --address http://127.0.0.1:8265`
    """
    from trm_ray.distributed import jobs

    table = Table(box=None, pad_edge=False)
    for heading in ("job", "state", "started", "took"):
        table.add_column(heading, no_wrap=True)
    table.add_column("command", overflow="fold")
    for job in jobs.list_jobs(jobs.connect(address)):
        started = time.strftime("%d %b %H:%M", time.localtime(job.started)) if job.started else "–"
        cells = (job.name, job.state, started, _duration(job.seconds), job.command)
        table.add_row(*(Text(as_it_is(cell)) for cell in cells))
    if table.row_count:
        show(Console(), table)
    else:
        _say("This cluster has had no jobs")


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


@jobs_app.command()
@reported
def status(job: JobName, address: Address = None) -> None:
    """Say how a job stands, and why it failed if it did.

    Example: `trm-ray jobs status sweep-20261124-173500-1f9c`
    """
    from trm_ray.distributed import jobs

    found = jobs.find_job(jobs.connect(address), job)
    facts = {"state": found.state, "took": _duration(found.seconds), "command": f"trm-ray {found.command}"}
    for key, value in {**facts, "results": found.results, "cause": found.cause}.items():
        if value is not None:
            _say(f"{key:<8} {value}")


@jobs_app.command()
@reported
def logs(
    job: JobName,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the job has ended, and end as it did.")] = False,
    address: Address = None,
) -> None:
    """Show what a job has printed.

    Example: `trm-ray jobs logs sweep-20261124-173500-1f9c --follow`
    """
    from trm_ray.distributed import jobs

    client = jobs.connect(address)
    found = jobs.find_job(client, job)
    if follow:
        _follow(client, found.name)
    else:
        _show(client.get_job_logs(found.name))


@jobs_app.command()
@reported
def stop(job: JobName, address: Address = None) -> None:
    """Let a job save the step under way and end.

    Example: `trm-ray jobs stop sweep-20261124-173500-1f9c`
    """
    from trm_ray.distributed import jobs

    client = jobs.connect(address)
    found = jobs.find_job(client, job)
    if found.ended:
        raise ValueError(f"{job} has {found.state} already")
    if not found.saves_first:
        _say("This job was not started by `trm-ray submit`: unless its cluster says otherwise, Ray ends it after 3 s")
    jobs.stop(client, job)
    ended = jobs.wait(client, job)
    _say(f"{job} {ended.state}: {jobs.last_error(client.get_job_logs(job))}")


@jobs_app.command()
@reported
def fetch(
    job: JobName,
    output: Annotated[
        Path | None, typer.Option(help="Folder to copy into; by default of the results' name, in `runs/`.")
    ] = None,
    checkpoints: Annotated[bool, typer.Option("--checkpoints", help="Copy the weights too.")] = False,
    through_cluster: Annotated[
        bool,
        typer.Option("--through-cluster", help="Take the job server's way even where the storage is mounted here."),
    ] = False,
    address: Address = None,
) -> None:
    """Copy a job's results to here: config, metrics, events, pictures and reports; also while it runs.

    Example: `trm-ray jobs fetch sweep-20261124-173500-1f9c --output runs/five_scenarios`
    """
    from trm_ray.distributed import jobs

    client = jobs.connect(address)
    found = jobs.find_job(client, job)
    target = output or Path("runs", *_own_name(found.results or ""))
    number = jobs.fetch(client, found, target, checkpoints=checkpoints, through_cluster=through_cluster)
    _say(f"Fetched {number} files from {found.results} into {target}")


def _own_name(results: str) -> tuple[str, ...]:
    """Name results as they are: a run or a sweep by its folder, a report by its run's too."""
    parts = [part for part in results.split("/") if part not in ("", ".", "..")]
    return tuple(parts[-2:] if parts[-1] == "report" else parts[-1:])


@app.command()
@reported
def grafana() -> None:
    """Print a Grafana dashboard of all runs on a cluster, to import there; it reads Ray's Prometheus metrics.

    Example: `trm-ray grafana > trm-ray.json`
    """
    typer.echo((files("trm_ray") / "distributed" / "grafana.json").read_text(encoding="utf-8"), nl=False)
