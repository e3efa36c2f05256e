# Types of the C++ core (csrc/bindings.cpp).

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

# ---- BPE -----------------------------------------------------------------------------------------

class BpeEncoder:
    def __init__(
        self,
        *,
        vocab: Sequence[str],
        merges: Sequence[tuple[int, int, int]],
        specials: Sequence[int],
        unk_id: int,
        strip: bool,
        min_gap_length: int,
    ) -> None: ...
    def encode(self, text: bytes | str) -> npt.NDArray[np.int32]: ...

# ---- sequences -----------------------------------------------------------------------------------

def clean_sequence(raw: bytes | bytearray | memoryview, num_before: int) -> tuple[bytes, int]: ...
def find_stretches(
    sequence: bytes | bytearray | memoryview, min_run: int
) -> list[tuple[int, int]]: ...
def reverse_complement(sequence: bytes | bytearray | memoryview) -> bytes: ...

# ---- indexed files -------------------------------------------------------------------------------

class IndexedWriter:
    def __init__(self, prefix: str, vocab_size: int) -> None: ...
    def append(self, ids: npt.NDArray[np.int32]) -> None: ...
    def end_document(self) -> None: ...
    def prepare(self) -> None: ...
    def publish(self) -> None: ...
    def abort(self) -> None: ...
    @property
    def num_documents(self) -> int: ...
    @property
    def num_tokens(self) -> int: ...
    @property
    def bytes_per_token(self) -> int: ...

# ---- windows -------------------------------------------------------------------------------------

# ---- masking -------------------------------------------------------------------------------------
