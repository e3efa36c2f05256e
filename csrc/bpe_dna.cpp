#include "bpe_dna.hpp"

#include <algorithm>
#include <array>
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
  for (; i + 8 <= text.size(); i += 8) {
    std::uint64_t letters;
    std::memcpy(&letters, text.data() + i, sizeof letters);
    letters = letters >> 1 & 0x0303030303030303U;  // then two, four and eight bases side by side
    letters = (letters | letters >> 6) & 0x000F000F000F000FU;
    letters = (letters | letters >> 12) & 0x000000FF000000FFU;
    const auto packed = static_cast<std::uint16_t>(letters | letters >> 24);
    std::memcpy(bytes_.data() + i / 4, &packed, sizeof packed);
  }
  const std::uint32_t rest = pack(text.substr(i));
  bytes_[i / 4] = static_cast<std::uint8_t>(rest);
  bytes_[i / 4 + 1] = static_cast<std::uint8_t>(rest >> 8);
}

DnaTables::DnaTables(const BpeVocabulary& vocabulary) : vocabulary_(vocabulary) {
  const std::vector<BpeToken>& tokens = vocabulary.tokens();
  const auto is_short = [](const BpeToken& token) { return token.text.size() <= kMaxLength; };
  if (std::any_of(kBases.begin(), kBases.end(),
                  [&](char base) { return vocabulary.character(base) == kNoRank; }) ||
      !std::all_of(tokens.begin(), tokens.end(), is_short) || tokens.size() + 2 >= kNever) {
    return;
  }
  num_tokens_ = static_cast<std::uint16_t>(tokens.size());
  num_early_ = std::min(tokens.size(), kMaxEarly);
  num_columns_ = num_early_ + 1;
  build_rows();
  build_meetings();
  build_dead_ends();
  build_matches();
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

// The longest token at the start of kLook bases, without those that nothing may follow.
std::uint16_t DnaTables::longest_followed(std::uint32_t bases) const {
  auto token = static_cast<std::uint16_t>(vocabulary_.longest_token(unpack(bases, kLook)));
  while (length(token) + kAhead <= kLook && is_dead_end(rows_[token], bases >> 2 * length(token))) {
    token = prefix(token);
  }
  return token;
}

void DnaTables::build_matches() {
  const std::vector<BpeToken>& tokens = vocabulary_.tokens();
  std::map<std::uint32_t, std::vector<Rank>> by_start;  // tokens longer than kLook, longest first
  for (Rank rank = 0; rank < num_tokens_; ++rank) {
    const std::string_view text = tokens[rank].text;
    if (text.size() > kLook && is_dna(text)) by_start[pack(text.substr(0, kLook))].push_back(rank);
  }
  for (auto& [start, ranks] : by_start) {
    std::stable_sort(ranks.begin(), ranks.end(),
                     [&](Rank a, Rank b) { return tokens[a].text.size() > tokens[b].text.size(); });
  }
  const auto add_list = [&](std::uint32_t start, const std::vector<Rank>& ranks) {
    const std::size_t list = longs_.size();
    for (const Rank rank : ranks) longs_.push_back(make_long(rank));
    longs_.push_back({{0, 0}, {0, 0}, longest_followed(start)});  // always fits
    return static_cast<std::uint16_t>(num_tokens_ + list);
  };
  std::map<std::array<std::uint16_t, 4>, std::uint16_t> known;  // rows of `nexts_`
  shorts_.resize(std::size_t{1} << 2 * kShort);
  for (std::uint32_t start = 0; start < shorts_.size(); ++start) {
    std::array<std::uint16_t, 4> row;
    for (std::uint32_t next = 0; next < 4; ++next) {
      const std::uint32_t bases = start | next << 2 * kShort;
      const auto found = by_start.find(bases);
      row[next] =
          found == by_start.end() ? longest_followed(bases) : add_list(bases, found->second);
    }
    const auto [entry, is_new] =
        known.try_emplace(row, static_cast<std::uint16_t>(nexts_.size() / 4));
    if (is_new) nexts_.insert(nexts_.end(), row.begin(), row.end());
    shorts_[start] = entry->second;
  }
  usable_ = num_tokens_ + longs_.size() < kNever;
}

// Two small Bloom filters in one word, which meet in a bitwise `and`. A merge (x, y) of a late x
// sets a bit for y in the lower half: in the left word of every token that x ends, and in the right
// word of every token that y starts. A merge of a late y sets a bit for x in the upper half.
void DnaTables::build_rows() {
  const std::vector<BpeToken>& tokens = vocabulary_.tokens();
  std::vector<std::vector<Rank>> merges_of_left(num_tokens_), merges_of_right(num_tokens_);
  for (Rank rank = 0; rank < num_tokens_; ++rank) {
    if (tokens[rank].left == rank) continue;  // a single character
    merges_of_left[tokens[rank].left].push_back(rank);
    merges_of_right[tokens[rank].right].push_back(rank);
  }
  const auto narrow = [](auto value) { return static_cast<std::uint16_t>(value); };
  const auto bit = [](Rank rank) { return 1U << (rank * 0x9E3779B1U >> 28); };
  rows_.resize(num_tokens_ + std::size_t{2});
  for (Rank rank = 0; rank < num_tokens_; ++rank) {
    Row& row = rows_[rank];
    Rank start = rank, limit = kNever;
    for (;; limit = start, start = tokens[start].left) {
      for (const Rank merge : merges_of_right[start]) {
        if (merge > limit) continue;
        if (start >= num_early_) row.right_late |= bit(tokens[merge].left) << 16;
        if (tokens[merge].left >= num_early_) row.right_late |= bit(start);
      }
      if (start < num_early_) break;
    }
    row.start = narrow(start);
    row.right_limit = narrow(limit);
    Rank end = rank;
    for (limit = kNever;; limit = end, end = tokens[end].right) {
      for (const Rank merge : merges_of_left[end]) {
        if (merge >= limit) continue;
        if (end >= num_early_) row.left_late |= bit(tokens[merge].right);
        if (tokens[merge].right >= num_early_) row.left_late |= bit(end) << 16;
      }
      if (end < num_early_) break;
    }
    row.end = narrow(end);
    row.left_limit = narrow(limit);
    row.prefix = tokens[rank].prefix == kNoRank ? none() : narrow(tokens[rank].prefix);
    row.length = narrow(tokens[rank].text.size());
  }
  rows_[beginning()].end = narrow(num_early_);
  rows_[none()].start = narrow(num_early_);
  rows_[none()].right_limit = kNever;
  for (Row& row : rows_) {
    row.other_prefix = row.prefix;
    const auto is_alike = [&](const Row& other) {
      return other.start == row.start && other.right_limit >= row.right_limit;
    };
    while (row.other_prefix != none() && is_alike(rows_[row.other_prefix])) {
      row.other_prefix = rows_[row.other_prefix].prefix;
    }
  }
}

void DnaTables::build_meetings() {
  meetings_.assign((num_early_ + 1) * num_columns_, kNever);
  for (Rank end = 0; end < num_early_; ++end) meetings_[end * num_columns_ + num_early_] = 0;
  for (Rank end = 0; end < num_early_; ++end) {
    for (Rank start = 0; start < num_early_; ++start) {
      const Rank merged = vocabulary_.find_merge(end, start);
      const bool can_meet = merged >= num_early_ && vocabulary_.is_valid_pair(end, start, 0);
      meetings_[end * num_columns_ + start] =
          can_meet ? static_cast<std::uint16_t>(merged) : std::uint16_t{0};
    }
  }
}

// For each few bases, the early tokens that tokens starting with them start with, each with the
// smallest limit of those: what it forbids, it forbids to all of them.
void DnaTables::build_dead_ends() {
  constexpr std::size_t kStarts = std::size_t{1} << 2 * kAhead;
  std::vector<std::map<std::uint16_t, std::uint16_t>> limits(kStarts);
  for (Rank rank = 0; rank < num_tokens_; ++rank) {
    const std::string_view known =
        std::string_view(vocabulary_.tokens()[rank].text).substr(0, kAhead);
    if (!is_dna(known)) continue;
    for (std::size_t next = pack(known); next < kStarts;
         next += std::size_t{1} << 2 * known.size()) {
      auto& limit = limits[next].try_emplace(rows_[rank].start, kNever).first->second;
      limit = std::min(limit, rows_[rank].right_limit);
    }
  }
  dead_ends_.assign((num_early_ + 1) * kStarts, kNever);
  for (std::size_t end = 0; end < num_early_; ++end) {
    for (std::size_t next = 0; next < kStarts; ++next) {
      std::uint16_t highest = 0;
      for (const auto& [start, limit] : limits[next]) {
        const std::uint16_t merged = meetings_[end * num_columns_ + start];
        highest = std::max(highest, merged <= limit ? merged : kNever);
      }
      dead_ends_[end * kStarts + next] = highest;
    }
  }
}

}  // namespace megatron_dna
