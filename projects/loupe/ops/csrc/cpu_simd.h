// Vectors as wide as the instruction set's registers, through the compilers' vector extension.
// Wider ones would be split through memory: many times slower.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__clang__)
#define LOUPE_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define LOUPE_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (VectorInt32){__VA_ARGS__})
#endif
#define LOUPE_INLINE inline __attribute__((always_inline))
// Loops over arrays of vectors must vanish, or the arrays go through memory.
#define LOUPE_UNROLL _Pragma("GCC unroll 16")

namespace loupe {
namespace LOUPE_ISA {
namespace {

typedef float VectorFloat __attribute__((vector_size(LOUPE_VECTOR_BYTES)));
typedef double VectorDouble __attribute__((vector_size(LOUPE_VECTOR_BYTES)));
typedef int32_t VectorInt32 __attribute__((vector_size(LOUPE_VECTOR_BYTES)));
typedef int64_t VectorInt64 __attribute__((vector_size(LOUPE_VECTOR_BYTES)));
typedef float Float4 __attribute__((vector_size(16)));
typedef double Double2 __attribute__((vector_size(16)));

// (x, y) pairs of four points to their x and their y, one instruction each.
#if defined(__clang__)
LOUPE_INLINE Float4 even_lanes(Float4 a, Float4 b) { return __builtin_shufflevector(a, b, 0, 2, 4, 6); }
LOUPE_INLINE Float4 odd_lanes(Float4 a, Float4 b) { return __builtin_shufflevector(a, b, 1, 3, 5, 7); }
#else
typedef int32_t Int4 __attribute__((vector_size(16)));
LOUPE_INLINE Float4 even_lanes(Float4 a, Float4 b) { return __builtin_shuffle(a, b, (Int4){0, 2, 4, 6}); }
LOUPE_INLINE Float4 odd_lanes(Float4 a, Float4 b) { return __builtin_shuffle(a, b, (Int4){1, 3, 5, 7}); }
#endif

template <class T>
struct Simd;

template <>
struct Simd<float> {
  using Vector = VectorFloat;
  using IntVector = VectorInt32;
  using Int = int32_t;
  static constexpr int kLanes = LOUPE_VECTOR_BYTES / 4;
};

template <>
struct Simd<double> {
  using Vector = VectorDouble;
  using IntVector = VectorInt64;
  using Int = int64_t;
  static constexpr int kLanes = LOUPE_VECTOR_BYTES / 8;
};

template <class V, class T>
LOUPE_INLINE V load(const T* from) {
  V vector;
  __builtin_memcpy(&vector, from, sizeof(V));
  return vector;
}

template <class V, class T>
LOUPE_INLINE void store(T* to, V vector) {
  __builtin_memcpy(to, &vector, sizeof(V));
}

// x * size + addend with the error of the sum alone, where the product nearly cancels the addend and
// size is a whole number below 4096. Split in two, because whether a compiler fuses the multiplication
// into the addition cannot be relied on, even where the processor could.
template <class V>
LOUPE_INLINE V exact_product_sum(V x, V size, V addend) {
  if (sizeof(x[0]) == 4) {
    const VectorInt32 high_bits = (VectorInt32)x & ~0xFFF;
    const V high = (V)high_bits;
    return (high * size + addend) + (x - high) * size;
  }
  return x * size + addend;
}

struct BFloat16 {
  uint16_t bits;
};

LOUPE_INLINE float widen(float x) { return x; }
LOUPE_INLINE double widen(double x) { return x; }
LOUPE_INLINE float widen(BFloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float result;
  __builtin_memcpy(&result, &bits, 4);
  return result;
}

LOUPE_INLINE void narrow(float x, float* to) { *to = x; }
LOUPE_INLINE void narrow(double x, double* to) { *to = x; }
LOUPE_INLINE void narrow(float x, BFloat16* to) {  // to nearest, ties to even; NaN stays NaN
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  const uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
  to->bits = static_cast<uint16_t>(x == x ? rounded : 0x7FC0);
}

// e^x for x <= 0, to about one unit in the last place; NaN stays NaN.
LOUPE_INLINE VectorFloat exp_nonpositive(VectorFloat x) {
  const VectorInt32 vanishes = x < -87.0f;
  x = vanishes ? VectorFloat{} - 87.0f : x;
  const VectorFloat shifted = x * 1.44269504f - 0.5f;
  const VectorInt32 exponent = __builtin_convertvector(shifted, VectorInt32);
  const VectorFloat n = __builtin_convertvector(exponent, VectorFloat);
  VectorFloat r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  VectorFloat p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const VectorInt32 scale = (exponent + 127) << 23;
  VectorFloat power;
  __builtin_memcpy(&power, &scale, sizeof power);
  return vanishes ? VectorFloat{} : p * power;
}

LOUPE_INLINE VectorDouble exp_nonpositive(VectorDouble x) {
  for (int lane = 0; lane < Simd<double>::kLanes; ++lane) x[lane] = __builtin_exp(x[lane]);
  return x;
}


// Sums of the lanes of kLanes vectors: lane i of the result is the sum of in[i]. Every step adds two
// shuffles that are one instruction each; the order of the inputs makes up for where they leave lanes.
#if LOUPE_VECTOR_BYTES == 64
LOUPE_INLINE VectorFloat add_quads(VectorFloat a, VectorFloat b) {  // halves of four-lane groups
  return LOUPE_SHUFFLE(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
         LOUPE_SHUFFLE(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
}
LOUPE_INLINE VectorFloat add_pairs(VectorFloat a, VectorFloat b) {
  return LOUPE_SHUFFLE(a, b, 0, 2, 16, 18, 4, 6, 20, 22, 8, 10, 24, 26, 12, 14, 28, 30) +
         LOUPE_SHUFFLE(a, b, 1, 3, 17, 19, 5, 7, 21, 23, 9, 11, 25, 27, 13, 15, 29, 31);
}
LOUPE_INLINE VectorFloat add_halves(VectorFloat a, VectorFloat b) {
  return LOUPE_SHUFFLE(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
         LOUPE_SHUFFLE(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
}
LOUPE_INLINE VectorFloat add_quarters(VectorFloat a, VectorFloat b) {
  return LOUPE_SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
         LOUPE_SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
}
LOUPE_INLINE VectorFloat lane_sums(const VectorFloat* in) {
  VectorFloat s[4];
  LOUPE_UNROLL
  for (int i = 0; i < 4; ++i) {
    s[i] = add_quarters(add_halves(in[i], in[i + 4]), add_halves(in[i + 8], in[i + 12]));
  }
  return add_pairs(add_quads(s[0], s[1]), add_quads(s[2], s[3]));
}
#elif LOUPE_VECTOR_BYTES == 32
LOUPE_INLINE VectorFloat add_quads(VectorFloat a, VectorFloat b) {
  return LOUPE_SHUFFLE(a, b, 0, 1, 8, 9, 4, 5, 12, 13) +
         LOUPE_SHUFFLE(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
}
LOUPE_INLINE VectorFloat lane_sums(const VectorFloat* in) {
  VectorFloat s[4];
  LOUPE_UNROLL
  for (int i = 0; i < 4; ++i) {
    s[i] = LOUPE_SHUFFLE(in[i], in[i + 4], 0, 1, 2, 3, 8, 9, 10, 11) +
           LOUPE_SHUFFLE(in[i], in[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
  const VectorFloat a = add_quads(s[0], s[1]), b = add_quads(s[2], s[3]);
  return LOUPE_SHUFFLE(a, b, 0, 2, 8, 10, 4, 6, 12, 14) +
         LOUPE_SHUFFLE(a, b, 1, 3, 9, 11, 5, 7, 13, 15);
}
#else
LOUPE_INLINE VectorFloat add_quads(VectorFloat a, VectorFloat b) {
  return LOUPE_SHUFFLE(a, b, 0, 1, 4, 5) + LOUPE_SHUFFLE(a, b, 2, 3, 6, 7);
}
LOUPE_INLINE VectorFloat lane_sums(const VectorFloat* in) {
  const VectorFloat a = add_quads(in[0], in[1]), b = add_quads(in[2], in[3]);
  return LOUPE_SHUFFLE(a, b, 0, 2, 4, 6) + LOUPE_SHUFFLE(a, b, 1, 3, 5, 7);
}
#endif

LOUPE_INLINE VectorDouble lane_sums(const VectorDouble* in) {
  VectorDouble result;
  for (int i = 0; i < Simd<double>::kLanes; ++i) {
    double sum = 0;
    for (int lane = 0; lane < Simd<double>::kLanes; ++lane) sum += in[i][lane];
    result[i] = sum;
  }
  return result;
}

}  // namespace
}  // namespace LOUPE_ISA
}  // namespace loupe
