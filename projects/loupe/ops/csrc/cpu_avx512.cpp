// The kernels built for AVX-512; setup.py passes the flags.
#define LOUPE_ISA avx512
#define LOUPE_VECTOR_BYTES 64
#include "cpu_tasks.h"

namespace loupe {
const Kernels kAvx512Kernels = {"avx512", avx512::scratch_bytes, avx512::forward,
                                avx512::forward_few, avx512::backward};
}  // namespace loupe
