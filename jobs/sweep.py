"""Submit with `ray job submit --working-dir . -- python jobs/sweep.py …`: takes what `trm-ray sweep` takes."""

import sys

from trm_ray.cli import app

if __name__ == "__main__":
    app(["sweep", *sys.argv[1:]])
