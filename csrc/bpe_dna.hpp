// Tables that make BPE of A, C, G and T fast: packed text in, the longest token and the validity of
// a pair out, each in a few loads. For GENA's 32,000 tokens they take about 1 MB, and stay in the
// L2 cache.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <vector>

#include "bpe_vocabulary.hpp"

namespace megatron_dna {

// Two bits a base. Letters other than A C G T are packed as any base: whoever asks must know where
// they are.
class PackedDna {
 public:
  explicit PackedDna(std::string_view text);

  // The bases from `at`, the first in the lowest bits; at least 29 of them, then zeros.
  std::uint64_t bases(std::size_t at) const {
    std::uint64_t word;
    std::memcpy(&word, bytes_.data() + at / 4, sizeof word);
    return word >> 2 * (at % 4);
  }
  // The 32 bases from `at`.
  std::uint64_t bases32(std::size_t at) const {
    const std::uint64_t rest = bytes_[at / 4 + sizeof(std::uint64_t)];
    return bases(at) | rest << 1 << (63 - 2 * (at % 4));
  }

 private:
  std::vector<std::uint8_t> bytes_;  // four bases each, then padding for loads past the end
};

class DnaTables {
 public:
  static constexpr std::size_t kMaxLength = 64;  // longest token that the tables can hold

  // No tables if the vocabulary is not for them: more than 2^16 entries, a token longer than
  // kMaxLength, or a base that is not a token; `usable()` says so.
  explicit DnaTables(const BpeVocabulary& vocabulary);

  bool usable() const { return usable_; }

  // What is kept of a token to check it as the right one of a pair. "Early" tokens are the first
  // num_classes_ ones. While later merges are made, the token's left end is an early token,
  // `start`, until `limit`; from then on it is a late one.
  struct Right {
    std::uint16_t prefix;  // the longest token that is a proper prefix of it, or kNone
    std::uint16_t start;
    std::uint16_t limit;   // rank of the merge that ends `start`, or kNone
    std::uint16_t length;  // bases
    std::uint32_t late;    // set of possible merges with a late token; see `build_pairs`
  };
  // The same to check it as the left one: its right end is `end` until `limit`.
  struct Left {
    std::uint16_t end;
    std::uint16_t limit;
    std::uint32_t late;
  };
  static constexpr std::uint16_t kNone = UINT16_MAX;

  const Right& right(std::uint16_t token) const { return rights_[token]; }
  const Left& left(std::uint16_t token) const { return lefts_[token]; }
  // For each early token that may follow the early token `end`: 0 if the two cannot be neighbours
  // once all early merges are made, else the rank of the merge of the two, or kNone. The pair is
  // invalid if that merge comes before both limits (of equal merges the left one comes first).
  const std::uint16_t* meeting(std::uint16_t end) const {
    return meetings_.data() + std::size_t{end} * num_classes_;
  }
  // The longest token at `at`, if only bases follow within kMaxLength.
  std::uint16_t longest_token(const PackedDna& text, std::size_t at) const {
    const std::uint64_t bases = text.bases(at);
    std::uint16_t entry = shorts_[bases & 0xFFFF];
    if (entry < num_tokens_) return entry;
    entry = nexts_[std::size_t{4} * (entry - num_tokens_) + (bases >> 2 * kShort & 3)];
    if (entry < num_tokens_) return entry;
    const std::uint64_t first = text.bases32(at), second = text.bases32(at + 32);
    const Long* candidate = longs_.data() + (entry - num_tokens_);
    while (((first ^ candidate->bases[0]) & candidate->masks[0]) != 0 ||
           ((second ^ candidate->bases[1]) & candidate->masks[1]) != 0) {
      ++candidate;
    }
    return candidate->token;
  }

 private:
  static constexpr std::size_t kShort = 8;  // bases that the first table looks at

  struct Long {              // a token of more than 9 bases, or the last of its list
    std::uint64_t bases[2];  // packed
    std::uint64_t masks[2];  // the bits of `bases` that count
    std::uint16_t token;
  };

  void build_matches(const BpeVocabulary& vocabulary);
  void build_pairs(const BpeVocabulary& vocabulary);

  bool usable_ = false;
  std::uint16_t num_tokens_ = 0;
  std::size_t num_classes_ = 0;
  // Entries below num_tokens_ are tokens; above, num_tokens_ + row of the next table.
  std::vector<std::uint16_t> shorts_;  // [8 bases]
  std::vector<std::uint16_t> nexts_;   // [row, ninth base]
  std::vector<Long> longs_;            // lists, longest token first; the last always fits
  std::vector<Right> rights_;
  std::vector<Left> lefts_;
  std::vector<std::uint16_t> meetings_;  // [end, start]
};

}  // namespace megatron_dna
