#include "indexed_writer.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstring>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <system_error>
#include <type_traits>
#include <utility>

namespace megatron_dna {
namespace {

static_assert(std::endian::native == std::endian::little, ".bin and .idx files are little-endian");

constexpr std::size_t kBufferSize = std::size_t{1} << 20;

// Megatron's numbers for the types of ids, and its rule for choosing one.
constexpr std::uint8_t kInt32Code = 4;
constexpr std::uint8_t kUint16Code = 8;
constexpr std::int64_t kUint16MaxVocabSize = 65500;  // exclusive

[[noreturn]] void throw_errno(const std::string& what) {
  throw std::system_error(errno, std::generic_category(), what);
}

// Calls a system function again for as long as a signal interrupts it.
template <typename Function>
auto retry(Function function) {
  auto result = function();
  while (result == -1 && errno == EINTR) result = function();
  return result;
}

// Makes renames and removals in the folder of `path` survive a power cut.
void sync_folder(const std::string& path) {
  const std::size_t slash = path.rfind('/');
  const std::string folder =
      slash == std::string::npos ? "." : path.substr(0, std::max<std::size_t>(slash, 1));
  const int descriptor = retry([&] { return ::open(folder.c_str(), O_RDONLY | O_DIRECTORY); });
  if (descriptor == -1) throw_errno("cannot open folder " + folder);
  // Some network file systems refuse to sync a folder; their renames are theirs to keep.
  const bool failed = retry([&] { return ::fsync(descriptor); }) == -1 && errno != EINVAL;
  const int error = errno;
  ::close(descriptor);
  if (failed) {
    errno = error;
    throw_errno("cannot sync folder " + folder);
  }
}

template <typename Value>
std::span<const std::byte> bytes_of(const Value& value) {
  static_assert(std::is_trivially_copyable_v<Value>);
  return std::as_bytes(std::span(&value, 1));
}

}  // namespace

PartialFile::PartialFile(std::string path, std::int64_t kept)
    : path_(std::move(path)), partial_path_(path_ + ".partial") {
  buffer_.reserve(kBufferSize);
  descriptor_ =
      retry([&] { return ::open(partial_path_.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666); });
  if (descriptor_ == -1) fail("cannot create");
  try {
    // File systems without locks answer ENOLCK, ENOSYS or EOPNOTSUPP: go on unguarded there.
    if (retry([&] { return ::flock(descriptor_, LOCK_EX | LOCK_NB); }) == -1 &&
        errno == EWOULDBLOCK) {
      fail("another process is writing");
    }
    // Between open and lock, the owner may have published the very file that was opened.
    struct stat opened {};
    struct stat named {};
    if (::fstat(descriptor_, &opened) == -1) fail("cannot inspect");
    if (::stat(partial_path_.c_str(), &named) == -1 || named.st_ino != opened.st_ino) {
      errno = EWOULDBLOCK;
      fail("another process is writing");
    }
    if (opened.st_size < kept) {
      throw std::invalid_argument(partial_path_ + " is shorter than what is to be kept of it");
    }
    exists_ = true;
    if (retry([&] { return ::ftruncate(descriptor_, kept); }) == -1) fail("cannot shorten");
    if (::lseek(descriptor_, 0, SEEK_END) == -1) fail("cannot seek in");
  } catch (...) {
    remove();
    throw;
  }
}

PartialFile::~PartialFile() { remove(); }

void PartialFile::write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const std::size_t count = std::min(bytes.size(), kBufferSize - buffer_.size());
    buffer_.insert(buffer_.end(), bytes.begin(),
                   bytes.begin() + static_cast<std::ptrdiff_t>(count));
    bytes = bytes.subspan(count);
    if (buffer_.size() == kBufferSize) flush();
  }
}

void PartialFile::flush() {
  std::span<const std::byte> rest(buffer_);
  while (!rest.empty()) {
    const ssize_t count = retry([&] { return ::write(descriptor_, rest.data(), rest.size()); });
    if (count == -1) fail("cannot write");
    rest = rest.subspan(static_cast<std::size_t>(count));
  }
  buffer_.clear();
}

void PartialFile::sync() {
  flush();
  if (retry([&] { return ::fsync(descriptor_); }) == -1) fail("cannot write");
}

void PartialFile::publish() {
  if (::rename(partial_path_.c_str(), path_.c_str()) == -1) fail("cannot rename");
  exists_ = false;
  ::close(descriptor_);
  descriptor_ = -1;
}

void PartialFile::remove() {
  // Unlinked while the lock is held, so that it cannot be another process's file.
  if (exists_) ::unlink(partial_path_.c_str());
  if (descriptor_ != -1) ::close(descriptor_);
  exists_ = false;
  descriptor_ = -1;
}

void PartialFile::leave() {
  exists_ = false;
  remove();
}

void PartialFile::fail(const std::string& what) const { throw_errno(what + " " + partial_path_); }

