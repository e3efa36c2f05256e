// The tokens that a BPE merge list can make, and which of them may stand next to each other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace megatron_dna {

// One line of a merge list: `left` followed by `right` becomes `merged`. Vocabulary ids.
struct BpeMerge {
  std::int32_t left;
  std::int32_t right;
  std::int32_t merged;
};

// Tokens are numbered by rank: first the single characters, then merged tokens in the order of
// their merges. A smaller rank is an earlier merge.
using Rank = std::uint32_t;
inline constexpr Rank kNoRank = UINT32_MAX;

struct BpeToken {
  std::string text;
  Rank left;  // the two tokens it is merged from; itself for a single character
  Rank right;
  Rank prefix;      // the longest token that is a proper prefix of it, or kNoRank
  std::int32_t id;  // in the vocabulary
};

class BpeVocabulary {
 public:
  // `texts` has the token of every id; `merges` are in order of rank. Throws std::invalid_argument
  // if a merge is listed before the merges that make its parts.
  BpeVocabulary(const std::vector<std::string>& texts, const std::vector<BpeMerge>& merges);

  const std::vector<BpeToken>& tokens() const { return tokens_; }
  // The token of a single character, or kNoRank.
  Rank character(char c) const { return characters_[static_cast<unsigned char>(c)]; }
  // The token that `left` and `right` merge to, or kNoRank.
  Rank find_merge(Rank left, Rank right) const;
  // Whether the text of both, encoded on its own, is the two tokens. The merge of the two
  // themselves counts if its rank is below `limit`.
  bool is_valid_pair(Rank left, Rank right, Rank limit = kNoRank) const;
  // The longest token at the start of `text`, or kNoRank.
  Rank longest_token(std::string_view text) const;

 private:
  struct Slot {
    std::uint64_t pair;  // left << 32 | right
    Rank merged;         // kNoRank: the slot is free
  };

  void add_characters(const std::vector<std::string>& texts, std::vector<Rank>& rank_of_id);
  void add_merge(Rank left, Rank right, const BpeMerge& merge, const std::string& text);
  void build_trie();
  // Where the pair is in `slots_`, or where it belongs.
  std::size_t find_slot(std::uint64_t pair) const;

  std::vector<BpeToken> tokens_;        // by rank
  std::vector<Rank> characters_;        // [256]
  std::vector<Slot> slots_;             // open addressing; a power of two
  std::vector<std::uint32_t> letters_;  // [256] column of a byte in the trie
  std::uint32_t trie_width_ = 0;        // characters in the vocabulary
  std::vector<std::uint32_t> trie_;     // [node, letter] -> node; 0: none
  std::vector<Rank> trie_tokens_;       // [node] the token that ends there, or kNoRank
};

}  // namespace megatron_dna
