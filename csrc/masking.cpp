#include "masking.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>

namespace megatron_dna {

namespace {

void require(bool holds, const std::string& message) {
  if (!holds) throw std::invalid_argument(message);
}

std::size_t index(std::int64_t value) { return static_cast<std::size_t>(value); }

// Lengths of spans that hold `num_masked` positions together; the last one is cut to fit.
std::vector<std::int64_t> draw_spans(std::int64_t num_masked, std::uint64_t longer,
                                     PhiloxStream& random) {
  if (longer == 0) return std::vector<std::int64_t>(index(num_masked), 1);
  std::vector<std::int64_t> spans;
  for (std::int64_t left = num_masked; left > 0; left -= spans.back()) {
    std::int64_t length = 1;
    while (length < left && random.next() < longer) ++length;
    spans.push_back(length);
  }
  return spans;
}

// Flags of `num_masked` among `num_maskable` positions.
//
// Spans and unmasked positions are put in a random order, all orders alike, on a circle that is
// then cut at a random point: so no position is more likely than another, and nothing is ever
// rejected.
std::vector<std::uint8_t> draw_positions(std::int64_t num_maskable, std::int64_t num_masked,
                                         std::uint64_t longer, PhiloxStream& random) {
  const std::vector<std::int64_t> spans = draw_spans(num_masked, longer, random);
  const std::int64_t num_items =
      num_maskable - num_masked + static_cast<std::int64_t>(spans.size());
  std::vector<std::int64_t> span_at(index(num_items), 0);
  std::vector<std::int64_t> items(index(num_items));
  std::iota(items.begin(), items.end(), 0);
  for (std::size_t i = 0; i < spans.size(); ++i) {  // the first steps of a Fisher-Yates shuffle
    std::swap(items[i], items[i + random.next_below(items.size() - i)]);
    span_at[index(items[i])] = spans[i];
  }
  std::vector<std::uint8_t> masked(index(num_maskable), 0);
  std::size_t position = random.next_below(masked.size());
  for (const std::int64_t span : span_at) {
    for (std::int64_t i = 0; i < std::max<std::int64_t>(span, 1); ++i) {
      masked[position] = span > 0;
      position = position + 1 == masked.size() ? 0 : position + 1;
    }
  }
  return masked;
}

}  // namespace

Masker::Masker(const MaskingOptions& options, std::span<const std::int32_t> special_ids,
               std::span<const std::int32_t> token_lengths)
    : options_(options),
      token_lengths_(token_lengths.begin(), token_lengths.end()),
      maskable_(token_lengths.size(), 1) {
  require(options.segment_size >= 3,
          "segment_size (" + std::to_string(options.segment_size) + ") must be at least 3");
  require(options.num_masked >= 1 && options.num_masked <= options.segment_size - 2,
          "num_masked (" + std::to_string(options.num_masked) +
              ") must lie between 1 and segment_size - 2");
  require(std::isfinite(options.mean_span_length) && options.mean_span_length >= 1,
          "mean_span_length (" + std::to_string(options.mean_span_length) + ") must be at least 1");
  const auto check_id = [&](std::int32_t id) {
    require(id >= 0 && index(id) < maskable_.size(), "special id (" + std::to_string(id) +
                                                         ") must be below the vocabulary size (" +
                                                         std::to_string(maskable_.size()) + ")");
  };
  for (const std::int32_t id : special_ids) {
    check_id(id);
    maskable_[index(id)] = 0;
  }
  for (const std::int32_t id : {options.cls_id, options.sep_id, options.pad_id, options.mask_id}) {
    check_id(id);
    require(maskable_[index(id)] == 0,
            "id (" + std::to_string(id) + ") of the frame must be among the special ids");
  }
  for (std::size_t id = 0; id < maskable_.size(); ++id) {
    if (maskable_[id]) replacements_.push_back(static_cast<std::int32_t>(id));
  }
  require(!replacements_.empty(), "the vocabulary must have a token that is not special");
  // Largest double below 2^64 keeps the conversion defined.
  const double share = 1.0 - 1.0 / options.mean_span_length;
  longer_ = static_cast<std::uint64_t>(std::min(std::ldexp(share, 64), 0x1.fffffffffffffp63));
}

// Writes [CLS], the tokens, [SEP] and padding, and counts bases. Returns an id that is not known.
template <typename Token>
std::optional<std::int64_t> Masker::frame(std::span<const Token> tokens, const SegmentView& out,
                                          std::int64_t& num_bases) const {
  num_bases = 0;
  out.input_ids[0] = options_.cls_id;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    const auto id = static_cast<std::int64_t>(tokens[i]);
    if (id < 0 || index(id) >= token_lengths_.size()) return id;
    out.input_ids[i + 1] = id;
    num_bases += token_lengths_[index(id)];
  }
  out.input_ids[tokens.size() + 1] = options_.sep_id;
  const auto padding = out.input_ids.subspan(tokens.size() + 2);
  std::fill(padding.begin(), padding.end(), options_.pad_id);
  return std::nullopt;
}

