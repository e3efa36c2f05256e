// Tables that make BPE of A, C, G and T fast: packed text in, the longest token and the validity of
// a pair out, each in a few loads. For GENA's 32,000 tokens they take about 2 MB, and the parts
// that are used most stay in the L2 cache.
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
  static constexpr std::size_t kMaxLength = 64;  // of a token in the tables
  static constexpr std::uint16_t kNone = UINT16_MAX;

  // Refers to `vocabulary` for as long as it lives.
  explicit DnaTables(const BpeVocabulary& vocabulary);

  // False if the vocabulary does not fit: more tokens than 16 bits can number beside the tables'
  // rows, a token longer than kMaxLength, or a base that is not a token. Then nothing else may be
  // called.
  bool usable() const { return usable_; }

  std::uint16_t length(std::uint16_t token) const { return rights_[token].length; }
  // The longest token that is a proper prefix of `token`, or kNone.
  std::uint16_t prefix(std::uint16_t token) const { return rights_[token].prefix; }
  // Stands for the token before the first one: anything may follow it.
  std::uint16_t beginning() const { return num_tokens_; }

  // The longest token at `at`, if nothing but bases is within kMaxLength; zeros after the end count
  // as bases.
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

  // The first of `candidate`, its prefix, the prefix's prefix ... that may follow `last`, or kNone.
  std::uint16_t longest_valid(std::uint16_t last, std::uint16_t candidate) const {
    const Left left = lefts_[last];
    const std::uint16_t* meetings = meetings_.data() + std::size_t{left.end} * num_early_;
    for (; candidate != kNone; candidate = rights_[candidate].prefix) {
      const Right& right = rights_[candidate];
      const std::uint16_t merged = meetings[right.start];
      if (merged < left.limit && merged <= right.limit) continue;
      if ((left.late & right.late) == 0 || vocabulary_.is_valid_pair(last, candidate)) break;
    }
    return candidate;
  }

 private:
  static constexpr std::size_t kShort = 8;  // bases that the first table looks at

  // A pair is valid if no merge joins the tokens that meet at its border while they last. "Early"
  // tokens are the first num_early_ ones. When they have all been made, the right token of a pair
  // starts with an early one, `start`, until the merge with rank `limit` makes that a late one.
  struct Right {
    std::uint16_t prefix;  // the longest token that is a proper prefix of this one, or kNone
    std::uint16_t start;
    std::uint16_t limit;   // kNone: `start` is the whole token
    std::uint16_t length;  // letters
    std::uint32_t late;    // set of possible merges with a late token; see build_pairs
  };
  // The left token ends with the early token `end`, until `limit`.
  struct Left {
    std::uint16_t end;
    std::uint16_t limit;
    std::uint32_t late;
  };
  struct Long {              // a token of more than 9 bases, or the last of its list
    std::uint64_t bases[2];  // packed
    std::uint64_t masks[2];  // the bits of `bases` that count
    std::uint16_t token;
  };

  Long make_long(Rank rank) const;
  void build_matches();
  void build_pairs();

  const BpeVocabulary& vocabulary_;
  bool usable_ = false;
  std::uint16_t num_tokens_ = 0;
  std::size_t num_early_ = 0;
  // Entries below num_tokens_ are tokens; others are num_tokens_ + where to look next.
  std::vector<std::uint16_t> shorts_;  // [first 8 bases] -> token, or row of `nexts_`
  std::vector<std::uint16_t> nexts_;   // [row, ninth base] -> token, or first of a list in `longs_`
  std::vector<Long> longs_;            // lists, the longest token first; the last always fits
  std::vector<Right> rights_;          // [token]
  std::vector<Left> lefts_;            // [token], then the beginning
  // [end, start], then a row for the beginning: rank of the merge of the two; kNone: they do not
  // merge; 0: they cannot be neighbours when all early merges are made.
  std::vector<std::uint16_t> meetings_;
};

}  // namespace megatron_dna
