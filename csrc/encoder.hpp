// What a tokenizer.json does to text before its model sees it, the same for every kind of model:
// special tokens, white space at the ends, runs of N, letters that are not in the vocabulary.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace megatron_dna {

struct EncoderOptions {
  std::int32_t unk_id;            // id of a character outside the vocabulary
  bool strip;                     // white space at both ends of a piece is dropped
  std::ptrdiff_t min_gap_length;  // a run of N at least this long becomes "-"
};

class Encoder {
 public:
  virtual ~Encoder() = default;
  Encoder(const Encoder&) = delete;  // tables of the models refer to their own members
  Encoder& operator=(const Encoder&) = delete;

  // Ids of `text` (UTF-8), appended to `ids`. Throws std::invalid_argument if it is not UTF-8.
  void encode(std::string_view text, std::vector<std::int32_t>& ids) const;

  // Whether A, C, G and T go the fast way; every other letter and vocabulary goes the plain way,
  // with the same ids.
  virtual bool is_fast() const = 0;

 protected:
  // `vocab` has the token of every id; `specials` are ids of tokens that are found in the raw text
  // before anything else happens to it.
  Encoder(const std::vector<std::string>& vocab, const std::vector<std::int32_t>& specials,
          const EncoderOptions& options);

  // Id of the token that is this one letter, or -1.
  std::int32_t letter_id(char letter) const {
    return letter_ids_[static_cast<unsigned char>(letter)];
  }

 private:
  enum Kind : std::uint8_t {
    kKnown = 1,  // a token by itself
    kOther = 2,  // anything but A, C, G and T that are known
    kGapStart = 4,
    kSpecialStart = 8
  };

  // Ids of letters that are all tokens; those at `others` are not A, C, G or T.
  virtual void encode_letters(std::string_view letters, const std::vector<std::size_t>& others,
                              std::vector<std::int32_t>& ids) const = 0;

  bool has(char c, Kind kind) const { return (kinds_[static_cast<unsigned char>(c)] & kind) != 0; }
  // Where the first character of that kind is, from `start` on, or the end.
  std::size_t find(std::string_view text, Kind kind, std::size_t start) const;
  void encode_piece(std::string_view piece, std::vector<std::int32_t>& ids) const;
  void encode_word(std::string_view word, std::vector<std::int32_t>& ids) const;

  EncoderOptions options_;
  std::int32_t gap_id_;
  std::array<std::int32_t, 256> letter_ids_;
  std::array<std::uint8_t, 256> kinds_{};                       // [byte] set of Kind
  bool bases_are_plain_ = false;                                // A, C, G, T: tokens, no special's
  std::vector<std::pair<std::string, std::int32_t>> specials_;  // longest first
};

}  // namespace megatron_dna
