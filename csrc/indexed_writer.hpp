// Writer of Megatron-Core's indexed datasets: token ids in PREFIX.bin, their places in PREFIX.idx.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace megatron_dna {

// A file that grows under a temporary name, owned by this process alone until it is published.
class PartialFile {
 public:
  // Takes PATH.partial, of which the first `kept` bytes stay: what a killed process left there is
  // else removed. Throws std::system_error, with code EWOULDBLOCK if a live process is writing the
  // same file, and std::invalid_argument if it is shorter.
  explicit PartialFile(std::string path, std::int64_t kept = 0);
  ~PartialFile();
  PartialFile(const PartialFile&) = delete;
  PartialFile& operator=(const PartialFile&) = delete;

  void write(std::span<const std::byte> bytes);
  void sync();     // everything written so far is on the disk
  void publish();  // takes its real name, over an older file of that name
  void remove();   // gives up; no effect once published
  void leave();    // gives up, but what was written stays under its temporary name
  const std::string& path() const { return path_; }

 private:
  void flush();
  [[noreturn]] void fail(const std::string& what) const;

  std::string path_;
  std::string partial_path_;
  std::vector<std::byte> buffer_;
  int descriptor_ = -1;
  bool exists_ = false;
};

// Writes one sequence for each document, readable by megatron.core's IndexedDataset. Memory does
// not grow with the tokens, only by 4 bytes a document. Nothing has its real name before
// `publish`; without it, the destructor removes what was written.
class IndexedWriter {
 public:
  // Ids are stored as uint16 if `vocab_size` < 65,500 (Megatron's DType.optimal_dtype), else int32.
  // `finished` has the tokens of the documents that PREFIX.bin.partial begins with: they stay.
  IndexedWriter(const std::string& prefix, std::int64_t vocab_size,
                std::vector<std::int32_t> finished = {});

  // Adds ids to the document that is open. Throws std::invalid_argument if one is not in
  // [0, vocab_size), or the document passes 2,147,483,647 tokens; nothing is added then.
  void append(std::span<const std::int32_t> ids);
  // Closes the open document. Throws std::invalid_argument if it is empty.
  void end_document();

  // Puts what was added so far on the disk.
  void sync();
  // Puts all content on the disk, still under temporary names: a full disk shows here. Throws
  // std::invalid_argument if there is no document, which no reader could map, or one is open.
  void prepare();
  // Gives the files their names: an older PREFIX.idx goes first, the new one comes last, so an
  // .idx is never beside a .bin that it does not describe. Calls `prepare` if need be.
  void publish();
  // Removes the temporary files; the writer cannot be used any more.
  void abort();
  // As `abort`, but leaves PREFIX.bin.partial, for a writer that goes on with it.
  void leave();

  std::int64_t num_documents() const { return static_cast<std::int64_t>(lengths_.size()); }
  std::int64_t num_tokens() const { return num_tokens_; }
  std::size_t bytes_per_token() const { return bytes_per_token_; }

 private:
  enum class State { kWriting, kPrepared, kClosed };

  void check_writing() const;
  template <typename Id>
  void write_ids(std::span<const std::int32_t> ids);
  void write_index();

  std::size_t bytes_per_token_;
  std::vector<std::int32_t> lengths_;  // tokens of each closed document
  std::int64_t num_tokens_;            // of closed and open documents
  std::int64_t open_length_ = 0;       // tokens of the open document
  PartialFile bin_;
  PartialFile idx_;
  std::int64_t vocab_size_;
  State state_ = State::kWriting;
};

}  // namespace megatron_dna
