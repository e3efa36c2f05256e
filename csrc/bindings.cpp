// The one file that knows Python: thin bindings, each wrapped by a typed facade in megatron_dna.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

namespace py = pybind11;

PYBIND11_MODULE(_core, m) {
  m.doc() = "C++ core of megatron_dna";

  // ---- BPE -------------------------------------------------------------------------------------

  // ---- sequences -------------------------------------------------------------------------------

  // ---- indexed files ---------------------------------------------------------------------------

  // ---- windows ---------------------------------------------------------------------------------

  // ---- masking ---------------------------------------------------------------------------------
}
