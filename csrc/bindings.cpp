// The one file that knows Python: thin bindings, each wrapped by a typed facade in megatron_dna.

#include "bindings.hpp"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <tuple>
#include <utility>
#include <variant>
#include <vector>

#include "bpe.hpp"
#include "bpe_trainer.hpp"
#include "indexed_writer.hpp"
#include "kmer.hpp"
#include "masking.hpp"
#include "sequence.hpp"
#include "windows.hpp"

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

// The array's memory as a span; no copy. The caller keeps the array alive.
template <typename T>
std::span<const T> to_span(const py::array_t<T, py::array::c_style>& array) {
  return {array.data(), static_cast<std::size_t>(array.size())};
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

void bind_tokenizers(py::module_& m) {
  using megatron_dna::BpeEncoder, megatron_dna::Encoder, megatron_dna::KmerEncoder;
  using MergeTuple = std::tuple<std::int32_t, std::int32_t, std::int32_t>;
  py::class_<Encoder>(m, "Encoder")
      .def(
          "encode",
          [](const Encoder& self, std::string_view text) {
            std::vector<std::int32_t> ids;
            {
              py::gil_scoped_release release;
              self.encode(text, ids);
            }
            return to_array(std::move(ids));
          },
          py::arg("text"))
      .def_property_readonly("is_fast", &Encoder::is_fast);
  py::class_<BpeEncoder, Encoder>(m, "BpeEncoder")
      .def(py::init([](const std::vector<std::string>& vocab, const std::vector<MergeTuple>& merges,
                       const std::vector<std::int32_t>& specials, std::int32_t unk_id, bool strip,
                       std::ptrdiff_t min_gap_length) {
             std::vector<megatron_dna::BpeMerge> merge_list;
             merge_list.reserve(merges.size());
             for (const auto& [left, right, merged] : merges) {
               merge_list.push_back({left, right, merged});
             }
             const py::gil_scoped_release release;  // the tables take a while
             return std::make_unique<BpeEncoder>(
                 vocab, merge_list, specials,
                 megatron_dna::EncoderOptions{unk_id, strip, min_gap_length});
           }),
           py::kw_only(), py::arg("vocab"), py::arg("merges"), py::arg("specials"),
           py::arg("unk_id"), py::arg("strip"), py::arg("min_gap_length"));
  py::class_<KmerEncoder, Encoder>(m, "KmerEncoder")
      .def(py::init([](const std::vector<std::string>& vocab, std::size_t length,
                       const std::vector<std::int32_t>& specials, std::int32_t unk_id, bool strip,
                       std::ptrdiff_t min_gap_length) {
             return std::make_unique<KmerEncoder>(
                 vocab, length, specials,
                 megatron_dna::EncoderOptions{unk_id, strip, min_gap_length});
           }),
           py::kw_only(), py::arg("vocab"), py::arg("length"), py::arg("specials"),
           py::arg("unk_id"), py::arg("strip"), py::arg("min_gap_length"));
}

void bind_bpe_trainer(py::module_& m) {
  using megatron_dna::BpeTrainer;
  py::class_<BpeTrainer>(m, "BpeTrainer")
      .def(
          py::init([](std::string_view letters, std::size_t min_frequency, std::size_t max_length) {
            const megatron_dna::BpeTrainerOptions options{min_frequency, max_length};
            return std::make_unique<BpeTrainer>(letters, options);
          }),
          py::arg("letters"), py::kw_only(), py::arg("min_frequency"), py::arg("max_length"))
      .def("reserve", &BpeTrainer::reserve, py::arg("num_letters"), py::arg("num_texts"))
      .def(
          "add",
          [](BpeTrainer& self, const py::buffer& text) {
            const py::buffer_info info = text.request();
            self.add(view_of(info));
          },
          py::arg("text"))
      .def("merge", &BpeTrainer::merge, py::arg("num_merges"),
           py::call_guard<py::gil_scoped_release>());
}

void bind_sequence(py::module_& m) {
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
}

void bind_indexed_writer(py::module_& m) {
  using megatron_dna::IndexedWriter;
  py::register_local_exception_translator(translate_system_error);
  py::class_<IndexedWriter>(m, "IndexedWriter")
      .def(py::init<const std::string&, std::int64_t, std::vector<std::int32_t>>(),
           py::arg("prefix"), py::arg("vocab_size"), py::arg("finished"))
      .def(
          "append",
          [](IndexedWriter& self, const py::array_t<std::int32_t, py::array::c_style>& ids) {
            const auto values = to_span(ids);
            py::gil_scoped_release release;
            self.append(values);
          },
          py::arg("ids").noconvert())
      .def("end_document", &IndexedWriter::end_document)
      .def("sync", &IndexedWriter::sync, py::call_guard<py::gil_scoped_release>())
      .def("prepare", &IndexedWriter::prepare, py::call_guard<py::gil_scoped_release>())
      .def("publish", &IndexedWriter::publish, py::call_guard<py::gil_scoped_release>())
      .def("abort", &IndexedWriter::abort)
      .def("leave", &IndexedWriter::leave)
      .def_property_readonly("num_documents", &IndexedWriter::num_documents)
      .def_property_readonly("num_tokens", &IndexedWriter::num_tokens)
      .def_property_readonly("bytes_per_token", &IndexedWriter::bytes_per_token);
}

template <typename T>
std::span<T> to_mutable_span(py::array_t<T, py::array::c_style>& array, py::ssize_t size,
                             const char* name) {
  if (array.size() != size) {
    throw std::invalid_argument(std::string(name) + " must have " + std::to_string(size) +
                                " elements");
  }
  return {array.mutable_data(), static_cast<std::size_t>(size)};
}

using Tokens = std::variant<std::span<const std::uint16_t>, std::span<const std::int32_t>>;

// Token ids as they lie in a .bin file.
Tokens to_tokens(const py::handle& object) {
  if (py::isinstance<py::array_t<std::uint16_t, py::array::c_style>>(object)) {
    return to_span(py::cast<py::array_t<std::uint16_t, py::array::c_style>>(object));
  }
  if (py::isinstance<py::array_t<std::int32_t, py::array::c_style>>(object)) {
    return to_span(py::cast<py::array_t<std::int32_t, py::array::c_style>>(object));
  }
  throw std::invalid_argument("token ids must be contiguous arrays of uint16 or int32");
}

using Int32Array = py::array_t<std::int32_t, py::array::c_style>;
using Int64Array = py::array_t<std::int64_t, py::array::c_style>;
using FloatArray = py::array_t<float, py::array::c_style>;

void bind_windows(py::module_& m) {
  using megatron_dna::WindowIndex;
  py::class_<WindowIndex>(m, "WindowIndex")
      .def(py::init([](const Int32Array& document_lengths, std::int64_t window_tokens,
                       std::int64_t min_tokens, std::uint64_t seed, std::uint64_t stream,
                       bool random_phase) {
             const megatron_dna::WindowOptions options{window_tokens, min_tokens, seed, stream,
                                                       random_phase};
             return std::make_unique<WindowIndex>(to_span(document_lengths), options);
           }),
           py::arg("document_lengths"), py::kw_only(), py::arg("window_tokens"),
           py::arg("min_tokens"), py::arg("seed"), py::arg("stream"), py::arg("random_phase"))
      .def("__len__", &WindowIndex::size)
      .def(
          "locate",
          [](const WindowIndex& self, const Int64Array& samples) {
            const auto in = to_span(samples);
            Int64Array documents(samples.size());
            Int64Array starts(samples.size());
            Int64Array lengths(samples.size());
            std::int64_t* document = documents.mutable_data();
            std::int64_t* start = starts.mutable_data();
            std::int64_t* length = lengths.mutable_data();
            {
              py::gil_scoped_release release;
              for (std::size_t i = 0; i < in.size(); ++i) {
                const megatron_dna::Window window = self.at(in[i]);
                document[i] = window.document;
                start[i] = window.start;
                length[i] = window.length;
              }
            }
            return py::make_tuple(documents, starts, lengths);
          },
          py::arg("samples"));
}

// Masks one window a sample into arrays of the caller. Returns an id that is outside the vocabulary
// (or None) and the number of its window.
py::tuple write_masked(const megatron_dna::Masker& self, const std::vector<py::object>& windows,
                       const Int64Array& samples, std::int64_t num_segments, Int64Array& input_ids,
                       Int64Array& masked_positions, Int64Array& labels, FloatArray& loss_mask,
                       Int32Array& num_real, Int64Array& num_bases) {
  const std::int64_t rows = num_segments * samples.size();
  const std::int64_t slots = rows * self.options().num_masked;
  const megatron_dna::MaskedBatch batch{
      num_segments,
      samples.size(),
      to_mutable_span(input_ids, rows * self.options().segment_size, "input_ids"),
      to_mutable_span(masked_positions, slots, "masked_positions"),
      to_mutable_span(labels, slots, "labels"),
      to_mutable_span(loss_mask, slots, "loss_mask"),
      to_mutable_span(num_real, rows, "num_real"),
      to_mutable_span(num_bases, rows, "num_bases")};
  const auto numbers = to_span(samples);
  std::vector<Tokens> tokens;
  for (const py::object& window : windows) tokens.push_back(to_tokens(window));
  if (tokens.size() != numbers.size()) {
    throw std::invalid_argument("there must be one window for each sample");
  }
  std::optional<std::int64_t> bad_id;
  std::size_t slot = 0;
  {
    py::gil_scoped_release release;
    for (; slot < tokens.size(); ++slot) {
      bad_id = std::visit(
          [&](const auto& window) {
            return self.write(window, static_cast<std::uint64_t>(numbers[slot]),
                              static_cast<std::int64_t>(slot), batch);
          },
          tokens[slot]);
      if (bad_id) break;
    }
  }
  return py::make_tuple(bad_id, slot);
}

void bind_masking(py::module_& m) {
  using megatron_dna::Masker;
  py::class_<Masker>(m, "Masker")
      .def(py::init([](std::int64_t segment_size, std::int64_t num_masked, double mean_span_length,
                       std::uint64_t seed, std::uint64_t stream, std::int32_t cls_id,
                       std::int32_t sep_id, std::int32_t pad_id, std::int32_t mask_id,
                       const Int32Array& special_ids, const Int32Array& token_lengths) {
             const megatron_dna::MaskingOptions options{segment_size, num_masked, mean_span_length,
                                                        seed,         stream,     cls_id,
                                                        sep_id,       pad_id,     mask_id};
             return std::make_unique<Masker>(options, to_span(special_ids), to_span(token_lengths));
           }),
           py::kw_only(), py::arg("segment_size"), py::arg("num_masked"),
           py::arg("mean_span_length"), py::arg("seed"), py::arg("stream"), py::arg("cls_id"),
           py::arg("sep_id"), py::arg("pad_id"), py::arg("mask_id"), py::arg("special_ids"),
           py::arg("token_lengths"))
      .def("write", &write_masked, py::arg("windows"), py::arg("samples"), py::kw_only(),
           py::arg("num_segments"), py::arg("input_ids").noconvert(),
           py::arg("masked_positions").noconvert(), py::arg("labels").noconvert(),
           py::arg("loss_mask").noconvert(), py::arg("num_real").noconvert(),
           py::arg("num_bases").noconvert());
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "C++ core of megatron_dna";

  // ---- tokenizers ------------------------------------------------------------------------------

  bind_tokenizers(m);
  bind_bpe_trainer(m);

  // ---- sequences -------------------------------------------------------------------------------

  bind_sequence(m);

  // ---- haplotypes ------------------------------------------------------------------------------

  bind_haplotypes(m);

  // ---- indexed files ---------------------------------------------------------------------------

  bind_indexed_writer(m);

  // ---- windows ---------------------------------------------------------------------------------

  bind_windows(m);

  // ---- masking ---------------------------------------------------------------------------------

  bind_masking(m);
}
