// A haplotype: a reference with edits, read from anywhere without ever being whole in memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace megatron_dna {

// Part of the reference, replaced. Equal lengths replace base by base.
struct Edit {
  std::int64_t start;  // 0-based, of the first base replaced; an insertion comes before it
  std::uint32_t ref_length;
  std::uint32_t alt_length;
  std::uint64_t alt_offset;  // of its bases in EditTable::bases

  std::int64_t growth() const { return std::int64_t{alt_length} - std::int64_t{ref_length}; }
};

// The edits that haplotypes of one contig have in common: each is stored once.
struct EditTable {
  std::vector<Edit> edits;
  std::vector<std::uint32_t> beside_n;  // numbers of those with an N in them or next to them
  std::string bases;                    // what the edits put in, one after the other

  std::string_view bases_of(const Edit& edit) const {
    return std::string_view(bases).substr(edit.alt_offset, edit.alt_length);
  }
};

// Numbers of edits of a table, ascending and in the order of the reference; none overlaps the one
// before.
// Memory: 4 bytes an edit, and 8 for every 64. The table outlives the haplotype.
class Haplotype {
 public:
  Haplotype(const EditTable* table, std::int64_t reference_length)
      : table_(table), reference_length_(reference_length) {}

  // Adds an edit, which starts where the one before ends or later.
  void append(std::uint32_t number);
  void shrink_to_fit();

  // Bases.
  std::int64_t length() const { return reference_length_ + shift_; }
  std::size_t num_edits() const { return numbers_.size(); }
  const Edit& edit(std::size_t index) const { return table_->edits[numbers_[index]]; }
  // Which of its edits have an N in them or next to them: where runs of N may differ.
  std::vector<std::size_t> edits_beside_n() const;

  // The reference that `spell` needs for the bases [start, end). Throws std::invalid_argument
  // unless these are at least one base of the haplotype.
  std::pair<std::int64_t, std::int64_t> reference_span(std::int64_t start, std::int64_t end) const;
  // Writes the bases [start, start + out.size()). `reference` is the contig from `reference_start`;
  // throws std::invalid_argument unless it holds the reference_span.
  void spell(std::int64_t start, std::int64_t reference_start, std::string_view reference,
             std::span<char> out) const;

 private:
  // A place in the haplotype: before its edit number `index`.
  struct Cursor {
    std::size_t index;
    std::int64_t shift;  // growth by the edits before
  };

  // Before the first edit that ends after the base `position`.
  Cursor seek(std::int64_t position) const;

  const EditTable* table_;
  std::int64_t reference_length_;
  std::vector<std::uint32_t> numbers_;
  std::vector<std::int64_t> shifts_;  // before each 64th edit
  std::int64_t shift_ = 0;            // by all edits
};

}  // namespace megatron_dna
