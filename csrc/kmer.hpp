// Non-overlapping k-mers, from left to right; single letters around what is not A, C, G or T, and
// at the end. With k = 1 every letter is a token.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "encoder.hpp"

namespace megatron_dna {

class KmerEncoder : public Encoder {
 public:
  static constexpr std::size_t kMaxLength = 8;  // 65,536 k-mers

  // See Encoder; `length` is k. Throws std::invalid_argument if it is not between 1 and kMaxLength,
  // or if `vocab` lacks a k-mer or one of A, C, G and T.
  KmerEncoder(const std::vector<std::string>& vocab, std::size_t length,
              const std::vector<std::int32_t>& specials, const EncoderOptions& options);

  bool is_fast() const override { return true; }

 private:
  void encode_letters(std::string_view letters, const std::vector<std::size_t>& others,
                      std::vector<std::int32_t>& ids) const override;

  std::size_t length_;
  std::vector<std::int32_t> kmer_ids_;  // [packed k-mer]
};

}  // namespace megatron_dna
