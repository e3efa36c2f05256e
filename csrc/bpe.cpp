#include "bpe.hpp"

#include <algorithm>

namespace megatron_dna {

using std::size_t;
using std::string_view;

BpeEncoder::BpeEncoder(const std::vector<std::string>& vocab, const std::vector<BpeMerge>& merges,
                       const std::vector<std::int32_t>& specials, const EncoderOptions& options)
    : Encoder(vocab, specials, options), vocabulary_(vocab, merges), tables_(vocabulary_) {
  for (const BpeToken& token : vocabulary_.tokens()) ids_.push_back(token.id);
}

void BpeEncoder::encode_letters(string_view letters, const std::vector<size_t>& others,
                                std::vector<std::int32_t>& ids) const {
  if (tables_.usable()) {
    encode_dna(letters, others, ids);
  } else {
    encode_known(letters, ids);
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
  for (const Rank rank : ranks) ids.push_back(ids_[rank]);
}

// As encode_known, on tables.
void BpeEncoder::encode_dna(string_view run, const std::vector<size_t>& others,
                            std::vector<std::int32_t>& ids) const {
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
  for (size_t i = first; i < ids.size(); ++i) ids[i] = ids_[static_cast<size_t>(ids[i])];
}

}  // namespace megatron_dna
