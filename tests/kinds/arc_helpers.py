"""ARC for tests: the public files where they are there, and the original's rules, written down literally and slowly."""

import json
from pathlib import Path

import numpy as np
import pytest

ARC_AGI_1 = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "arc-agi-1" / "arc-agi"
needs_arc = pytest.mark.skipif(
    not ARC_AGI_1.with_name("arc-agi_training_challenges.json").exists(), reason="the public ARC-AGI-1 files are absent"
)


def turned(grid: np.ndarray, dihedral: int) -> np.ndarray:
    """Turn a grid as the original numbers the transforms."""
    return [
        grid,
        np.rot90(grid, k=1),
        np.rot90(grid, k=2),
        np.rot90(grid, k=3),
        np.fliplr(grid),
        np.flipud(grid),
        grid.T,
        np.fliplr(np.rot90(grid, k=1)),
    ][dihedral]


def augmented(grid: np.ndarray, dihedral: int, colours: np.ndarray) -> np.ndarray:
    return turned(np.array([[colours[cell] for cell in row] for row in grid], np.uint8), dihedral)


def canvas(grid: np.ndarray, row: int = 0, column: int = 0, outside: int = 0) -> np.ndarray:
    """Lay a grid on the 30 × 30 canvas, cell by cell."""
    height, width = grid.shape
    tokens = np.full((30, 30), outside)
    for r in range(height):
        for c in range(width):
            tokens[row + r, column + c] = grid[r, c] + 2
    if row + height < 30:
        tokens[row + height, column : column + width] = 1
    if column + width < 30:
        tokens[row : row + height, column + width] = 1
    return tokens.reshape(-1)


def cropped(tokens: np.ndarray) -> np.ndarray:
    """Cut out the largest rectangle of colours at the upper left corner: row by row, as the original looks for it."""
    board = tokens.reshape(30, 30)
    best, size, columns = 0, (0, 0), 30
    for rows, cells in enumerate(board.tolist(), start=1):
        for column in range(columns):
            if not 2 <= cells[column] <= 11:
                columns = column
                break
        if rows * columns > best:
            best, size = rows * columns, (rows, columns)
    return (board[: size[0], : size[1]] - 2).astype(np.uint8)


def random_grid(rng: np.random.Generator, most: int = 30, colours: int = 10) -> np.ndarray:
    return rng.integers(0, colours, rng.integers(1, most + 1, 2)).astype(np.uint8)


def random_task(rng: np.random.Generator, *, train: int = 3, test: int = 2, most: int = 6, colours: int = 5) -> dict:
    def pairs(number: int) -> list[dict]:
        return [{key: random_grid(rng, most, colours).tolist() for key in ("input", "output")} for _ in range(number)]

    return {"train": pairs(train), "test": pairs(test)}


def write_subset(prefix: Path, subset: str, tasks: dict, *, solutions: bool = True) -> None:
    """Write tasks as the public files have them, their test outputs apart or not at all."""
    asked = {
        name: {"train": task["train"], "test": [{"input": pair["input"]} for pair in task["test"]]}
        for name, task in tasks.items()
    }
    answers = {name: [pair["output"] for pair in task["test"]] for name, task in tasks.items()}
    prefix.with_name(f"{prefix.name}_{subset}_challenges.json").write_text(json.dumps(asked))
    if solutions:
        prefix.with_name(f"{prefix.name}_{subset}_solutions.json").write_text(json.dumps(answers))


def public_tasks(subset: str) -> dict:
    """Read a public subset, solutions put in."""
    tasks = json.loads(ARC_AGI_1.with_name(f"arc-agi_{subset}_challenges.json").read_text())
    answers = json.loads(ARC_AGI_1.with_name(f"arc-agi_{subset}_solutions.json").read_text())
    for name, task in tasks.items():
        for pair, output in zip(task["test"], answers[name], strict=True):
            pair["output"] = output
    return tasks
