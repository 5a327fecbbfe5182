"""Read what `torch.save` wrote elsewhere, whatever lies beside the weights: no code in it runs.

PyTorch reads tensors and plain values alone. An object of another class (a number of NumPy, somebody's config) is read
as a `Shut` one, which holds what the file says of it and does nothing.
"""

from __future__ import annotations

import re
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_UNKNOWN = re.compile(r"GLOBAL (\S+) (?:was not an allowed|whose module)")
_MOST_CLASSES = 100
# Of Python's own modules, what people keep beside weights; everything else there may be a way to run code.
_HARMLESS = {
    *("argparse", "collections", "copyreg", "datetime", "decimal"),
    *("enum", "fractions", "pathlib", "types", "uuid"),
}
_PLAIN = {"list", "dict", "tuple", "set", "frozenset", "slice", "range", "complex", "bytearray", "object"}
_SCALARS = {"numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"}
_FLOATS = {"f2": "e", "f4": "f", "f8": "d"}
_WAY_OUT = "torch.save(model.state_dict(), FILE) where it was made writes one that can be read"


class Shut:
    """Stand for an object of a class that is not known here, and for the class."""

    path = ""

    def __new__(cls, *args: Any, **kwargs: Any) -> Shut:
        """Take whatever the file gives."""
        shut = super().__new__(cls)
        shut.args, shut.state = args, None
        return shut

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args: tuple[Any, ...]
        self.state: Any

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Scalar(Shut):
    """Hold a number of NumPy: a dtype, such as `i8` with its byte order, and the bytes."""

    def __int__(self) -> int:
        return int(self._value())

    def __float__(self) -> float:
        return float(self._value())

    def _value(self) -> int | float:
        dtype, content = self.args
        code, order = dtype.args[0], ">" if dtype.state[1] == ">" else "<"
        if code in _FLOATS:
            return float(struct.unpack(order + _FLOATS[code], content)[0])
        if code[0] not in "iub":
            raise TypeError(f"a number of the dtype {code}")
        return int.from_bytes(content, "big" if order == ">" else "little", signed=code[0] == "i")


def load_shut(path: Path) -> Any:
    """Read a file of `torch.save`, memory-mapped where its format allows that.

    Args:
        path: a file of this machine.

    Raises:
        ValueError: it is no such file, it is damaged, or it holds what may run code; in words, without the path.
    """
    stand_ins: dict[str, Callable[..., Any] | type] = {}
    while True:
        try:
            # Tuples name the class as the file does; the format before PyTorch 1.6 cannot be mapped.
            with torch.serialization.safe_globals([(stand_in, name) for name, stand_in in stand_ins.items()]):
                return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        except Exception as error:  # damaged and hostile files raise all sorts
            unknown = _UNKNOWN.search(str(error)) if _is_refused(error) else None
            name = unknown[1].removeprefix("builtins.") if unknown else None
            if name is None or name in stand_ins or len(stand_ins) == _MOST_CLASSES or not _is_harmless(name):
                raise ValueError(_told(path, error, name, list(stand_ins))) from None
            stand_ins[name if "." in name else f"builtins.{name}"] = _stand_in(name)


def _is_refused(error: Exception) -> bool:
    """Tell PyTorch's refusal from other errors by its name: its class lives in a module that nothing here imports."""
    return type(error).__name__ == "UnpicklingError"


def _is_harmless(name: str) -> bool:
    """Tell whether nobody need be warned of a class: it is a library's or a user's, or a plain one of Python's."""
    module, dot, _ = name.partition(".")
    return name in _PLAIN or (bool(dot) and (module not in sys.stdlib_module_names or module in _HARMLESS))


def _stand_in(name: str) -> Callable[..., Any] | type:
    if name == "collections.defaultdict":
        return lambda *args: {}
    return type("Shut", (_Scalar if name in _SCALARS else Shut,), {"path": name})


def _told(path: Path, error: Exception, name: str | None, shut: list[str]) -> str:
    """Say what a file is that cannot be read, and never that it is damaged if it is merely unknown."""
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        return "it is empty"
    if zipfile.is_zipfile(path):
        names = zipfile.ZipFile(path).namelist()
        kinds = {Path(inner).name for inner in names}
        if "constants.pkl" in kinds:
            return f"it is a TorchScript archive; {_WAY_OUT}"
        if "data.pkl" not in kinds:
            return f"it is a zip archive that torch.save has not written, and holds {', '.join(names[:3]) or 'nothing'}"
    elif start[257:262] == b"ustar":
        return f"it is a tar archive, as PyTorch before 0.1.10 wrote, or others; {_WAY_OUT}"
    elif start[8:9] == b"{":
        return "it is safetensors; give it a name that ends in .safetensors"
    if name is not None:
        return f"it holds {name}, whose code never runs here; {_WAY_OUT}"
    if shut and _is_refused(error):
        return f"it holds objects of {', '.join(shut)} beside or instead of weights; {_WAY_OUT}"
    if not start.startswith((b"PK", b"\x80")):
        return f"torch.save has not written it ({type(error).__name__})"
    return f"it is damaged or cut short ({type(error).__name__})"
