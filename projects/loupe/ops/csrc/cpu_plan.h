// Where the points of a block of queries lie in the packed slice, and with which weights.
#pragma once

#include <initializer_list>
#include <type_traits>

#include "problem.h"
#include "cpu_simd.h"

namespace loupe {
namespace LOUPE_ISA {
namespace {

constexpr int64_t kBlockPoints = 192;  // points planned at once; their plan stays in the L1 cache
constexpr int64_t kMaxBlockQueries = 64;

LOUPE_INLINE int64_t round_up(int64_t count, int64_t multiple) {
  return (count + multiple - 1) / multiple * multiple;
}

// Hands out 64-byte aligned parts of the scratch; with a null base it only adds up sizes.
struct Arena {
  char* base;
  int64_t used = 0;

  template <class T>
  T* take(int64_t count) {
    T* result = reinterpret_cast<T*>(base + used);
    used += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
    return base ? result : nullptr;
  }
};

// The packed slice of one (image, head): every level with a border of zeros one pixel wide, so that
// all four corners of a point near the edge exist. Points outside read `zero_cell`, whose right
// neighbour is zero too.
struct Layout {
  int64_t padded;  // channels, rounded up to whole vectors
  int64_t cells;
  int64_t zero_cell;

  template <class T>
  static Layout of(const Problem& problem, const T*) {
    Layout layout{round_up(problem.channels, Simd<T>::kLanes), 0, 0};
    for (int64_t level = 0; level < problem.levels; ++level) {
      layout.cells += (problem.shapes[2 * level] + 2) * (problem.shapes[2 * level + 1] + 2);
    }
    layout.zero_cell = layout.cells;
    layout.cells += 2;
    return layout;
  }
};

// Flat arrays over the points of a block: query after query, then level, then point.
template <class T>
struct Plan {
  using Int = typename Simd<T>::Int;
  int64_t queries, points_per_query, flat;  // flat is padded to whole vectors
  T *width, *height;                        // of each point's level
  Int *stride, *start;                      // cells per row; first cell
  T *x, *y;                                 // locations, or offsets if fused
  T *base_x, *base_y;                       // fused: the reference in pixels, its whole part
  T *rest_x, *rest_y;                       // fused: what the whole part leaves
  T *attention;
  T *fraction_x, *fraction_y;
  Int *upper, *lower;                       // first element of the left corners
  T *corner[4];                             // weights: upper left, upper right, lower left, lower right
  T *dot[4];                                // backward: gradient of the output times corner value

  Plan(const Problem& problem, Arena& arena) {
    points_per_query = problem.levels * problem.points;
    queries = kBlockPoints / points_per_query;
    queries = queries < 1 ? 1 : queries > kMaxBlockQueries ? kMaxBlockQueries : queries;
    // Four more than the points: groups of four may look past the last one.
    flat = round_up(queries * points_per_query + 4, 16);
    for (T** part : {&width, &height, &x, &y, &base_x, &base_y, &rest_x, &rest_y, &attention, &fraction_x, &fraction_y, &corner[0],
                     &corner[1], &corner[2], &corner[3], &dot[0], &dot[1], &dot[2], &dot[3]}) {
      *part = arena.take<T>(flat);
    }
    for (Int** part : {&stride, &start, &upper, &lower}) *part = arena.take<Int>(flat);
  }

