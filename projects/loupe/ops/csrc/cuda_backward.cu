#include "cuda_dispatch.cuh"
#include "cuda_launch.h"

namespace loupe {
namespace cuda {
namespace {

// Sums of four values over the G lanes of a row, one exchange per halving: afterwards lane i holds
// the sum of value i / (G / 4).
template <int G, class T>
__device__ __forceinline__ T reduce_four(const T (&x)[4], int lane) {
  static_assert(G >= 4, "a row needs four lanes");
  const bool upper = lane & (G / 2);
  T a = upper ? x[2] : x[0], b = upper ? x[3] : x[1];
  a += __shfl_xor_sync(0xFFFFFFFFu, upper ? x[0] : x[2], G / 2, G);
  b += __shfl_xor_sync(0xFFFFFFFFu, upper ? x[1] : x[3], G / 2, G);
  const bool odd = lane & (G / 4);
  T sum = odd ? b : a;
  sum += __shfl_xor_sync(0xFFFFFFFFu, odd ? a : b, G / 4, G);
  if constexpr (G >= 8) {
#pragma unroll
    for (int step = G / 8; step > 0; step /= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, step, G);
  }
  return sum;
}

// Adds to grad_value: vector reductions where the GPU has them (sm_90), else one per channel.
template <int V>
__device__ __forceinline__ void add_channels(float* to, const float (&x)[V], float weight) {
#if __CUDA_ARCH__ >= 900
  if constexpr (V % 4 == 0) {
#pragma unroll
    for (int v = 0; v < V; v += 4) {
      atomicAdd(reinterpret_cast<float4*>(to + v),
                make_float4(weight * x[v], weight * x[v + 1], weight * x[v + 2], weight * x[v + 3]));
    }
  } else
#endif
  {
#pragma unroll
    for (int v = 0; v < V; ++v) atomicAdd(to + v, weight * x[v]);
  }
}

template <int V>
__device__ __forceinline__ void add_channels(double* to, const double (&x)[V], double weight) {
#pragma unroll
  for (int v = 0; v < V; ++v) atomicAdd(to + v, weight * x[v]);
}

// Deterministic: whole numbers, whose sum does not depend on the order.
template <class T, int V>
__device__ __forceinline__ void add_whole(unsigned long long* to, const T (&x)[V], T weight,
                                          double scale) {
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const long long whole = __double2ll_rn(static_cast<double>(weight) * x[v] * scale);
    atomicAdd(to + v, static_cast<unsigned long long>(whole));
  }
}

template <class T>
struct PointGradient {
  T x, y, attention;
};

template <class T, bool Fused>
__device__ __forceinline__ PointGradient<T> point_gradient(const Arguments& a, const Kept<T>& kept,
                                                           const T* dots) {
  const T d0 = kept.valid & 1 ? dots[0] : T(0), d1 = kept.valid & 2 ? dots[1] : T(0);
  const T d2 = kept.valid & 4 ? dots[2] : T(0), d3 = kept.valid & 8 ? dots[3] : T(0);
  const T top = d1 - d0, bottom = d3 - d2;
  const T above = d0 + kept.fraction_x * top, below = d2 + kept.fraction_x * bottom;
  T x = kept.attention * (top + kept.fraction_y * (bottom - top));
  T y = kept.attention * (below - above);
  if (!Fused) {
    x *= T(a.widths[kept.level]);
    y *= T(a.heights[kept.level]);
  }
  return {x, y, above + kept.fraction_y * (below - above)};
}

template <class S, int L, int P, int V, int G, bool One, bool Fused, bool Deterministic>
__global__ void __launch_bounds__(kThreads, 3) backward_kernel(const __grid_constant__ Arguments a) {
  using T = typename Compute<S>::Type;
  using T2 = typename Pair<T>::Type;
  constexpr int kChunk = L > 0 ? L * P : 16;
  constexpr int kRounds = (kChunk + G - 1) / G;  // points of a chunk that one lane owns
  __shared__ Point<T> shared[kThreads / G][kChunk + 1];
  // With one pass over the channels the weights' place is free for the dot products.
  __shared__ T shared_dots[One ? 1 : kThreads / G][One ? 1 : kChunk + 1][4];
  const int lane = threadIdx.x % G, group = threadIdx.x / G;
  const int64_t wanted = blockIdx.x * int64_t{kThreads / G} + group;
  const bool active = wanted < a.rows;
  const int64_t row = active ? wanted : a.rows - 1;
  const int count = L > 0 ? L * P : a.levels * a.points;
  const int64_t query = row / a.heads;
  const int head = static_cast<int>(row - query * a.heads);
  const T* locations = static_cast<const T*>(a.locations) + row * count * 2;
  const T* weights = static_cast<const T*>(a.weights) + row * count;
  const T* reference = static_cast<const T*>(a.reference) + query * (L > 0 ? L : a.levels) * 2;
  T2* grad_locations = static_cast<T2*>(a.grad_locations) + row * count;
  T* grad_weights = static_cast<T*>(a.grad_weights) + row * count;
  const int channels = One ? G * V : a.channels;
  const int64_t slice = query / a.queries * a.image_stride + head * channels;
  const S* value = static_cast<const S*>(a.value) + slice;
  using Target = std::conditional_t<Deterministic, unsigned long long, T>;
  Target* grad_value = static_cast<Target*>(a.grad_value) + slice;
  const double scale = Deterministic ? *static_cast<const double*>(a.scale) : 0;
  Softmax<T> softmax{};
  if (Fused) softmax = softmax_of<G>(weights, count, lane);
  T expected = 0;  // attention times its gradient, over this lane's points
  for (int first = 0; first < count; first += kChunk) {
    const int end = L > 0 ? kChunk : min(kChunk, count - first);
    Kept<T> kept[kRounds];
    __syncwarp();
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
      const int i = lane + round * G;
      if (i < end) {
        kept[round] = make_point<T, P, Fused>(a, locations, weights, reference, softmax, first + i,
                                              &shared[group][i]);
      }
    }
    __syncwarp();
    for (int first_channel = 0; first_channel < channels; first_channel += G * V) {
      const int channel = first_channel + lane * V;
      const bool reads = One || channel < channels;
      T gradient[V] = {};
      if (active && reads) {
        load_channels<S, V>(static_cast<const S*>(a.grad_output) + row * channels + channel,
                            gradient);
      }
#pragma unroll 2
      for (int i = 0; i < end; ++i) {
        const Point<T> point = shared[group][i];
        T dots[4];
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const int offset = point.offset + (c & 1 ? point.right : 0) + (c & 2 ? point.down : 0) +
                             (reads ? channel : 0);
          T corner[V];
          load_channels<S, V>(value + offset, corner);
          dots[c] = 0;
#pragma unroll
          for (int v = 0; v < V; ++v) dots[c] += corner[v] * gradient[v];
          if (active && reads && point.corner[c] != T(0)) {
            if constexpr (Deterministic) {
              add_whole(grad_value + offset, gradient, point.corner[c], scale);
            } else {
              add_channels(grad_value + offset, gradient, point.corner[c]);
            }
          }
        }
        const T dot = reduce_four<G>(dots, lane);
        if constexpr (One) __syncwarp();  // all lanes have read the weights
        if (lane % (G / 4) == 0) {
          T* to = (One ? shared[group][i].corner : shared_dots[One ? 0 : group][One ? 0 : i]) +
                  lane / (G / 4);
          *to = first_channel > 0 ? *to + dot : dot;
        }
      }
    }
    __syncwarp();
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
      const int i = lane + round * G;
      if (i < end) {
        const T* dots = One ? shared[group][i].corner : shared_dots[One ? 0 : group][One ? 0 : i];
        const auto gradient = point_gradient<T, Fused>(a, kept[round], dots);
        expected += kept[round].attention * gradient.attention;
        if (active) {
          grad_locations[first + i] = {gradient.x, gradient.y};
          grad_weights[first + i] = gradient.attention;
        }
      }
    }
  }
  if (!Fused) return;
  expected = group_sum<G>(expected);
  if (!active) return;
  for (int i = lane; i < count; i += G) {  // each lane meets the values that it wrote
    const T attention = exponential(weights[i] - softmax.largest) * softmax.scale;
    grad_weights[i] = attention * (grad_weights[i] - expected);
  }
}

