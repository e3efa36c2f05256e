// Counter-based random numbers: each draw is a pure function of a key and a counter.
//
// Philox4x64 with 10 rounds, so numpy.random.Philox is its oracle. Source: Salmon et al. 2011,
// "Parallel random numbers: as easy as 1, 2, 3".
//
// The project's convention: the key is {seed, purpose}, the counter says what is drawn (document,
// epoch, sample number, ...). Nothing is ever drawn from a shared state, so the number of ranks and
// workers cannot matter.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace megatron_dna {

// What a draw is for: the second word of the key.
// Python draws too: 4 segments of a batch (training/curriculum.py), 5 noise (model/memory.py).
// kPhasing: who gets which allele of an unphased genotype.
enum class Purpose : std::uint64_t { kPhase = 1, kOrder = 2, kMask = 3, kPhasing = 6 };

using PhiloxBlock = std::array<std::uint64_t, 4>;
using PhiloxKey = std::array<std::uint64_t, 2>;

inline PhiloxKey make_key(std::uint64_t seed, Purpose purpose) {
  return {seed, static_cast<std::uint64_t>(purpose)};
}

inline PhiloxBlock philox(PhiloxBlock counter, PhiloxKey key) {
  using Wide = unsigned __int128;
  for (int round = 0; round < 10; ++round) {
    const Wide first = static_cast<Wide>(0xD2E7470EE14C6C93ULL) * counter[0];
    const Wide second = static_cast<Wide>(0xCA5A826395121157ULL) * counter[2];
    counter = {static_cast<std::uint64_t>(second >> 64) ^ counter[1] ^ key[0],
               static_cast<std::uint64_t>(second),
               static_cast<std::uint64_t>(first >> 64) ^ counter[3] ^ key[1],
               static_cast<std::uint64_t>(first)};
    key[0] += 0x9E3779B97F4A7C15ULL;
    key[1] += 0xBB67AE8584CAA73BULL;
  }
  return counter;
}

// Maps a random word to [0, bound). The bias is at most bound / 2^64.
inline std::uint64_t below(std::uint64_t random, std::uint64_t bound) {
  return static_cast<std::uint64_t>((static_cast<unsigned __int128>(random) * bound) >> 64);
}

// The words of the blocks {0, counter[1..3]}, {1, counter[1..3]}, ... one after the other.
class PhiloxStream {
 public:
  PhiloxStream(std::uint64_t a, std::uint64_t b, std::uint64_t c, PhiloxKey key)
      : counter_{0, a, b, c}, key_(key) {}

  std::uint64_t next() {
    if (used_ == block_.size()) {
      block_ = philox(counter_, key_);
      ++counter_[0];
      used_ = 0;
    }
    return block_[used_++];
  }

  std::uint64_t next_below(std::uint64_t bound) { return below(next(), bound); }

 private:
  PhiloxBlock counter_;   // of the next block
  PhiloxKey key_;         // {seed, purpose}
  PhiloxBlock block_{};   // words drawn last
  std::size_t used_ = 4;  // how many of them are spent
};

}  // namespace megatron_dna
