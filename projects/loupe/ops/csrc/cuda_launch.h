// The kernels' entry points; each launches on `stream` and returns cudaGetLastError().
#pragma once

#include <cuda_runtime_api.h>

#include "problem.h"

namespace loupe {
namespace cuda {

cudaError_t forward(const Problem& problem, cudaStream_t stream);

// grad_value is of the compute type and zeroed.
cudaError_t backward(const Problem& problem, cudaStream_t stream);

// The same sums in whole numbers, whose order does not matter. `sums`: int64 of grad_value's shape,
// zeroed; `statistics`: four doubles, zeroed. grad_value is of the value's type and is overwritten.
cudaError_t backward_deterministic(const Problem& problem, void* sums, void* statistics,
                                   cudaStream_t stream);

}  // namespace cuda
}  // namespace loupe
