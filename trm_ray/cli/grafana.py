"""`trm-ray grafana`."""

from __future__ import annotations

from importlib.resources import files

import typer

from trm_ray.cli.common import app, reported


@app.command()
@reported
def grafana() -> None:
    """Print a Grafana dashboard of all runs on a cluster, to import there; it reads Ray's Prometheus metrics.

    Example: `trm-ray grafana > trm-ray.json`
    """
    typer.echo((files("trm_ray") / "distributed" / "grafana.json").read_text(encoding="utf-8"), nl=False)
