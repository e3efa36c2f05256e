#include "bpe.hpp"

#include <algorithm>
#include <stdexcept>

namespace megatron_dna {
namespace {

using std::size_t;
using std::string_view;

constexpr string_view kGap = "-";

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

}  // namespace

BpeEncoder::BpeEncoder(const std::vector<std::string>& vocab, const std::vector<BpeMerge>& merges,
                       const std::vector<std::int32_t>& specials, const BpeOptions& options)
    : vocabulary_(vocab, merges), tables_(vocabulary_), options_(options) {
  const Rank gap = vocabulary_.character(kGap[0]);
  gap_id_ = gap == kNoRank ? options.unk_id : vocabulary_.tokens()[gap].id;
  for (const std::int32_t id : specials) {
    specials_.emplace_back(vocab.at(static_cast<size_t>(id)), id);
    kinds_[static_cast<unsigned char>(specials_.back().first.at(0))] |= kSpecialStart;
  }
  for (size_t byte = 0; byte < kinds_.size(); ++byte) {
    if (vocabulary_.character(static_cast<char>(byte)) != kNoRank) kinds_[byte] |= kKnown;
  }
  for (const unsigned char base : string_view("ACGT")) kinds_[base] |= kBase;
  for (const unsigned char start : string_view("N-")) kinds_[start] |= kGapStart;
  std::stable_sort(specials_.begin(), specials_.end(),
                   [](const auto& a, const auto& b) { return a.first.size() > b.first.size(); });
}

void BpeEncoder::encode(string_view text, std::vector<std::int32_t>& ids) const {
  const auto starts_special = [this](char c) { return has(c, kSpecialStart); };
  size_t start = 0;
  for (auto at = text.begin(); (at = std::find_if(at, text.end(), starts_special)) != text.end();) {
    const auto end = static_cast<size_t>(at - text.begin());
    const auto special = std::find_if(specials_.begin(), specials_.end(), [&](const auto& entry) {
      return text.substr(end).starts_with(entry.first);
    });
    if (special == specials_.end()) {
      ++at;
      continue;
    }
    encode_piece(text.substr(start, end - start), ids);
    ids.push_back(special->second);
    start = end + special->first.size();
    at = text.begin() + static_cast<std::ptrdiff_t>(start);
  }
  encode_piece(text.substr(start), ids);
}

void BpeEncoder::encode_piece(string_view piece, std::vector<std::int32_t>& ids) const {
  if (options_.strip) piece = strip(piece);
  const auto starts_gap = [this](char c) { return has(c, kGapStart); };
  size_t start = 0;
  for (auto at = piece.begin(); (at = std::find_if(at, piece.end(), starts_gap)) != piece.end();) {
    const auto run_end = std::find_if(at, piece.end(), [](char c) { return c != 'N'; });
    const bool is_gap = *at == kGap[0] || run_end - at >= options_.min_gap_length;
    if (is_gap) {
      encode_word(piece.substr(start, static_cast<size_t>(at - piece.begin()) - start), ids);
      ids.push_back(gap_id_);
    }
    at = *at == kGap[0] ? at + 1 : run_end;
    if (is_gap) start = static_cast<size_t>(at - piece.begin());
  }
  encode_word(piece.substr(start), ids);
}

void BpeEncoder::encode_word(string_view word, std::vector<std::int32_t>& ids) const {
  std::vector<size_t> others;  // known letters that are not bases
  while (!word.empty()) {
    size_t known = 0;
    for (others.clear(); known < word.size() && has(word[known], kKnown); ++known) {
      if (!has(word[known], kBase)) others.push_back(known);
    }
    if (tables_.usable()) {
      encode_dna(word.substr(0, known), others, ids);
    } else {
      encode_known(word.substr(0, known), ids);
    }
    word.remove_prefix(known);
    if (!word.empty()) {
      ids.push_back(options_.unk_id);
      word.remove_prefix(character_length(word));
    }
  }
}

void BpeEncoder::encode_known(string_view run, std::vector<std::int32_t>& ids) const {
  const std::vector<BpeToken>& tokens = vocabulary_.tokens();
  std::vector<Rank> ranks;
  size_t at = 0;
  Rank candidate = vocabulary_.longest_token(run);
  while (at < run.size()) {
    if (candidate == kNoRank) {
      const BpeToken& last = tokens[ranks.back()];
      ranks.pop_back();
      at -= last.text.size();
      candidate = last.prefix;
    } else if (ranks.empty() || vocabulary_.is_valid_pair(ranks.back(), candidate)) {
      ranks.push_back(candidate);
      at += tokens[candidate].text.size();
      candidate = vocabulary_.longest_token(run.substr(at));
    } else {
      candidate = tokens[candidate].prefix;
    }
  }
  for (const Rank rank : ranks) ids.push_back(tokens[rank].id);
}

// As encode_known, on tables.
void BpeEncoder::encode_dna(string_view run, const std::vector<size_t>& others,
                            std::vector<std::int32_t>& ids) const {
  if (run.empty()) return;
  const PackedDna packed(run);
  const size_t first = ids.size();  // ids[first:] hold ranks until the end of the run
  size_t at = 0;
  size_t next_other = 0;  // others[next_other] is the first at or after `at`
  const auto longest_token = [&]() -> std::uint16_t {
    while (next_other < others.size() && others[next_other] < at) ++next_other;
    if (next_other < others.size() && others[next_other] - at < DnaTables::kMaxLength) {
      return static_cast<std::uint16_t>(vocabulary_.longest_token(run.substr(at)));
    }
    std::uint16_t token = tables_.longest_token(packed, at);
    while (tables_.length(token) > run.size() - at) token = tables_.prefix(token);
    return token;
  };
  for (std::uint16_t candidate = longest_token(); at < run.size();) {
    const auto last =
        ids.size() == first ? tables_.beginning() : static_cast<std::uint16_t>(ids.back());
    candidate = tables_.longest_valid(last, candidate);
    if (candidate == DnaTables::kNone) {
      ids.pop_back();
      at -= tables_.length(last);
      candidate = tables_.prefix(last);
      while (next_other > 0 && others[next_other - 1] >= at) --next_other;
    } else {
      ids.push_back(candidate);
      at += tables_.length(candidate);
      if (at < run.size()) candidate = longest_token();
    }
  }
  const std::vector<BpeToken>& tokens = vocabulary_.tokens();
  for (size_t i = first; i < ids.size(); ++i) ids[i] = tokens[static_cast<size_t>(ids[i])].id;
}

}  // namespace megatron_dna
