// Exact byte-pair encoding of DNA in linear time.
//
// A token sequence is the BPE encoding of a string if and only if every adjacent pair in it is
// valid: the pair, encoded on its own, stays as it is. So the encoder takes the longest token that
// fits, goes on while pairs are valid, else tries the next shorter token, else takes the last token
// back. Each prefix of the string has exactly one such sequence, so no position is entered twice
// and the work is linear in the length of the string.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "bpe_dna.hpp"
#include "bpe_lanes.hpp"
#include "bpe_vocabulary.hpp"
#include "encoder.hpp"

namespace megatron_dna {

class BpeEncoder : public Encoder {
 public:
  // See Encoder; `merges` are in order of rank. Throws std::invalid_argument if the merge list does
  // not allow exact linear-time encoding.
  BpeEncoder(const std::vector<std::string>& vocab, const std::vector<BpeMerge>& merges,
             const std::vector<std::int32_t>& specials, const EncoderOptions& options);

  bool is_fast() const override { return tables_.usable(); }

 private:
  void encode_letters(std::string_view letters, const std::vector<std::size_t>& others,
                      std::vector<std::int32_t>& ids) const override;
  void encode_known(std::string_view run, std::vector<std::int32_t>& ids) const;
  // The encoding of a text from `start` on: ranks, the last token first.
  struct Known {
    std::vector<std::uint16_t> ranks;
    std::size_t start;
  };
  // Goes on with a lane until its tokens are followed by those that are known; drops of these what
  // the lane has covered.
  void finish_lane(std::string_view run, const PackedDna& packed,
                   const std::vector<std::size_t>& others, BpeLane& lane, Known& known) const;
  void encode_dna(std::string_view run, const std::vector<std::size_t>& others,
                  std::vector<std::int32_t>& ids) const;

  BpeVocabulary vocabulary_;
  DnaTables tables_;
  std::vector<std::int32_t> ids_;  // [rank]
};

}  // namespace megatron_dna
