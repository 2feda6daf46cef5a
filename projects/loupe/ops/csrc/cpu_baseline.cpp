// The kernels built for SSE2 (or the 16-byte vectors of another processor); setup.py passes the flags.
#define LOUPE_ISA baseline
#define LOUPE_VECTOR_BYTES 16
#include "cpu_tasks.h"

namespace loupe {
const Kernels kBaselineKernels = {"baseline", baseline::scratch_bytes, baseline::forward,
                                  baseline::forward_few, baseline::backward};
}  // namespace loupe
