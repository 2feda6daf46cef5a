// What the forward and the backward on CUDA share: vectors of channels, and the points of one row.
//
// A row is one (image, query, head). G neighbouring lanes work on it, each on 16 bytes of channels:
// 8 lanes for 32 float channels, 4 for 32 bfloat16 ones. The rows of a query's heads are neighbours
// in the warp. Each point is computed by one lane and shared through shared memory.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>

namespace loupe {
namespace cuda {

constexpr int kThreads = 256;
constexpr int kMaxLevels = 16;

struct Arguments {
  int64_t rows;  // B * Q * M
  int64_t image_stride;  // S * M * D
  int queries, heads, channels, levels, points;
  int heights[kMaxLevels], widths[kMaxLevels], starts[kMaxLevels];
  const void* value;
  const void* reference;
  const void* locations;
  const void* weights;
  void* output;
  const void* grad_output;
  void* grad_value;  // of the compute type, or int64 if deterministic; zeroed
  void* grad_locations;
  void* grad_weights;
  const void* scale;  // deterministic only: units of grad_value per 1
};

template <class S>
struct Compute {
  using Type = float;
};
template <>
struct Compute<double> {
  using Type = double;
};

template <class T>
struct Pair;
template <>
struct Pair<float> {
  using Type = float2;
};
template <>
struct Pair<double> {
  using Type = double2;
};

// V values of S widened to the compute type; one 16-byte access where V of them are 16 bytes.
template <class S, int V>
struct alignas(V * sizeof(S)) Packet {
  S item[V];
};

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ void narrow(float x, float* to) { *to = x; }
__device__ __forceinline__ void narrow(double x, double* to) { *to = x; }
__device__ __forceinline__ void narrow(float x, __half* to) { *to = __float2half_rn(x); }
__device__ __forceinline__ void narrow(float x, __nv_bfloat16* to) { *to = __float2bfloat16_rn(x); }

template <class S, int V, class T>
__device__ __forceinline__ void load_channels(const S* __restrict__ from, T (&to)[V]) {
  Packet<S, V> packet;
  if constexpr (V * sizeof(S) == 16) {
    const uint4 bits = __ldg(reinterpret_cast<const uint4*>(from));
    memcpy(&packet, &bits, 16);
  } else {
    packet = *reinterpret_cast<const Packet<S, V>*>(from);
  }
#pragma unroll
  for (int v = 0; v < V; ++v) to[v] = widen(packet.item[v]);
}

template <class S, int V, class T>
__device__ __forceinline__ void store_channels(S* to, const T (&from)[V]) {
  Packet<S, V> packet;
#pragma unroll
  for (int v = 0; v < V; ++v) narrow(from[v], &packet.item[v]);
  *reinterpret_cast<Packet<S, V>*>(to) = packet;
}

// One point as all lanes of its row need it. Corners beyond the border have weight zero and the
// address of the nearest pixel, which costs less than four branches.
template <class T>
struct alignas(16) Point {
  T corner[4];  // weights: upper left, upper right, lower left, lower right
  int offset;   // of the upper left corner, in values from the start of the image
  int right, down;
};

// One point as the lane that computed it keeps it for the backward.
template <class T>
struct Kept {
  T fraction_x, fraction_y, attention;
  int level;
  unsigned valid;  // bit i: corner i is a pixel
};

template <int G, class T>
__device__ __forceinline__ T group_max(T x) {
#pragma unroll
  for (int step = G / 2; step > 0; step /= 2) {
    const T other = __shfl_xor_sync(0xFFFFFFFFu, x, step, G);
    x = other > x ? other : x;
  }
  return x;
}

template <int G, class T>
__device__ __forceinline__ T group_sum(T x) {
#pragma unroll
  for (int step = G / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xFFFFFFFFu, x, step, G);
  return x;
}

template <class T>
struct Softmax {
  T largest, scale;
};

__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }

template <int G, class T>
__device__ __forceinline__ Softmax<T> softmax_of(const T* __restrict__ logits, int count, int lane) {
  T largest = logits[0];
  for (int i = lane; i < count; i += G) largest = logits[i] > largest ? logits[i] : largest;
  largest = group_max<G>(largest);
  T sum = 0;
  for (int i = lane; i < count; i += G) sum += exponential(logits[i] - largest);
  return {largest, T(1) / group_sum<G>(sum)};
}

__device__ __forceinline__ float fused_sum(float x, float y, float z) { return fmaf(x, y, z); }
__device__ __forceinline__ double fused_sum(double x, double y, double z) { return fma(x, y, z); }

template <class T, int P, bool Fused>
__device__ __forceinline__ Kept<T> make_point(const Arguments& a, const T* __restrict__ locations,
                                              const T* __restrict__ weights,
                                              const T* __restrict__ reference,
                                              const Softmax<T>& softmax, int i, Point<T>* point) {
  using T2 = typename Pair<T>::Type;
  const int level = i / (P > 0 ? P : a.points);
  const int h = a.heights[level], w = a.widths[level];
  const T2 position = reinterpret_cast<const T2*>(locations)[i];
  T attention = weights[i];
  // Position in pixels = whole + rest + shift. Only the cell is sought at the size of the level; the
  // fraction is found from the small parts, so that it is not rounded at that size.
  T whole_x = 0, whole_y = 0, rest_x = T(-0.5), rest_y = T(-0.5);
  T scale_x = T(w), scale_y = T(h);  // of the position
  if (Fused) {
    const T2 base = reinterpret_cast<const T2*>(reference)[level];
    whole_x = floor(fused_sum(base.x, T(w), T(-0.5)));
    whole_y = floor(fused_sum(base.y, T(h), T(-0.5)));
    rest_x = fused_sum(base.x, T(w), T(-0.5) - whole_x);
    rest_y = fused_sum(base.y, T(h), T(-0.5) - whole_y);
    scale_x = scale_y = 1;
    attention = exponential(attention - softmax.largest) * softmax.scale;
  }
  const T x = fused_sum(position.x, scale_x, rest_x), y = fused_sum(position.y, scale_y, rest_y);
  const bool inside = x + whole_x > T(-1) && x + whole_x < T(w) && y + whole_y > T(-1) &&
                      y + whole_y < T(h);  // false for NaN
  const T floor_x = inside ? floor(x) : T(0), floor_y = inside ? floor(y) : T(0);
  const int left = static_cast<int>(floor_x + (inside ? whole_x : T(0)));
  const int top = static_cast<int>(floor_y + (inside ? whole_y : T(0)));
  const T fx = inside ? fused_sum(position.x, scale_x, rest_x - floor_x) : T(0);
  const T fy = inside ? fused_sum(position.y, scale_y, rest_y - floor_y) : T(0);
  const bool has_left = inside && left >= 0, has_right = inside && left + 1 < w;
  const bool has_top = top >= 0, has_bottom = top + 1 < h;
  const T weight_left = has_left ? T(1) - fx : T(0), weight_right = has_right ? fx : T(0);
  const T weight_top = has_top ? T(1) - fy : T(0), weight_bottom = has_bottom ? fy : T(0);
  const int x0 = max(left, 0), x1 = min(left + 1, w - 1);
  const int y0 = max(top, 0), y1 = min(top + 1, h - 1);
  const int step = a.heads * a.channels;
  point->corner[0] = attention * weight_top * weight_left;
  point->corner[1] = attention * weight_top * weight_right;
  point->corner[2] = attention * weight_bottom * weight_left;
  point->corner[3] = attention * weight_bottom * weight_right;
  point->offset = (a.starts[level] + y0 * w + x0) * step;
  point->right = (x1 - x0) * step;
  point->down = (y1 - y0) * w * step;
  const unsigned valid = (has_top && has_left) | (has_top && has_right) << 1 |
                         (has_bottom && has_left) << 2 | (has_bottom && has_right) << 3;
  return {fx, fy, attention, level, valid};
}

}  // namespace cuda
}  // namespace loupe
