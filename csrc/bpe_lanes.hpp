// BPE of one text from several places at once, in one thread.
//
// Each step of the search waits for the loads of the one before it, so a core that works on one
// text is idle most of the time. Lanes are searches that begin at different places of a text and
// take turns step by step. A lane that begins in the middle is right from there on for the text
// that begins there; where its tokens and those of the lane before it have a border in common, and
// the two tokens that meet there may stand side by side, all of them together are the encoding,
// since tokens are the encoding of their text if and only if every two neighbours are valid.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "bpe_dna.hpp"

namespace megatron_dna {

struct BpeLane {
  std::size_t start;                  // in the text
  std::size_t stop;                   // where it may end: the start of the next lane
  std::size_t at;                     // the end of its tokens so far
  std::uint16_t candidate;            // to be tried there
  std::vector<std::uint16_t> tokens;  // ranks, behind `beginning()`
};

// Lanes for a text of `length` letters, in order, the first at 0; not yet advanced. Those at
// `others` are not bases: no lane comes near them.
std::vector<BpeLane> advance_lanes(const DnaTables& tables, const PackedDna& text,
                                   std::size_t length, const std::vector<std::size_t>& others);

}  // namespace megatron_dna
