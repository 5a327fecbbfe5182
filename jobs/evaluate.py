"""Submit to a cluster: `ray job submit --working-dir . -- python jobs/evaluate.py …`, with what `trm-ray evaluate` takes."""

import sys

from trm_ray.cli import app

if __name__ == "__main__":
    app(["evaluate", *sys.argv[1:]])