// Masks a framed segment in place.
void Masker::mask(std::int64_t num_content, PhiloxStream random, const SegmentView& out) const {
  std::fill(out.masked_positions.begin(), out.masked_positions.end(), 0);
  std::fill(out.labels.begin(), out.labels.end(), 0);
  std::fill(out.loss_mask.begin(), out.loss_mask.end(), 0.0F);
  std::vector<std::int64_t> maskable;
  maskable.reserve(index(num_content));
  for (std::int64_t i = 1; i <= num_content; ++i) {
    if (maskable_[index(out.input_ids[index(i)])]) maskable.push_back(i);
  }
  if (maskable.empty()) return;
  const std::int64_t full = options_.segment_size - 2;
  const std::int64_t share = (2 * options_.num_masked * num_content + full) / (2 * full);
  const auto num_maskable = static_cast<std::int64_t>(maskable.size());
  const std::int64_t num_masked = std::clamp<std::int64_t>(share, 1, num_maskable);
  const auto masked = draw_positions(num_maskable, num_masked, longer_, random);
  std::size_t slot = 0;
  for (std::size_t i = 0; i < masked.size(); ++i) {
    if (!masked[i]) continue;
    std::int64_t& id = out.input_ids[index(maskable[i])];
    out.masked_positions[slot] = maskable[i];
    out.labels[slot] = id;
    out.loss_mask[slot] = 1.0F;
    ++slot;
    const std::uint64_t kind = random.next_below(10);
    if (kind < 8) {
      id = options_.mask_id;
    } else if (kind == 8) {
      id = replacements_[random.next_below(replacements_.size())];
    }
  }
}

template <typename Token>
std::optional<std::int64_t> Masker::write(std::span<const Token> window, std::uint64_t sample,
                                          std::int64_t slot, const MaskedBatch& batch) const {
  const std::size_t size = index(options_.segment_size);
  const std::size_t content = size - 2;
  const std::size_t num_masked = index(options_.num_masked);
  require(slot >= 0 && slot < batch.batch_size, "slot must be below the batch size");
  require(window.size() <= index(batch.num_segments) * content,
          "a window of " + std::to_string(window.size()) + " tokens must fit " +
              std::to_string(batch.num_segments) + " segments");
  const PhiloxKey key = make_key(options_.seed, Purpose::kMask);
  for (std::int64_t segment = 0; segment < batch.num_segments; ++segment) {
    const std::size_t begin = std::min(window.size(), index(segment) * content);
    const auto tokens = window.subspan(begin, std::min(window.size() - begin, content));
    const std::size_t row = index(segment * batch.batch_size + slot);
    const SegmentView out{batch.input_ids.subspan(row * size, size),
                          batch.masked_positions.subspan(row * num_masked, num_masked),
                          batch.labels.subspan(row * num_masked, num_masked),
                          batch.loss_mask.subspan(row * num_masked, num_masked)};
    batch.num_real[row] = static_cast<std::int32_t>(tokens.size() + 2);
    if (const auto bad_id = frame(tokens, out, batch.num_bases[row])) return bad_id;
    const PhiloxStream random(static_cast<std::uint64_t>(segment), sample, options_.stream, key);
    mask(static_cast<std::int64_t>(tokens.size()), random, out);
  }
  return std::nullopt;
}

template std::optional<std::int64_t> Masker::write(std::span<const std::uint16_t>, std::uint64_t,
                                                   std::int64_t, const MaskedBatch&) const;
template std::optional<std::int64_t> Masker::write(std::span<const std::int32_t>, std::uint64_t,
                                                   std::int64_t, const MaskedBatch&) const;

}  // namespace megatron_dna
