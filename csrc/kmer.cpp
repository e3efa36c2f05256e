#include "kmer.hpp"

#include <stdexcept>

namespace megatron_dna {
namespace {

constexpr std::string_view kBases = "ACTG";  // by code, which is (letter >> 1) & 3

std::size_t pack(const char* kmer, std::size_t length) {
  std::size_t packed = 0;
  for (std::size_t i = 0; i < length; ++i) {
    packed = packed << 2 | (static_cast<unsigned char>(kmer[i]) >> 1 & 3U);
  }
  return packed;
}

}  // namespace

KmerEncoder::KmerEncoder(const std::vector<std::string>& vocab, std::size_t length,
                         const std::vector<std::int32_t>& specials, const EncoderOptions& options)
    : Encoder(vocab, specials, options), length_(length) {
  if (length < 1 || length > kMaxLength) {
    throw std::invalid_argument("k (" + std::to_string(length) + ") must be between 1 and " +
                                std::to_string(kMaxLength));
  }
  std::size_t num_missing = std::size_t{1} << 2 * length;
  kmer_ids_.assign(num_missing, -1);
  for (std::size_t id = 0; id < vocab.size(); ++id) {
    if (vocab[id].size() != length) continue;
    if (vocab[id].find_first_not_of(kBases) != std::string::npos) continue;
    kmer_ids_[pack(vocab[id].data(), length)] = static_cast<std::int32_t>(id);
    --num_missing;
  }
  for (const char base : kBases) num_missing += letter_id(base) < 0;
  if (num_missing > 0) {
    throw std::invalid_argument("the vocabulary lacks " + std::to_string(num_missing) + " of the " +
                                std::to_string(length) + "-mers and single bases");
  }
}

void KmerEncoder::encode_letters(std::string_view letters, const std::vector<std::size_t>& others,
                                 std::vector<std::int32_t>& ids) const {
  std::size_t at = 0;
  const auto encode_bases = [&](std::size_t end) {
    for (; end - at >= length_; at += length_) {
      ids.push_back(kmer_ids_[pack(letters.data() + at, length_)]);
    }
    for (; at < end; ++at) ids.push_back(letter_id(letters[at]));
  };
  for (const std::size_t other : others) {
    encode_bases(other);
    ids.push_back(letter_id(letters[at++]));
  }
  encode_bases(letters.size());
}

}  // namespace megatron_dna
