"""Submit with `ray job submit --working-dir . -- python jobs/compare.py …`: takes what `trm-ray compare` takes."""

import sys

from trm_ray.cli import app

if __name__ == "__main__":
    app(["compare", *sys.argv[1:]])
