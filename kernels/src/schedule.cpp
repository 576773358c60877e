#include "schedule.h"

#include <algorithm>

namespace kosine {
namespace {

std::size_t ceil_div(std::size_t a, std::size_t b) { return (a + b - 1) / b; }

// Longest first, each into the chunk with the fewest rows.
std::vector<Chunk> spread(const std::vector<Sentence>& longest_first, std::size_t count) {
  std::vector<Chunk> chunks(std::min(count, longest_first.size()));
  for (const Sentence& sentence : longest_first) {
    Chunk& chunk = *std::min_element(
        chunks.begin(), chunks.end(),
        [](const Chunk& a, const Chunk& b) { return a.rows < b.rows; });
    chunk.sentences.push_back(sentence);
    chunk.rows += sentence.length;
    chunk.longest = std::max(chunk.longest, sentence.length);
  }
  std::stable_sort(chunks.begin(), chunks.end(),
                   [](const Chunk& a, const Chunk& b) { return a.rows > b.rows; });
  return chunks;
}

// The most rows that a thread has to take, where each takes the next chunk when it is done.
std::size_t longest_share(const std::vector<Chunk>& chunks, std::size_t threads) {
  std::vector<std::size_t> shares(threads);
  for (const Chunk& chunk : chunks) *std::min_element(shares.begin(), shares.end()) += chunk.rows;
  return *std::max_element(shares.begin(), shares.end());
}

}  // namespace

Schedule schedule_batch(const std::int32_t* starts, std::size_t count, std::size_t threads,
                const Kernels& kernels) {
  std::vector<Sentence> sentences(count);
  for (std::size_t i = 0; i < count; ++i) {
    const auto begin = static_cast<std::size_t>(starts[i]);
    sentences[i] = {i, begin, static_cast<std::size_t>(starts[i + 1]) - begin};
  }
  std::stable_sort(sentences.begin(), sentences.end(), [](const Sentence& a, const Sentence& b) {
    return a.length > b.length;
  });
  const auto rows = static_cast<std::size_t>(starts[count]);

  Schedule schedule;
  const std::size_t rounds = std::max<std::size_t>(1, ceil_div(rows, threads * kernels.chunk_rows));
  schedule.chunks = spread(sentences, threads * rounds);
  if (threads == 1) return schedule;

  const bool uneven = 8 * longest_share(schedule.chunks, threads) * threads > 9 * rows;
  // Threads that each read all of the weights for a few rows only get in one another's way.
  if (rows < threads * kernels.alone_rows || uneven) {
    schedule.together = true;
    schedule.chunks = spread(sentences, ceil_div(rows, kernels.chunk_rows * 2));
  }
  return schedule;
}

}  // namespace kosine