// Largest absolute value, as the bits of a double (their order is that of whole numbers; NaN is
// above infinity), into *largest.
template <class S>
__global__ void __launch_bounds__(kThreads) largest_kernel(const S* from, int64_t count,
                                                           unsigned long long* largest) {
  double mine = 0;
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < count;
       i += int64_t{kThreads} * gridDim.x) {
    const double x = fabs(static_cast<double>(widen(from[i])));
    mine = x <= mine ? mine : x;
  }
  unsigned long long bits = static_cast<unsigned long long>(__double_as_longlong(mine));
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    const unsigned long long other = __shfl_xor_sync(0xFFFFFFFFu, bits, step);
    bits = other > bits ? other : bits;
  }
  if (threadIdx.x % 32 == 0) atomicMax(largest, bits);
}

// statistics: largest gradient, largest weight, scale, its inverse. The sums stay below 2^62.
__global__ void scale_kernel(double* statistics, double contributions, bool fused) {
  const double bound = statistics[0] * (fused ? 1.0 : statistics[1]) * contributions;
  const bool usable = isfinite(bound);
  const int exponent = bound > 0 && usable ? 61 - ilogb(bound) : 0;
  statistics[2] = ldexp(1.0, min(exponent, 1000));
  // Nothing finite can be said about sums with infinite parts.
  statistics[3] = usable ? ldexp(1.0, -min(exponent, 1000)) : __longlong_as_double(0x7FF8LL << 48);
}

