// Bindings of haplotypes, for megatron_dna/genome/variants.py.

#include <pybind11/functional.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings.hpp"
#include "contig_haplotypes.hpp"

namespace py = pybind11;

namespace {

using megatron_dna::ContigHaplotypes;
using SampleTuple = std::tuple<std::string, std::size_t, std::uint64_t>;

megatron_dna::Unphased to_unphased(const std::string& name) {
  if (name == "error") return megatron_dna::Unphased::kError;
  if (name == "skip") return megatron_dna::Unphased::kSkip;
  if (name == "random") return megatron_dna::Unphased::kRandom;
  throw std::invalid_argument("unphased (" + name + ") must be error, skip or random");
}

std::unique_ptr<ContigHaplotypes> make(const std::vector<SampleTuple>& samples,
                                       std::size_t num_columns, const std::string& contig,
                                       std::int64_t length, std::uint64_t contig_key,
                                       const py::function& reference, const std::string& unphased,
                                       bool skip_ref_mismatch, std::uint64_t seed) {
  std::vector<megatron_dna::SampleColumn> columns;
  columns.reserve(samples.size());
  for (const auto& [name, column, key] : samples) columns.push_back({name, column, key});
  // Called while the lock is released.
  const auto read = [reference](std::int64_t start, std::int64_t end) {
    const py::gil_scoped_acquire acquire;
    return py::cast<std::string>(reference(start, end));
  };
  return std::make_unique<ContigHaplotypes>(
      megatron_dna::VariantOptions{to_unphased(unphased), skip_ref_mismatch, seed},
      std::move(columns), num_columns, megatron_dna::ContigInfo{contig, length, contig_key}, read);
}

std::size_t add(ContigHaplotypes& self, const py::buffer& lines, std::size_t start) {
  const py::buffer_info info = lines.request();
  std::string_view text(static_cast<const char*>(info.ptr), static_cast<std::size_t>(info.size));
  text.remove_prefix(std::min(start, text.size()));
  const py::gil_scoped_release release;
  return self.add(text);
}

py::tuple edits(const ContigHaplotypes& self, std::size_t index) {
  const megatron_dna::Haplotype& haplotype = self.haplotype(index);
  const auto size = static_cast<py::ssize_t>(haplotype.num_edits());
  py::array_t<std::int64_t> starts(size);
  py::array_t<std::int64_t> ref_lengths(size);
  py::array_t<std::int64_t> alt_lengths(size);
  for (py::ssize_t i = 0; i < size; ++i) {
    const megatron_dna::Edit& edit = haplotype.edit(static_cast<std::size_t>(i));
    starts.mutable_at(i) = edit.start;
    ref_lengths.mutable_at(i) = edit.ref_length;
    alt_lengths.mutable_at(i) = edit.alt_length;
  }
  return py::make_tuple(starts, ref_lengths, alt_lengths);
}

py::array_t<std::int64_t> edits_beside_n(const ContigHaplotypes& self, std::size_t index) {
  const std::vector<std::size_t> indices = self.haplotype(index).edits_beside_n();
  py::array_t<std::int64_t> result(static_cast<py::ssize_t>(indices.size()));
  std::copy(indices.begin(), indices.end(), result.mutable_data());
  return result;
}

py::bytes spell(const ContigHaplotypes& self, std::size_t index, std::int64_t start,
                std::int64_t end, std::int64_t reference_start, const py::buffer& reference) {
  const py::buffer_info info = reference.request();
  const std::string_view text(static_cast<const char*>(info.ptr),
                              static_cast<std::size_t>(info.size));
  const auto size = static_cast<std::size_t>(std::max<std::int64_t>(end - start, 0));
  py::bytes bases(nullptr, size);
  const std::span out(PyBytes_AS_STRING(bases.ptr()), size);
  {
    const py::gil_scoped_release release;
    self.haplotype(index).spell(start, reference_start, text, out);
  }
  return bases;
}

py::dict counts(const ContigHaplotypes& self, std::size_t index) {
  const megatron_dna::HaplotypeCounts& counts = self.counts(index);
  py::dict result;
  result["applied"] = counts.applied;
  result["overlapping"] = counts.overlapping;
  result["symbolic"] = counts.symbolic;
  result["missing"] = counts.missing;
  result["unphased"] = counts.unphased;
  return result;
}

}  // namespace

void bind_haplotypes(py::module_& m) {
  py::class_<ContigHaplotypes>(m, "ContigHaplotypes")
      .def(py::init(&make), py::kw_only(), py::arg("samples"), py::arg("num_columns"),
           py::arg("contig"), py::arg("length"), py::arg("contig_key"), py::arg("reference"),
           py::arg("unphased"), py::arg("skip_ref_mismatch"), py::arg("seed"))
      .def("add", &add, py::arg("lines"), py::arg("start"))
      .def("finish", &ContigHaplotypes::finish)
      .def("ploidy", &ContigHaplotypes::ploidy, py::arg("sample"))
      .def_property_readonly("num_records", &ContigHaplotypes::num_records)
      .def_property_readonly("num_ref_mismatches", &ContigHaplotypes::num_ref_mismatches)
      .def("counts", &counts, py::arg("haplotype"))
      .def(
          "length",
          [](const ContigHaplotypes& self, std::size_t index) {
            return self.haplotype(index).length();
          },
          py::arg("haplotype"))
      .def("edits", &edits, py::arg("haplotype"))
      .def("edits_beside_n", &edits_beside_n, py::arg("haplotype"))
      .def(
          "reference_span",
          [](const ContigHaplotypes& self, std::size_t index, std::int64_t start,
             std::int64_t end) { return self.haplotype(index).reference_span(start, end); },
          py::arg("haplotype"), py::arg("start"), py::arg("end"))
      .def("spell", &spell, py::arg("haplotype"), py::arg("start"), py::arg("end"),
           py::arg("reference_start"), py::arg("reference"));
}
