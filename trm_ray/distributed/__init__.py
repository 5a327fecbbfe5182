"""The only package that imports Ray: cluster, datasets, workers, trainer and tuner.

Ray reads most of its settings from the environment when it is imported, so they are made here, before any module of
this package imports it. What the user has set stays; `TRM_RAY_VERBOSE=1` (`--verbose`) brings Ray's own output back.
"""

import os
from pathlib import Path

_ALWAYS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray Train's controller takes one report a poll; the default of 2 s would hold up every evaluation.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",
    # How long workers wait for room before their number is thought over again. It counts room alone, not how long
    # processes take to start; after the loss of a node Ray asks for too much for this long (the default is 60 s).
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
    # Reading Parquet files, Ray Data starts so many processes that look at their ends; the default of 32 is for lakes.
    "RAY_DATA_PARQUET_FOOTER_NUM_ACTORS": "1",
    # Runs write their own logs, in their own folders.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    # SIGTERM while Ray starts ends it at once, instead of waiting for what has not begun.
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    # A process takes the next trial once the one before is done with saving; Tune's default of 2 s fails the next one.
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "600",
    # Ctrl-C asks the trials to save first.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}
_QUIET = {
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",
    "RAY_DATA_LOGGING_CONFIG": str(Path(__file__).with_name("quiet_data.yaml")),
    "RAY_DEDUP_LOGS": "0",
}
# Ray cannot be imported by a user without a home, as in a container; this is what systems give to those who need none.
_NO_HOME = "/nonexistent"
VERBOSE = os.environ.get("TRM_RAY_VERBOSE") == "1"


def apply_settings() -> None:
    """Make the settings, those that somebody has taken back since included."""
    for name, value in {**_ALWAYS, **({} if VERBOSE else _QUIET)}.items():
        os.environ.setdefault(name, value)


apply_settings()
if os.path.expanduser("~") == "~":
    os.environ["HOME"] = _NO_HOME
