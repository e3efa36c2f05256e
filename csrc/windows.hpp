// Documents -> sample index: which window of which document each sample is.
//
// Nothing of the size of an epoch is stored: the order of an epoch is a keyed permutation that is
// computed where it is needed, and a window's place in its document follows from its number.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "philox.hpp"

namespace megatron_dna {

// A stretch of one document, in tokens.
struct Window {
  std::int64_t document;  // index among all documents, skipped ones included
  std::int64_t start;     // first token
  std::int64_t length;    // tokens: the window size, or a whole shorter document
};

struct WindowOptions {
  std::int64_t window_tokens;  // W, tokens of a full window
  std::int64_t min_tokens;     // shorter documents are skipped; at least 1
  std::uint64_t seed;          // of order and phase
  std::uint64_t stream;        // keeps the sources of a blend apart
  bool random_phase;           // a new phase each epoch; else windows start at multiples of W
};

// Start of window `window` of the ceil(length / window_tokens) windows of a document.
//
// A document no longer than a window has one, at 0. In a longer one, windows lie end to end from
// `phase` (in [0, window_tokens)) on, as many as fit. What is left of the count covers the ends: a
// window at 0, one shifted back to end with the document, or both; if there is only one for two
// uncovered ends, it goes to the longer. So all windows are full and distinct, and at most half a
// window of tokens is left out, at one end.
std::int64_t window_start(std::int64_t length, std::int64_t window_tokens, std::int64_t phase,
                          std::int64_t window);

// Where `index` goes in a permutation of [0, size) that is fixed by key, stream and epoch.
//
// A Feistel network on a grid of about sqrt(size) x sqrt(size) cells with addition modulo the
// sides, walked until the result lies below `size`. Source: Black and Rogaway 2002, "Ciphers with
// arbitrary finite domains"; differs: the round function is Philox.
std::int64_t permute(std::int64_t index, std::int64_t size, std::uint64_t epoch,
                     std::uint64_t stream, PhiloxKey key);

class WindowIndex {
 public:
  // Throws std::invalid_argument on a bad option or a negative length.
  WindowIndex(std::span<const std::int32_t> document_lengths, const WindowOptions& options);

  // Windows of one epoch, the same number in each.
  std::int64_t size() const { return first_window_.back(); }

  // Sample n is window number permute(n mod size()) of epoch n / size(). Logarithmic in the number
  // of documents. Throws std::invalid_argument if `sample` is negative or there are no windows.
  Window at(std::int64_t sample) const;

 private:
  std::vector<std::int32_t> lengths_;       // of all documents, in tokens
  std::vector<std::int64_t> first_window_;  // number of each document's first window; then size()
  WindowOptions options_;
};

}  // namespace megatron_dna
