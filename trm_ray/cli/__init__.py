"""The `trm-ray` command: parse, call one function, tell errors in one line. Heavy modules are imported late."""

# Each adds its commands to the app.
from trm_ray.cli import (
    bench,
    checkpoints,
    diagnose,
    generate,
    plan,
    predict,
    prepare,
    replay,
    results,
    schedule,
    selftest,
    submit,
    training,
)
from trm_ray.cli.common import app
