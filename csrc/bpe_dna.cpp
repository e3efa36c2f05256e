#include "bpe_dna.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <map>
#include <string>
#include <utility>

namespace megatron_dna {
namespace {

static_assert(std::endian::native == std::endian::little, "packed text is read as little-endian");

constexpr std::size_t kPadding = 2 * sizeof(std::uint64_t) + 1;
constexpr std::size_t kMaxEarly = 768;       // `meetings_` takes 2 bytes for each two early tokens
constexpr std::string_view kBases = "ACTG";  // by code, which is (letter >> 1) & 3

std::uint32_t code(char base) { return static_cast<unsigned char>(base) >> 1 & 3U; }

bool is_dna(std::string_view text) { return text.find_first_not_of(kBases) == text.npos; }

std::uint32_t pack(std::string_view text) {
  std::uint32_t packed = 0;
  for (std::size_t i = 0; i < text.size(); ++i) packed |= code(text[i]) << 2 * i;
  return packed;
}

std::string unpack(std::uint32_t packed, std::size_t length) {
  std::string text(length, ' ');
  for (std::size_t i = 0; i < length; ++i) text[i] = kBases[packed >> 2 * i & 3U];
  return text;
}

}  // namespace

PackedDna::PackedDna(std::string_view text) : bytes_(text.size() / 4 + 1 + kPadding, 0) {
  std::size_t i = 0;
  for (; i + 4 <= text.size(); i += 4) {
    std::uint32_t letters;
    std::memcpy(&letters, text.data() + i, sizeof letters);
    letters = letters >> 1 & 0x03030303U;
    bytes_[i / 4] =
        static_cast<std::uint8_t>(letters | letters >> 6 | letters >> 12 | letters >> 18);
  }
  bytes_[i / 4] = static_cast<std::uint8_t>(pack(text.substr(i)));
}

DnaTables::DnaTables(const BpeVocabulary& vocabulary) : vocabulary_(vocabulary) {
  const std::vector<BpeToken>& tokens = vocabulary.tokens();
  const auto is_short = [](const BpeToken& token) { return token.text.size() <= kMaxLength; };
  if (std::any_of(kBases.begin(), kBases.end(),
                  [&](char base) { return vocabulary.character(base) == kNoRank; }) ||
      !std::all_of(tokens.begin(), tokens.end(), is_short) || tokens.size() >= kNone) {
    return;
  }
  num_tokens_ = static_cast<std::uint16_t>(tokens.size());
  num_early_ = std::min(tokens.size(), kMaxEarly);
  build_matches();
  build_pairs();
}

DnaTables::Long DnaTables::make_long(Rank rank) const {
  const std::string& text = vocabulary_.tokens()[rank].text;
  Long entry{{0, 0}, {0, 0}, static_cast<std::uint16_t>(rank)};
  for (std::size_t i = 0; i < text.size(); ++i) {
    entry.bases[i / 32] |= std::uint64_t{code(text[i])} << 2 * (i % 32);
    entry.masks[i / 32] |= std::uint64_t{3} << 2 * (i % 32);
  }
  return entry;
}

void DnaTables::build_matches() {
  const std::vector<BpeToken>& tokens = vocabulary_.tokens();
  std::map<std::uint32_t, std::vector<Rank>> by_start;  // tokens longer than kShort, longest first
  for (Rank rank = 0; rank < num_tokens_; ++rank) {
    const std::string_view text = tokens[rank].text;
    if (text.size() > kShort && is_dna(text)) {
      by_start[pack(text.substr(0, kShort))].push_back(rank);
    }
  }
  for (auto& [start, ranks] : by_start) {
    std::stable_sort(ranks.begin(), ranks.end(),
                     [&](Rank a, Rank b) { return tokens[a].text.size() > tokens[b].text.size(); });
  }
  const auto longest = [&](std::uint32_t packed, std::size_t length) {
    return static_cast<std::uint16_t>(vocabulary_.longest_token(unpack(packed, length)));
  };
  shorts_.resize(std::size_t{1} << 2 * kShort);
  for (std::uint32_t start = 0; start < shorts_.size(); ++start) {
    const auto found = by_start.find(start);
    if (found == by_start.end()) {
      shorts_[start] = longest(start, kShort);
      continue;
    }
    shorts_[start] = static_cast<std::uint16_t>(num_tokens_ + nexts_.size() / 4);
    for (std::uint32_t next = 0; next < 4; ++next) {
      const std::size_t list = longs_.size();
      for (const Rank rank : found->second) {
        const std::string_view text = tokens[rank].text;
        if (text.size() > kShort + 1 && code(text[kShort]) == next) {
          longs_.push_back(make_long(rank));
        }
      }
      const std::uint16_t shorter = longest(start | next << 2 * kShort, kShort + 1);
      const bool has_list = longs_.size() > list;
      if (has_list) longs_.push_back({{0, 0}, {0, 0}, shorter});  // always fits
      nexts_.push_back(has_list ? static_cast<std::uint16_t>(num_tokens_ + list) : shorter);
    }
  }
  usable_ = num_tokens_ + std::max(nexts_.size() / 4, longs_.size()) < kNone;
}

// Two small Bloom filters in one word, which meet in a bitwise `and`. A merge (x, y) of a late x
// sets a bit for y in the lower half: in the left word of every token that x ends, and in the right
// word of every token that y starts. A merge of a late y sets a bit for x in the upper half.
void DnaTables::build_pairs() {
  const std::vector<BpeToken>& tokens = vocabulary_.tokens();
  std::vector<std::vector<Rank>> merges_of_left(num_tokens_), merges_of_right(num_tokens_);
  for (Rank rank = 0; rank < num_tokens_; ++rank) {
    if (tokens[rank].left == rank) continue;  // a single character
    merges_of_left[tokens[rank].left].push_back(rank);
    merges_of_right[tokens[rank].right].push_back(rank);
  }
  const auto narrow = [](auto value) { return static_cast<std::uint16_t>(value); };
  const auto bit = [](Rank rank) { return 1U << (rank * 0x9E3779B1U >> 28); };
  for (Rank rank = 0; rank < num_tokens_; ++rank) {
    std::uint32_t late = 0;
    Rank start = rank, limit = kNone;
    for (;; limit = start, start = tokens[start].left) {
      for (const Rank merge : merges_of_right[start]) {
        if (merge > limit) continue;
        if (start >= num_early_) late |= bit(tokens[merge].left) << 16;
        if (tokens[merge].left >= num_early_) late |= bit(start);
      }
      if (start < num_early_) break;
    }
    rights_.push_back({narrow(tokens[rank].prefix), narrow(start), narrow(limit),
                       narrow(tokens[rank].text.size()), late});
    late = 0;
    Rank end = rank;
    for (limit = kNone;; limit = end, end = tokens[end].right) {
      for (const Rank merge : merges_of_left[end]) {
        if (merge >= limit) continue;
        if (end >= num_early_) late |= bit(tokens[merge].right);
        if (tokens[merge].right >= num_early_) late |= bit(end) << 16;
      }
      if (end < num_early_) break;
    }
    lefts_.push_back({narrow(end), narrow(limit), late});
  }
  lefts_.push_back({narrow(num_early_), kNone, 0});  // the beginning
  meetings_.assign((num_early_ + 1) * num_early_, kNone);
  for (Rank end = 0; end < num_early_; ++end) {
    for (Rank start = 0; start < num_early_; ++start) {
      const Rank merged = vocabulary_.find_merge(end, start);
      const bool can_meet = merged >= num_early_ && vocabulary_.is_valid_pair(end, start, 0);
      meetings_[end * num_early_ + start] =
          can_meet ? static_cast<std::uint16_t>(merged) : std::uint16_t{0};
    }
  }
}

}  // namespace megatron_dna
