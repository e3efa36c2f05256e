// Exact byte-pair encoding of DNA in linear time.
//
// A token sequence is the BPE encoding of a string if and only if every adjacent pair in it is
// valid: the pair, encoded on its own, stays as it is. So the encoder takes the longest token that
// fits, goes on while pairs are valid, else tries the next shorter token, else takes the last token
// back. Each prefix of the string has exactly one such sequence, so no position is entered twice
// and the work is linear in the length of the string.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bpe_dna.hpp"
#include "bpe_vocabulary.hpp"

namespace megatron_dna {

// Everything that a tokenizer.json of GENA's kind says about encoding.
struct BpeOptions {
  std::int32_t unk_id;            // id of a character outside the vocabulary
  bool strip;                     // white space at both ends of a piece is dropped
  std::ptrdiff_t min_gap_length;  // a run of N at least this long becomes "-"
};

class BpeEncoder {
 public:
  // `vocab` has the token of every id; `merges` are in order of rank; `specials` are ids of tokens
  // that are found in the raw text before anything else happens to it.
  // Throws std::invalid_argument if the merge list does not allow exact linear-time encoding.
  BpeEncoder(const std::vector<std::string>& vocab, const std::vector<BpeMerge>& merges,
             const std::vector<std::int32_t>& specials, const BpeOptions& options);

  BpeEncoder(const BpeEncoder&) = delete;  // the tables refer to the vocabulary
  BpeEncoder& operator=(const BpeEncoder&) = delete;

  // Ids of `text` (UTF-8), appended to `ids`. Throws std::invalid_argument if it is not UTF-8.
  void encode(std::string_view text, std::vector<std::int32_t>& ids) const;

  // Whether A, C, G and T go the fast way; every other letter and vocabulary goes the plain way,
  // with the same ids.
  bool is_fast() const { return tables_.usable(); }

 private:
  enum Kind : std::uint8_t { kBase = 1, kKnown = 2, kGapStart = 4, kSpecialStart = 8 };

  bool has(char c, Kind kind) const { return (kinds_[static_cast<unsigned char>(c)] & kind) != 0; }
  void encode_piece(std::string_view piece, std::vector<std::int32_t>& ids) const;
  void encode_word(std::string_view word, std::vector<std::int32_t>& ids) const;
  void encode_known(std::string_view run, std::vector<std::int32_t>& ids) const;
  void encode_dna(std::string_view run, const std::vector<std::size_t>& others,
                  std::vector<std::int32_t>& ids) const;

  BpeVocabulary vocabulary_;
  DnaTables tables_;
  BpeOptions options_;
  std::int32_t gap_id_;
  std::array<std::uint8_t, 256> kinds_{};                       // [byte] set of Kind
  std::vector<std::pair<std::string, std::int32_t>> specials_;  // longest first
};

}  // namespace megatron_dna
