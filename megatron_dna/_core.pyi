# Types of the C++ core (csrc/bindings.cpp).

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

# ---- tokenizers ----------------------------------------------------------------------------------

class Encoder:
    def encode(self, text: bytes | str) -> npt.NDArray[np.int32]: ...
    @property
    def is_fast(self) -> bool: ...

class BpeEncoder(Encoder):
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

class KmerEncoder(Encoder):
    def __init__(
        self,
        *,
        vocab: Sequence[str],
        length: int,
        specials: Sequence[int],
        unk_id: int,
        strip: bool,
        min_gap_length: int,
    ) -> None: ...

class BpeTrainer:
    def __init__(self, letters: str, *, min_frequency: int, max_length: int) -> None: ...
    def reserve(self, num_letters: int, num_texts: int) -> None: ...
    def add(self, text: bytes | bytearray | memoryview) -> None: ...
    def merge(self, num_merges: int) -> list[tuple[int, int]]: ...

# ---- sequences -----------------------------------------------------------------------------------

def clean_sequence(raw: bytes | bytearray | memoryview, num_before: int) -> tuple[bytes, int]: ...
def find_stretches(
    sequence: bytes | bytearray | memoryview, min_run: int
) -> list[tuple[int, int]]: ...
def reverse_complement(sequence: bytes | bytearray | memoryview) -> bytes: ...

# ---- haplotypes ----------------------------------------------------------------------------------

class ContigHaplotypes:
    def __init__(
        self,
        *,
        samples: Sequence[tuple[str, int, int]],
        num_columns: int,
        contig: str,
        length: int,
        contig_key: int,
        reference: Callable[[int, int], bytes],
        unphased: str,
        skip_ref_mismatch: bool,
        seed: int,
    ) -> None: ...
    def add(self, lines: bytes, start: int) -> int: ...
    def finish(self) -> None: ...
    def ploidy(self, sample: int) -> int: ...
    @property
    def num_records(self) -> int: ...
    @property
    def num_ref_mismatches(self) -> int: ...
    def counts(self, haplotype: int) -> dict[str, int]: ...
    def length(self, haplotype: int) -> int: ...
    def edits(
        self, haplotype: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]: ...
    def edits_beside_n(self, haplotype: int) -> npt.NDArray[np.int64]: ...
    def reference_span(self, haplotype: int, start: int, end: int) -> tuple[int, int]: ...
    def spell(
        self,
        haplotype: int,
        start: int,
        end: int,
        reference_start: int,
        reference: bytes | bytearray | memoryview,
    ) -> bytes: ...

# ---- indexed files -------------------------------------------------------------------------------

class IndexedWriter:
    def __init__(self, prefix: str, vocab_size: int, finished: Sequence[int]) -> None: ...
    def append(self, ids: npt.NDArray[np.int32]) -> None: ...
    def end_document(self) -> None: ...
    def sync(self) -> None: ...
    def prepare(self) -> None: ...
    def publish(self) -> None: ...
    def abort(self) -> None: ...
    def leave(self) -> None: ...
    @property
    def num_documents(self) -> int: ...
    @property
    def num_tokens(self) -> int: ...
    @property
    def bytes_per_token(self) -> int: ...

# ---- windows -------------------------------------------------------------------------------------

class WindowIndex:
    def __init__(
        self,
        document_lengths: npt.NDArray[np.int32],
        *,
        window_tokens: int,
        min_tokens: int,
        seed: int,
        stream: int,
        random_phase: bool,
    ) -> None: ...
    def __len__(self) -> int: ...
    def locate(
        self, samples: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]: ...

# ---- masking -------------------------------------------------------------------------------------

class Masker:
    def __init__(
        self,
        *,
        segment_size: int,
        num_masked: int,
        mean_span_length: float,
        seed: int,
        stream: int,
        cls_id: int,
        sep_id: int,
        pad_id: int,
        mask_id: int,
        special_ids: npt.NDArray[np.int32],
        token_lengths: npt.NDArray[np.int32],
    ) -> None: ...
    def write(
        self,
        windows: Sequence[npt.NDArray[np.uint16] | npt.NDArray[np.int32]],
        samples: npt.NDArray[np.int64],
        *,
        num_segments: int,
        input_ids: npt.NDArray[np.int64],
        masked_positions: npt.NDArray[np.int64],
        labels: npt.NDArray[np.int64],
        loss_mask: npt.NDArray[np.float32],
        num_real: npt.NDArray[np.int32],
        num_bases: npt.NDArray[np.int64],
    ) -> tuple[int | None, int]: ...
