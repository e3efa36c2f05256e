// Segments of token ids -> masked language model inputs, labels and positions.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "philox.hpp"

namespace megatron_dna {

struct MaskingOptions {
  std::int64_t segment_size;  // C, [CLS] and [SEP] included
  std::int64_t num_masked;    // k, masked positions of a full segment
  double mean_span_length;    // of geometric spans, in tokens; 1 masks single tokens
  std::uint64_t seed;
  std::uint64_t stream;  // keeps training and validation apart
  std::int32_t cls_id;
  std::int32_t sep_id;
  std::int32_t pad_id;
  std::int32_t mask_id;
};

// One micro-batch, row major, allocated by the caller.
struct MaskedBatch {
  std::int64_t num_segments;                 // S
  std::int64_t batch_size;                   // B
  std::span<std::int64_t> input_ids;         // [S, B, C]
  std::span<std::int64_t> masked_positions;  // [S, B, k], ascending; unused slots: 0
  std::span<std::int64_t> labels;            // [S, B, k], original ids; unused slots: 0
  std::span<float> loss_mask;                // [S, B, k], 1 for used slots, 0 for unused
  std::span<std::int32_t> num_real;          // [S, B], positions before the padding
  std::span<std::int64_t> num_bases;         // [S, B], bases that the content tokens spell
};

// One segment's part of a MaskedBatch.
struct SegmentView {
  std::span<std::int64_t> input_ids;         // [C]
  std::span<std::int64_t> masked_positions;  // [k]
  std::span<std::int64_t> labels;            // [k]
  std::span<float> loss_mask;                // [k]
};

class Masker {
 public:
  // `special_ids` are never masked and never drawn as a replacement. `token_lengths` has the number
  // of bases of every id, so its size is the vocabulary's.
  // Throws std::invalid_argument on a bad option or id.
  Masker(const MaskingOptions& options, std::span<const std::int32_t> special_ids,
         std::span<const std::int32_t> token_lengths);

  // Cuts a window (at most S * (C - 2) tokens) into segments, frames, pads and masks them, and
  // writes them as sample `slot` of the batch.
  //
  // A full segment has k masked positions, or all its maskable ones if they are fewer; a segment
  // that the document does not fill has the same share of its tokens masked, at least one. Of the
  // masked positions 80% show [MASK], 10% a random token that is not special, 10% the original,
  // each drawn on its own. Every position is as likely to be masked as any other.
  // All draws are fixed by (seed, stream, sample, segment).
  //
  // Returns an id that is outside the vocabulary, if there is one: the batch is not usable then.
  template <typename Token>
  std::optional<std::int64_t> write(std::span<const Token> window, std::uint64_t sample,
                                    std::int64_t slot, const MaskedBatch& batch) const;

  const MaskingOptions& options() const { return options_; }

 private:
  template <typename Token>
  std::optional<std::int64_t> frame(std::span<const Token> tokens, const SegmentView& out,
                                    std::int64_t& num_bases) const;
  void mask(std::int64_t num_content, PhiloxStream random, const SegmentView& out) const;

  MaskingOptions options_;
  std::uint64_t longer_;                     // a span goes on if a draw is below this
  std::vector<std::int32_t> token_lengths_;  // bases of every id
  std::vector<std::uint8_t> maskable_;       // 0 for special ids
  std::vector<std::int32_t> replacements_;   // ids that are not special
};

extern template std::optional<std::int64_t> Masker::write(std::span<const std::uint16_t>,
                                                          std::uint64_t, std::int64_t,
                                                          const MaskedBatch&) const;
extern template std::optional<std::int64_t> Masker::write(std::span<const std::int32_t>,
                                                          std::uint64_t, std::int64_t,
                                                          const MaskedBatch&) const;

}  // namespace megatron_dna
