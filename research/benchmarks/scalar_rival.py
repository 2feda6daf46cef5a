"""A CUDA kernel in the manner that published code bases share, to measure ours against.

Written for this comparison after the usual design, not copied from any of them: one thread per
output channel, one scalar load per corner, one atomic addition per corner and channel, and sums
over a head's channels in shared memory. float32 only.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.cpp_extension import load_inline

SOURCE = r"""
#include <torch/extension.h>
#include <c10/cuda/CUDAStream.h>

struct Corners { int64_t index[4]; float weight[4]; float x, y; bool valid[4]; };

__device__ Corners corners_of(const int64_t* shapes, const int64_t* starts, int level, float px,
                              float py) {
  const int h = shapes[2 * level], w = shapes[2 * level + 1];
  const float x = px * w - 0.5f, y = py * h - 0.5f;
  const int x0 = floorf(x), y0 = floorf(y);
  Corners c;
  c.x = x - x0; c.y = y - y0;
  const bool near = x > -1 && y > -1 && x < w && y < h;
  for (int i = 0; i < 4; ++i) {
    const int cx = x0 + i % 2, cy = y0 + i / 2;
    c.valid[i] = near && cx >= 0 && cx < w && cy >= 0 && cy < h;
    c.index[i] = starts[level] + int64_t(cy) * w + cx;
    c.weight[i] = (i % 2 ? c.x : 1 - c.x) * (i / 2 ? c.y : 1 - c.y);
  }
  return c;
}

__global__ void scalar_forward(const float* value, const int64_t* shapes, const int64_t* starts,
                               const float* locations, const float* weights, int64_t total, int S,
                               int Q, int M, int D, int L, int P, float* output) {
  const int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  if (i >= total) return;
  const int64_t row = i / D, image = row / M / Q;
  const int d = i % D, m = row % M;
  float sum = 0;
  for (int l = 0; l < L; ++l) {
    for (int p = 0; p < P; ++p) {
      const int64_t at = row * L * P + l * P + p;
      const Corners c = corners_of(shapes, starts, l, locations[2 * at], locations[2 * at + 1]);
      float sample = 0;
      for (int k = 0; k < 4; ++k) {
        if (c.valid[k]) sample += c.weight[k] * value[((image * S + c.index[k]) * M + m) * D + d];
      }
      sum += weights[at] * sample;
    }
  }
  output[i] = sum;
}

// One block per row, one thread per channel.
__global__ void scalar_backward(const float* gradient, const float* value, const int64_t* shapes,
                                const int64_t* starts, const float* locations, const float* weights,
                                int S, int Q, int M, int D, int L, int P, float* grad_value,
                                float* grad_locations, float* grad_weights) {
  extern __shared__ float shared[];
  const int64_t row = blockIdx.x, image = row / M / Q;
  const int d = threadIdx.x, m = row % M;
  const float g = gradient[row * D + d];
  for (int l = 0; l < L; ++l) {
    for (int p = 0; p < P; ++p) {
      const int64_t at = row * L * P + l * P + p;
      const Corners c = corners_of(shapes, starts, l, locations[2 * at], locations[2 * at + 1]);
      float v[4] = {0, 0, 0, 0}, sample = 0;
      for (int k = 0; k < 4; ++k) {
        if (!c.valid[k]) continue;
        const int64_t j = ((image * S + c.index[k]) * M + m) * D + d;
        v[k] = value[j];
        sample += c.weight[k] * v[k];
        atomicAdd(grad_value + j, c.weight[k] * weights[at] * g);
      }
      shared[d] = g * sample;
      shared[D + d] = g * weights[at] * shapes[2 * l + 1] *
                      ((1 - c.y) * (v[1] - v[0]) + c.y * (v[3] - v[2]));
      shared[2 * D + d] = g * weights[at] * shapes[2 * l] *
                          ((1 - c.x) * (v[2] - v[0]) + c.x * (v[3] - v[1]));
      __syncthreads();
      if (d == 0) {
        float a = 0, x = 0, y = 0;
        for (int k = 0; k < D; ++k) a += shared[k], x += shared[D + k], y += shared[2 * D + k];
        grad_weights[at] = a; grad_locations[2 * at] = x; grad_locations[2 * at + 1] = y;
      }
      __syncthreads();
    }
  }
}

torch::Tensor forward(torch::Tensor value, torch::Tensor shapes, torch::Tensor starts,
                      torch::Tensor locations, torch::Tensor weights) {
  const int B = value.size(0), S = value.size(1), M = value.size(2), D = value.size(3);
  const int Q = locations.size(1), L = locations.size(3), P = locations.size(4);
  auto output = torch::zeros({B, Q, M * D}, value.options());
  const int64_t total = output.numel();
  scalar_forward<<<(total + 1023) / 1024, 1024, 0, c10::cuda::getCurrentCUDAStream()>>>(
      value.data_ptr<float>(), shapes.data_ptr<int64_t>(), starts.data_ptr<int64_t>(),
      locations.data_ptr<float>(), weights.data_ptr<float>(), total, S, Q, M, D, L, P,
      output.data_ptr<float>());
  return output;
}

std::vector<torch::Tensor> backward(torch::Tensor gradient, torch::Tensor value,
                                    torch::Tensor shapes, torch::Tensor starts,
                                    torch::Tensor locations, torch::Tensor weights) {
  const int B = value.size(0), S = value.size(1), M = value.size(2), D = value.size(3);
  const int Q = locations.size(1), L = locations.size(3), P = locations.size(4);
  auto gv = torch::zeros_like(value), gl = torch::zeros_like(locations);
  auto gw = torch::zeros_like(weights);
  scalar_backward<<<B * Q * M, D, 3 * D * sizeof(float), c10::cuda::getCurrentCUDAStream()>>>(
      gradient.data_ptr<float>(), value.data_ptr<float>(), shapes.data_ptr<int64_t>(),
      starts.data_ptr<int64_t>(), locations.data_ptr<float>(), weights.data_ptr<float>(), S, Q, M,
      D, L, P, gv.data_ptr<float>(), gl.data_ptr<float>(), gw.data_ptr<float>());
  return {gv, gl, gw};
}
"""
DECLARATIONS = """
torch::Tensor forward(torch::Tensor, torch::Tensor, torch::Tensor, torch::Tensor, torch::Tensor);
std::vector<torch::Tensor> backward(torch::Tensor, torch::Tensor, torch::Tensor, torch::Tensor,
                                    torch::Tensor, torch::Tensor);
"""


@cache
def build() -> type[torch.autograd.Function]:
    """Compile the kernels (about a minute) and return an autograd function."""
    module = load_inline(
        "loupe_scalar_rival", DECLARATIONS, SOURCE, functions=["forward", "backward"]
    )

    class ScalarAttention(torch.autograd.Function):
        """Arguments: value, shapes (L, 2), first pixel of each level (L,), locations, weights."""

        @staticmethod
        def forward(ctx: Any, *tensors: Tensor) -> Tensor:
            ctx.save_for_backward(*tensors)
            return module.forward(*tensors)

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
            value, locations, weights = module.backward(gradient.contiguous(), *ctx.saved_tensors)
            return value, None, None, locations, weights

    return ScalarAttention
