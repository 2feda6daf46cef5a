// Forward and backward over packed slices. Included once per instruction set, inside its namespace.
#pragma once

#include "cpu_plan.h"

namespace loupe {
namespace LOUPE_ISA {
namespace {

constexpr int64_t kMaxChannelVectors = 8;  // vectors of one row handled at a time

struct Task {
  int64_t image, head, first_query, last_query;
};

LOUPE_INLINE Task task_at(const Problem& problem, int64_t pieces, int64_t index) {
  const int64_t piece = index % pieces, slice = index / pieces;
  return {slice / problem.heads, slice % problem.heads, piece * problem.queries / pieces,
          (piece + 1) * problem.queries / pieces};
}

// Calls visit(first pixel of the row, first cell of the row, width) for each row of each level.
template <class Visit>
LOUPE_INLINE void for_each_row(const Problem& problem, const Visit& visit) {
  int64_t pixel = 0, first_cell = 0;
  for (int64_t level = 0; level < problem.levels; ++level) {
    const int64_t h = problem.shapes[2 * level], w = problem.shapes[2 * level + 1];
    for (int64_t row = 0; row < h; ++row, pixel += w) {
      visit(pixel, first_cell + (row + 1) * (w + 2) + 1, w);
    }
    first_cell += (h + 2) * (w + 2);
  }
}

template <class S, class T>
LOUPE_INLINE void widen_row(const S* from, T* to, int64_t channels) {
  for (int64_t c = 0; c < channels; ++c) to[c] = widen(from[c]);
}

template <class S, class T>
LOUPE_INLINE void narrow_row(const T* from, S* to, int64_t channels) {
  for (int64_t c = 0; c < channels; ++c) narrow(from[c], to + c);
}

// C is the number of channels where known when compiling, else 0.
template <class S, class T, int C>
void pack(const Problem& problem, const Task& task, int64_t padded, T* packed) {
  const int64_t channels = C > 0 ? C : problem.channels, step = problem.heads * channels;
  const S* slice = static_cast<const S*>(problem.value) +
                   (task.image * problem.pixels * problem.heads + task.head) * channels;
  for_each_row(problem, [&](int64_t pixel, int64_t cell, int64_t width) {
    for (int64_t column = 0; column < width; ++column) {
      const S* from = slice + (pixel + column) * step;
      __builtin_prefetch(from + 24 * step);
      __builtin_prefetch(from + 24 * step + 64 / sizeof(S));
      widen_row(from, packed + (cell + column) * padded, channels);
    }
  });
}

template <class S, class T, int C>
void unpack_gradient(const Problem& problem, const Task& task, int64_t padded, const T* packed) {
  const int64_t channels = C > 0 ? C : problem.channels, step = problem.heads * channels;
  S* slice = static_cast<S*>(problem.grad_value) +
             (task.image * problem.pixels * problem.heads + task.head) * channels;
  for_each_row(problem, [&](int64_t pixel, int64_t cell, int64_t width) {
    for (int64_t column = 0; column < width; ++column) {
      __builtin_prefetch(slice + (pixel + column + 16) * step, 1);
      __builtin_prefetch(slice + (pixel + column + 16) * step + 64 / sizeof(S), 1);
      narrow_row(packed + (cell + column) * padded, slice + (pixel + column) * step, channels);
    }
  });
}

// Tells the processor of memory that is about to be read (or, with Write, written): the rows of one
// head lie so far apart that its own guesses fail at every page.
template <bool Write, class T>
LOUPE_INLINE void prefetch(const T* from, int64_t count) {
  const char* bytes = reinterpret_cast<const char*>(from);
  const int64_t size = count * static_cast<int64_t>(sizeof(T));
  for (int64_t at = 0; at < size; at += 64) __builtin_prefetch(bytes + at, Write);
  __builtin_prefetch(bytes + size - 1, Write);
}

// N points of each query if known when compiling, else 0.
template <class T, int N>
LOUPE_INLINE void place_block(const Problem& problem, const Plan<T>& plan, const Layout& layout,
                              int64_t queries) {
  const int64_t count = N > 0 ? N : plan.points_per_query;
  const int64_t placed = queries * count + (count % 4 ? 4 : 0);
  if (problem.fused) {
    finish_softmax<T, N>(plan, queries);
    place_points<T, true>(plan, layout, placed);
  } else {
    place_points<T, false>(plan, layout, placed);
  }
}

// Plans one block of queries and prefetches the inputs of the next.
template <class T, int L, int P>
LOUPE_INLINE void plan_block(const Problem& problem, const Plan<T>& plan, const Layout& layout,
                             const Task& task, int64_t first, int64_t queries) {
  const int64_t count = L > 0 ? L * P : plan.points_per_query;
  for (int64_t query = 0; query < queries; ++query) {
    const int64_t row = task.image * problem.queries + first + query;
    const int64_t task_row = row * problem.heads + task.head;
    const int64_t ahead = task_row + plan.queries * problem.heads;
    prefetch<false>(static_cast<const T*>(problem.locations) + ahead * count * 2, count * 2);
    prefetch<false>(static_cast<const T*>(problem.weights) + ahead * count, count);
    read_query<T, L, P>(problem, plan, task_row, row, query * count);
  }
  place_block<T, L * P>(problem, plan, layout, queries);
}

// Adds the weighted corners of one query's points, N vectors of channels.
template <class T, int N>
LOUPE_INLINE void gather(const Plan<T>& plan, int64_t at, int64_t count, const T* packed,
                         int64_t padded, T* result) {
  using V = typename Simd<T>::Vector;
  constexpr int kLanes = Simd<T>::kLanes;
  V upper[N] = {}, lower[N] = {};
  for (int64_t i = at; i < at + count; ++i) {
    const T* left = packed + plan.upper[i];
    const T* below = packed + plan.lower[i];
    const T a = plan.corner[0][i], b = plan.corner[1][i];
    const T c = plan.corner[2][i], d = plan.corner[3][i];
    LOUPE_UNROLL
    for (int n = 0; n < N; ++n) {
      upper[n] += a * load<V>(left + n * kLanes);
      lower[n] += c * load<V>(below + n * kLanes);
      upper[n] += b * load<V>(left + padded + n * kLanes);
      lower[n] += d * load<V>(below + padded + n * kLanes);
    }
  }
  LOUPE_UNROLL
  for (int n = 0; n < N; ++n) store(result + n * kLanes, upper[n] + lower[n]);
}

// Dot products of the output's gradient with the four corners of four points.
template <class T, int N>
LOUPE_INLINE void corner_dots(const Plan<T>& plan, int64_t at, const T* packed, int64_t padded,
                              const T* gradient, bool accumulate) {
  using V = typename Simd<T>::Vector;
  constexpr int kLanes = Simd<T>::kLanes;
  constexpr int kCorners = kLanes >= 4 ? kLanes / 4 : 1;  // corners whose sums fill one vector
  V g[N];
  LOUPE_UNROLL
  for (int n = 0; n < N; ++n) g[n] = load<V>(gradient + n * kLanes);
  LOUPE_UNROLL
  for (int first = 0; first < 4; first += kCorners) {
    LOUPE_UNROLL
    for (int half = 0; half < (kLanes < 4 ? 4 : 1); half += (kLanes < 4 ? kLanes : 1)) {
      V sums[kLanes];
      LOUPE_UNROLL
      for (int i = 0; i < kLanes; ++i) {
        const int corner = first + i / 4, point = half + i % 4;
        const T* row = packed + (corner < 2 ? plan.upper : plan.lower)[at + point] +
                       (corner % 2) * padded;
        V sum = g[0] * load<V>(row);
        LOUPE_UNROLL
        for (int n = 1; n < N; ++n) sum += g[n] * load<V>(row + n * kLanes);
        sums[i] = sum;
      }
      const V dots = lane_sums(sums);
      LOUPE_UNROLL
      for (int corner = 0; corner < kCorners; ++corner) {
        constexpr int kWidth = kLanes < 4 ? kLanes : 4;
        T* to = plan.dot[first + corner] + at + half;
        T part[kLanes];
        store(part, dots);
        LOUPE_UNROLL
        for (int i = 0; i < kWidth; ++i) {
          to[i] = (accumulate ? to[i] : T(0)) + part[corner * 4 + i];
        }
      }
    }
  }
}

template <class T, int N>
LOUPE_INLINE void scatter(const Plan<T>& plan, int64_t at, int64_t count, T* packed, int64_t padded,
                          const T* gradient) {
  using V = typename Simd<T>::Vector;
  constexpr int kLanes = Simd<T>::kLanes;
  V g[N];
  LOUPE_UNROLL
  for (int n = 0; n < N; ++n) g[n] = load<V>(gradient + n * kLanes);
  for (int64_t i = at; i < at + count; ++i) {
    LOUPE_UNROLL
    for (int corner = 0; corner < 4; ++corner) {
      T* row = packed + (corner < 2 ? plan.upper : plan.lower)[i] + (corner % 2) * padded;
      const T weight = plan.corner[corner][i];
      LOUPE_UNROLL
      for (int n = 0; n < N; ++n) {
        store(row + n * kLanes, load<V>(row + n * kLanes) + weight * g[n]);
      }
    }
  }
}

// From corner dot products to gradients of positions (left in x, y) and weights (in dot[0]).
template <class T>
LOUPE_INLINE void point_gradients(const Problem& problem, const Plan<T>& plan, int64_t count) {
  using V = typename Simd<T>::Vector;
  for (int64_t i = 0; i < count; i += Simd<T>::kLanes) {
    const V a = load<V>(plan.dot[0] + i), b = load<V>(plan.dot[1] + i);
    const V c = load<V>(plan.dot[2] + i), d = load<V>(plan.dot[3] + i);
    const V x = load<V>(plan.fraction_x + i), y = load<V>(plan.fraction_y + i);
    const V top = b - a, bottom = d - c;
    const V above = a + x * top, below = c + x * bottom;
    V attention = load<V>(plan.attention + i);
    store(plan.dot[0] + i, above + y * (below - above));
    V grad_x = attention * (top + y * (bottom - top)), grad_y = attention * (below - above);
    if (!problem.fused) {
      grad_x *= load<V>(plan.width + i);
      grad_y *= load<V>(plan.height + i);
    }
    store(plan.x + i, grad_x);
    store(plan.y + i, grad_y);
  }
}

template <class T, int N>
LOUPE_INLINE void write_gradients(const Problem& problem, const Plan<T>& plan, const Task& task,
                                  int64_t first, int64_t queries) {
  const int64_t count = N > 0 ? N : plan.points_per_query;
  for (int64_t query = 0; query < queries; ++query) {
    const int64_t row = (task.image * problem.queries + first + query) * problem.heads + task.head;
    T* positions = static_cast<T*>(problem.grad_locations) + row * count * 2;
    T* weights = static_cast<T*>(problem.grad_weights) + row * count;
    const int64_t at = query * count;
    for (int64_t i = 0; i < count; ++i) {
      positions[2 * i] = plan.x[at + i];
      positions[2 * i + 1] = plan.y[at + i];
    }
    if (!problem.fused) {
      for (int64_t i = 0; i < count; ++i) weights[i] = plan.dot[0][at + i];
      continue;
    }
    T mean[4] = {0, 0, 0, 0};
    for (int64_t i = 0; i < count; ++i) mean[i & 3] += plan.attention[at + i] * plan.dot[0][at + i];
    const T expected = (mean[0] + mean[1]) + (mean[2] + mean[3]);
    for (int64_t i = 0; i < count; ++i) {
      weights[i] = plan.attention[at + i] * (plan.dot[0][at + i] - expected);
    }
  }
}

}  // namespace
}  // namespace LOUPE_ISA
}  // namespace loupe
