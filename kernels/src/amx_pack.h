// Packing a weight (depth, columns) into tiles of AMX.
//
// Panels of 32 columns, each front to back in steps of 32 of the depth, each step two tiles of
// 1 KiB side by side, so that a panel is read in one stream:
//
//     panel 0: columns 0..31                          panel 1: columns 32..63     ...
//     +----------------------+----------------------+
//     | W[0..31, 0..15]      | W[0..31, 16..31]     |   row r of a tile: 16 pairs
//     | W[32..63, 0..15]     | W[32..63, 16..31]    |   W[2r, n], W[2r + 1, n]
//     | ...                  |                      |
//     +----------------------+----------------------+
#pragma once

#include "amx_tile.h"
#include "kernels.h"

namespace {

constexpr std::size_t kPanel = 32;
constexpr std::size_t kDepthStep = 32;

// Sixteen columns of two rows of a weight as pairs of bfloat16.
inline __m512i pairs_of(const float* row, std::size_t ldw, std::size_t rows, __mmask16 columns) {
  const __m512 even = rows > 0 ? _mm512_maskz_loadu_ps(columns, row) : _mm512_setzero_ps();
  const __m512 odd = rows > 1 ? _mm512_maskz_loadu_ps(columns, row + ldw) : _mm512_setzero_ps();
  const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(even));
  const __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(odd));
  return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

// As many columns for each slice of a feed-forward, 1024 at most.
std::size_t slice_columns(std::size_t inner) {
  const std::size_t slices = (inner + 1023) / 1024;
  const std::size_t panels = (inner + kPanel - 1) / kPanel;
  return (panels + slices - 1) / slices * kPanel;
}

std::size_t row_elements(std::size_t width) {
  return (width + kDepthStep - 1) / kDepthStep * kDepthStep;
}

std::size_t panel_bytes(std::size_t padded_depth) {
  return padded_depth / kDepthStep * 2 * kTileBytes;
}

void pack(const kosine::PackArgs& args) {
  const auto* weight = static_cast<const float*>(args.weight);
  const std::size_t ldw = args.ldw, depth = args.depth, columns = args.columns;
  auto* to = static_cast<char*>(args.packed);
  for (std::size_t panel = 0; panel < columns; panel += kPanel) {
    for (std::size_t step = 0; step < args.padded_depth; step += kDepthStep) {
      for (std::size_t n = panel; n < panel + kPanel; n += Vec::kLanes) {
        const std::size_t width = n < columns ? columns - n : 0;
        const auto mask = static_cast<__mmask16>(width < 16 ? (1u << width) - 1 : 0xffff);
        for (std::size_t k = step; k < step + kDepthStep; k += 2, to += kTileRowBytes) {
          const std::size_t left = k < depth ? depth - k : 0;
          const float* row = left == 0 || width == 0 ? weight : weight + k * ldw + n;
          _mm512_storeu_si512(to, pairs_of(row, ldw, left, mask));
        }
      }
    }
  }
}

}  // namespace
