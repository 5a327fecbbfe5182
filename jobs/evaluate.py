"""Submit with `ray job submit --working-dir . -- python jobs/evaluate.py …`: takes what `trm-ray evaluate` takes."""

import sys

from trm_ray.cli import app

if __name__ == "__main__":
    app(["evaluate", *sys.argv[1:]])
