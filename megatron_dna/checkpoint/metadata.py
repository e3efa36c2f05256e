"""The tensor index of a checkpoint, read without trusting it.

torch keeps the index (`.metadata`) as a pickle, and a pickle may run any code when it is loaded.
It is therefore first read by an unpickler that builds nothing but the index's own classes; a file
that asks for anything else is refused before torch sees it. (Tensors are read by torch with
`weights_only`, and there are no other objects in a checkpoint.)
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from megatron_dna.checkpoint.manifest import CheckpointError

INDEX = ".metadata"

_ALLOWED = {
    "collections": {"OrderedDict"},
    "pathlib": {"Path", "PosixPath"},
    "pathlib._local": {"Path", "PosixPath"},
    "torch": {"Size", "bfloat16", "float16", "float32", "float64", "int64", "uint8"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.serialization": {"_get_layout"},
}


class _IndexUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in _ALLOWED.get(module, ()):
            raise CheckpointError(f"{INDEX} asks for {module}.{name}, which no index needs")
        return super().find_class(module, name)


def read_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name and whole shape of every tensor in a checkpoint.

    Raises:
        CheckpointError: the index is damaged, or would run code when loaded.
    """
    try:
        with (folder / INDEX).open("rb") as stream:
            metadata = _IndexUnpickler(stream).load()
    except CheckpointError as error:
        raise CheckpointError(f"checkpoint {folder} is not safe to load: {error}") from error
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise CheckpointError(f"checkpoint {folder}: {INDEX} is damaged ({error})") from error
    if not isinstance(metadata, Metadata):
        raise CheckpointError(f"checkpoint {folder}: {INDEX} is not an index of tensors")
    return {
        name: tuple(entry.size)
        for name, entry in metadata.state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }
