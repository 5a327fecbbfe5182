"""What all tests share: one thread a process, since the tests' models are too small for more."""

import torch

torch.set_num_threads(1)
