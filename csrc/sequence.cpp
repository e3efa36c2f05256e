#include "sequence.hpp"

#include <algorithm>
#include <array>
#include <cstdio>
#include <stdexcept>
#include <string>

namespace megatron_dna {
namespace {

using Table = std::array<unsigned char, 256>;

// Entries of the cleaning table that are not a plain upper-case base.
constexpr unsigned char kBlank = 0;
constexpr unsigned char kInvalid = 1;
constexpr unsigned char kAmbiguous = 2;

constexpr unsigned char lower(char letter) { return static_cast<unsigned char>(letter + 32); }

constexpr Table make_clean_table() {
  Table table{};
  table.fill(kInvalid);
  for (const char blank : std::string_view(" \t\n\v\f\r")) {
    table[static_cast<unsigned char>(blank)] = kBlank;
  }
  for (const char base : std::string_view("ACGTN")) {
    table[static_cast<unsigned char>(base)] = static_cast<unsigned char>(base);
    table[lower(base)] = static_cast<unsigned char>(base);
  }
  for (const char code : std::string_view("RYSWKMBDHV")) {
    table[static_cast<unsigned char>(code)] = kAmbiguous;
    table[lower(code)] = kAmbiguous;
  }
  return table;
}

constexpr Table make_complement_table() {
  Table table{};  // 0: not a cleaned base
  constexpr std::string_view bases = "ACGTN";
  constexpr std::string_view complements = "TGCAN";
  for (std::size_t i = 0; i < bases.size(); ++i) {
    table[static_cast<unsigned char>(bases[i])] = static_cast<unsigned char>(complements[i]);
  }
  return table;
}

constexpr Table kClean = make_clean_table();
constexpr Table kComplement = make_complement_table();

[[noreturn]] void throw_bad_byte(unsigned char byte, std::size_t position) {
  char code[8];
  std::snprintf(code, sizeof code, "0x%02x", byte);
  const bool printable = byte > 32 && byte < 127;
  const std::string shown = printable ? "'" + std::string(1, static_cast<char>(byte)) + "'" : code;
  throw std::invalid_argument("byte " + shown + " at position " + std::to_string(position) +
                              " is not a nucleotide: A, C, G, T, N or an IUPAC ambiguity code");
}

// Copies a line in upper case. True if it has nothing but bases; compilers make it SIMD code.
bool copy_plain(std::string_view line, char* out) {
  constexpr char upper_case = ~0x20;
  bool plain = true;
  for (std::size_t i = 0; i < line.size(); ++i) {
    const char base = static_cast<char>(line[i] & upper_case);
    plain &= (base == 'A') | (base == 'C') | (base == 'G') | (base == 'T') | (base == 'N');
    out[i] = base;
  }
  return plain;
}

// Copies the bases of any line, of which `position` came before it; returns where they end.
char* copy_any(std::string_view line, char* out, std::size_t position, std::size_t& num_ambiguous) {
  for (const char letter : line) {
    const auto byte = static_cast<unsigned char>(letter);
    const unsigned char entry = kClean[byte];
    if (entry == kBlank) continue;
    ++position;
    if (entry == kInvalid) throw_bad_byte(byte, position);
    num_ambiguous += entry == kAmbiguous;
    *out++ = static_cast<char>(entry == kAmbiguous ? 'N' : entry);
  }
  return out;
}

}  // namespace

Cleaned clean_sequence(std::string_view raw, std::span<char> cleaned, std::size_t num_before) {
  if (cleaned.size() < raw.size()) throw std::invalid_argument("no room for the cleaned sequence");
  char* out = cleaned.data();
  std::size_t num_ambiguous = 0;
  for (std::size_t start = 0; start < raw.size();) {
    const std::size_t end = std::min(raw.find('\n', start), raw.size());
    const std::string_view line = raw.substr(start, end - start);
    if (copy_plain(line, out)) {
      out += line.size();
    } else {
      const auto position = num_before + static_cast<std::size_t>(out - cleaned.data());
      out = copy_any(line, out, position, num_ambiguous);
    }
    start = end + 1;
  }
  return {static_cast<std::size_t>(out - cleaned.data()), num_ambiguous};
}

std::vector<Interval> find_stretches(std::string_view sequence, std::size_t min_run) {
  if (min_run == 0) throw std::invalid_argument("a run of N has at least one N");
  std::vector<Interval> stretches;
  std::size_t start = 0;
  const auto add = [&](std::size_t end) {
    if (end > start) {
      stretches.push_back({static_cast<std::int64_t>(start), static_cast<std::int64_t>(end)});
    }
  };
  std::size_t run = sequence.find('N');
  while (run != std::string_view::npos) {
    const std::size_t run_end = std::min(sequence.find_first_not_of('N', run), sequence.size());
    if (run_end - run >= min_run) {
      add(run);
      start = run_end;
    }
    run = sequence.find('N', run_end);
  }
  add(sequence.size());
  return stretches;
}

void reverse_complement(std::string_view sequence, std::span<char> reversed) {
  if (reversed.size() != sequence.size()) {
    throw std::invalid_argument("a reverse complement is as long as its sequence");
  }
  const std::size_t length = sequence.size();
  bool invalid = false;
  for (std::size_t i = 0; i < length; ++i) {
    const unsigned char base = kComplement[static_cast<unsigned char>(sequence[i])];
    invalid |= base == 0;
    reversed[length - 1 - i] = static_cast<char>(base);
  }
  if (!invalid) return;
  const std::size_t bad = sequence.find_first_not_of("ACGTN");
  throw_bad_byte(static_cast<unsigned char>(sequence[bad]), bad + 1);
}

}  // namespace megatron_dna
