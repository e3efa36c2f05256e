// The one file that knows Python: thin bindings, each wrapped by a typed facade in megatron_dna.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "bpe.hpp"

namespace py = pybind11;

namespace {

// A NumPy array that owns the vector's memory: no copy.
template <typename T>
py::array_t<T> to_array(std::vector<T>&& values) {
  auto owner = std::make_unique<std::vector<T>>(std::move(values));
  T* data = owner->data();
  const auto size = static_cast<py::ssize_t>(owner->size());
  py::capsule free(owner.release(), [](void* p) { delete static_cast<std::vector<T>*>(p); });
  return py::array_t<T>(size, data, free);
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "C++ core of megatron_dna";

  // ---- BPE -------------------------------------------------------------------------------------

  using megatron_dna::BpeEncoder;
  using MergeTuple = std::tuple<std::int32_t, std::int32_t, std::int32_t>;
  py::class_<BpeEncoder>(m, "BpeEncoder")
      .def(py::init([](std::vector<std::string> vocab, const std::vector<MergeTuple>& merges,
                       const std::vector<std::int32_t>& specials, std::int32_t unk_id, bool strip,
                       std::size_t min_gap_length) {
             std::vector<megatron_dna::BpeMerge> merge_list;
             merge_list.reserve(merges.size());
             for (const auto& [left, right, merged] : merges) {
               merge_list.push_back({left, right, merged});
             }
             return std::make_unique<BpeEncoder>(
                 std::move(vocab), merge_list, specials,
                 megatron_dna::BpeOptions{unk_id, strip, min_gap_length});
           }),
           py::kw_only(), py::arg("vocab"), py::arg("merges"), py::arg("specials"),
           py::arg("unk_id"), py::arg("strip"), py::arg("min_gap_length"))
      .def(
          "encode",
          [](const BpeEncoder& self, std::string_view text) {
            std::vector<std::int32_t> ids;
            {
              py::gil_scoped_release release;
              self.encode(text, ids);
            }
            return to_array(std::move(ids));
          },
          py::arg("text"));

  // ---- sequences -------------------------------------------------------------------------------

  // ---- indexed files ---------------------------------------------------------------------------

  // ---- windows ---------------------------------------------------------------------------------

  // ---- masking ---------------------------------------------------------------------------------
}
