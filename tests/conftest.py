"""What all tests share: one thread a process, since the tests' models are too small for more."""

import logging

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def heard_again() -> None:
    """Ray raises the level of all loggers of the process that have none of their own."""
    logging.getLogger("trm_ray").setLevel(logging.WARNING)
