// Training of byte-pair encoding: the most frequent pair of neighbours becomes a token, again and
// again; of equally frequent pairs the one whose tokens came first.
//
// Made for long sequences in little memory: a token takes two bytes for each letter that it spells,
// in place. Where a pair occurs is only kept for pairs that are frequent enough to be merged soon
// and not so frequent that looking for them is as good; the others are found by going over the
// whole text, at most a few dozen times.
#pragma once

#include <cstddef>
#include <cstdint>
#include <queue>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace megatron_dna {

struct BpeTrainerOptions {
  std::size_t min_frequency;  // a pair that occurs less often is not merged
  std::size_t max_length;     // letters of the longest token
};

class BpeTrainer {
 public:
  using Token = std::uint16_t;  // letters first, in the order given, then the merged ones
  using Pair = std::pair<Token, Token>;

  BpeTrainer(std::string_view letters, const BpeTrainerOptions& options);

  // Makes room for texts of so many letters in all.
  void reserve(std::size_t num_letters, std::size_t num_texts) {
    tokens_.reserve(num_letters + num_texts + 1);
  }
  // Adds text to train on; no pair crosses its ends. Throws std::invalid_argument if it has other
  // letters, if all text is too long for 32-bit positions, or after the first merge.
  void add(std::string_view text);

  // The next merges, `num_merges` of them or fewer if no pair is left that is frequent enough.
  // Throws std::invalid_argument if that makes more tokens than 16 bits can number.
  std::vector<Pair> merge(std::size_t num_merges);

 private:
  static constexpr Token kBreak = UINT16_MAX;       // between texts
  static constexpr Token kInside = UINT16_MAX - 1;  // where a token that was merged began
  using Position = std::uint32_t;                   // in tokens_

  struct Entry {  // a pair that is tracked
    std::size_t count;
    std::vector<Position> positions;  // where it may be, ascending; empty: anywhere
  };
  struct Change {  // of the pairs with one neighbour when a pair is merged
    std::size_t lost = 0;
    std::vector<Position> made;
  };
  using Changes = std::vector<Change>;  // [neighbour]

  struct Candidate {
    std::size_t count;  // at least the count of the pair
    Pair pair;
    bool operator<(const Candidate& other) const {
      return count != other.count ? count < other.count : other.pair < pair;
    }
  };

  static std::uint32_t key(Pair pair) { return std::uint32_t{pair.first} << 16 | pair.second; }
  bool may_merge(Token left, Token right) const {
    return std::size_t{lengths_[left]} + lengths_[right] <= options_.max_length;
  }
  template <typename Visit>
  void visit_tokens(Visit visit) const;
  void find_pairs();
  void track(Pair pair, std::vector<Position>&& positions);
  void merge_pair(Pair pair);
  void merge_at(Position at, Pair pair, Token merged, Changes& before, Changes& after);

  BpeTrainerOptions options_;
  Token token_of_letter_[256];
  std::vector<std::uint16_t> lengths_;  // [token] letters
  // The first and the last letter's place of each token hold its number.
  std::vector<Token> tokens_{kBreak};
  std::size_t threshold_ = 0;  // pairs that occur at least so often are tracked; 0: none yet
  std::unordered_map<std::uint32_t, Entry> entries_;
  std::priority_queue<Candidate> candidates_;  // tracked pairs
};

}  // namespace megatron_dna
