// Checks shared by the CPU and the CUDA operators. What is checked here keeps memory safe whoever
// calls; the Python functions check first, with messages that name the remedy.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <vector>

namespace loupe {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Positions and weights are never rounded: float32, or float64 beside a float64 value.
inline ScalarType compute_type(const Tensor& value) {
  return value.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

struct Sizes {
  int64_t batch, pixels, queries, heads, channels, levels, points;
};

constexpr int64_t kIntMax = (int64_t{1} << 31) - 1;

// Whether the product of sizes, none negative, is at most `limit`. Sizes come from the caller: a
// product may overflow, and tensors without elements have any sizes.
inline bool product_fits(std::initializer_list<int64_t> sizes, int64_t limit) {
  int64_t product = 1;
  for (int64_t size : sizes) {
    if (__builtin_mul_overflow(product, size, &product) || product > limit) return false;
  }
  return true;
}

// `reference` is null for the unfused operator, whose weights are (B, Q, M, L, P) instead of
// (B, Q, M, L*P).
inline Sizes checked_sizes(const Tensor& value, const std::vector<int64_t>& shapes,
                           const Tensor* reference, const Tensor& locations,
                           const Tensor& weights) {
  STD_TORCH_CHECK(value.dim() == 4, "value must be (B, S, M, D)");
  STD_TORCH_CHECK(locations.dim() == 6 && locations.size(5) == 2,
                  "locations or offsets must be (B, Q, M, L, P, 2)");
  const Sizes sizes{value.size(0), value.size(1), locations.size(1), value.size(2),
                    value.size(3), locations.size(3), locations.size(4)};
  STD_TORCH_CHECK(sizes.heads > 0 && sizes.channels > 0 && sizes.levels > 0 && sizes.points > 0,
                  "heads, channels, levels and points must be at least 1");
  STD_TORCH_CHECK(sizes.pixels <= kIntMax && product_fits({sizes.heads, sizes.channels}, kIntMax) &&
                      product_fits({sizes.levels, sizes.points}, kIntMax / 2),
                  "more than 2^31 pixels, channels of all heads, or points");
  STD_TORCH_CHECK(static_cast<int64_t>(shapes.size()) == 2 * sizes.levels,
                  "shapes must hold h, w of each of the ", sizes.levels, " levels");
  int64_t left = sizes.pixels;
  for (int64_t level = 0; level < sizes.levels; ++level) {
    const int64_t height = shapes[2 * level], width = shapes[2 * level + 1];
    STD_TORCH_CHECK(height > 0 && width > 0, "shapes must be positive");
    STD_TORCH_CHECK(product_fits({height, width}, left), "shapes hold more pixels than value, which has ",
                    sizes.pixels);
    left -= height * width;
  }
  STD_TORCH_CHECK(left == 0, "shapes hold ", sizes.pixels - left, " pixels, value has ", sizes.pixels);
  STD_TORCH_CHECK(locations.size(0) == sizes.batch && locations.size(2) == sizes.heads,
                  "value and locations differ in B or M");
  STD_TORCH_CHECK(weights.dim() == (reference != nullptr ? 4 : 5), "weights must be (B, Q, M, L, P), ",
                  "logits (B, Q, M, L*P)");
  STD_TORCH_CHECK(weights.numel() * 2 == locations.numel() && weights.size(0) == sizes.batch &&
                      weights.size(1) == sizes.queries && weights.size(2) == sizes.heads,
                  "weights or logits do not fit the locations or offsets");
  const ScalarType type = compute_type(value);
  STD_TORCH_CHECK(locations.scalar_type() == type && weights.scalar_type() == type,
                  "positions and weights must be float32, or float64 beside a float64 value");
  if (reference != nullptr) {
    STD_TORCH_CHECK(reference->dim() == 4 && reference->size(0) == sizes.batch &&
                        reference->size(1) == sizes.queries &&
                        reference->size(2) == sizes.levels && reference->size(3) == 2 &&
                        reference->scalar_type() == type,
                    "reference must be (B, Q, L, 2) of the offsets' type");
  }
  return sizes;
}

inline void check_gradient(const Tensor& gradient, const Tensor& value, const Sizes& sizes) {
  STD_TORCH_CHECK(gradient.dim() == 3 && gradient.size(0) == sizes.batch &&
                      gradient.size(1) == sizes.queries &&
                      gradient.size(2) == sizes.heads * sizes.channels &&
                      gradient.scalar_type() == value.scalar_type(),
                  "grad_output must be (B, Q, M*D) of the value's type");
}

}  // namespace loupe
