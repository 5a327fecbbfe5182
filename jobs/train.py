"""Submit to a cluster: `ray job submit --working-dir . -- python jobs/train.py …`, with what `trm-ray train` takes."""

import sys

from trm_ray.cli import app

if __name__ == "__main__":
    app(["train", *sys.argv[1:]])
