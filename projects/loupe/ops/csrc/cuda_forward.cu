#include "cuda_dispatch.cuh"
#include "cuda_launch.h"

namespace loupe {
namespace cuda {
namespace {

template <class S, int L, int P, int V, int G, bool One, bool Fused>
__global__ void __launch_bounds__(kThreads, 4) forward_kernel(const __grid_constant__ Arguments a) {
  using T = typename Compute<S>::Type;
  constexpr int kChunk = L > 0 ? L * P : 16;  // points in shared memory at a time
  // One more per row, so that the rows of a warp do not meet in the same banks.
  __shared__ Point<T> shared[kThreads / G][kChunk + 1];
  const int lane = threadIdx.x % G, group = threadIdx.x / G;
  const int64_t wanted = blockIdx.x * int64_t{kThreads / G} + group;
  const bool active = wanted < a.rows;
  const int64_t row = active ? wanted : a.rows - 1;  // surplus lanes still take part in shuffles
  const int count = L > 0 ? L * P : a.levels * a.points;
  const int64_t query = row / a.heads;
  const int head = static_cast<int>(row - query * a.heads);
  const T* locations = static_cast<const T*>(a.locations) + row * count * 2;
  const T* weights = static_cast<const T*>(a.weights) + row * count;
  const T* reference = static_cast<const T*>(a.reference) + query * (L > 0 ? L : a.levels) * 2;
  const S* image = static_cast<const S*>(a.value) + query / a.queries * a.image_stride;
  Softmax<T> softmax{};
  if (Fused) softmax = softmax_of<G>(weights, count, lane);
  const int channels = One ? G * V : a.channels;
  for (int first_channel = 0; first_channel < channels; first_channel += G * V) {
    const int channel = first_channel + lane * V;
    const bool reads = One || channel < channels;
    const S* slice = image + head * channels + (reads ? channel : 0);
    T sum[V] = {};
    for (int first = 0; first < count; first += kChunk) {
      const int end = L > 0 ? kChunk : min(kChunk, count - first);
      __syncwarp();
#pragma unroll
      for (int i = lane; i < kChunk; i += G) {
        if (i < end) {
          make_point<T, P, Fused>(a, locations, weights, reference, softmax, first + i,
                                  &shared[group][i]);
        }
      }
      __syncwarp();
#pragma unroll 4
      for (int i = 0; i < end; ++i) {
        const Point<T> point = shared[group][i];
        const S* corner = slice + point.offset;
        T values[4][V];
        load_channels<S, V>(corner, values[0]);
        load_channels<S, V>(corner + point.right, values[1]);
        load_channels<S, V>(corner + point.down, values[2]);
        load_channels<S, V>(corner + point.down + point.right, values[3]);
#pragma unroll
        for (int c = 0; c < 4; ++c) {
#pragma unroll
          for (int v = 0; v < V; ++v) sum[v] += point.corner[c] * values[c][v];
        }
      }
    }
    if (active && reads) {
      store_channels<S, V>(static_cast<S*>(a.output) + row * channels + channel, sum);
    }
  }
}

}  // namespace

cudaError_t forward(const Problem& problem, cudaStream_t stream) {
  const Arguments a = arguments_of(problem);
  with_storage(problem, true, [&](auto storage, auto levels, auto points, auto vector, auto lanes,
                                  auto one) {
    using S = decltype(storage);
    constexpr int L = decltype(levels)::value, P = decltype(points)::value;
    constexpr int V = decltype(vector)::value, G = decltype(lanes)::value;
    constexpr bool One = decltype(one)::value;
    const int64_t rows_per_block = kThreads / G;
    const unsigned blocks = static_cast<unsigned>((a.rows + rows_per_block - 1) / rows_per_block);
    if (problem.fused) {
      forward_kernel<S, L, P, V, G, One, true><<<blocks, kThreads, 0, stream>>>(a);
    } else {
      forward_kernel<S, L, P, V, G, One, false><<<blocks, kThreads, 0, stream>>>(a);
    }
  });
  return cudaGetLastError();
}

}  // namespace cuda
}  // namespace loupe
