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
  static constexpr std::size_t kLook = 9;        // bases that two loads tell the longest token of

  // Refers to `vocabulary` for as long as it lives.
  explicit DnaTables(const BpeVocabulary& vocabulary);

  // False if the vocabulary does not fit: more tokens than 16 bits can number beside the tables'
  // rows, a token longer than kMaxLength, or a base that is not a token. Then nothing else may be
  // called.
  bool usable() const { return usable_; }

  std::uint16_t length(std::uint16_t token) const { return rows_[token].length; }
  // The longest token that is a proper prefix of `token`, or none().
  std::uint16_t prefix(std::uint16_t token) const { return rows_[token].prefix; }
  // Stands for the token before the first one: anything may follow it.
  std::uint16_t beginning() const { return num_tokens_; }
  // Stands for no token: nothing may be followed by it.
  std::uint16_t none() const { return static_cast<std::uint16_t>(num_tokens_ + 1); }

  // The longest token at `at` that another may follow, as far as the first kLook bases tell, if
  // nothing but bases is within kMaxLength.
  std::uint16_t longest_token(const PackedDna& text, std::size_t at) const {
    const std::uint16_t entry = find_entry(text.bases(at));
    return entry < num_tokens_ ? entry : longest_of(entry, text, at);
  }

  // The first of `candidate` at `at`, its prefix, the prefix's prefix ... that may follow `last`,
  // or none(). Leaves out those that no token may follow, as far as the bases before `end` tell.
  std::uint16_t longest_valid(std::uint16_t last, std::uint16_t candidate, const PackedDna& text,
                              std::size_t at, std::size_t end) const {
    const Row& left = rows_[last];
    const std::uint16_t* meetings = meetings_.data() + std::size_t{left.end} * num_columns_;
    while (candidate != none()) {
      const Row& right = rows_[candidate];
      const std::size_t next = at + right.length;
      if (next + kAhead <= end && is_dead_end(right, text.bases(next))) {
        candidate = right.prefix;
        continue;
      }
      if (merges_early(meetings[right.start], left, right)) {
        candidate = right.other_prefix;
        continue;
      }
      if (!may_merge_late(left, right) || vocabulary_.is_valid_pair(last, candidate)) break;
      candidate = right.prefix;
    }
    return candidate;
  }

  // A place in the search: tokens up to `at` that may stand side by side, and what to try there.
  struct State {
    std::size_t at;
    std::uint32_t candidate;
    std::uint16_t* last;  // the last token; room for another is behind it
  };

  // One step of the search, without a branch that could be guessed wrong: takes the candidate, or
  // goes on to its prefix, or takes the last token back. Where it stands must be kMaxLength + kLook
  // bases or more before anything that is not a base.
  void step(State& state, const PackedDna& text) const {
    const std::uint32_t last = *state.last, candidate = state.candidate;
    const Row &left = rows_[last], &right = rows_[candidate];
    const std::size_t next = state.at + right.length;
    const std::uint64_t bases = text.bases(next);
    const std::uint32_t merged = meetings_[std::size_t{left.end} * num_columns_ + right.start];
    std::uint32_t is_bad = static_cast<std::uint32_t>(merges_early(merged, left, right)) |
                           static_cast<std::uint32_t>(is_dead_end(right, bases));
    if (may_merge_late(left, right) && is_bad == 0) [[unlikely]] {
      is_bad = !vocabulary_.is_valid_pair(last, candidate);
    }
    std::uint32_t longest = find_entry(bases);
    if (longest >= num_tokens_ && is_bad == 0) [[unlikely]] {
      longest = longest_of(static_cast<std::uint16_t>(longest), text, next);
    }
    // All bits where the token is not taken, and where there is none to try.
    const std::uint32_t bad = -is_bad,
                        none = -static_cast<std::uint32_t>(candidate == this->none());
    const std::uint32_t shorter = (right.prefix & ~none) | (left.prefix & none);
    const std::size_t before = state.at - (left.length & none);
    state.last[1] = static_cast<std::uint16_t>(candidate);
    state.last += std::ptrdiff_t{1} - is_bad - (none & 1);
    state.candidate = longest ^ ((longest ^ shorter) & bad);
    state.at = next ^ ((next ^ before) & -std::size_t{is_bad});
  }

 private:
  static constexpr std::uint16_t kNever = UINT16_MAX;  // rank of what does not happen
  static constexpr std::size_t kShort = kLook - 1;     // bases that the first load looks at
  static constexpr std::size_t kAhead = 3;             // bases behind a token that tell a dead end

  // A pair is valid if no merge joins the tokens that meet at its border while they last. "Early"
  // tokens are the first num_early_ ones. When they have all been made, the right token of a pair
  // starts with an early one, `start`, until the merge with rank `right_limit` makes that a late
  // one; the left token ends with the early token `end`, until `left_limit`.
  struct Row {
    std::uint16_t end;
    std::uint16_t left_limit;  // kNever: `end` is the whole token
    std::uint32_t left_late;   // set of possible merges with a late token; see build_rows
    std::uint16_t prefix;      // the longest token that is a proper prefix of this one, or none()
    // The longest such prefix that an early merge at its start does not forbid where it forbids
    // this token, or none().
    std::uint16_t other_prefix;
    std::uint16_t start;
    std::uint16_t right_limit;  // kNever: `start` is the whole token
    std::uint32_t right_late;
    std::uint16_t length;  // letters
  };
  struct Long {              // a token of more than 9 bases, or the last of its list
    std::uint64_t bases[2];  // packed
    std::uint64_t masks[2];  // the bits of `bases` that count
    std::uint16_t token;
  };

  // Whether the merge `merged` of the early tokens that meet at the border comes before either of
  // the two is merged into what is around it. No branch.
  static bool merges_early(std::uint32_t merged, const Row& left, const Row& right) {
    return static_cast<unsigned>(merged < left.left_limit) &
           static_cast<unsigned>(merged <= right.right_limit);
  }
  // False: no merge with a late token joins the two. True: they may or may not be a valid pair.
  static bool may_merge_late(const Row& left, const Row& right) {
    return (left.left_late & right.right_late) != 0;
  }
  // Whether every token that these bases may start with is forbidden by an early merge.
  bool is_dead_end(const Row& left, std::uint64_t bases) const {
    constexpr std::size_t kStarts = std::size_t{1} << 2 * kAhead;
    return dead_ends_[left.end * kStarts + bases % kStarts] < left.left_limit;
  }

  std::uint16_t find_entry(std::uint64_t bases) const {
    return nexts_[std::size_t{4} * shorts_[bases & 0xFFFF] + (bases >> 2 * kShort & 3)];
  }
  std::uint16_t longest_of(std::uint16_t entry, const PackedDna& text, std::size_t at) const {
    const std::uint64_t first = text.bases32(at), second = text.bases32(at + 32);
    const Long* candidate = longs_.data() + (entry - num_tokens_);
    while (((first ^ candidate->bases[0]) & candidate->masks[0]) != 0 ||
           ((second ^ candidate->bases[1]) & candidate->masks[1]) != 0) {
      ++candidate;
    }
    return candidate->token;
  }

  Long make_long(Rank rank) const;
  std::uint16_t longest_followed(std::uint32_t bases) const;
  void build_matches();
  void build_rows();
  void build_meetings();
  void build_dead_ends();

  const BpeVocabulary& vocabulary_;
  bool usable_ = false;
  std::uint16_t num_tokens_ = 0;
  std::size_t num_early_ = 0;
  std::size_t num_columns_ = 0;        // of `meetings_`
  std::vector<std::uint16_t> shorts_;  // [first 8 bases] -> row of `nexts_`
  // [row, ninth base] -> token, or num_tokens_ + the first of a list in `longs_`
  std::vector<std::uint16_t> nexts_;
  std::vector<Long> longs_;  // lists, the longest token first; the last always fits
  std::vector<Row> rows_;    // [token], then the beginning and none()
  // [end, start], then a row for the beginning, and a column for none(): rank of the merge of the
  // two; kNever: they do not merge; 0: they cannot be neighbours when all early merges are made.
  std::vector<std::uint16_t> meetings_;
  // [end, next bases]: no token that may start with these bases may follow a left token that has a
  // higher `left_limit`.
  std::vector<std::uint16_t> dead_ends_;
};

}  // namespace megatron_dna
