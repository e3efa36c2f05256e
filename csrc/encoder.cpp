#include "encoder.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace megatron_dna {
namespace {

using std::size_t;
using std::string_view;

constexpr char kGap = '-';
constexpr string_view kBases = "ACGT";

// Length in bytes of the character at the start of `text`; throws if it is not UTF-8.
size_t character_length(string_view text) {
  const auto lead = static_cast<unsigned char>(text.front());
  const size_t length = lead < 0x80   ? 1
                        : lead < 0xC2 ? 0
                        : lead < 0xE0 ? 2
                        : lead < 0xF0 ? 3
                        : lead < 0xF5 ? 4
                                      : 0;
  const auto is_continuation = [](char c) {
    return (static_cast<unsigned char>(c) & 0xC0) == 0x80;
  };
  if (length == 0 || length > text.size() ||
      !std::all_of(text.begin() + 1, text.begin() + static_cast<std::ptrdiff_t>(length),
                   is_continuation)) {
    throw std::invalid_argument("the sequence is not UTF-8 text");
  }
  return length;
}

// Whether the character, as UTF-8, has the Unicode property White_Space.
bool is_space(string_view character) {
  static constexpr string_view kSpaces[] = {
      "\t",     "\n",     "\v",     "\f",     "\r",     " ",      "\u0085", "\u00A0", "\u1680",
      "\u2000", "\u2001", "\u2002", "\u2003", "\u2004", "\u2005", "\u2006", "\u2007", "\u2008",
      "\u2009", "\u200A", "\u2028", "\u2029", "\u202F", "\u205F", "\u3000"};
  return std::find(std::begin(kSpaces), std::end(kSpaces), character) != std::end(kSpaces);
}

string_view strip(string_view text) {
  while (!text.empty() && is_space(text.substr(0, character_length(text)))) {
    text.remove_prefix(character_length(text));
  }
  while (!text.empty()) {
    size_t start = text.size() - 1;
    while (start > 0 && (static_cast<unsigned char>(text[start]) & 0xC0) == 0x80) --start;
    if (!is_space(text.substr(start))) break;
    text.remove_suffix(text.size() - start);
  }
  return text;
}

// Zero if eight letters are A, C, G and T: two bits of a letter tell which of the four it must be.
std::uint64_t find_difference(const char* letters) {
  constexpr std::uint64_t kOnes = 0x0101010101010101U;
  std::uint64_t word;
  std::memcpy(&word, letters, sizeof word);
  const std::uint64_t is_t = word >> 2 & ~(word >> 1) & kOnes;
  return word ^ (kOnes << 6 | (word & kOnes * 6) | is_t << 4 | (is_t ^ kOnes));
}

// Whether all letters are A, C, G and T; the loop has no branch, so that it becomes a few vector
// instructions.
bool are_all_bases(string_view text) {
  std::uint64_t difference = 0;
  size_t at = 0;
  for (; at + 8 <= text.size(); at += 8) difference |= find_difference(text.data() + at);
  return difference == 0 && text.find_first_not_of(kBases, at) == text.npos;
}

}  // namespace

Encoder::Encoder(const std::vector<std::string>& vocab, const std::vector<std::int32_t>& specials,
                 const EncoderOptions& options)
    : options_(options) {
  letter_ids_.fill(-1);
  for (size_t id = 0; id < vocab.size(); ++id) {
    if (vocab[id].size() != 1) continue;
    const auto byte = static_cast<unsigned char>(vocab[id][0]);
    letter_ids_[byte] = static_cast<std::int32_t>(id);
    kinds_[byte] |= kKnown;
  }
  gap_id_ = letter_id(kGap) < 0 ? options.unk_id : letter_id(kGap);
  for (const std::int32_t id : specials) {
    specials_.emplace_back(vocab.at(static_cast<size_t>(id)), id);
    kinds_[static_cast<unsigned char>(specials_.back().first.at(0))] |= kSpecialStart;
  }
  for (size_t byte = 0; byte < kinds_.size(); ++byte) {
    const bool is_base = kBases.find(static_cast<char>(byte)) != string_view::npos;
    if (!is_base || (kinds_[byte] & kKnown) == 0) kinds_[byte] |= kOther;
  }
  for (const unsigned char start : {'N', kGap}) kinds_[start] |= kGapStart;
  bases_are_plain_ = std::all_of(kBases.begin(), kBases.end(), [&](char base) {
    return kinds_[static_cast<unsigned char>(base)] == kKnown;
  });
  std::stable_sort(specials_.begin(), specials_.end(),
                   [](const auto& a, const auto& b) { return a.first.size() > b.first.size(); });
}

size_t Encoder::find(string_view text, Kind kind, size_t start) const {
  const bool skips_bases = !has('A', kind) && !has('C', kind) && !has('G', kind) && !has('T', kind);
  for (size_t at = start; at < text.size();) {
    if (skips_bases && text.size() - at >= 8 && find_difference(text.data() + at) == 0) {
      at += 8;
      continue;
    }
    for (const size_t end = std::min(at + 8, text.size()); at < end; ++at) {
      if (has(text[at], kind)) return at;
    }
  }
  return text.size();
}

void Encoder::encode(string_view text, std::vector<std::int32_t>& ids) const {
  if (bases_are_plain_ && !text.empty() && are_all_bases(text)) {
    encode_letters(text, {}, ids);
    return;
  }
  size_t start = 0;
  for (size_t at = 0; (at = find(text, kSpecialStart, at)) < text.size();) {
    const auto special = std::find_if(specials_.begin(), specials_.end(), [&](const auto& entry) {
      return text.substr(at).starts_with(entry.first);
    });
    if (special == specials_.end()) {
      ++at;
      continue;
    }
    encode_piece(text.substr(start, at - start), ids);
    ids.push_back(special->second);
    start = at += special->first.size();
  }
  encode_piece(text.substr(start), ids);
}

void Encoder::encode_piece(string_view piece, std::vector<std::int32_t>& ids) const {
  if (options_.strip) piece = strip(piece);
  size_t start = 0;
  for (size_t at = 0; (at = find(piece, kGapStart, at)) < piece.size();) {
    const size_t end = std::min(piece.find_first_not_of('N', at), piece.size());
    const bool is_gap =
        piece[at] == kGap || end - at >= static_cast<size_t>(options_.min_gap_length);
    const size_t next = piece[at] == kGap ? at + 1 : end;
    if (is_gap) {
      encode_word(piece.substr(start, at - start), ids);
      ids.push_back(gap_id_);
      start = next;
    }
    at = next;
  }
  encode_word(piece.substr(start), ids);
}

void Encoder::encode_word(string_view word, std::vector<std::int32_t>& ids) const {
  std::vector<size_t> others;
  while (!word.empty()) {
    size_t known = 0;
    for (others.clear(); (known = find(word, kOther, known)) < word.size(); ++known) {
      if (!has(word[known], kKnown)) break;
      others.push_back(known);
    }
    if (known > 0) encode_letters(word.substr(0, known), others, ids);
    word.remove_prefix(known);
    if (!word.empty()) {
      ids.push_back(options_.unk_id);
      word.remove_prefix(character_length(word));
    }
  }
}

}  // namespace megatron_dna
