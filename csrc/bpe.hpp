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
#include <unordered_map>
#include <utility>
#include <vector>

namespace megatron_dna {

// One line of the merge list: `left` followed by `right` becomes `merged`. Vocabulary ids.
struct BpeMerge {
  std::int32_t left;
  std::int32_t right;
  std::int32_t merged;
};

// Everything that a tokenizer.json of GENA's kind says about encoding.
struct BpeOptions {
  std::int32_t unk_id;         // id of a character outside the vocabulary
  bool strip;                  // white space at both ends of a piece is dropped
  std::size_t min_gap_length;  // a run of N at least this long becomes "-"
};

class BpeEncoder {
 public:
  // `vocab` has the token of every id; `merges` are in order of rank; `specials` are ids of tokens
  // that are found in the raw text before anything else happens to it.
  // Throws std::invalid_argument if the merge list does not allow exact linear-time encoding.
  BpeEncoder(std::vector<std::string> vocab, const std::vector<BpeMerge>& merges,
             const std::vector<std::int32_t>& specials, const BpeOptions& options);

  // Ids of `text` (UTF-8), appended to `ids`. Throws std::invalid_argument if it is not UTF-8.
  void encode(std::string_view text, std::vector<std::int32_t>& ids) const;

 private:
  // Inside, tokens are numbered by rank: first the single characters, then the merges in order. A
  // smaller rank is then an earlier merge. 32 bits hold any vocabulary.
  using Rank = std::uint32_t;
  static constexpr Rank kNone = UINT32_MAX;

  struct Token {
    Rank left;  // the two tokens it is merged from; itself for a single character
    Rank right;
    Rank prefix;           // the longest token that is a proper prefix of it, or kNone
    std::uint32_t length;  // characters
    std::int32_t id;       // vocabulary id
  };

  void add_characters();
  void add_merges(const std::vector<BpeMerge>& merges);
  void build_trie();
  Rank find_merge(Rank left, Rank right) const;
  bool is_valid_pair(Rank left, Rank right) const;
  Rank longest_token(std::string_view text) const;
  // The special token at the start of `text`, as an id, or -1.
  std::int32_t special_at(std::string_view text) const;
  void encode_piece(std::string_view piece, std::vector<std::int32_t>& ids) const;
  void encode_word(std::string_view word, std::vector<std::int32_t>& ids) const;
  void encode_known(std::string_view run, std::vector<std::int32_t>& ids) const;

  std::vector<std::string> vocab_;
  std::vector<std::int32_t> specials_;  // longest first
  BpeOptions options_;
  std::int32_t gap_id_;
  std::vector<Token> tokens_;                       // by rank
  std::vector<Rank> rank_of_id_;                    // kNone for ids that merging never makes
  std::vector<Rank> character_;                     // [256], kNone for unknown bytes
  std::unordered_map<std::uint64_t, Rank> merges_;  // (left << 32 | right) -> merged
  std::vector<std::uint32_t> trie_;                 // node * trie_width_ + letter -> node, 0: none
  std::vector<Rank> trie_token_;                    // [nodes] token that ends there, or kNone
  std::vector<std::uint32_t> letter_;               // [256] column of a byte in the trie
  std::uint32_t trie_width_ = 0;
};

}  // namespace megatron_dna
