"""`python -m trm_ray.cli`."""

from trm_ray.cli import app

app()
