"""The safetensors files of a model directory as one set of named tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError, safe_open
from torch import Tensor

from triloop.errors import ModelError
from triloop.nn.tokenizer import read_json

__all__ = ["Shards", "Tensors"]

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


class Tensors(Protocol):
    """Named tensors of a model directory."""

    label: str
    """Where they lie, for messages."""

    @property
    def names(self) -> set[str]:
        """Of all of them."""
        ...

    def file(self, name: str) -> Path:
        """The file that holds tensor ``name``."""
        ...

    def read(self, name: str) -> Tensor:
        """Tensor ``name``. It may share memory with the file: copy it before keeping it."""
        ...


class Shards:
    """Tensors by name, from ``model.safetensors`` or from the shards its index names (or from the file ``only``).

    Every header is read at once, so that a damaged or missing file is told before any tensor is loaded. Raises
    ModelError naming the file.
    """

    def __init__(self, folder: Path, *, only: str | None = None) -> None:
        self._where: dict[str, Path] = {}
        self._open: dict[Path, Any] = {}
        self.label = str(folder / (only or SINGLE))
        if only is None and not (folder / SINGLE).is_file():
            self.label = str(folder / INDEX)
            self._read_index(folder)
        else:
            path = folder / (only or SINGLE)
            self._where = dict.fromkeys(self._handle(path).keys(), path)

    @property
    def names(self) -> set[str]:
        return set(self._where)

    def file(self, name: str) -> Path:
        """The file that holds tensor ``name``."""
        return self._where[name]

    def read(self, name: str) -> Tensor:
        """Tensor ``name``. It may share memory with the file: copy it before keeping it."""
        path = self._where[name]
        try:
            tensor: Tensor = self._handle(path).get_tensor(name)
        except (SafetensorError, OSError, RuntimeError) as error:
            raise ModelError(f"{path}: tensor {name} cannot be read ({error}). Copy the file again.") from error
        return tensor

    def _handle(self, path: Path) -> Any:
        if path not in self._open:
            try:
                self._open[path] = safe_open(path, framework="pt")
            except (SafetensorError, OSError, ValueError) as error:
                size = path.stat().st_size if path.is_file() else None
                held = "the file is missing" if size is None else f"{size} bytes, {error}"
                raise ModelError(
                    f"{path} is not a complete safetensors file ({held}). The download or copy was cut short or "
                    "damaged; copy it again."
                ) from error
        return self._open[path]

    def _read_index(self, folder: Path) -> None:
        if not (folder / INDEX).is_file():
            raise ModelError(_no_weights(folder))
        listed = read_json(folder / INDEX).get("weight_map")
        if not isinstance(listed, dict) or not listed:
            raise ModelError(f"{folder / INDEX} has no weight_map (tensor name -> file name). Copy the file again.")
        for name, shard in listed.items():
            # An index is a stranger's data: a shard is a file of this directory, nothing further.
            if not isinstance(shard, str) or Path(shard).name != shard:
                raise ModelError(
                    f"{folder / INDEX}: tensor {name} is said to be in {shard!r}, expected a plain file name."
                )
            self._where[name] = folder / shard
        for path in sorted(set(self._where.values())):
            held = set(self._handle(path).keys())
            lost = [n for n, p in self._where.items() if p == path and n not in held]
            if lost:
                raise ModelError(f"{path} lacks tensor {lost[0]}, which {INDEX} says it holds. Copy both files again.")


def _no_weights(folder: Path) -> str:
    pickles = sorted(p.name for p in folder.glob("*.bin")) + sorted(p.name for p in folder.glob("*.pt*"))
    if pickles:
        return (
            f"{folder} has its weights only as pickle ({', '.join(pickles[:3])}), which can run any code when it is "
            "loaded and is not read. Convert once: AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(DIR)."
        )
    return f"{folder} has no weights: neither {SINGLE} nor {INDEX}. Copy the whole model directory."
