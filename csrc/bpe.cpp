#include "bpe.hpp"

#include <algorithm>
#include <stdexcept>

namespace megatron_dna {
namespace {

using std::size_t;
using std::string_view;

constexpr string_view kGap = "-";

// Length in bytes of the character at the start of `text`; throws if it is not UTF-8.
size_t character_length(string_view text) {
  const auto lead = static_cast<unsigned char>(text.front());
  const size_t length = lead < 0x80   ? 1
                        : lead < 0xC2 ? 0
                        : lead < 0xE0 ? 2
                        : lead < 0xF0 ? 3
                        : lead < 0xF5 ? 4
                                      : 0;
  const auto is_continuation = [](char c) {
    return (static_cast<unsigned char>(c) & 0xC0) == 0x80;
  };
  if (length == 0 || length > text.size() ||
      !std::all_of(text.begin() + 1, text.begin() + static_cast<std::ptrdiff_t>(length),
                   is_continuation)) {
    throw std::invalid_argument("the sequence is not UTF-8 text");
  }
  return length;
}

// Whether the character, as UTF-8, has the Unicode property White_Space.
bool is_space(string_view character) {
  static constexpr string_view kSpaces[] = {
      "\t",     "\n",     "\v",     "\f",     "\r",     " ",      "\u0085", "\u00A0", "\u1680",
      "\u2000", "\u2001", "\u2002", "\u2003", "\u2004", "\u2005", "\u2006", "\u2007", "\u2008",
      "\u2009", "\u200A", "\u2028", "\u2029", "\u202F", "\u205F", "\u3000"};
  return std::find(std::begin(kSpaces), std::end(kSpaces), character) != std::end(kSpaces);
}

string_view strip(string_view text) {
  while (!text.empty() && is_space(text.substr(0, character_length(text)))) {
    text.remove_prefix(character_length(text));
  }
  while (!text.empty()) {
    size_t start = text.size() - 1;
    while (start > 0 && (static_cast<unsigned char>(text[start]) & 0xC0) == 0x80) --start;
    if (!is_space(text.substr(start))) break;
    text.remove_suffix(text.size() - start);
  }
  return text;
}

}  // namespace

BpeEncoder::BpeEncoder(std::vector<std::string> vocab, const std::vector<BpeMerge>& merges,
                       const std::vector<std::int32_t>& specials, const BpeOptions& options)
    : vocab_(std::move(vocab)), specials_(specials), options_(options) {
  const auto gap = std::find(vocab_.begin(), vocab_.end(), kGap);
  gap_id_ = gap == vocab_.end() ? options.unk_id : static_cast<std::int32_t>(gap - vocab_.begin());
  std::sort(specials_.begin(), specials_.end(), [this](std::int32_t a, std::int32_t b) {
    return vocab_.at(static_cast<size_t>(a)).size() > vocab_.at(static_cast<size_t>(b)).size();
  });
  add_characters();
  add_merges(merges);
  build_trie();
}

void BpeEncoder::add_characters() {
  rank_of_id_.assign(vocab_.size(), kNone);
  character_.assign(256, kNone);
  for (size_t id = 0; id < vocab_.size(); ++id) {
    if (vocab_[id].size() != 1) continue;
    const auto rank = static_cast<Rank>(tokens_.size());
    tokens_.push_back({rank, rank, kNone, 1, static_cast<std::int32_t>(id)});
    rank_of_id_[id] = rank;
    character_[static_cast<unsigned char>(vocab_[id][0])] = rank;
  }
}

// A merge whose pair is not valid at its turn never happens: an earlier merge takes one side of it
// away wherever the two meet. It is left out, and so is a second merge that makes the same token.
// What cannot be had in linear time is a merge listed before the merges that make its parts.
void BpeEncoder::add_merges(const std::vector<BpeMerge>& merges) {
  std::vector<const BpeMerge*> impossible;
  for (const BpeMerge& merge : merges) {
    const Rank left = rank_of_id_.at(static_cast<size_t>(merge.left));
    const Rank right = rank_of_id_.at(static_cast<size_t>(merge.right));
    Rank& merged = rank_of_id_.at(static_cast<size_t>(merge.merged));
    if (left == kNone || right == kNone) {
      impossible.push_back(&merge);
    } else if (merged == kNone && is_valid_pair(left, right)) {
      merged = static_cast<Rank>(tokens_.size());
      merges_.emplace(std::uint64_t{left} << 32 | right, merged);
      tokens_.push_back(
          {left, right, kNone, tokens_[left].length + tokens_[right].length, merge.merged});
    }
  }
  for (const BpeMerge* merge : impossible) {
    const auto left = static_cast<size_t>(merge->left), right = static_cast<size_t>(merge->right);
    if (rank_of_id_[left] != kNone && rank_of_id_[right] != kNone) {
      throw std::invalid_argument(
          "merge '" + vocab_[left] + " " + vocab_[right] +
          "' comes before the merge that makes one of its parts; merges must be listed "
          "in the order in which the tokens were made");
    }
  }
}

void BpeEncoder::build_trie() {
  letter_.assign(256, 0);
  for (size_t byte = 0; byte < 256; ++byte) {
    if (character_[byte] != kNone) letter_[byte] = trie_width_++;
  }
  trie_.assign(trie_width_, 0);
  trie_token_.assign(1, kNone);
  for (Rank rank = 0; rank < tokens_.size(); ++rank) {
    std::uint32_t node = 0;
    for (const char c : vocab_[static_cast<size_t>(tokens_[rank].id)]) {
      const size_t edge = size_t{node} * trie_width_ + letter_[static_cast<unsigned char>(c)];
      if (trie_[edge] == 0) {
        trie_[edge] = static_cast<std::uint32_t>(trie_token_.size());
        trie_token_.push_back(kNone);
        trie_.resize(trie_.size() + trie_width_, 0);
      }
      node = trie_[edge];
    }
    trie_token_[node] = rank;
  }
  for (Token& token : tokens_) {
    const string_view text = vocab_[static_cast<size_t>(token.id)];
    if (text.size() > 1) token.prefix = longest_token(text.substr(0, text.size() - 1));
  }
}

BpeEncoder::Rank BpeEncoder::find_merge(Rank left, Rank right) const {
  const auto found = merges_.find(std::uint64_t{left} << 32 | right);
  return found == merges_.end() ? kNone : found->second;
}

// Undoes the merges of both tokens, the latest first, and looks at every pair that met at the
// border on the way: the pair is invalid if a merge of the two came before they were merged
// elsewhere. Of equal merges the left one comes first.
bool BpeEncoder::is_valid_pair(Rank left, Rank right) const {
  Rank limit = kNone;
  for (;;) {
    if (find_merge(left, right) < limit) return false;
    if (left > right) {
      if (tokens_[left].right == left) return true;
      limit = left;
      left = tokens_[left].right;
    } else {
      if (tokens_[right].left == right) return true;
      limit = right + 1;
      right = tokens_[right].left;
    }
  }
}

BpeEncoder::Rank BpeEncoder::longest_token(string_view text) const {
  Rank longest = kNone;
  std::uint32_t node = 0;
  for (const char c : text) {
    node = trie_[size_t{node} * trie_width_ + letter_[static_cast<unsigned char>(c)]];
    if (node == 0) break;
    if (trie_token_[node] != kNone) longest = trie_token_[node];
  }
  return longest;
}

std::int32_t BpeEncoder::special_at(string_view text) const {
  for (const std::int32_t id : specials_) {
    if (text.starts_with(vocab_[static_cast<size_t>(id)])) return id;
  }
  return -1;
}

void BpeEncoder::encode(string_view text, std::vector<std::int32_t>& ids) const {
  size_t start = 0;
  for (size_t end = 0; end < text.size();) {
    const std::int32_t special = special_at(text.substr(end));
    if (special < 0) {
      ++end;
      continue;
    }
    encode_piece(text.substr(start, end - start), ids);
    ids.push_back(special);
    start = end += vocab_[static_cast<size_t>(special)].size();
  }
  encode_piece(text.substr(start), ids);
}

void BpeEncoder::encode_piece(string_view piece, std::vector<std::int32_t>& ids) const {
  if (options_.strip) piece = strip(piece);
  size_t start = 0;
  for (size_t at = 0; at < piece.size();) {
    if (piece[at] != 'N' && piece[at] != kGap[0]) {
      ++at;
      continue;
    }
    const size_t end = std::min(piece.find_first_not_of('N', at), piece.size());
    if (piece[at] != 'N' || end - at >= options_.min_gap_length) {
      encode_word(piece.substr(start, at - start), ids);
      ids.push_back(gap_id_);
      start = at = std::max(end, at + 1);
    } else {
      at = end;
    }
  }
  encode_word(piece.substr(start), ids);
}

void BpeEncoder::encode_word(string_view word, std::vector<std::int32_t>& ids) const {
  const auto is_unknown = [this](char c) {
    return character_[static_cast<unsigned char>(c)] == kNone;
  };
  while (!word.empty()) {
    const auto known =
        static_cast<size_t>(std::find_if(word.begin(), word.end(), is_unknown) - word.begin());
    encode_known(word.substr(0, known), ids);
    word.remove_prefix(known);
    if (!word.empty()) {
      ids.push_back(options_.unk_id);
      word.remove_prefix(character_length(word));
    }
  }
}

void BpeEncoder::encode_known(string_view run, std::vector<std::int32_t>& ids) const {
  const size_t first = ids.size();  // ids[first:] hold ranks until the end of the run
  size_t at = 0;
  Rank candidate = longest_token(run);
  while (at < run.size()) {
    if (candidate == kNone) {
      const Token& last = tokens_[static_cast<size_t>(ids.back())];
      ids.pop_back();
      at -= last.length;
      candidate = last.prefix;
    } else if (ids.size() == first || is_valid_pair(static_cast<Rank>(ids.back()), candidate)) {
      ids.push_back(static_cast<std::int32_t>(candidate));
      at += tokens_[candidate].length;
      candidate = longest_token(run.substr(at));
    } else {
      candidate = tokens_[candidate].prefix;
    }
  }
  for (size_t i = first; i < ids.size(); ++i) ids[i] = tokens_[static_cast<size_t>(ids[i])].id;
}

}  // namespace megatron_dna
