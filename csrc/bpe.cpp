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

// As encode_known, on tables: lanes first, then each is gone on with, the last one first, up to
// where it meets what is known to be right.
void BpeEncoder::encode_dna(string_view run, const std::vector<size_t>& others,
                            std::vector<std::int32_t>& ids) const {
  const PackedDna packed(run);
  std::vector<BpeLane> lanes = advance_lanes(tables_, packed, run.size(), others);
  Known known{{}, run.size()};
  for (; !lanes.empty(); lanes.pop_back()) {
    BpeLane& lane = lanes.back();
    finish_lane(run, packed, others, lane, known);
    known.start = lane.start;
    known.ranks.insert(known.ranks.end(), lane.tokens.rbegin(), lane.tokens.rend() - 1);
  }
  const size_t first = ids.size();
  ids.resize(first + known.ranks.size());
  std::transform(known.ranks.rbegin(), known.ranks.rend(),
                 ids.begin() + static_cast<std::ptrdiff_t>(first),
                 [&](std::uint16_t rank) { return ids_[rank]; });
}

void BpeEncoder::finish_lane(string_view run, const PackedDna& packed,
                             const std::vector<size_t>& others, BpeLane& lane, Known& known) const {
  const auto end_of_bases = [&] {
    const auto other = std::lower_bound(others.begin(), others.end(), lane.at);
    return other == others.end() ? run.size() : *other;
  };
  const auto longest_token = [&] {
    const size_t end = end_of_bases();
    if (end - lane.at < (end == run.size() ? DnaTables::kLook : DnaTables::kMaxLength)) {
      return static_cast<std::uint16_t>(vocabulary_.longest_token(run.substr(lane.at)));
    }
    std::uint16_t token = tables_.longest_token(packed, lane.at);
    while (tables_.length(token) > end - lane.at) token = tables_.prefix(token);
    return token;
  };
  if (lane.at == lane.start) lane.candidate = longest_token();
  for (;;) {
    for (; known.start < lane.at; known.ranks.pop_back()) {
      known.start += tables_.length(known.ranks.back());
    }
    const std::uint16_t last = lane.tokens.back();
    if (lane.at == known.start &&
        (known.ranks.empty() || vocabulary_.is_valid_pair(last, known.ranks.back()))) {
      return;
    }
    lane.candidate = tables_.longest_valid(last, lane.candidate, packed, lane.at, end_of_bases());
    if (lane.candidate == tables_.none()) {
      lane.tokens.pop_back();
      lane.at -= tables_.length(last);
      lane.candidate = tables_.prefix(last);
    } else {
      lane.tokens.push_back(lane.candidate);
      lane.at += tables_.length(lane.candidate);
      if (lane.at < run.size()) lane.candidate = longest_token();
    }
  }
}

}  // namespace megatron_dna