template <class S>
__global__ void __launch_bounds__(kThreads) whole_to_value_kernel(const long long* sums,
                                                                  const double* statistics,
                                                                  int64_t count, S* to) {
  using T = typename Compute<S>::Type;
  const double unit = statistics[3];
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < count;
       i += int64_t{kThreads} * gridDim.x) {
    narrow(static_cast<T>(static_cast<double>(sums[i]) * unit), to + i);
  }
}

template <bool Deterministic>
void launch_backward(const Problem& problem, const Arguments& a, cudaStream_t stream) {
  with_storage(problem, !Deterministic, [&](auto storage, auto levels, auto points, auto vector,
                                            auto lanes, auto one) {
    using S = decltype(storage);
    constexpr int L = decltype(levels)::value, P = decltype(points)::value;
    constexpr int V = decltype(vector)::value, G = decltype(lanes)::value;
    constexpr bool One = decltype(one)::value;
    if constexpr (!(Deterministic && L > 0)) {
      const int64_t rows_per_block = kThreads / G;
      const unsigned blocks = static_cast<unsigned>((a.rows + rows_per_block - 1) / rows_per_block);
      if (problem.fused) {
        backward_kernel<S, L, P, V, G, One, true, Deterministic>
            <<<blocks, kThreads, 0, stream>>>(a);
      } else {
        backward_kernel<S, L, P, V, G, One, false, Deterministic>
            <<<blocks, kThreads, 0, stream>>>(a);
      }
    }
  });
}

unsigned blocks_for(int64_t count) {
  const int64_t blocks = (count + kThreads - 1) / kThreads;
  return static_cast<unsigned>(blocks < 1 ? 1 : blocks > 4096 ? 4096 : blocks);
}

}  // namespace

cudaError_t backward(const Problem& problem, cudaStream_t stream) {
  launch_backward<false>(problem, arguments_of(problem), stream);
  return cudaGetLastError();
}

cudaError_t backward_deterministic(const Problem& problem, void* sums, void* statistics,
                                   cudaStream_t stream) {
  Arguments a = arguments_of(problem);
  double* numbers = static_cast<double*>(statistics);
  unsigned long long* bits = static_cast<unsigned long long*>(statistics);
  const int64_t points = a.rows * a.levels * a.points;
  const int64_t outputs = a.rows * a.channels;
  const int64_t values = problem.batch * a.image_stride;
  with_storage(problem, false, [&](auto storage, auto, auto, auto vector, auto, auto) {
    using S = decltype(storage);
    using T = typename Compute<S>::Type;
    if constexpr (decltype(vector)::value > 0) {
      largest_kernel<<<blocks_for(outputs), kThreads, 0, stream>>>(
          static_cast<const S*>(problem.grad_output), outputs, bits);
      if (!problem.fused) {
        largest_kernel<<<blocks_for(points), kThreads, 0, stream>>>(
            static_cast<const T*>(problem.weights), points, bits + 1);
      }
    }
  });
  const double contributions = static_cast<double>(problem.queries) * a.levels * a.points;
  scale_kernel<<<1, 1, 0, stream>>>(numbers, contributions, problem.fused);
  a.grad_value = sums;
  a.scale = numbers + 2;
  launch_backward<true>(problem, a, stream);
  with_storage(problem, false, [&](auto storage, auto, auto, auto, auto, auto) {
    using S = decltype(storage);
    whole_to_value_kernel<S><<<blocks_for(values), kThreads, 0, stream>>>(
        static_cast<const long long*>(sums), numbers, values, static_cast<S*>(problem.grad_value));
  });
  return cudaGetLastError();
}

}  // namespace cuda
}  // namespace loupe
