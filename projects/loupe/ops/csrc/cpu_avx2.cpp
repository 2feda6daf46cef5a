// The kernels built for AVX2 with FMA; setup.py passes the flags.
#define LOUPE_ISA avx2
#define LOUPE_VECTOR_BYTES 32
#include "cpu_tasks.h"

namespace loupe {
const Kernels kAvx2Kernels = {"avx2", avx2::scratch_bytes, avx2::forward,
                              avx2::forward_few, avx2::backward};
}  // namespace loupe
