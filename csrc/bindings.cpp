// The one file that knows Python: thin bindings, each wrapped by a typed facade in megatron_dna.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cerrno>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <tuple>
#include <utility>
#include <vector>

#include "bpe.hpp"
#include "indexed_writer.hpp"
#include "sequence.hpp"

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

// The bytes of a bytes, bytearray or memoryview object, without a copy. Valid while `info` lives.
std::string_view view_of(const py::buffer_info& info) {
  if (info.ndim != 1 || info.itemsize != 1 || (info.size > 1 && info.strides[0] != 1)) {
    throw std::invalid_argument("a sequence must be contiguous bytes");
  }
  return {static_cast<const char*>(info.ptr), static_cast<std::size_t>(info.size)};
}

// A bytes object of `size` bytes whose content is still to be written, and where to write it.
std::pair<py::bytes, std::span<char>> allocate_bytes(std::size_t size) {
  py::bytes object(nullptr, size);
  return {object, std::span(PyBytes_AS_STRING(object.ptr()), size)};
}

// std::system_error becomes OSError (FileNotFoundError, BlockingIOError, ... by its number).
void translate_system_error(std::exception_ptr error) {
  try {
    if (error) std::rethrow_exception(error);
  } catch (const std::system_error& e) {
    const py::tuple arguments = py::make_tuple(e.code().value(), e.what());
    PyErr_SetObject(PyExc_OSError, arguments.ptr());
  }
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

  m.def(
      "clean_sequence",
      [](const py::buffer& raw, std::size_t num_before) {
        const py::buffer_info info = raw.request();
        const std::string_view text = view_of(info);
        auto [cleaned, out] = allocate_bytes(text.size());
        megatron_dna::Cleaned result{};
        {
          py::gil_scoped_release release;
          result = megatron_dna::clean_sequence(text, out, num_before);
        }
        PyObject* object = cleaned.release().ptr();
        if (_PyBytes_Resize(&object, static_cast<py::ssize_t>(result.length)) != 0) {
          throw py::error_already_set();
        }
        return py::make_tuple(py::reinterpret_steal<py::bytes>(object), result.num_ambiguous);
      },
      py::arg("raw"), py::arg("num_before"));
  m.def(
      "find_stretches",
      [](const py::buffer& sequence, std::size_t min_run) {
        const py::buffer_info info = sequence.request();
        const std::string_view text = view_of(info);
        std::vector<megatron_dna::Interval> stretches;
        {
          py::gil_scoped_release release;
          stretches = megatron_dna::find_stretches(text, min_run);
        }
        std::vector<std::pair<std::int64_t, std::int64_t>> bounds;
        bounds.reserve(stretches.size());
        for (const auto& [start, end] : stretches) bounds.emplace_back(start, end);
        return bounds;
      },
      py::arg("sequence"), py::arg("min_run"));
  m.def(
      "reverse_complement",
      [](const py::buffer& sequence) {
        const py::buffer_info info = sequence.request();
        const std::string_view text = view_of(info);
        auto [reversed, out] = allocate_bytes(text.size());
        {
          py::gil_scoped_release release;
          megatron_dna::reverse_complement(text, out);
        }
        return std::move(reversed);
      },
      py::arg("sequence"));

  // ---- indexed files ---------------------------------------------------------------------------

  using megatron_dna::IndexedWriter;
  py::register_local_exception_translator(translate_system_error);
  py::class_<IndexedWriter>(m, "IndexedWriter")
      .def(py::init<const std::string&, std::int64_t>(), py::arg("prefix"), py::arg("vocab_size"))
      .def(
          "append",
          [](IndexedWriter& self, const py::array_t<std::int32_t, py::array::c_style>& ids) {
            const std::span<const std::int32_t> values(ids.data(),
                                                       static_cast<std::size_t>(ids.size()));
            py::gil_scoped_release release;
            self.append(values);
          },
          py::arg("ids").noconvert())
      .def("end_document", &IndexedWriter::end_document)
      .def("prepare", &IndexedWriter::prepare, py::call_guard<py::gil_scoped_release>())
      .def("publish", &IndexedWriter::publish, py::call_guard<py::gil_scoped_release>())
      .def("abort", &IndexedWriter::abort)
      .def_property_readonly("num_documents", &IndexedWriter::num_documents)
      .def_property_readonly("num_tokens", &IndexedWriter::num_tokens)
      .def_property_readonly("bytes_per_token", &IndexedWriter::bytes_per_token);

  // ---- windows ---------------------------------------------------------------------------------

  // ---- masking ---------------------------------------------------------------------------------
}
