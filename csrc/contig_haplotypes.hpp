// The haplotypes of many samples on one contig, from one reading of its VCF lines.
//
// What overlaps is settled as `bcftools consensus` does: the first record by position wins.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "haplotype.hpp"
#include "vcf.hpp"

namespace megatron_dna {

// Bases [start, end) of the contig, cleaned; called in the thread that adds lines.
using ReferenceReader = std::function<std::string(std::int64_t start, std::int64_t end)>;

enum class Unphased { kError, kSkip, kRandom };

struct VariantOptions {
  Unphased unphased;       // what to do with a genotype whose alleles differ and are not phased
  bool skip_ref_mismatch;  // leave records out whose REF is not the reference's; else throw
  std::uint64_t seed;      // of the draws for kRandom
};

// A sample that is read.
struct SampleColumn {
  std::string name;
  std::size_t column;  // among the VCF's samples, from 0
  std::uint64_t key;   // tells its random draws from another sample's
};

// The contig that the lines are about.
struct ContigInfo {
  std::string name;
  std::int64_t length;
  std::uint64_t key;  // tells its random draws from another contig's
};

// What became of a haplotype's alleles other than REF.
struct HaplotypeCounts {
  std::int64_t applied = 0;
  std::int64_t overlapping = 0;  // a record before it had taken the place
  std::int64_t symbolic = 0;     // <DEL>, *, breakends: not spelled out, so left as reference
  std::int64_t missing = 0;      // "." in the genotype: left as reference
  std::int64_t unphased = 0;     // genotypes left as reference, or drawn, by their phase
};

class ContigHaplotypes {
 public:
  // `samples` in the order of their columns; `num_columns` is the number of samples of the VCF.
  ContigHaplotypes(VariantOptions options, std::vector<SampleColumn> samples,
                   std::size_t num_columns, ContigInfo contig, ReferenceReader reference);
  ContigHaplotypes(const ContigHaplotypes&) = delete;
  ContigHaplotypes& operator=(const ContigHaplotypes&) = delete;

  // Adds whole data lines until one is of another contig; returns the bytes used. Throws
  // std::invalid_argument for a line at fault; nothing more can then be added.
  std::size_t add(std::string_view lines);

  // Call once after the last line: gives back memory that growth had reserved.
  void finish();

  // Haplotype 2 s + h has the allele h of sample s in its genotypes.
  std::size_t num_haplotypes() const { return states_.size(); }
  const Haplotype& haplotype(std::size_t index) const { return states_.at(index).haplotype; }
  const HaplotypeCounts& counts(std::size_t index) const { return states_.at(index).counts; }
  // 1 or 2; 0 where no genotype of the sample says.
  int ploidy(std::size_t sample) const { return ploidy_.at(sample); }
  std::int64_t num_records() const { return num_records_; }
  std::int64_t num_ref_mismatches() const { return num_ref_mismatches_; }  // records left out

 private:
  // An allele of the record at hand.
  struct Allele {
    bool is_symbolic;
    bool is_anchored;      // an indel written with the base before it: it may follow a SNP there
    bool is_longer;        // than REF
    std::uint32_t number;  // among the edits; kNoEdit before a haplotype has it
    std::string_view text;
  };
  // A haplotype that grows.
  struct State {
    Haplotype haplotype;
    HaplotypeCounts counts;
    std::int64_t last_taken;  // last base of the REFs applied
    bool last_is_insertion;   // of the record applied last
  };

  [[noreturn]] void fail(const std::string& what) const;
  void add_record(const VcfRecord& record);
  bool matches_reference();
  std::string_view fetch(std::int64_t start, std::int64_t end);
  void parse_alleles(const VcfRecord& record);
  void add_genotypes(const VcfRecord& record);
  void add_genotype(std::size_t sample, std::string_view column, int gt_field);
  void check_ploidy(std::size_t sample, const Genotype& genotype);
  bool settle_phase(std::size_t sample, Genotype& genotype);
  void apply(std::size_t sample, std::size_t which, std::int32_t number);
  std::uint32_t store(std::string_view alt);
  bool is_beside_n(const Edit& edit);

  VariantOptions options_;
  std::vector<SampleColumn> samples_;
  std::size_t num_columns_;
  ContigInfo contig_;
  ReferenceReader reference_;

  EditTable table_;
  std::vector<State> states_;
  std::vector<std::uint8_t> ploidy_;  // of each sample
  std::int64_t num_records_ = 0;
  std::int64_t num_ref_mismatches_ = 0;

  std::int64_t position_ = -1;  // of the record at hand, 0-based
  std::int64_t ordinal_ = 0;    // of the record among those at its position
  std::string ref_;             // of the record at hand, as in the file
  std::vector<Allele> alleles_;
  std::int64_t buffer_start_ = 0;  // of the reference that is at hand
  std::string buffer_;
};

}  // namespace megatron_dna
