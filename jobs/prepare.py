"""Submit with `ray job submit --working-dir . -- python jobs/prepare.py …`: takes what `trm-ray prepare` takes."""

import sys

from trm_ray.cli import app

if __name__ == "__main__":
    app(["prepare", *sys.argv[1:]])
