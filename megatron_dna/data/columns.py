"""Tables with more rows than memory holds: collected on the disk, kept as the columns of an .npz.

An .npz is a zip of .npy files. Here none is compressed, so a column can be mapped where it lies.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import ZIP_STORED, BadZipFile, ZipFile, ZipInfo

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

ROWS_A_CHUNK = 1 << 16
"""Rows of a table that are in memory at once."""
_LOCAL_HEADER = np.dtype([("fixed", "V26"), ("name_length", "<u2"), ("extra_length", "<u2")])


class Table:
    """Rows that are added to a scratch file, which has no name: a killed run leaves nothing."""

    def __init__(self, folder: Path, dtype: np.dtype[Any]) -> None:
        """Opens the file.

        Args:
            folder: where its space is taken from.
            dtype: of a row; its fields are the columns.

        Raises:
            OSError: no file can be made.
        """
        self.dtype = dtype
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  # until `close`
        self._num_rows = 0

    def __len__(self) -> int:
        """Rows."""
        return self._num_rows

    def append(self, rows: Array) -> None:
        """Adds rows, `dtype` [rows].

        Raises:
            OSError: the disk is full or fails.
        """
        self._file.write(rows.tobytes())
        self._num_rows += len(rows)

    def column(self, name: str) -> Iterator[Array]:
        """A column of all rows, in chunks."""
        self._file.flush()
        size = self.dtype.itemsize
        for start in range(0, self._num_rows, ROWS_A_CHUNK):
            self._file.seek(start * size)
            count = min(ROWS_A_CHUNK, self._num_rows - start)
            yield np.frombuffer(self._file.read(count * size), self.dtype)[name]
        self._file.seek(0, os.SEEK_END)

    def close(self) -> None:
        """Gives the space back."""
        self._file.close()


def write_npz(path: Path, arrays: Mapping[str, Array | tuple[Table, str]]) -> None:
    """Writes arrays, and columns of tables by name, as `np.savez` would; on the disk at return.

    Memory: a chunk of a column.

    Raises:
        OSError: the disk is full or fails.
    """
    with path.open("wb") as stream:
        with ZipFile(stream, "w", ZIP_STORED) as archive:
            for name, value in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    _write_array(member, value)
        stream.flush()
        os.fsync(stream.fileno())


def _write_array(member: Any, value: Array | tuple[Table, str]) -> None:
    if not isinstance(value, tuple):
        np.lib.format.write_array(member, value, allow_pickle=False)
        return
    table, name = value
    descr = np.lib.format.dtype_to_descr(table.dtype[name])
    header = {"descr": descr, "fortran_order": False, "shape": (len(table),)}
    np.lib.format.write_array_header_1_0(member, header)
    for chunk in table.column(name):
        member.write(chunk.tobytes())


def open_npz(path: Path) -> dict[str, Array]:
    """The arrays of an uncompressed .npz: numbers are mapped, read-only, and read when looked at.

    Raises:
        ValueError, BadZipFile: it is no such file, or is damaged.
        OSError: it cannot be read.
    """
    arrays = {}
    with path.open("rb") as stream, ZipFile(stream) as archive:
        for info in archive.infolist():
            arrays[info.filename.removesuffix(".npy")] = _open_array(path, stream, archive, info)
    return arrays


def _open_array(path: Path, stream: BinaryIO, archive: ZipFile, info: ZipInfo) -> Array:
    if info.compress_type != ZIP_STORED or info.header_offset < 0:
        raise BadZipFile(f"{info.filename} is compressed, or bytes are missing before it")
    with archive.open(info) as member:
        np.lib.format.read_magic(member)
        shape, _, dtype = np.lib.format.read_array_header_1_0(member)
        header_length = member.tell()
        if len(shape) != 1 or dtype.kind not in "biu" or not shape[0]:
            member.seek(0)
            found: Array = np.lib.format.read_array(member, allow_pickle=False)
            return found
    if header_length + shape[0] * dtype.itemsize != info.file_size:
        raise BadZipFile(f"{info.filename} has not the length that it says")
    stream.seek(info.header_offset)
    local = np.frombuffer(stream.read(_LOCAL_HEADER.itemsize), _LOCAL_HEADER)[0]
    offset = info.header_offset + _LOCAL_HEADER.itemsize + header_length
    offset += int(local["name_length"]) + int(local["extra_length"])
    return np.memmap(path, dtype, "r", offset, shape)
