"""Jobs on a cluster, through its job server: submit a command, follow its log, stop it, bring its results here."""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import json
import logging
import os
import re
import secrets
import shlex
import shutil
import socket
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.metadata import requires
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

import trm_ray
from trm_ray.config.files import OWN_CONFIGS, find_configs, shipped_configs
from trm_ray.config.keys import NAME
from trm_ray.config.surroundings import environment
from trm_ray.distributed import VERBOSE
from trm_ray.distributed.ray_internals import TALKATIVE_LOGGERS, AroundRequests
from trm_ray.distributed.results import copy_results, unpack
from trm_ray.distributed.submission import Submission
from trm_ray.distributed.surroundings import LOOPBACK, past_proxies, token_path
from trm_ray.storage import EXTRAS, as_path, is_remote

# Ray stops a job with SIGTERM and kills it this many seconds later; its default of 3 is too short to save a step. It is
# read in the job's own environment, so that no cluster has to be prepared.
_PATIENCE = "RAY_JOB_STOP_WAIT_TIME_S"
_PATIENCE_S = 300
# What a job's environment gets besides: the width of its tables. Anything in here is shown by the dashboard.
_ENVIRONMENT = {_PATIENCE: str(_PATIENCE_S), "COLUMNS": "120"}
_POLL_S = 0.5
_RECONNECT_S = 60.0
# What goes through the job server when no storage is shared: it holds the text of all of it in memory.
MOST_BYTES = 32 << 20
_FETCH = "fetch"
# Says in a folder where its files were fetched from.
_FETCHED = "fetched_from.json"
# A folder that was last written this long before a job began is another one of the same name.
_CLOCK_SKEW_S = 300


class JobError(RuntimeError):
    """The job server refused something, or a job that is needed here failed."""


class Client(AroundRequests, JobSubmissionClient):
    """Ray's client, which asks a server of this machine or of its network without the proxy meant for the others."""

    def around_request(self) -> AbstractContextManager[object]:
        """Set what names the hosts to which no proxy leads."""
        host = urlsplit(self.get_address()).hostname or ""
        return environment(past_proxies([*LOOPBACK, *([host] if _is_near(host) else [])]))


@functools.cache
def _is_near(host: str) -> bool:
    """Tell whether a host is this machine or in a private network."""
    try:
        found = {str(entry[4][0]).partition("%")[0] for entry in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):
        return False
    return all(ipaddress.ip_address(address).is_private for address in found)


# ---- the server --------------------------------------------------------------------------------------------


def connect(address: str | None) -> Client:
    """Open the job server at `address`, else at RAY_API_SERVER_ADDRESS or an http RAY_ADDRESS.

    Raises:
        ValueError: no server is named.
        ConnectionError: none answers there, or it wants another token.
    """
    url = _server(address)
    if not VERBOSE:
        for name in TALKATIVE_LOGGERS:
            logging.getLogger(name).setLevel(logging.WARNING)
    try:
        with environment({"RAY_API_SERVER_ADDRESS": url}):  # which Ray lets win over what it is given
            return Client(url, headers=_token())
    except AuthenticationError as error:
        refused = "refuses this machine's token" if "failed" in str(error) else "asks for a token"
        raise ConnectionError(
            f"{url} {refused}; copy the cluster's to ~/.ray/auth_token (mode 0600), or name its file by "
            "RAY_AUTH_TOKEN_PATH"
        ) from None
    except (ConnectionError, requests.RequestException, RuntimeError) as error:
        raise ConnectionError(
            f"no Ray job server answers at {url}; `ray dashboard cluster.yaml` opens a tunnel to a cluster's, "
            "--address names another"
        ) from error


def _server(address: str | None) -> str:
    named = os.environ.get("RAY_ADDRESS", "")
    url = address or os.environ.get("RAY_API_SERVER_ADDRESS") or (named if named.startswith("http") else None)
    if url is None:
        raise ValueError(
            "no job server is named; use --address http://HOST:8265 or RAY_API_SERVER_ADDRESS (`ray dashboard "
            "cluster.yaml` opens a tunnel to http://127.0.0.1:8265)"
        )
    url = url if "://" in url else f"http://{url}"
    if not re.fullmatch(r"https?://[^/\s]+/?", url):
        raise ValueError(f"--address={url} must be a job server's http address; use e.g. http://127.0.0.1:8265")
    return url.rstrip("/")


def _token() -> dict[str, str]:
    """Send the token of this machine, if it has one: unlike `ray.init`, Ray's job client does so only when told."""
    try:
        token = os.environ.get("RAY_AUTH_TOKEN") or token_path().read_text(encoding="utf-8").strip()
    except (OSError, RuntimeError):  # a machine without one, or a user without a home
        return {}
    if not token or os.environ.get("RAY_AUTH_MODE", "token") != "token":
        return {}
    return {"Authorization": f"Bearer {token}"}


# ---- submitting --------------------------------------------------------------------------------------------


def submit(client: Client, submission: Submission, *, cpus: float = 0, gpus: float = 0, pip: bool = False) -> str:
    """Start a command as a job and return the job's name.

    Args:
        cpus: what the command itself reserves, on any node; with none it runs on the head node.
        gpus: likewise.
        pip: install what trm-ray needs on every node that the job comes to, instead of finding it in their image.
    """
    entrypoint = shlex.join(["python", "-m", "trm_ray.cli", *submission.words])
    metadata = {"command": shlex.join(submission.words), "trm_ray": trm_ray.__version__}
    if submission.results is not None:
        metadata["results"] = submission.results
    with tempfile.TemporaryDirectory(prefix="trm-ray-") as folder:
        _working_copy(submission.files, Path(folder))
        environment = {**_package(), "working_dir": folder}
        if pip:
            environment["pip"] = _requirements([*submission.words, submission.results or ""])
        return _start(
            client,
            _new_name(submission.words[0]),
            entrypoint,
            runtime_env=environment,
            metadata=metadata,
            entrypoint_num_cpus=cpus,
            entrypoint_num_gpus=gpus,
        )


def _start(client: Client, name: str, entrypoint: str, **options: Any) -> str:
    try:
        return str(client.submit_job(entrypoint=entrypoint, submission_id=name, **options))
    except RuntimeError as error:
        raise JobError(f"the job server did not take {name}: {last_error(str(error)).rstrip('. ')}") from error


def _package() -> dict[str, Any]:
    """Let a job run the trm-ray that is installed here, whatever the nodes have."""
    variables = {**_ENVIRONMENT, **({"TRM_RAY_VERBOSE": "1"} if VERBOSE else {})}
    package = str(Path(trm_ray.__file__).parent)
    return {"py_modules": [package], "excludes": ["__pycache__"], "env_vars": variables}


def _requirements(words: list[str]) -> list[str]:
    """List what trm-ray needs beside Ray, and what reaches the object storage that words name."""
    extras = {extra for protocol, extra in EXTRAS.items() if any(f"{protocol}://" in word for word in words)}
    found = []
    for line in requires("trm-ray") or ():
        name, _, condition = (part.strip() for part in line.partition(";"))
        extra = re.search(r"extra == ['\"](\w+)['\"]", condition)
        if not name.startswith("ray[") and (extra is None or extra[1] in extras):
            found.append(line if extra is None else name)
    return found


def _working_copy(files: tuple[str, ...], target: Path) -> None:
    """Lay out what a job finds in its working directory: all configs, one's own over the shipped ones, and files."""
    for configs in (shipped_configs(), OWN_CONFIGS):
        for path in find_configs(configs):
            _copy(path, target / "configs" / path.relative_to(configs))
    for name in files:
        _copy(Path(name), target / name)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _new_name(command: str) -> str:
    return f"{command}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


# ---- watching ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """What is known of a job.

    Args:
        state: such as `running`.
        ended: whether that is its last.
        cause: why it failed.
        results: where it leaves them.
        saves_first: whether it gets the time to save when it is stopped.
    """

    name: str
    state: str
    ended: bool
    command: str
    started: float | None
    seconds: float | None
    cause: str | None
    results: str | None
    saves_first: bool

    @property
    def succeeded(self) -> bool:
        """Tell whether the job ended well."""
        return self.state == "succeeded"


def list_jobs(client: Client) -> list[Job]:
    """List all jobs that the cluster remembers, the latest last, without those that only fetched another's results."""
    found = [
        details
        for details in client.list_jobs()
        if details.submission_id and (details.metadata or {}).get("command") != _FETCH
    ]
    return [_job(details) for details in sorted(found, key=lambda details: details.start_time or 0)]


def find_job(client: Client, name: str) -> Job:
    """Look a job up.

    Raises:
        ValueError: there is none of that name.
    """
    try:
        details = client.get_job_info(name) if re.fullmatch(NAME, name) else None
    except RuntimeError as error:
        if "404" not in str(error):
            raise
        details = None
    if details is None or details.submission_id != name:
        raise ValueError(f"{name} is no job of this cluster; `trm-ray jobs list` shows those there are")
    return _job(details)


def _job(details: JobDetails) -> Job:
    metadata, started = details.metadata or {}, details.start_time and details.start_time / 1000
    until = details.end_time / 1000 if details.end_time else time.time()
    variables = (details.runtime_env or {}).get("env_vars") or {}
    return Job(
        name=details.submission_id,
        state=details.status.value.lower(),
        ended=details.status.is_terminal(),
        command=metadata.get("command", details.entrypoint),
        started=started,
        seconds=until - started if started else None,
        cause=last_error(details.message or "") if details.status == JobStatus.FAILED else None,
        results=metadata.get("results"),
        saves_first=_PATIENCE in variables,
    )


