"""A model's safetensors files, read and written one tensor at a time.

`save_file` of the safetensors package wants all tensors of a file in memory. The format is simple
enough to write in order: 8 bytes with the length of a JSON header, the header, the tensors' bytes.

Source: github.com/huggingface/safetensors (format); the index is transformers' own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16"}
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


def parse_size(text: str) -> int:
    """Bytes of a size such as 5GB (decimal units, as in transformers).

    Raises:
        ValueError: it is not of this form.
    """
    match = re.fullmatch(r"(\d+)\s*([KMG]B)", text.strip(), re.IGNORECASE)
    if match is None or int(match[1]) == 0:
        raise ValueError(f"--max-shard-size ({text}) must be a number with KB, MB or GB: 5GB")
    return int(match[1]) * _UNITS[match[2].upper()]


def write_shards(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    read: Callable[[str], Tensor],
    dtype: torch.dtype,
    max_shard_size: int,
) -> None:
    """Write the tensors in files of at most `max_shard_size` bytes (a single tensor may be more).

    Args:
        folder: where to.
        shapes: of every tensor by its name, in the order of the files.
        read: makes the tensor of a name when its turn comes.
        dtype: of all tensors in the files.
        max_shard_size: bytes.
    """
    sizes = {name: torch.Size(shape).numel() * dtype.itemsize for name, shape in shapes.items()}
    shards: list[list[str]] = [[]]
    for name, size in sizes.items():
        if shards[-1] and sum(sizes[other] for other in shards[-1]) + size > max_shard_size:
            shards.append([])
        shards[-1].append(name)
    places: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = SINGLE
        if len(shards) > 1:
            file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_file(folder / file, {name: shapes[name] for name in names}, read, dtype)
        places |= dict.fromkeys(names, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": places}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write_file(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    read: Callable[[str], Tensor],
    dtype: torch.dtype,
) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + torch.Size(shape).numel() * dtype.itemsize
        header[name] = {
            "dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": [start, end]
        }  # fmt: skip
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            tensor = read(name).to(dtype).contiguous()
            assert tuple(tensor.shape) == tuple(shape), f"{name}: {tensor.shape} is not {shape}"
            stream.write(tensor.view(torch.uint8).numpy().reshape(-1).data)


class ShardReader:
    """The tensors of a model folder by name.

    Attributes:
        shapes: whole shape of every tensor.
    """

    def __init__(self, folder: Path) -> None:
        """Read the headers.

        Raises:
            ValueError: there are no safetensors files, or one is missing or damaged.
        """
        self._files: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for path in _files(folder):
            try:
                with safe_open(path, framework="pt") as file:
                    for name in file.keys():  # noqa: SIM118 (not a mapping)
                        self._files[name] = path
                        self.shapes[name] = tuple(file.get_slice(name).get_shape())
            except (SafetensorError, OSError) as error:
                raise ValueError(f"--model ({folder}): {path.name} is damaged ({error})") from error

    def read(self, name: str) -> Tensor:
        """One tensor in memory of its own: the file is not kept mapped."""
        with safe_open(self._files[name], framework="pt") as file:
            tensor: Tensor = file.get_tensor(name).clone()
        return tensor


def _files(folder: Path) -> list[Path]:
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        raise ValueError(
            f"--model ({folder}) has neither {SINGLE} nor {INDEX}; save the model with "
            "transformers' save_pretrained first"
        )
    try:
        names = sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"--model ({folder}): {INDEX} is damaged ({error})") from error
    return [folder / Path(name).name for name in names]
