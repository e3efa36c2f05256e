#include "vcf.hpp"

#include <charconv>
#include <stdexcept>
#include <string>
#include <system_error>

namespace megatron_dna {

namespace {

// Takes what is before the next `separator` (or all) off the front of `rest`.
std::string_view take(std::string_view& rest, char separator) {
  const std::size_t end = rest.find(separator);
  const std::string_view field = rest.substr(0, end);
  rest.remove_prefix(end == std::string_view::npos ? rest.size() : end + 1);
  return field;
}

int find_gt(std::string_view format) {
  for (int i = 0; !format.empty(); ++i) {
    if (take(format, ':') == "GT") return i;
  }
  return -1;
}

}  // namespace

std::string_view contig_of(std::string_view line) { return line.substr(0, line.find('\t')); }

VcfRecord parse_record(std::string_view line) {
  VcfRecord record{};
  std::string_view rest = line;
  record.contig = take(rest, '\t');
  const std::string_view position = take(rest, '\t');
  std::int64_t one_based = 0;
  const auto [end, error] =
      std::from_chars(position.data(), position.data() + position.size(), one_based);
  if (error != std::errc{} || end != position.data() + position.size() || one_based < 0) {
    throw std::invalid_argument("POS '" + std::string(position) + "' is not a number");
  }
  record.position = one_based - 1;
  take(rest, '\t');  // ID
  record.ref = take(rest, '\t');
  record.alts = take(rest, '\t');
  take(rest, '\t');  // QUAL
  take(rest, '\t');  // FILTER
  take(rest, '\t');  // INFO
  record.gt_field = find_gt(take(rest, '\t'));
  record.genotypes = rest;
  if (record.ref.empty() || record.alts.empty() || rest.empty()) {
    throw std::invalid_argument("position " + std::to_string(one_based) +
                                ": the line ends early: there must be CHROM to FORMAT and a column "
                                "for each sample");
  }
  return record;
}

std::optional<Genotype> parse_genotype(std::string_view column, int gt_field) {
  for (int i = 0; i < gt_field; ++i) take(column, ':');
  const std::string_view text = take(column, ':');
  Genotype genotype{0, true, {Genotype::kMissing, Genotype::kMissing}};
  std::size_t at = 0;
  // VCF 4.4 may write the phase of the first allele too, in front of it.
  if (!text.empty() && (text[0] == '|' || text[0] == '/')) at = 1;
  while (true) {
    std::int32_t allele = Genotype::kMissing;
    if (at < text.size() && text[at] == '.') {
      ++at;
    } else {
      const char* end = text.data() + text.size();
      const auto [stop, error] = std::from_chars(text.data() + at, end, allele);
      if (error != std::errc{} || allele < 0) break;
      at = static_cast<std::size_t>(stop - text.data());
    }
    if (genotype.ploidy < 2) genotype.alleles[static_cast<std::size_t>(genotype.ploidy)] = allele;
    ++genotype.ploidy;
    if (at == text.size()) {
      if (genotype.ploidy == 1) genotype.alleles[1] = genotype.alleles[0];
      return genotype;
    }
    if (text[at] != '|' && text[at] != '/') break;
    if (text[at] == '/') genotype.phased = false;
    ++at;
  }
  return std::nullopt;
}

}  // namespace megatron_dna
