// Whole tasks, and the choice of the templates that fit a problem.
#pragma once

#include "cpu_kernels.h"

namespace loupe {
namespace LOUPE_ISA {
namespace {

// Calls step(constant number of vectors, first channel) until all channels are covered.
template <int N, class Step>
LOUPE_INLINE void for_each_channel_part(int64_t vectors, int64_t lanes, const Step& step) {
  if (N > 0) {
    step(std::integral_constant<int, N>(), 0);
    return;
  }
  for (int64_t n = 0; n < vectors; ++n) step(std::integral_constant<int, 1>(), n * lanes);
}

// N: vectors per row where known when compiling, else 0; then C == N * kLanes channels.
template <class S, class T, int L, int P, int N>
void forward_tasks(const Problem& problem, int64_t pieces, int64_t begin, int64_t end,
                   void* scratch) {
  constexpr int kLanes = Simd<T>::kLanes;
  const Layout layout = Layout::of(problem, static_cast<const T*>(nullptr));
  const int64_t padded = N > 0 ? N * kLanes : layout.padded;
  Arena arena{static_cast<char*>(scratch)};
  Plan<T> plan(problem, arena);
  T* result = arena.take<T>(layout.padded);
  T* packed = arena.take<T>(layout.cells * layout.padded);
  plan.set_levels(problem);
  std::memset(packed, 0, layout.cells * layout.padded * sizeof(T));
  const int64_t count = L > 0 ? L * P : plan.points_per_query;
  const int64_t channels = N > 0 ? N * kLanes : problem.channels;
  int64_t slice = -1;
  for (int64_t index = begin; index < end; ++index) {
    const Task task = task_at(problem, pieces, index);
    if (index / pieces != slice) pack<S, T, N * kLanes>(problem, task, padded, packed);
    slice = index / pieces;
    for (int64_t first = task.first_query; first < task.last_query; first += plan.queries) {
      const int64_t left = task.last_query - first;
      const int64_t queries = left < plan.queries ? left : plan.queries;
      plan_block<T, L, P>(problem, plan, layout, task, first, queries);
      for (int64_t query = 0; query < queries; ++query) {
        const int64_t row = (task.image * problem.queries + first + query) * problem.heads + task.head;
        S* output = static_cast<S*>(problem.output) + row * channels;
        prefetch<true>(output + 8 * problem.heads * channels, channels);
        const bool direct = N > 0 && sizeof(S) == sizeof(T);
        T* to = direct ? reinterpret_cast<T*>(output) : result;
        for_each_channel_part<N>(padded / kLanes, kLanes, [&](auto vectors, int64_t channel) {
          gather<T, decltype(vectors)::value>(plan, query * count, count, packed + channel, padded,
                                              to + channel);
        });
        if (!direct) narrow_row(result, output, channels);
      }
    }
  }
}

template <class S, class T, int L, int P, int N>
void backward_tasks(const Problem& problem, int64_t begin, int64_t end, void* scratch) {
  constexpr int kLanes = Simd<T>::kLanes;
  const Layout layout = Layout::of(problem, static_cast<const T*>(nullptr));
  const int64_t padded = N > 0 ? N * kLanes : layout.padded;
  Arena arena{static_cast<char*>(scratch)};
  Plan<T> plan(problem, arena);
  T* gradient = arena.take<T>(layout.padded);
  T* packed = arena.take<T>(layout.cells * layout.padded);
  T* packed_gradient = arena.take<T>(layout.cells * layout.padded);
  plan.set_levels(problem);
  std::memset(packed, 0, layout.cells * layout.padded * sizeof(T));
  std::memset(gradient, 0, layout.padded * sizeof(T));
  const int64_t count = L > 0 ? L * P : plan.points_per_query;
  const int64_t channels = N > 0 ? N * kLanes : problem.channels;
  for (int64_t index = begin; index < end; ++index) {
    const Task task = task_at(problem, 1, index);
    pack<S, T, N * kLanes>(problem, task, padded, packed);
    std::memset(packed_gradient, 0, layout.cells * layout.padded * sizeof(T));
    for (int64_t first = 0; first < problem.queries; first += plan.queries) {
      const int64_t left = problem.queries - first;
      const int64_t queries = left < plan.queries ? left : plan.queries;
      plan_block<T, L, P>(problem, plan, layout, task, first, queries);
      for (int64_t query = 0; query < queries; ++query) {
        const int64_t row = (task.image * problem.queries + first + query) * problem.heads + task.head;
        const S* from = static_cast<const S*>(problem.grad_output) + row * channels;
        prefetch<false>(from + 8 * problem.heads * channels, channels);
        prefetch<true>(static_cast<const T*>(problem.grad_locations) + row * count * 2, count * 2);
        prefetch<true>(static_cast<const T*>(problem.grad_weights) + row * count, count);
        const bool direct = N > 0 && sizeof(S) == sizeof(T);
        if (!direct) widen_row(from, gradient, channels);
        const T* g = direct ? reinterpret_cast<const T*>(from) : gradient;
        for_each_channel_part<N>(padded / kLanes, kLanes, [&](auto vectors, int64_t channel) {
          constexpr int kVectors = decltype(vectors)::value;
          for (int64_t point = 0; point < count; point += 4) {
            corner_dots<T, kVectors>(plan, query * count + point, packed + channel, padded,
                                     g + channel, channel > 0);
          }
          scatter<T, kVectors>(plan, query * count, count, packed_gradient + channel, padded,
                               g + channel);
        });
      }
      point_gradients(problem, plan, queries * count);
      write_gradients<T, L * P>(problem, plan, task, first, queries);
    }
    unpack_gradient<S, T, N * kLanes>(problem, task, padded, packed_gradient);
  }
}

// Adds one point's corners to `result`, from the level's pixels where they lie.
template <class S, class T>
void add_corners(const Plan<T>& plan, const Layout& layout, int64_t i, int64_t h, int64_t w,
                 const S* pixels, int64_t step, int64_t channels, T* result) {
  const int64_t cell = plan.upper[i] / layout.padded;
  if (cell == layout.zero_cell) {  // outside; a weight that is no number still counts
    for (int64_t c = 0; c < channels; ++c) result[c] += plan.attention[i] * T(0);
    return;
  }
  const int64_t inside = cell - plan.start[i], row = inside / (w + 2), column = inside % (w + 2);
  for (int corner = 0; corner < 4; ++corner) {
    const int64_t x = column + corner % 2 - 1, y = row + corner / 2 - 1;
    if (x < 0 || x >= w || y < 0 || y >= h) continue;
    const S* from = pixels + (y * w + x) * step;
    const T weight = plan.corner[corner][i];
    for (int64_t c = 0; c < channels; ++c) result[c] += weight * widen(from[c]);
  }
}

// Few queries: reading the value where it lies costs less than packing all of it.
template <class S, class T>
void forward_direct(const Problem& problem, int64_t begin, int64_t end, void* scratch) {
  const int64_t levels = problem.levels, count = levels * problem.points;
  const int64_t channels = problem.channels, step = problem.heads * channels;
  const Layout layout = Layout::of(problem, static_cast<const T*>(nullptr));
  Arena arena{static_cast<char*>(scratch)};
  Plan<T> plan(problem, arena);
  plan.set_levels(problem);
  T* result = arena.take<T>(layout.padded);
  for (int64_t row = begin; row < end; ++row) {
    const S* image =
        static_cast<const S*>(problem.value) + row / problem.queries * problem.pixels * step;
    for (int64_t head = 0; head < problem.heads; ++head) {
      read_query<T, 0, 0>(problem, plan, row * problem.heads + head, row, 0);
      place_block<T, 0>(problem, plan, layout, 1);
      std::memset(result, 0, channels * sizeof(T));
      const S* pixels = image + head * channels;
      for (int64_t i = 0; i < count; ++i) {
        const int64_t level = i / problem.points, w = problem.shapes[2 * level + 1];
        add_corners(plan, layout, i, problem.shapes[2 * level], w, pixels, step, channels, result);
        const bool ends_level = i % problem.points == problem.points - 1;
        if (ends_level) pixels += problem.shapes[2 * level] * w * step;
      }
      narrow_row(result, static_cast<S*>(problem.output) + (row * problem.heads + head) * channels,
                 channels);
    }
  }
}

// The templates worth their size: Mask2Former's three levels, Deformable DETR's four, each with four
// points; 32 channels. Everything else takes the general one.
template <class Call>
LOUPE_INLINE void with_template(const Problem& problem, const Call& call) {
  const bool common = problem.channels == 32 && problem.points == 4;
  if (common && problem.levels == 3) {
    call(std::integral_constant<int, 3>(), std::integral_constant<int, 4>(),
         std::integral_constant<int, 32>());
  } else if (common && problem.levels == 4) {
    call(std::integral_constant<int, 4>(), std::integral_constant<int, 4>(),
         std::integral_constant<int, 32>());
  } else {
    call(std::integral_constant<int, 0>(), std::integral_constant<int, 0>(),
         std::integral_constant<int, 0>());
  }
}

template <class Call>
void with_types(const Problem& problem, const Call& call) {
  switch (problem.scalar) {
    case Scalar::kFloat:
      return call(float(), float());
    case Scalar::kDouble:
      return call(double(), double());
    case Scalar::kBFloat16:
      return call(BFloat16(), float());
    case Scalar::kHalf:  // widened to float before it comes here
      return;
  }
}

int64_t scratch_bytes(const Problem& problem, bool backward) {
  int64_t bytes = 0;
  with_types(problem, [&](auto, auto compute) {
    using T = decltype(compute);
    const Layout layout = Layout::of(problem, static_cast<const T*>(nullptr));
    Arena arena{nullptr};
    Plan<T> plan(problem, arena);
    arena.take<T>(layout.padded);
    for (int copies = backward ? 2 : 1; copies > 0; --copies) {
      arena.take<T>(layout.cells * layout.padded);
    }
    bytes = arena.used;
  });
  return bytes;
}

void forward(const Problem& problem, int64_t pieces, int64_t begin, int64_t end, void* scratch) {
  with_types(problem, [&](auto storage, auto compute) {
    using S = decltype(storage);
    using T = decltype(compute);
    with_template(problem, [&](auto levels, auto points, auto channels) {
      constexpr int kVectors = sizeof(T) == 4 ? decltype(channels)::value / Simd<T>::kLanes : 0;
      constexpr bool kKnown = kVectors > 0;
      forward_tasks<S, T, kKnown ? decltype(levels)::value : 0, kKnown ? decltype(points)::value : 0,
                    kVectors>(problem, pieces, begin, end, scratch);
    });
  });
}

void forward_few(const Problem& problem, int64_t begin, int64_t end, void* scratch) {
  with_types(problem, [&](auto storage, auto compute) {
    forward_direct<decltype(storage), decltype(compute)>(problem, begin, end, scratch);
  });
}

void backward(const Problem& problem, int64_t begin, int64_t end, void* scratch) {
  with_types(problem, [&](auto storage, auto compute) {
    using S = decltype(storage);
    using T = decltype(compute);
    with_template(problem, [&](auto levels, auto points, auto channels) {
      constexpr int kVectors = sizeof(T) == 4 ? decltype(channels)::value / Simd<T>::kLanes : 0;
      constexpr bool kKnown = kVectors > 0;
      backward_tasks<S, T, kKnown ? decltype(levels)::value : 0,
                     kKnown ? decltype(points)::value : 0, kVectors>(problem, begin, end, scratch);
    });
  });
}

}  // namespace
}  // namespace LOUPE_ISA
}  // namespace loupe
