// One line of a VCF file: its fields, and the genotype of a sample in it.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>

namespace megatron_dna {

// Views into the line that was parsed.
struct VcfRecord {
  std::string_view contig;
  std::int64_t position;       // of the first base of REF, 0-based; -1 before the contig's start
  std::string_view ref;        // at least one letter
  std::string_view alts;       // separated by commas; "." where there is none
  std::string_view genotypes;  // the samples' columns, separated by tabs
  int gt_field;                // where GT is in FORMAT; -1 if it is not there
};

// Splits a data line (without its line end). Throws std::invalid_argument if it has too few columns
// or POS is no number; the text names POS where there is one.
VcfRecord parse_record(std::string_view line);

// The contig of a data line: all before the first tab.
std::string_view contig_of(std::string_view line);

// What a sample has at a site: up to two alleles.
struct Genotype {
  static constexpr std::int32_t kMissing = -1;

  int ploidy;   // alleles written, a lone "." too; above 2: no more is read
  bool phased;  // all separators are '|'
  std::array<std::int32_t, 2>
      alleles;  // 0 is REF, kMissing is "."; the second one copies a lone one
};

// Reads a sample's column; nothing if its GT is not alleles parted by '/' or '|'.
std::optional<Genotype> parse_genotype(std::string_view column, int gt_field);

}  // namespace megatron_dna