  void set_levels(const Problem& problem) {
    int64_t at = 0;
    for (int64_t query = 0; query < queries; ++query) {
      int64_t first_cell = 0;
      for (int64_t level = 0; level < problem.levels; ++level) {
        const int64_t h = problem.shapes[2 * level], w = problem.shapes[2 * level + 1];
        for (int64_t point = 0; point < problem.points; ++point, ++at) {
          width[at] = static_cast<T>(w);
          height[at] = static_cast<T>(h);
          stride[at] = static_cast<Int>(w + 2);
          start[at] = static_cast<Int>(first_cell);
        }
        first_cell += (h + 2) * (w + 2);
      }
    }
    for (; at < flat; ++at) width[at] = height[at] = -1, stride[at] = start[at] = 0;  // never inside
    for (int64_t i = 0; i < flat; ++i) {
      x[i] = y[i] = attention[i] = base_x[i] = base_y[i] = rest_x[i] = rest_y[i] = 0;
    }
  }
};

// A reference in pixels of a level, shifted by one for the border and by half a pixel, split so that
// neither part is rounded at the size of the level.
template <class T>
struct Base {
  T whole, rest;
};

template <class T>
LOUPE_INLINE Base<T> base_of(T reference, T size) {
  using V = typename Simd<T>::Vector;
  const T position = reference * size + T(0.5);
  const bool ordinary = position > T(-1e6) && position < T(1e6);  // so that it fits an int
  const T whole = ordinary ? static_cast<T>(static_cast<int>(position)) : T(0);
  return {whole, exact_product_sum(V{} + reference, V{} + size, V{} + (T(0.5) - whole))[0]};
}

// Reads one query's points into the plan. L and P are compile-time where positive.
template <class T, int L, int P>
LOUPE_INLINE void read_query(const Problem& problem, const Plan<T>& plan, int64_t task_row,
                             int64_t reference_row, int64_t at) {
  const int64_t levels = L > 0 ? L : problem.levels, points = P > 0 ? P : problem.points;
  const int64_t count = levels * points;
  const T* positions = static_cast<const T*>(problem.locations) + task_row * count * 2;
  const T* weights = static_cast<const T*>(problem.weights) + task_row * count;
  T* x = plan.x + at;
  T* y = plan.y + at;
  T* attention = plan.attention + at;
  constexpr bool kFours = P > 0 && P % 4 == 0 && sizeof(T) == 4;
  for (int64_t i = 0; kFours && i < count; i += 4) {
    const Float4 first = load<Float4>(positions + 2 * i), second = load<Float4>(positions + 2 * i + 4);
    store(x + i, even_lanes(first, second));
    store(y + i, odd_lanes(first, second));
  }
  for (int64_t i = 0; !kFours && i < count; ++i) {
    x[i] = positions[2 * i];
    y[i] = positions[2 * i + 1];
  }
  if (!problem.fused) {
    for (int64_t i = 0; i < count; ++i) attention[i] = weights[i];
    return;
  }
  const T* reference = static_cast<const T*>(problem.reference) + reference_row * levels * 2;
  for (int64_t level = 0; level < levels; ++level) {
    const int64_t first = level * points;
    const Base<T> across = base_of(reference[2 * level], plan.width[first]);
    const Base<T> down = base_of(reference[2 * level + 1], plan.height[first]);
    for (int64_t i = at + first; i < at + first + points; ++i) {
      plan.base_x[i] = across.whole;
      plan.base_y[i] = down.whole;
      plan.rest_x[i] = across.rest;
      plan.rest_y[i] = down.rest;
    }
  }
  T largest = weights[0];
  if (kFours) {
    Float4 four = load<Float4>(weights);
    for (int64_t i = 4; i < count; i += 4) {
      const Float4 next = load<Float4>(weights + i);
      four = next > four ? next : four;
    }
    const T low = four[0] > four[1] ? four[0] : four[1], high = four[2] > four[3] ? four[2] : four[3];
    largest = low > high ? low : high;
  } else {
    for (int64_t i = 1; i < count; ++i) largest = weights[i] > largest ? weights[i] : largest;
  }
  for (int64_t i = 0; i < count; ++i) attention[i] = weights[i] - largest;
}

// Turns shifted logits of a block into weights that sum to one per query.
template <class T, int N>
LOUPE_INLINE void finish_softmax(const Plan<T>& plan, int64_t queries) {
  using V = typename Simd<T>::Vector;
  const int64_t count = N > 0 ? N : plan.points_per_query;
  for (int64_t i = 0; i < queries * count; i += Simd<T>::kLanes) {
    store(plan.attention + i, exp_nonpositive(load<V>(plan.attention + i)));
  }
  for (int64_t query = 0; query < queries; ++query) {
    T* row = plan.attention + query * count;
    T sums[4] = {0, 0, 0, 0};  // four chains, so that the additions do not wait for each other
    for (int64_t i = 0; i < count; ++i) sums[i & 3] += row[i];
    const T scale = T(1) / ((sums[0] + sums[1]) + (sums[2] + sums[3]));
    for (int64_t i = 0; i < count; ++i) row[i] *= scale;
  }
}

// From positions and attention to addresses and corner weights, all points of the block at once.
template <class T, bool Fused>
LOUPE_INLINE void place_points(const Plan<T>& plan, const Layout& layout, int64_t count) {
  using V = typename Simd<T>::Vector;
  using I = typename Simd<T>::IntVector;
  using Int = typename Simd<T>::Int;
  const Int padded = static_cast<Int>(layout.padded);
  const I zero_cell = I{} + static_cast<Int>(layout.zero_cell);
  for (int64_t i = 0; i < count; i += Simd<T>::kLanes) {
    const V x = load<V>(plan.x + i), y = load<V>(plan.y + i);
    const V width = load<V>(plan.width + i), height = load<V>(plan.height + i);
    const V attention = load<V>(plan.attention + i);
    // Positions in cells: the border shifts them by one. Good enough to find the cell; the fractions
    // below are not rounded at the size of the level.
    V cell_x, cell_y;
    if (Fused) {
      cell_x = x + (load<V>(plan.base_x + i) + load<V>(plan.rest_x + i));
      cell_y = y + (load<V>(plan.base_y + i) + load<V>(plan.rest_y + i));
    } else {
      cell_x = x * width + T(0.5);
      cell_y = y * height + T(0.5);
    }
    // False for NaN, so that such a point reads zeros.
    const I inside = (cell_x >= T(0)) & (cell_x < width + T(1)) & (cell_y >= T(0)) &
                     (cell_y < height + T(1));
    const I column = __builtin_convertvector(inside ? cell_x : V{}, I);
    const I row = __builtin_convertvector(inside ? cell_y : V{}, I);
    const V left_x = __builtin_convertvector(column, V), upper_y = __builtin_convertvector(row, V);
    V fraction_x, fraction_y;
    if (Fused) {
      fraction_x = (load<V>(plan.rest_x + i) + (load<V>(plan.base_x + i) - left_x)) + x;
      fraction_y = (load<V>(plan.rest_y + i) + (load<V>(plan.base_y + i) - upper_y)) + y;
    } else {
      fraction_x = exact_product_sum(x, width, T(0.5) - left_x);
      fraction_y = exact_product_sum(y, height, T(0.5) - upper_y);
    }
    fraction_x = inside ? fraction_x : V{};
    fraction_y = inside ? fraction_y : V{};
    const I stride = load<I>(plan.stride + i);
    const I cell = inside ? load<I>(plan.start + i) + row * stride + column : zero_cell;
    store(plan.upper + i, cell * padded);
    store(plan.lower + i, (cell + (inside & stride)) * padded);
    const V right = attention * fraction_x, left = attention - right;
    const V lower_right = right * fraction_y, lower_left = left * fraction_y;
    store(plan.corner[0] + i, left - lower_left);
    store(plan.corner[1] + i, right - lower_right);
    store(plan.corner[2] + i, lower_left);
    store(plan.corner[3] + i, lower_right);
    store(plan.fraction_x + i, fraction_x);
    store(plan.fraction_y + i, fraction_y);
  }
}

}  // namespace
}  // namespace LOUPE_ISA
}  // namespace loupe
