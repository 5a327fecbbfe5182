"""One learned vector a puzzle identifier, of which a step reads and changes only the rows of its batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PuzzleEmbedding(nn.Module):
    """A table of vectors (N, ndim) that lie as a prefix before the board.

    The table is no parameter: its gradient would be as large as itself, and so would an optimizer's moments. A
    training step adds a leaf of zeros to the batch's rows, and `sign_sgd` writes what follows from its gradient back.

    Args:
        num_identifiers: N; identifier 0 is that of a puzzle nobody knows.
        ndim: size of a vector, filled up with zeros to `prefix_len` positions.

    Source: the original's `CastedSparseEmbedding`; zero at the start.
    """

    table: Tensor

    def __init__(self, num_identifiers: int, ndim: int, *, prefix_len: int, hidden_size: int):
        super().__init__()
        self.prefix_len, self.hidden_size = prefix_len, hidden_size
        self.register_buffer("table", torch.zeros(num_identifiers, ndim))

    def leaf(self, num_rows: int) -> Tensor:
        """Make zeros (B, ndim) that remember, while training, the gradient of the rows to which they are added."""
        shape, device = (num_rows, self.table.shape[1]), self.table.device
        return torch.zeros(shape, dtype=self.table.dtype, device=device, requires_grad=torch.is_grad_enabled())

    def rows(self, identifiers: Tensor, leaf: Tensor) -> Tensor:
        """Look up (B,) identifiers: (B, ndim), as many as the leaf has."""
        return self.table.index_select(0, identifiers) + leaf

    def prefix(self, rows: Tensor) -> Tensor:
        """Lay vectors (B, ndim) out over the positions: (B, prefix_len, hidden_size)."""
        missing = self.prefix_len * self.hidden_size - rows.shape[1]
        return F.pad(rows, (0, missing)).view(len(rows), self.prefix_len, self.hidden_size)


@torch.no_grad()
def sign_sgd(
    table: Tensor, identifiers: Tensor, gradients: Tensor, *, lr: float, weight_decay: float, found_inf: Tensor
) -> None:
    """Move the rows of a batch against the sign of their summed gradients, in place; nothing waits for the device.

    Time and memory depend on the batch alone, not on the table.

    Args:
        table: (N, ndim).
        identifiers: (B,) of the global batch; the same one may occur many times.
        gradients: (B, ndim) of the global batch.
        weight_decay: decoupled, on the same rows alone.
        found_inf: () above 0 to leave the table as it is.

    Source: the original's `_sparse_emb_signsgd_dist`.
    """
    # Each occurrence gets the sum over all occurrences, so that repeated writes of a row agree: in any order and
    # without `unique`, which would wait for the device to learn a size.
    summed = (identifiers.unsqueeze(1) == identifiers).to(gradients.dtype) @ gradients
    before = table[identifiers.long()]
    after = before * (1 - lr * weight_decay) - lr * summed.sign()
    table[identifiers.long()] = torch.where(found_inf > 0, before, after)
