#include "haplotype.hpp"

#include <algorithm>
#include <stdexcept>

namespace megatron_dna {

namespace {

constexpr std::size_t kShiftEvery = 64;

}  // namespace

void Haplotype::append(std::uint32_t number) {
  if (numbers_.size() % kShiftEvery == 0) shifts_.push_back(shift_);
  numbers_.push_back(number);
  shift_ += table_->edits[number].growth();
}

void Haplotype::shrink_to_fit() {
  numbers_.shrink_to_fit();
  shifts_.shrink_to_fit();
}

std::vector<std::size_t> Haplotype::edits_beside_n() const {
  std::vector<std::size_t> indices;
  for (const std::uint32_t number : table_->beside_n) {
    const auto found = std::lower_bound(numbers_.begin(), numbers_.end(), number);
    if (found != numbers_.end() && *found == number) {
      indices.push_back(static_cast<std::size_t>(found - numbers_.begin()));
    }
  }
  return indices;
}

Haplotype::Cursor Haplotype::seek(std::int64_t position) const {
  // The last noted shift whose edit starts at or before the position; edits before that one end
  // where it starts at the latest.
  std::size_t low = 0;
  std::size_t high = shifts_.size();
  while (low < high) {
    const std::size_t middle = low + (high - low) / 2;
    const Edit& next = edit(middle * kShiftEvery);
    if (next.start + shifts_[middle] <= position) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  if (low == 0) return {0, 0};
  Cursor cursor{(low - 1) * kShiftEvery, shifts_[low - 1]};
  for (; cursor.index < numbers_.size(); ++cursor.index) {
    const Edit& next = edit(cursor.index);
    if (next.start + cursor.shift + next.alt_length > position) break;
    cursor.shift += next.growth();
  }
  return cursor;
}

std::pair<std::int64_t, std::int64_t> Haplotype::reference_span(std::int64_t start,
                                                                std::int64_t end) const {
  if (start < 0 || start >= end || end > length()) {
    throw std::invalid_argument("bases [" + std::to_string(start) + ", " + std::to_string(end) +
                                ") must be inside of the haplotype's " + std::to_string(length()));
  }
  const auto to_reference = [&](std::int64_t position, bool is_end) {
    const Cursor cursor = seek(position);
    if (cursor.index < numbers_.size()) {
      const Edit& next = edit(cursor.index);
      if (next.start + cursor.shift <= position) {
        return is_end ? next.start + next.ref_length : next.start;
      }
    }
    return position - cursor.shift + (is_end ? 1 : 0);
  };
  return {to_reference(start, false), to_reference(end - 1, true)};
}

void Haplotype::spell(std::int64_t start, std::int64_t reference_start, std::string_view reference,
                      std::span<char> out) const {
  if (out.empty()) return;
  const std::int64_t end = start + static_cast<std::int64_t>(out.size());
  const auto [from, to] = reference_span(start, end);
  if (from < reference_start ||
      to > reference_start + static_cast<std::int64_t>(reference.size())) {
    throw std::invalid_argument("the reference does not cover what is to be spelled");
  }
  Cursor cursor = seek(start);
  std::int64_t position = start;
  // Copies `source`, whose first base is the haplotype's base `begin`, as far as it is wanted.
  const auto copy = [&](std::string_view source, std::int64_t begin) {
    const std::int64_t source_end = std::min(end, begin + static_cast<std::int64_t>(source.size()));
    if (source_end <= position) return;
    const auto skipped = static_cast<std::size_t>(position - begin);
    const auto count = static_cast<std::size_t>(source_end - position);
    std::copy_n(source.data() + skipped, count, out.data() + (position - start));
    position = source_end;
  };
  while (position < end) {
    const bool has_next = cursor.index < numbers_.size();
    const std::int64_t next_start = has_next ? edit(cursor.index).start + cursor.shift : end;
    if (position < next_start) {
      const std::int64_t stop = std::min(end, next_start);
      copy(reference.substr(static_cast<std::size_t>(position - cursor.shift - reference_start),
                            static_cast<std::size_t>(stop - position)),
           position);
      continue;
    }
    const Edit& next = edit(cursor.index);
    copy(table_->bases_of(next), next_start);
    cursor.shift += next.growth();
    ++cursor.index;
  }
}

}  // namespace megatron_dna
