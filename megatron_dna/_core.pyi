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

# ---- indexed files -------------------------------------------------------------------------------

# ---- windows -------------------------------------------------------------------------------------

# ---- masking -------------------------------------------------------------------------------------
