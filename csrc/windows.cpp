#include "windows.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <stdexcept>
#include <string>

namespace megatron_dna {

namespace {

// Rounds of the Feistel network. Four are enough for a strong pseudorandom permutation of a large
// set; the spare ones are for small sets, and cost nothing next to a window's tokens.
constexpr std::uint64_t kRounds = 8;

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return a / b + (a % b != 0); }

}  // namespace

std::int64_t window_start(std::int64_t length, std::int64_t window_tokens, std::int64_t phase,
                          std::int64_t window) {
  const std::int64_t last_start = length - window_tokens;
  if (last_start <= 0) return 0;
  const std::int64_t num_inner = phase <= last_start ? (last_start - phase) / window_tokens + 1 : 0;
  const std::int64_t num_outer = ceil_div(length, window_tokens) - num_inner;  // 0, 1 or 2
  const std::int64_t tail = length - phase - num_inner * window_tokens;
  const bool has_head = num_outer == 2 || (num_outer == 1 && phase > tail);
  // The outer windows are the next tiles of the same row, pushed back into the document.
  return std::clamp(phase + (window - has_head) * window_tokens, std::int64_t{0}, last_start);
}

std::int64_t permute(std::int64_t index, std::int64_t size, std::uint64_t epoch,
                     std::uint64_t stream, PhiloxKey key) {
  const std::int64_t num_rows = static_cast<std::int64_t>(std::sqrt(static_cast<double>(size))) + 1;
  const auto rows = static_cast<std::uint64_t>(num_rows);
  const auto columns = static_cast<std::uint64_t>(ceil_div(size, num_rows));
  auto cell = static_cast<std::uint64_t>(index);
  do {
    std::uint64_t row = cell / columns;
    std::uint64_t column = cell % columns;
    for (std::uint64_t round = 0; round < kRounds; round += 2) {
      row = (row + below(philox({column, round, epoch, stream}, key)[0], rows)) % rows;
      column = (column + below(philox({row, round + 1, epoch, stream}, key)[0], columns)) % columns;
    }
    cell = row * columns + column;
  } while (cell >= static_cast<std::uint64_t>(size));
  return static_cast<std::int64_t>(cell);
}

WindowIndex::WindowIndex(std::span<const std::int32_t> document_lengths,
                         const WindowOptions& options)
    : lengths_(document_lengths.begin(), document_lengths.end()), options_(options) {
  if (options.window_tokens < 1) {
    throw std::invalid_argument("window_tokens (" + std::to_string(options.window_tokens) +
                                ") must be positive");
  }
  if (options.min_tokens < 1) {
    throw std::invalid_argument("min_tokens (" + std::to_string(options.min_tokens) +
                                ") must be positive");
  }
  first_window_.reserve(lengths_.size() + 1);
  first_window_.push_back(0);
  for (const std::int64_t length : lengths_) {
    if (length < 0) {
      throw std::invalid_argument("document length (" + std::to_string(length) +
                                  ") must not be negative");
    }
    const bool used = length >= options.min_tokens;
    first_window_.push_back(first_window_.back() +
                            (used ? ceil_div(length, options.window_tokens) : 0));
  }
}

Window WindowIndex::at(std::int64_t sample) const {
  if (sample < 0) {
    throw std::invalid_argument("sample (" + std::to_string(sample) + ") must not be negative");
  }
  if (size() == 0) throw std::invalid_argument("there is no document to take windows from");
  const auto epoch = static_cast<std::uint64_t>(sample / size());
  const std::int64_t number = permute(sample % size(), size(), epoch, options_.stream,
                                      make_key(options_.seed, Purpose::kOrder));
  const auto after = std::upper_bound(first_window_.begin(), first_window_.end(), number);
  const std::int64_t document = after - first_window_.begin() - 1;
  const std::int64_t length = lengths_[static_cast<std::size_t>(document)];
  std::int64_t phase = 0;
  if (options_.random_phase) {
    const PhiloxBlock draw =
        philox({static_cast<std::uint64_t>(document), epoch, 0, options_.stream},
               make_key(options_.seed, Purpose::kPhase));
    phase = static_cast<std::int64_t>(
        below(draw[0], static_cast<std::uint64_t>(options_.window_tokens)));
  }
  const std::int64_t window = number - *(after - 1);
  return {document, window_start(length, options_.window_tokens, phase, window),
          std::min(length, options_.window_tokens)};
}

}  // namespace megatron_dna
