// What one call of the operator is, as raw pointers: the kernel files see no torch header, which
// keeps them quick to compile and lets one binary hold the same kernels for several processors.
#pragma once

#include <cstdint>

namespace loupe {

enum class Scalar { kFloat, kDouble, kBFloat16, kHalf };

// Letters as in the Python sources: B images, S pixels, Q queries, M heads, D channels, L levels,
// P points. Tensors are contiguous. `value`, `output` and their gradients are of type `scalar`; all
// others are double where `scalar` is double, else float.
struct Problem {
  int64_t batch, pixels, queries, heads, channels, levels, points;
  const int64_t* shapes;  // h, w of each level
  Scalar scalar;
  bool fused;             // offsets in pixels and logits, not locations and weights
  const void* value;      // (B, S, M, D)
  const void* reference;  // (B, Q, L, 2), fused only
  const void* locations;  // (B, Q, M, L, P, 2); offsets if fused
  const void* weights;    // (B, Q, M, L, P); logits if fused
  void* output;           // (B, Q, M, D); written by the forward

  const void* grad_output;
  void* grad_value;
  void* grad_locations;
  void* grad_weights;
};

// The kernels of one instruction set. A packed task is one head of one image, or of the forward one
// of `pieces` parts of its queries; a direct task is one image's query. Tasks never share output.
struct Kernels {
  const char* name;
  int64_t (*scratch_bytes)(const Problem&, bool backward);
  void (*forward)(const Problem&, int64_t pieces, int64_t begin, int64_t end, void* scratch);
  void (*forward_direct)(const Problem&, int64_t begin, int64_t end, void* scratch);
  void (*backward)(const Problem&, int64_t begin, int64_t end, void* scratch);
};

extern const Kernels kBaselineKernels;
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;

}  // namespace loupe
