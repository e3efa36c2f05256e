#include "bpe_trainer.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace megatron_dna {
namespace {

// In shares of the text: pairs more frequent than one in kScanned are looked for everywhere; at
// first, pairs at least as frequent as one in kTracked are tracked; when these are used up, kStep
// times rarer ones are.
constexpr std::size_t kScanned = 32;
constexpr std::size_t kTracked = 1024;
constexpr std::size_t kStep = 16;

}  // namespace

BpeTrainer::BpeTrainer(std::string_view letters, const BpeTrainerOptions& options)
    : options_(options), lengths_(letters.size(), 1) {
  std::fill(std::begin(token_of_letter_), std::end(token_of_letter_), kBreak);
  for (std::size_t i = 0; i < letters.size(); ++i) {
    token_of_letter_[static_cast<unsigned char>(letters[i])] = static_cast<Token>(i);
  }
}

void BpeTrainer::add(std::string_view text) {
  if (threshold_ > 0) throw std::invalid_argument("text must be added before the first merge");
  if (text.size() >= UINT32_MAX - tokens_.size()) {
    throw std::invalid_argument("at most 4,294,967,294 letters can be trained on");
  }
  const std::size_t size = tokens_.size();
  for (const char letter : text) {
    tokens_.push_back(token_of_letter_[static_cast<unsigned char>(letter)]);
    if (tokens_.back() == kBreak) {
      tokens_.resize(size);
      throw std::invalid_argument("letter '" + std::string(1, letter) + "' is not in the alphabet");
    }
  }
  tokens_.push_back(kBreak);
}

std::vector<BpeTrainer::Pair> BpeTrainer::merge(std::size_t num_merges) {
  if (lengths_.size() + num_merges > kInside) {
    throw std::invalid_argument("at most 65,534 tokens can be made");
  }
  const auto rarer = [this](std::size_t count) { return std::max(count, options_.min_frequency); };
  if (threshold_ == 0) {
    threshold_ = rarer(tokens_.size() / kTracked + 1);
    find_pairs();
  }
  std::vector<Pair> merges;
  while (merges.size() < num_merges) {
    if (candidates_.empty() || candidates_.top().count < threshold_) {
      if (threshold_ == rarer(1)) break;
      threshold_ = rarer(threshold_ / kStep);
      find_pairs();
      continue;
    }
    const Candidate top = candidates_.top();
    candidates_.pop();
    const std::size_t count = entries_.at(key(top.pair)).count;
    if (count != top.count) {
      candidates_.push({count, top.pair});
    } else {
      merge_pair(top.pair);
      merges.push_back(top.pair);
    }
  }
  return merges;
}

// Calls visit(position) for each token, in order; it may merge the token with the next.
template <typename Visit>
void BpeTrainer::visit_tokens(Visit visit) const {
  for (std::size_t at = 0; at < tokens_.size();) {
    if (tokens_[at] == kBreak) {
      ++at;
    } else {
      visit(static_cast<Position>(at));
      at += lengths_[tokens_[at]];
    }
  }
}

// Tracks all pairs that occur at least threshold_ times. Counts by a hash of few bits come first,
// so that rare pairs, most of all, take no memory.
void BpeTrainer::find_pairs() {
  constexpr int kBits = 22;
  std::vector<std::uint32_t> counts(std::size_t{1} << kBits, 0);
  const auto visit_pairs = [&](auto visit) {
    visit_tokens([&](Position at) {
      const Token left = tokens_[at], right = tokens_[at + lengths_[left]];
      if (right == kBreak || !may_merge(left, right)) return;
      visit(at, Pair{left, right}, counts[key({left, right}) * 0x9E3779B1U >> (32 - kBits)]);
    });
  };
  visit_pairs([](Position, Pair, std::uint32_t& count) { ++count; });
  const std::size_t scanned = tokens_.size() / kScanned;
  std::unordered_map<std::uint32_t, Entry> found;
  visit_pairs([&](Position at, Pair pair, std::uint32_t count) {
    if (count < threshold_) return;
    Entry& entry = found[key(pair)];
    if (entry.count++ < scanned) entry.positions.push_back(at);
  });
  entries_.clear();
  candidates_ = {};
  for (auto& [packed, entry] : found) {
    if (entry.count < threshold_) continue;
    if (entry.count > scanned) entry.positions = {};
    entry.positions.shrink_to_fit();
    candidates_.push(
        {entry.count, {static_cast<Token>(packed >> 16), static_cast<Token>(packed & UINT16_MAX)}});
    entries_.emplace(packed, std::move(entry));
  }
}

// A pair that was just made, at `positions`.
void BpeTrainer::track(Pair pair, std::vector<Position>&& positions) {
  const std::size_t count = positions.size();
  if (count < threshold_) return;
  if (count > tokens_.size() / kScanned) positions = {};
  positions.shrink_to_fit();
  entries_.insert_or_assign(key(pair), Entry{count, std::move(positions)});
  candidates_.push({count, pair});
}

void BpeTrainer::merge_pair(Pair pair) {
  const auto merged = static_cast<Token>(lengths_.size());
  const Entry entry = std::move(entries_.at(key(pair)));
  entries_.erase(key(pair));
  lengths_.push_back(static_cast<std::uint16_t>(lengths_[pair.first] + lengths_[pair.second]));
  Changes before(lengths_.size()), after(lengths_.size());
  const auto visit = [&](Position at) { merge_at(at, pair, merged, before, after); };
  if (entry.positions.empty()) {
    visit_tokens(visit);
  } else {
    std::for_each(entry.positions.begin(), entry.positions.end(), visit);
  }
  for (Token token = 0; token <= merged; ++token) {
    track({token, merged}, std::move(before[token].made));
    if (token != merged) track({merged, token}, std::move(after[token].made));
  }
  const auto lose = [this](Pair lost, std::size_t count) {
    const auto found = count > 0 ? entries_.find(key(lost)) : entries_.end();
    if (found != entries_.end()) found->second.count -= count;
  };
  for (Token token = 0; token <= merged; ++token) {
    lose({token, pair.first}, before[token].lost);
    lose({pair.second, token}, after[token].lost);
  }
}

// Merges the pair if it is at `at` still. Pairs with the tokens before and after it are lost,
// others are made; a pair of two merged tokens counts as made before the second.
void BpeTrainer::merge_at(Position at, Pair pair, Token merged, Changes& before, Changes& after) {
  const std::size_t middle = at + std::size_t{lengths_[pair.first]};
  if (tokens_[at] != pair.first || tokens_[middle] != pair.second) return;
  const std::size_t end = middle + lengths_[pair.second];
  tokens_[middle] = kInside;
  tokens_[at] = tokens_[end - 1] = merged;
  if (const Token left = tokens_[at - 1]; left != kBreak) {
    ++before[left].lost;
    if (may_merge(left, merged)) {
      before[left].made.push_back(at - lengths_[left]);
    }
  }
  if (const Token right = tokens_[end]; right != kBreak) {
    ++after[right].lost;
    if (may_merge(merged, right)) after[right].made.push_back(at);
  }
}

}  // namespace megatron_dna
