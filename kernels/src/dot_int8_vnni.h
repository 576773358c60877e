// Products of unsigned and signed bytes, summed in int32 by vpdpbusd: a word is four neighbours of
// the depth axis. Nothing saturates on the way.
#pragma once

#include "kernels.h"
#include "quantize.h"
#include "tile.h"

namespace {

struct Int8 {
  using Activation = std::uint8_t;
  static constexpr std::size_t kStep = 4;
  static constexpr std::size_t kRows = 14;
  static constexpr std::size_t kWordPlanes = 2;

  static Vec floats(const std::int32_t* sums) {
    return {_mm512_cvtepi32_ps(_mm512_loadu_si512(sums))};
  }

  // Of words, from the sums of their upper and lower bytes.
  static Vec word_floats(const std::int32_t* upper, const std::int32_t* lower, Vec column_sums) {
    const __m512i bytes = _mm512_add_epi32(_mm512_slli_epi32(_mm512_loadu_si512(upper), 8),
                                           _mm512_loadu_si512(lower));
    const __m512i zeros = _mm512_slli_epi32(_mm512_cvtps_epi32(column_sums.v), kWordZeroBits);
    return {_mm512_cvtepi32_ps(_mm512_sub_epi32(bytes, zeros))};
  }

  // round(x) + zero, which lies in 0..256, as bytes.
  static void store_bytes(Vec x, int zero, Activation* p) {
    const __m512i whole = _mm512_add_epi32(_mm512_cvtps_epi32(x.v), _mm512_set1_epi32(zero));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtusepi32_epi8(whole));
  }

  // round(x), from -16383 to 16383, as an upper and a lower byte.
  static void store_words(Vec x, Activation* p, std::size_t plane) {
    const __m512i word =
        _mm512_add_epi32(_mm512_cvtps_epi32(x.v), _mm512_set1_epi32(1 << kWordZeroBits));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm512_cvtepi32_epi8(_mm512_srli_epi32(word, 8)));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + plane), _mm512_cvtepi32_epi8(word));
  }

  // sums (R, 32) = rows of a times a panel, over `steps` words, a multiple of four.
  //
  // Written out: GCC 12 moves the accumulators of vpdpbusd from register to register, or to the
  // stack, which takes time from the products. 28 accumulators are
  // zmm0 to zmm27, the weight's vectors zmm28 and zmm29, a word of each row in turn zmm30. Rows
  // are addressed as 0, 1, 2, 4 or 8 strides from one of five pointers.
  template <int R>
  static void multiply(std::int32_t* sums, const char* a, std::size_t lda, const char* weight,
                       std::size_t steps, Ahead ahead) {
    const char* a3 = a + 3 * lda;
    const char* a6 = a + 6 * lda;
    const char* a9 = a + 9 * lda;
    const char* a12 = a + 12 * lda;
    asm volatile(
        ".macro kosine_row row, first, second, address:vararg\n"
        ".if %c[rows] > \\row\n"
        "  vpbroadcastd \\address, %%zmm30\n"
        "  vpdpbusd %%zmm28, %%zmm30, %%zmm\\first\n"
        "  vpdpbusd %%zmm29, %%zmm30, %%zmm\\second\n"
        ".endif\n"
        ".endm\n"
        ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27\n"
        ".if 2 * %c[rows] > \\n\n"
        "  vpxord %%zmm\\n, %%zmm\\n, %%zmm\\n\n"
        ".endif\n"
        ".endr\n"
        "1:\n"
        ".irp u, 0,4,8,12\n"
        "  prefetcht1 (%[ahead])\n"
        "  prefetcht1 64(%[ahead])\n"
        "  add %[advance], %[ahead]\n"
        "  vmovdqu64 \\u*32(%[weight]), %%zmm28\n"
        "  vmovdqu64 \\u*32+64(%[weight]), %%zmm29\n"
        "  kosine_row 0, 0, 1, \\u(%[a])\n"
        "  kosine_row 1, 2, 3, \\u(%[a],%[lda],1)\n"
        "  kosine_row 2, 4, 5, \\u(%[a],%[lda],2)\n"
        "  kosine_row 3, 6, 7, \\u(%[a3])\n"
        "  kosine_row 4, 8, 9, \\u(%[a],%[lda],4)\n"
        "  kosine_row 5, 10, 11, \\u(%[a3],%[lda],2)\n"
        "  kosine_row 6, 12, 13, \\u(%[a6])\n"
        "  kosine_row 7, 14, 15, \\u(%[a3],%[lda],4)\n"
        "  kosine_row 8, 16, 17, \\u(%[a],%[lda],8)\n"
        "  kosine_row 9, 18, 19, \\u(%[a9])\n"
        "  kosine_row 10, 20, 21, \\u(%[a6],%[lda],4)\n"
        "  kosine_row 11, 22, 23, \\u(%[a3],%[lda],8)\n"
        "  kosine_row 12, 24, 25, \\u(%[a12])\n"
        "  kosine_row 13, 26, 27, \\u(%[a9],%[lda],4)\n"
        ".endr\n"
        "add $512, %[weight]\n"
        "add $16, %[a]\n"
        "add $16, %[a3]\n"
        "add $16, %[a6]\n"
        "add $16, %[a9]\n"
        "add $16, %[a12]\n"
        "sub $4, %[steps]\n"
        "jnz 1b\n"
        ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27\n"
        ".if 2 * %c[rows] > \\n\n"
        "  vmovdqu64 %%zmm\\n, 64*\\n(%[sums])\n"
        ".endif\n"
        ".endr\n"
        ".purgem kosine_row\n"
        : [a] "+&r"(a), [a3] "+&r"(a3), [a6] "+&r"(a6), [a9] "+&r"(a9), [a12] "+&r"(a12),
          [weight] "+&r"(weight), [steps] "+&r"(steps), [ahead] "+&r"(ahead.at)
        : [lda] "r"(lda), [advance] "r"(ahead.advance), [sums] "r"(sums), [rows] "i"(R)
        : "memory", "cc", "zmm0", "zmm1", "zmm2", "zmm3", "zmm4", "zmm5", "zmm6", "zmm7", "zmm8",
          "zmm9", "zmm10", "zmm11", "zmm12", "zmm13", "zmm14", "zmm15", "zmm16", "zmm17", "zmm18",
          "zmm19", "zmm20", "zmm21", "zmm22", "zmm23", "zmm24", "zmm25", "zmm26", "zmm27", "zmm28",
          "zmm29", "zmm30");
  }
};

}  // namespace
