// From a Problem to kernel arguments, and to the template that fits it.
#pragma once

#include <type_traits>

#include "cuda_points.cuh"
#include "problem.h"

namespace loupe {
namespace cuda {

inline Arguments arguments_of(const Problem& problem) {
  Arguments a{};
  a.rows = problem.batch * problem.queries * problem.heads;
  a.image_stride = problem.pixels * problem.heads * problem.channels;
  a.queries = static_cast<int>(problem.queries);
  a.heads = static_cast<int>(problem.heads);
  a.channels = static_cast<int>(problem.channels);
  a.levels = static_cast<int>(problem.levels);
  a.points = static_cast<int>(problem.points);
  int start = 0;
  for (int level = 0; level < a.levels; ++level) {
    a.heights[level] = static_cast<int>(problem.shapes[2 * level]);
    a.widths[level] = static_cast<int>(problem.shapes[2 * level + 1]);
    a.starts[level] = start;
    start += a.heights[level] * a.widths[level];
  }
  a.value = problem.value;
  a.reference = problem.reference;
  a.locations = problem.locations;
  a.weights = problem.weights;
  a.output = problem.output;
  a.grad_output = problem.grad_output;
  a.grad_value = problem.grad_value;
  a.grad_locations = problem.grad_locations;
  a.grad_weights = problem.grad_weights;
  return a;
}

template <int N>
using Constant = std::integral_constant<int, N>;

// Calls call(storage, levels, points, channels per lane, lanes per row, one pass over channels).
// Levels and points are 0 where they are read at run time. Hot: 32 channels, four points, three
// levels (Mask2Former) or four (Deformable DETR).
template <class S, class Call>
void with_layout(const Problem& problem, bool allow_hot, const Call& call) {
  constexpr int kVector = 16 / sizeof(S), kLanes = 32 / kVector;
  if constexpr (sizeof(S) < 8) {
    if (allow_hot && problem.channels == 32 && problem.points == 4 && problem.levels == 3) {
      return call(S(), Constant<3>(), Constant<4>(), Constant<kVector>(), Constant<kLanes>(),
                  std::true_type());
    }
    if (allow_hot && problem.channels == 32 && problem.points == 4 && problem.levels == 4) {
      return call(S(), Constant<4>(), Constant<4>(), Constant<kVector>(), Constant<kLanes>(),
                  std::true_type());
    }
  }
  if (problem.channels % kVector == 0) {
    return call(S(), Constant<0>(), Constant<0>(), Constant<kVector>(), Constant<8>(),
                std::false_type());
  }
  call(S(), Constant<0>(), Constant<0>(), Constant<1>(), Constant<8>(), std::false_type());
}

template <class Call>
void with_storage(const Problem& problem, bool allow_hot, const Call& call) {
  switch (problem.scalar) {
    case Scalar::kFloat:
      return with_layout<float>(problem, allow_hot, call);
    case Scalar::kDouble:
      return with_layout<double>(problem, allow_hot, call);
    case Scalar::kBFloat16:
      return with_layout<__nv_bfloat16>(problem, allow_hot, call);
    case Scalar::kHalf:
      return with_layout<__half>(problem, allow_hot, call);
  }
}

}  // namespace cuda
}  // namespace loupe