def last_error(text: str) -> str:
    """Find the line of a log that says why a job failed: its last `error:`, else its last line at all."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line.removeprefix("error:").strip() for line in lines if line.startswith("error:")]
    return (errors or lines or ["it left no word"])[-1]


class JobLog:
    """A job's log, shown once from its beginning to its end, however often the connection breaks.

    Args:
        show: is given pieces of text as they come.
    """

    def __init__(self, client: Client, name: str, show: Callable[[str], None]):
        self._client, self._name, self._show, self._shown = client, name, show, 0

    def follow(self) -> Job:
        """Show what comes until the job has ended; return how it did.

        Raises:
            ConnectionError: the job server has been gone for a minute.
        """
        gone_since: float | None = None
        while True:
            before = self._shown
            try:
                asyncio.run(self._tail())
                job = find_job(self._client, self._name)
                if job.ended:
                    self._pass_on(0, str(self._client.get_job_logs(self._name)))
                    return job
                gone_since = None
            except (OSError, RuntimeError, aiohttp.ClientError) as error:
                gone_since = time.monotonic() if gone_since is None or self._shown > before else gone_since
                if time.monotonic() - gone_since > _RECONNECT_S:
                    raise ConnectionError(f"the job server is gone: {error}; the job may well go on") from error
            time.sleep(_POLL_S)

    async def _tail(self) -> None:
        position = 0
        async for text in self._client.tail_job_logs(self._name):
            self._pass_on(position, text)
            position += len(text)

    def _pass_on(self, position: int, text: str) -> None:
        """Show of a text that begins at `position` what was not shown yet."""
        new = text[max(0, self._shown - position) :]
        if new:
            self._show(new)
            self._shown += len(new)


def stop(client: Client, name: str) -> None:
    """Ask a job to save and end; it is killed if it has not after its patience."""
    client.stop_job(name)


def wait(client: Client, name: str) -> Job:
    """Wait for a job's end."""
    while not (job := find_job(client, name)).ended:
        time.sleep(_POLL_S)
    return job


# ---- results -----------------------------------------------------------------------------------------------


def fetch(client: Client, job: Job, target: Path, *, checkpoints: bool = False, through_cluster: bool = False) -> int:
    """Copy what a job has left so far into a folder here; return how many files that was.

    Straight from the storage where this machine sees it too, else through the job server.

    Raises:
        ValueError: the job names no results.
        JobError: the cluster could not read them.
    """
    if job.results is None:
        raise ValueError(f"{job.name} names no results; `trm-ray jobs logs {job.name}` shows what it printed")
    source = None if through_cluster else _visible(job)
    if source is not None and source.resolve() == target.resolve():
        raise ValueError(f"{job.name} left its results here, in {target}; there is nothing to fetch")
    _claim(target, job)
    if source is not None:
        return copy_results(source, target, checkpoints)
    return unpack(_packed(client, job.results, checkpoints), target)


def _claim(target: Path, job: Job) -> None:
    """Take a folder for results: a new one, or that of an earlier fetch from the same place."""
    note, origin = target / _FETCHED, json.dumps({"results": job.results}) + "\n"
    fetched_before = note.is_file() and note.read_text(encoding="utf-8") == origin
    if target.is_dir() and any(target.iterdir()) and not fetched_before:
        raise ValueError(
            f"--output {target} holds files that were not fetched from {job.results}; choose another folder"
        )
    target.mkdir(parents=True, exist_ok=True)
    note.write_text(origin, encoding="utf-8")


def _visible(job: Job) -> Path | None:
    """Return the job's results if this machine sees them, and they are not another run's of the same name."""
    source, began = as_path(str(job.results)), job.started or 0.0
    if is_remote(source):  # where one name is one place
        return source if source.exists() else None
    written = [path.stat().st_mtime for path in (source, *source.glob("*")) if path.exists()]
    return source if written and max(written) > began - _CLOCK_SKEW_S else None


def _packed(client: Client, results: str, checkpoints: bool) -> str:
    """Let a small job on the cluster print the results; return its log."""
    words = ["python", "-m", "trm_ray.distributed.results", results, "--limit", str(MOST_BYTES)]
    entrypoint = shlex.join([*words, *(["--checkpoints"] if checkpoints else [])])
    name = _start(client, _new_name(_FETCH), entrypoint, runtime_env=_package(), metadata={"command": _FETCH})
    job = wait(client, name)
    log = str(client.get_job_logs(name))
    if not job.succeeded:
        raise JobError(last_error(log) if log else str(job.cause))
    return log
