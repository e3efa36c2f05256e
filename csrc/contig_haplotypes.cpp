#include "contig_haplotypes.hpp"

#include <algorithm>
#include <limits>
#include <optional>
#include <stdexcept>
#include <utility>

#include "philox.hpp"
#include "sequence.hpp"

namespace megatron_dna {

namespace {

constexpr std::int64_t kBufferBases = 1 << 18;
constexpr std::uint32_t kNoEdit = std::numeric_limits<std::uint32_t>::max();
constexpr std::size_t kMaxShown = 20;  // letters of an allele in a message

std::string shown(std::string_view allele) {
  return allele.size() <= kMaxShown ? std::string(allele)
                                    : std::string(allele.substr(0, kMaxShown)) + "...";
}

// Upper case, ambiguity codes as N: what cleaning made of the reference.
std::string cleaned(std::string_view bases) {
  std::string out(bases.size(), 'N');
  out.resize(clean_sequence(bases, out, 0).length);
  return out;
}

// Not spelled out: <DEL>, *, breakends with a mate (G[c:5[) and without (G.).
bool is_symbolic(std::string_view alt) {
  return alt.empty() || alt == "*" || alt.find_first_of("<[].") != alt.npos;
}

char upper(char base) { return base >= 'a' && base <= 'z' ? static_cast<char>(base - 32) : base; }

std::size_t common_prefix(std::string_view a, std::string_view b) {
  std::size_t n = 0;
  while (n < a.size() && n < b.size() && upper(a[n]) == upper(b[n])) ++n;
  return n;
}

std::size_t common_suffix(std::string_view a, std::string_view b) {
  std::size_t n = 0;
  while (n < a.size() && n < b.size() && upper(a[a.size() - 1 - n]) == upper(b[b.size() - 1 - n])) {
    ++n;
  }
  return n;
}

// An indel whose first base is that of REF: nothing happens to that base. What is at once a
// replacement and a change of length is no such indel, even with a first base in common.
bool is_anchored_indel(std::string_view ref, std::string_view alt) {
  if (ref.size() == alt.size() || ref[0] != alt[0]) return false;
  const std::size_t shorter = std::min(ref.size(), alt.size());
  const std::size_t prefix = common_prefix(ref, alt);
  return prefix + common_suffix(ref.substr(prefix), alt.substr(prefix)) >= shorter;
}

std::uint32_t to_uint32(std::size_t value) {
  if (value > std::numeric_limits<std::uint32_t>::max()) {
    throw std::invalid_argument("an allele has over 4,294,967,295 bases");
  }
  return static_cast<std::uint32_t>(value);
}

}  // namespace

ContigHaplotypes::ContigHaplotypes(VariantOptions options, std::vector<SampleColumn> samples,
                                   std::size_t num_columns, ContigInfo contig,
                                   ReferenceReader reference)
    : options_(options),
      samples_(std::move(samples)),
      num_columns_(num_columns),
      contig_(std::move(contig)),
      reference_(std::move(reference)),
      states_(2 * samples_.size(), State{Haplotype(&table_, contig_.length), {}, -1, false}),
      ploidy_(samples_.size(), 0) {
  for (std::size_t i = 0; i < samples_.size(); ++i) {
    if (samples_[i].column >= num_columns_ ||
        (i > 0 && samples_[i].column <= samples_[i - 1].column)) {
      throw std::invalid_argument("samples must be in the order of their columns");
    }
  }
}

void ContigHaplotypes::fail(const std::string& what) const {
  throw std::invalid_argument("position " + std::to_string(position_ + 1) + ": " + what);
}

std::size_t ContigHaplotypes::add(std::string_view lines) {
  std::size_t used = 0;
  while (used < lines.size()) {
    const std::size_t end = std::min(lines.find('\n', used), lines.size());
    std::string_view line = lines.substr(used, end - used);
    if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
    if (!line.empty()) {
      if (contig_of(line) != contig_.name) break;
      add_record(parse_record(line));
    }
    used = std::min(end + 1, lines.size());
  }
  return used;
}

void ContigHaplotypes::finish() {
  table_.edits.shrink_to_fit();
  table_.beside_n.shrink_to_fit();
  table_.bases.shrink_to_fit();
  for (State& state : states_) state.haplotype.shrink_to_fit();
  alleles_ = {};
  buffer_ = {};
}

void ContigHaplotypes::add_record(const VcfRecord& record) {
  if (record.position < position_) {
    throw std::invalid_argument("position " + std::to_string(record.position + 1) +
                                " comes after position " + std::to_string(position_ + 1) +
                                "; records must be sorted by position (bcftools sort)");
  }
  ordinal_ = record.position == position_ ? ordinal_ + 1 : 0;
  position_ = record.position;
  ++num_records_;
  if (record.gt_field < 0) fail("FORMAT has no GT; every record must have genotypes");
  if (record.alts == ".") return;
  ref_.assign(record.ref);
  if (!matches_reference()) return;
  parse_alleles(record);
  add_genotypes(record);
}

bool ContigHaplotypes::matches_reference() {
  std::string expected;
  try {
    expected = cleaned(ref_);
  } catch (const std::invalid_argument&) {
    fail("REF '" + shown(ref_) + "' has letters that are not nucleotides");
  }
  const auto size = static_cast<std::int64_t>(ref_.size());
  // No sum: POS may be any number.
  const bool is_inside = position_ >= 0 && position_ <= contig_.length - size;
  const std::string_view found =
      is_inside ? fetch(position_, position_ + size) : std::string_view();
  if (is_inside && found == expected) return true;
  if (options_.skip_ref_mismatch) {
    ++num_ref_mismatches_;
    return false;
  }
  fail("REF '" + shown(ref_) + "' " +
       (is_inside ? "is not the FASTA's '" + shown(found) + "'"
                  : "lies outside of the contig's " + std::to_string(contig_.length) + " bases") +
       "; give the FASTA that the variants were called on, or --on-ref-mismatch skip to leave such "
       "records out");
}

// Bases of the reference; valid until the next call.
std::string_view ContigHaplotypes::fetch(std::int64_t start, std::int64_t end) {
  if (start < buffer_start_ || end > buffer_start_ + static_cast<std::int64_t>(buffer_.size())) {
    buffer_ = reference_(start, std::min(contig_.length, std::max(end, start + kBufferBases)));
    buffer_start_ = start;
  }
  return std::string_view(buffer_).substr(static_cast<std::size_t>(start - buffer_start_),
                                          static_cast<std::size_t>(end - start));
}

void ContigHaplotypes::parse_alleles(const VcfRecord& record) {
  alleles_.clear();
  std::string_view rest = record.alts;
  while (true) {
    const std::size_t end = rest.find(',');
    const std::string_view alt = rest.substr(0, end);
    const bool symbolic = is_symbolic(alt);
    alleles_.push_back({symbolic, !symbolic && is_anchored_indel(ref_, alt),
                        alt.size() > ref_.size(), kNoEdit, alt});
    if (end == std::string_view::npos) return;
    rest.remove_prefix(end + 1);
  }
}

void ContigHaplotypes::add_genotypes(const VcfRecord& record) {
  const std::string_view columns = record.genotypes;
  std::size_t column = 0;
  std::size_t next = 0;  // among the samples that are read
  for (std::size_t begin = 0; begin <= columns.size(); ++column) {
    const std::size_t end = std::min(columns.find('\t', begin), columns.size());
    if (next < samples_.size() && samples_[next].column == column) {
      const std::string_view text = columns.substr(begin, end - begin);
      // Most genotypes of most files, told without reading them.
      if (text != "0|0" || ploidy_[next] != 2) add_genotype(next, text, record.gt_field);
      ++next;
    }
    begin = end + 1;
  }
  if (column != num_columns_) {
    fail("there are " + std::to_string(column) + " sample columns here and " +
         std::to_string(num_columns_) + " in the header; is the file complete?");
  }
}

void ContigHaplotypes::add_genotype(std::size_t sample, std::string_view column, int gt_field) {
  std::optional<Genotype> genotype = parse_genotype(column, gt_field);
  if (!genotype) {
    fail("sample '" + samples_[sample].name + "': '" + shown(column) +
         "' does not have alleles parted by '|' or '/' as its GT");
  }
  check_ploidy(sample, *genotype);
  const bool settled = settle_phase(sample, *genotype);
  const std::size_t num_alleles = ploidy_[sample] == 1 ? 1 : 2;
  for (std::size_t which = 0; which < num_alleles; ++which) {
    const std::int32_t allele = genotype->alleles[which];
    if (!settled) continue;
    if (allele == Genotype::kMissing) {
      ++states_[2 * sample + which].counts.missing;
    } else if (allele > 0) {
      apply(sample, which, allele);
    }
  }
}

void ContigHaplotypes::check_ploidy(std::size_t sample, const Genotype& genotype) {
  const bool is_missing =
      genotype.alleles[0] == Genotype::kMissing && genotype.alleles[1] == Genotype::kMissing;
  if (is_missing && genotype.ploidy <= 2) return;  // a lone "." is written for any ploidy
  const int known = ploidy_[sample];
  if (genotype.ploidy > 2 || (known != 0 && known != genotype.ploidy)) {
    fail("sample '" + samples_[sample].name + "' has " + std::to_string(genotype.ploidy) +
         " allele(s) here" + (known == 0 ? "" : " and " + std::to_string(known) + " before") +
         "; a sample must have one or two, as many on all of a contig (leave the sample out, or "
         "see bcftools +fixploidy)");
  }
  ploidy_[sample] = static_cast<std::uint8_t>(genotype.ploidy);
}

// Returns false where the genotype is to be left as reference.
bool ContigHaplotypes::settle_phase(std::size_t sample, Genotype& genotype) {
  if (genotype.phased || genotype.alleles[0] == genotype.alleles[1]) return true;
  if (options_.unphased == Unphased::kError) {
    fail("sample '" + samples_[sample].name +
         "' has an unphased genotype; phase the file, or give --unphased skip or random");
  }
  for (std::size_t which = 0; which < 2; ++which) ++states_[2 * sample + which].counts.unphased;
  if (options_.unphased == Unphased::kSkip) return false;
  const PhiloxBlock counter{static_cast<std::uint64_t>(position_),
                            static_cast<std::uint64_t>(ordinal_), samples_[sample].key,
                            contig_.key};
  if (philox(counter, make_key(options_.seed, Purpose::kPhasing))[0] & 1) {
    std::swap(genotype.alleles[0], genotype.alleles[1]);
  }
  return true;
}

void ContigHaplotypes::apply(std::size_t sample, std::size_t which, std::int32_t number) {
  State& state = states_[2 * sample + which];
  if (static_cast<std::size_t>(number) > alleles_.size()) {
    fail("sample '" + samples_[sample].name + "' has allele " + std::to_string(number) +
         ", and ALT has " + std::to_string(alleles_.size()));
  }
  Allele& allele = alleles_[static_cast<std::size_t>(number) - 1];
  if (allele.is_symbolic) {
    ++state.counts.symbolic;
    return;
  }
  // At the last base that is taken there may still come what leaves that base alone: an indel
  // behind it, unless bases were put in there already.
  const bool may_follow =
      position_ == state.last_taken && allele.is_anchored && !state.last_is_insertion;
  if (position_ <= state.last_taken && !may_follow) {
    ++state.counts.overlapping;
    return;
  }
  if (allele.number == kNoEdit) allele.number = store(allele.text);
  state.haplotype.append(allele.number);
  state.last_taken = position_ + static_cast<std::int64_t>(ref_.size()) - 1;
  state.last_is_insertion = allele.is_longer;
  ++state.counts.applied;
}

// Stores an allele without the bases that it has in common with REF at both ends.
std::uint32_t ContigHaplotypes::store(std::string_view alt) {
  std::string bases;
  try {
    bases = cleaned(alt);
  } catch (const std::invalid_argument&) {
    fail("ALT '" + shown(alt) + "' has letters that are not nucleotides");
  }
  std::string_view rest_ref = ref_;
  std::string_view rest_alt = bases;
  const std::size_t prefix = common_prefix(rest_ref, rest_alt);
  rest_ref.remove_prefix(prefix);
  rest_alt.remove_prefix(prefix);
  const std::size_t suffix = common_suffix(rest_ref, rest_alt);
  rest_ref.remove_suffix(suffix);
  rest_alt.remove_suffix(suffix);
  if (table_.edits.size() >= kNoEdit) fail("there are too many alleles on one contig");
  table_.edits.push_back({position_ + static_cast<std::int64_t>(prefix), to_uint32(rest_ref.size()),
                          to_uint32(rest_alt.size()), table_.bases.size()});
  table_.bases += rest_alt;
  const auto number = static_cast<std::uint32_t>(table_.edits.size() - 1);
  if (is_beside_n(table_.edits.back())) table_.beside_n.push_back(number);
  return number;
}

// Whether what it replaces, what it puts in or a neighbour of both is N.
bool ContigHaplotypes::is_beside_n(const Edit& edit) {
  if (table_.bases_of(edit).find('N') != std::string_view::npos) return true;
  const std::int64_t start = std::max<std::int64_t>(edit.start - 1, 0);
  const std::int64_t end = std::min(edit.start + edit.ref_length + 1, contig_.length);
  return fetch(start, end).find('N') != std::string_view::npos;
}

}  // namespace megatron_dna