IndexedWriter::IndexedWriter(const std::string& prefix, std::int64_t vocab_size,
                             std::vector<std::int32_t> finished)
    : bytes_per_token_(vocab_size < kUint16MaxVocabSize ? 2 : 4),
      lengths_(std::move(finished)),
      num_tokens_(std::accumulate(lengths_.begin(), lengths_.end(), std::int64_t{0})),
      bin_(prefix + ".bin", num_tokens_ * static_cast<std::int64_t>(bytes_per_token_)),
      idx_(prefix + ".idx"),
      vocab_size_(vocab_size) {
  if (vocab_size < 1 || vocab_size > std::int64_t{std::numeric_limits<std::int32_t>::max()} + 1) {
    throw std::invalid_argument("vocab_size (" + std::to_string(vocab_size) +
                                ") must be between 1 and 2147483648");
  }
}

void IndexedWriter::check_writing() const {
  if (state_ != State::kWriting) throw std::invalid_argument(bin_.path() + " is already closed");
}

template <typename Id>
void IndexedWriter::write_ids(std::span<const std::int32_t> ids) {
  std::array<Id, 4096> block;
  while (!ids.empty()) {
    const std::size_t count = std::min(ids.size(), block.size());
    std::transform(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(count), block.begin(),
                   [](std::int32_t id) { return static_cast<Id>(id); });
    bin_.write(std::as_bytes(std::span(block).first(count)));
    ids = ids.subspan(count);
  }
}

void IndexedWriter::append(std::span<const std::int32_t> ids) {
  check_writing();
  const auto count = static_cast<std::int64_t>(ids.size());
  if (open_length_ + count > std::numeric_limits<std::int32_t>::max()) {
    throw std::invalid_argument(
        "a document can have at most 2147483647 tokens, the limit of Megatron's format");
  }
  const auto bad = std::find_if(ids.begin(), ids.end(),
                                [this](std::int32_t id) { return id < 0 || id >= vocab_size_; });
  if (bad != ids.end()) {
    throw std::invalid_argument("token id " + std::to_string(*bad) + " must be between 0 and " +
                                std::to_string(vocab_size_ - 1) + ", the vocabulary's last id");
  }
  if (bytes_per_token_ == 2) {
    write_ids<std::uint16_t>(ids);
  } else {
    write_ids<std::int32_t>(ids);
  }
  open_length_ += count;
  num_tokens_ += count;
}

void IndexedWriter::end_document() {
  check_writing();
  if (open_length_ == 0) throw std::invalid_argument("a document must have at least one token");
  lengths_.push_back(static_cast<std::int32_t>(open_length_));
  open_length_ = 0;
}

// Layout of an .idx: magic, version, type code, number of sequences, number of document bounds
// (one more than documents), then int32 lengths, int64 byte offsets and int64 document bounds.
void IndexedWriter::write_index() {
  constexpr std::array<char, 9> magic{'M', 'M', 'I', 'D', 'I', 'D', 'X', '\0', '\0'};
  const std::uint64_t count = lengths_.size();
  idx_.write(bytes_of(magic));
  idx_.write(bytes_of(std::uint64_t{1}));
  idx_.write(bytes_of(bytes_per_token_ == 2 ? kUint16Code : kInt32Code));
  idx_.write(bytes_of(count));
  idx_.write(bytes_of(count + 1));
  idx_.write(std::as_bytes(std::span(lengths_)));
  std::int64_t offset = 0;
  for (const std::int32_t length : lengths_) {
    idx_.write(bytes_of(offset));
    offset += std::int64_t{length} * static_cast<std::int64_t>(bytes_per_token_);
  }
  for (std::uint64_t bound = 0; bound <= count; ++bound) idx_.write(bytes_of(bound));
}

void IndexedWriter::sync() {
  check_writing();
  bin_.sync();
}

void IndexedWriter::prepare() {
  check_writing();
  if (open_length_ != 0) throw std::invalid_argument(bin_.path() + ": a document is still open");
  if (lengths_.empty()) throw std::invalid_argument(bin_.path() + " would have no document");
  write_index();
  bin_.sync();
  idx_.sync();
  state_ = State::kPrepared;
}

void IndexedWriter::publish() {
  if (state_ != State::kPrepared) prepare();
  if (::unlink(idx_.path().c_str()) == -1 && errno != ENOENT) {
    throw_errno("cannot replace " + idx_.path());
  }
  sync_folder(idx_.path());
  bin_.publish();
  sync_folder(bin_.path());
  idx_.publish();
  sync_folder(idx_.path());
  state_ = State::kClosed;
}

void IndexedWriter::leave() {
  bin_.leave();
  abort();
}

void IndexedWriter::abort() {
  bin_.remove();
  idx_.remove();
  state_ = State::kClosed;
}

}  // namespace megatron_dna
