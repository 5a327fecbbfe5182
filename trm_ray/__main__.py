"""`python -m trm_ray`."""

from trm_ray.cli import app

if __name__ == "__main__":
    app(prog_name="trm-ray")
