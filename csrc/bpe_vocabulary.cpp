#include "bpe_vocabulary.hpp"

#include <bit>
#include <stdexcept>

namespace megatron_dna {
namespace {

std::uint64_t pair_key(Rank left, Rank right) { return std::uint64_t{left} << 32 | right; }

}  // namespace

// A merge whose pair is not valid at its turn never happens: an earlier merge takes one side of it
// away wherever the two meet. It is left out, and so is a second merge that makes the same token.
// What cannot be had in linear time is a merge listed before the merges that make its parts.
BpeVocabulary::BpeVocabulary(const std::vector<std::string>& texts,
                             const std::vector<BpeMerge>& merges)
    : slots_(std::bit_ceil(2 * merges.size() + 2), Slot{0, kNoRank}) {
  std::vector<Rank> rank_of_id(texts.size(), kNoRank);
  add_characters(texts, rank_of_id);
  const auto rank_of = [&](std::int32_t id) -> Rank& {
    return rank_of_id.at(static_cast<std::size_t>(id));
  };
  std::vector<const BpeMerge*> impossible;
  for (const BpeMerge& merge : merges) {
    const Rank left = rank_of(merge.left), right = rank_of(merge.right);
    if (left == kNoRank || right == kNoRank) {
      impossible.push_back(&merge);
    } else if (rank_of(merge.merged) == kNoRank && is_valid_pair(left, right)) {
      rank_of(merge.merged) = static_cast<Rank>(tokens_.size());
      add_merge(left, right, merge, texts[static_cast<std::size_t>(merge.merged)]);
    }
  }
  for (const BpeMerge* merge : impossible) {
    if (rank_of(merge->left) != kNoRank && rank_of(merge->right) != kNoRank) {
      throw std::invalid_argument("merge '" + texts[static_cast<std::size_t>(merge->left)] + " " +
                                  texts[static_cast<std::size_t>(merge->right)] +
                                  "' must come after the merges that make its two parts");
    }
  }
  build_trie();
}

void BpeVocabulary::add_characters(const std::vector<std::string>& texts,
                                   std::vector<Rank>& rank_of_id) {
  characters_.assign(256, kNoRank);
  for (std::size_t id = 0; id < texts.size(); ++id) {
    if (texts[id].size() != 1) continue;
    const auto rank = static_cast<Rank>(tokens_.size());
    tokens_.push_back({texts[id], rank, rank, kNoRank, static_cast<std::int32_t>(id)});
    rank_of_id[id] = rank;
    characters_[static_cast<unsigned char>(texts[id][0])] = rank;
  }
}

void BpeVocabulary::add_merge(Rank left, Rank right, const BpeMerge& merge,
                              const std::string& text) {
  const std::uint64_t pair = pair_key(left, right);
  slots_[find_slot(pair)] = {pair, static_cast<Rank>(tokens_.size())};
  tokens_.push_back({text, left, right, kNoRank, merge.merged});
}

void BpeVocabulary::build_trie() {
  letters_.assign(256, 0);
  for (std::size_t byte = 0; byte < 256; ++byte) {
    if (characters_[byte] != kNoRank) letters_[byte] = trie_width_++;
  }
  trie_.assign(trie_width_, 0);
  trie_tokens_.assign(1, kNoRank);
  for (Rank rank = 0; rank < tokens_.size(); ++rank) {
    std::uint32_t node = 0;
    for (const char c : tokens_[rank].text) {
      const std::size_t edge =
          std::size_t{node} * trie_width_ + letters_[static_cast<unsigned char>(c)];
      if (trie_[edge] == 0) {
        trie_[edge] = static_cast<std::uint32_t>(trie_tokens_.size());
        trie_tokens_.push_back(kNoRank);
        trie_.resize(trie_.size() + trie_width_, 0);
      }
      node = trie_[edge];
    }
    trie_tokens_[node] = rank;
  }
  for (BpeToken& token : tokens_) {
    const std::string_view text = token.text;
    if (text.size() > 1) token.prefix = longest_token(text.substr(0, text.size() - 1));
  }
}

std::size_t BpeVocabulary::find_slot(std::uint64_t pair) const {
  const std::size_t mask = slots_.size() - 1;
  std::size_t slot = (pair * 0x9E3779B97F4A7C15U >> 32) & mask;
  while (slots_[slot].merged != kNoRank && slots_[slot].pair != pair) slot = (slot + 1) & mask;
  return slot;
}

Rank BpeVocabulary::find_merge(Rank left, Rank right) const {
  return slots_[find_slot(pair_key(left, right))].merged;
}

// Undoes the merges of both tokens, the latest first, and looks at every pair that met at the
// border on the way: a merge of the two that comes before they are merged elsewhere makes the pair
// invalid. Of equal merges the left one comes first.
bool BpeVocabulary::is_valid_pair(Rank left, Rank right, Rank limit) const {
  for (;;) {
    if (find_merge(left, right) < limit) return false;
    if (left > right) {
      if (tokens_[left].right == left) return true;
      limit = left;
      left = tokens_[left].right;
    } else {
      if (tokens_[right].left == right) return true;
      limit = right + 1;
      right = tokens_[right].left;
    }
  }
}

Rank BpeVocabulary::longest_token(std::string_view text) const {
  Rank longest = kNoRank;
  std::uint32_t node = 0;
  for (const char c : text) {
    node = trie_[std::size_t{node} * trie_width_ + letters_[static_cast<unsigned char>(c)]];
    if (node == 0) break;
    if (trie_tokens_[node] != kNoRank) longest = trie_tokens_[node];
  }
  return longest;
}

}  // namespace megatron_dna
