#include "bpe_lanes.hpp"

#include <algorithm>
#include <array>
#include <span>
#include <utility>

namespace megatron_dna {
namespace {

using std::size_t;

constexpr size_t kLanes = 4;
constexpr size_t kMinLength = 256;  // of a lane: where two meet, some tokens are encoded twice
constexpr size_t kMaxSteps = 16;    // between two looks at where the lanes are
// Bases that a step may move or look ahead.
constexpr size_t kStep = DnaTables::kMaxLength;
constexpr size_t kMargin = DnaTables::kMaxLength + DnaTables::kLook;

// Advances lanes side by side until each has reached its stop, or nearly the end of the bases.
template <size_t kNum>
void advance(const DnaTables& tables, const PackedDna& text, std::span<BpeLane> lanes, size_t end) {
  if constexpr (kNum > 0) {
    if (lanes.size() < kNum) return advance<kNum - 1>(tables, text, lanes, end);
    std::array<DnaTables::State, kNum> states;
    std::array<size_t, kNum> sizes;  // of `tokens`
    for (size_t i = 0; i < kNum; ++i) {
      states[i] = {lanes[i].at, lanes[i].candidate, nullptr};
      sizes[i] = lanes[i].tokens.size();
    }
    size_t finished = kNum;
    while (finished == kNum) {
      size_t num_steps = kMaxSteps;
      for (size_t i = 0; i < kNum; ++i) {
        std::vector<std::uint16_t>& tokens = lanes[i].tokens;
        if (tokens.size() < sizes[i] + kMaxSteps + 1) tokens.resize(2 * tokens.size() + 64);
        states[i].last = tokens.data() + sizes[i] - 1;
        num_steps = std::min(num_steps, (end - states[i].at) / kStep);
      }
      for (size_t step = 0; step < num_steps; ++step) {
        [&]<size_t... i>(std::index_sequence<i...>) { (tables.step(states[i], text), ...); }
        (std::make_index_sequence<kNum>());
      }
      for (size_t i = 0; i < kNum; ++i) {
        sizes[i] = static_cast<size_t>(states[i].last - lanes[i].tokens.data()) + 1;
        if (states[i].at >= lanes[i].stop || end - states[i].at < kStep) finished = i;
      }
    }
    for (size_t i = 0; i < kNum; ++i) {
      lanes[i].at = states[i].at;
      lanes[i].candidate = static_cast<std::uint16_t>(states[i].candidate);
      lanes[i].tokens.resize(sizes[i]);
    }
    std::swap(lanes[finished], lanes.back());
    advance<kNum - 1>(tables, text, lanes.first(kNum - 1), end);
  }
}

// Lanes from `start` on, where all is bases up to `end`.
void add_lanes(const DnaTables& tables, const PackedDna& text, size_t start, size_t end,
               std::vector<BpeLane>& lanes) {
  const size_t num = std::min(kLanes, (end - start) / kMinLength);
  if (num == 0) return;
  const size_t first = lanes.size();
  for (size_t i = 0; i < num; ++i) {
    const size_t at = start + (end - start) * i / num;
    const size_t stop = start + (end - start) * (i + 1) / num;
    lanes.push_back({at, stop, at, tables.longest_token(text, at), {tables.beginning()}});
  }
  advance<kLanes>(tables, text, std::span(lanes).subspan(first), end - kMargin);
  std::sort(lanes.begin() + static_cast<std::ptrdiff_t>(first), lanes.end(),
            [](const BpeLane& a, const BpeLane& b) { return a.start < b.start; });
}

}  // namespace

std::vector<BpeLane> advance_lanes(const DnaTables& tables, const PackedDna& text, size_t length,
                                   const std::vector<size_t>& others) {
  std::vector<BpeLane> lanes;
  size_t start = 0;  // of the bases
  for (size_t i = 0; i <= others.size(); ++i) {
    const size_t end = i < others.size() ? others[i] : length;
    add_lanes(tables, text, start, end, lanes);
    start = end + 1;
  }
  if (lanes.empty() || lanes.front().start > 0) {
    lanes.insert(lanes.begin(), {0, 0, 0, tables.none(), {tables.beginning()}});
  }
  return lanes;
}

}  // namespace megatron_dna
