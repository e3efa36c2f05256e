// Nucleotide sequence: cleaning of FASTA text, stretches between runs of N, reverse complement.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace megatron_dna {

// What `clean_sequence` wrote.
struct Cleaned {
  std::size_t length;         // bases written
  std::size_t num_ambiguous;  // of these, IUPAC ambiguity codes (R, Y, ...) that became N
};

// A part of a sequence, 0-based half-open.
struct Interval {
  std::int64_t start;
  std::int64_t end;
};

// Writes the bases of `raw` to `cleaned` (at least as long): upper case, ambiguity codes as N,
// spaces, tabs and line ends left out. Any other byte throws std::invalid_argument with the byte
// and its position, 1-based and counted in bases, of which `num_before` came before `raw`.
Cleaned clean_sequence(std::string_view raw, std::span<char> cleaned, std::size_t num_before);

// The stretches of a cleaned sequence between its runs of at least `min_run` N, in order. Shorter
// runs stay inside a stretch. Throws std::invalid_argument if `min_run` is 0.
std::vector<Interval> find_stretches(std::string_view sequence, std::size_t min_run);

// Writes the reverse complement of a cleaned sequence (A, C, G, T and N only, else
// std::invalid_argument) to `reversed`, which has the same length.
void reverse_complement(std::string_view sequence, std::span<char> reversed);

}  // namespace megatron_dna
