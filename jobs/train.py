"""Submit with `ray job submit --working-dir . -- python jobs/train.py …`: takes what `trm-ray train` takes."""

import sys

from trm_ray.cli import app

if __name__ == "__main__":
    app(["train", *sys.argv[1:]])
