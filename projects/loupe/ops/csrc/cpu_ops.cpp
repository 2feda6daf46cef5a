// The CPU operators: arguments in, tasks spread over torch's threads, tensors out.
#include "op_arguments.h"
#include "problem.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <string>
#include <tuple>

namespace loupe {
namespace {

using torch::stable::contiguous;
using torch::stable::new_empty;
using torch::stable::new_zeros;
using torch::stable::to;

std::vector<const Kernels*> supported_kernels() {  // fastest last
  std::vector<const Kernels*> kernels = {&kBaselineKernels};
#ifdef LOUPE_X86
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    kernels.push_back(&kAvx2Kernels);
  }
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw")) {
    kernels.push_back(&kAvx512Kernels);
  }
#endif
  return kernels;
}

const Kernels* kernels_named(const std::string& name) {
  std::string names;
  for (const Kernels* kernels : supported_kernels()) {
    if (name == kernels->name) return kernels;
    names += std::string(" ") + kernels->name;
  }
  STD_TORCH_CHECK(false, "this processor has no kernels named '", name, "'; it has:", names);
  return nullptr;
}

// Decided once, when the library loads. Tests and benchmarks change it with use_cpu_kernels.
const Kernels* chosen = supported_kernels().back();

std::string cpu_kernels() { return chosen->name; }

std::string use_cpu_kernels(std::string name) {
  const std::string previous = chosen->name;
  chosen = kernels_named(name);
  return previous;
}

// Kept between calls: getting a fresh megabyte from the system costs more than zeroing it.
struct Scratch {
  void* data = nullptr;
  int64_t bytes = 0;

  ~Scratch() { std::free(data); }

  void* at_least(int64_t wanted) {
    if (wanted > bytes) {
      std::free(data);
      bytes = (wanted + 63) / 64 * 64;
      data = std::aligned_alloc(64, bytes);
      if (data == nullptr) bytes = 0;
      STD_TORCH_CHECK(data != nullptr, "no memory for a scratch of ", wanted, " bytes");
    }
    return data;
  }
};

thread_local Scratch scratch;

struct Call {
  Sizes sizes;  // first: nothing is copied before it is checked
  Problem problem;
  std::vector<int64_t> shapes;
  Tensor value, reference, locations, weights;  // contiguous

  Call(const Tensor& value_, const std::vector<int64_t>& shapes_, const Tensor* reference_,
       const Tensor& locations_, const Tensor& weights_)
      : sizes(checked_sizes(value_, shapes_, reference_, locations_, weights_)),
        shapes(shapes_),
        value(contiguous(value_)),
        reference(contiguous(reference_ ? *reference_ : locations_)),
        locations(contiguous(locations_)),
        weights(contiguous(weights_)) {
    problem = Problem{};
    problem.batch = sizes.batch, problem.pixels = sizes.pixels, problem.queries = sizes.queries;
    problem.heads = sizes.heads, problem.channels = sizes.channels;
    problem.levels = sizes.levels, problem.points = sizes.points;
    problem.shapes = shapes.data();
    const ScalarType type = value.scalar_type();
    STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double ||
                        type == ScalarType::BFloat16,
                    "value must be float32, float64, bfloat16 or float16");
    problem.scalar = type == ScalarType::Float    ? Scalar::kFloat
                     : type == ScalarType::Double ? Scalar::kDouble
                                                  : Scalar::kBFloat16;
    problem.fused = reference_ != nullptr;
    problem.value = value.const_data_ptr();
    problem.reference = reference.const_data_ptr();
    problem.locations = locations.const_data_ptr();
    problem.weights = weights.const_data_ptr();
    // With its border, as `Layout` packs it; addresses of the kernels are 32 bits wide.
    int64_t cells = 2;
    for (size_t i = 0; i < shapes.size(); i += 2) cells += (shapes[i] + 2) * (shapes[i + 1] + 2);
    STD_TORCH_CHECK(product_fits({cells, sizes.channels + 15}, kIntMax),
                    "one head of one image has more than 2^31 values");
  }
};

Tensor forward(const Tensor& value, const std::vector<int64_t>& shapes, const Tensor* reference,
               const Tensor& locations, const Tensor& weights) {
  if (value.scalar_type() == ScalarType::Half) {
    return to(forward(to(value, ScalarType::Float), shapes, reference, locations, weights),
              ScalarType::Half);
  }
  Call call(value, shapes, reference, locations, weights);
  Problem& problem = call.problem;
  Tensor output = new_empty(call.value, {problem.batch, problem.queries,
                                         problem.heads * problem.channels});
  problem.output = output.mutable_data_ptr();
  const Kernels* kernels = chosen;
  const int64_t rows = problem.batch * problem.queries, slices = problem.batch * problem.heads;
  if (rows == 0) return output;
  const int64_t bytes = kernels->scratch_bytes(problem, false);
  if (4 * problem.queries * problem.levels * problem.points <= problem.pixels) {
    torch::stable::parallel_for(0, rows, 16, [&](int64_t begin, int64_t end) {
      kernels->forward_direct(problem, begin, end, scratch.at_least(bytes));
    });
    return output;
  }
  // More threads than slices: split the queries too. Each is computed alike whoever does it.
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t wanted = (threads + slices - 1) / slices;
  const int64_t pieces = std::max<int64_t>(1, std::min(wanted, problem.queries / 256));
  torch::stable::parallel_for(0, slices * pieces, 1, [&](int64_t begin, int64_t end) {
    kernels->forward(problem, pieces, begin, end, scratch.at_least(bytes));
  });
  return output;
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_output, const Tensor& value,
                                            const std::vector<int64_t>& shapes,
                                            const Tensor* reference, const Tensor& locations,
                                            const Tensor& weights) {
  if (value.scalar_type() == ScalarType::Half) {
    auto [grad_value, grad_locations, grad_weights] =
        backward(to(grad_output, ScalarType::Float), to(value, ScalarType::Float), shapes,
                 reference, locations, weights);
    return {to(grad_value, ScalarType::Half), grad_locations, grad_weights};
  }
  Call call(value, shapes, reference, locations, weights);
  Problem& problem = call.problem;
  const Tensor gradient = contiguous(grad_output);
  check_gradient(gradient, value, call.sizes);
  Tensor grad_locations = new_empty(call.locations, call.locations.sizes());
  Tensor grad_weights = new_empty(call.weights, call.weights.sizes());
  if (problem.batch * problem.queries == 0) {
    return {new_zeros(call.value, call.value.sizes()), grad_locations, grad_weights};
  }
  Tensor grad_value = new_empty(call.value, call.value.sizes());
  problem.grad_output = gradient.const_data_ptr();
  problem.grad_value = grad_value.mutable_data_ptr();
  problem.grad_locations = grad_locations.mutable_data_ptr();
  problem.grad_weights = grad_weights.mutable_data_ptr();
  const Kernels* kernels = chosen;
  const int64_t bytes = kernels->scratch_bytes(problem, true);
  // One owner per slice of the value's gradient, so every sum has one order whatever the threads.
  torch::stable::parallel_for(0, problem.batch * problem.heads, 1, [&](int64_t begin, int64_t end) {
    kernels->backward(problem, begin, end, scratch.at_least(bytes));
  });
  return {grad_value, grad_locations, grad_weights};
}

Tensor ms_deform_attn(Tensor value, std::vector<int64_t> shapes, Tensor locations, Tensor weights) {
  return forward(value, shapes, nullptr, locations, weights);
}

Tensor ms_deform_attn_fused(Tensor value, std::vector<int64_t> shapes, Tensor reference,
                            Tensor offsets, Tensor logits) {
  return forward(value, shapes, &reference, offsets, logits);
}

std::tuple<Tensor, Tensor, Tensor> ms_deform_attn_backward(Tensor grad_output, Tensor value,
                                                           std::vector<int64_t> shapes,
                                                           Tensor locations, Tensor weights,
                                                           bool /* deterministic: always */) {
  return backward(grad_output, value, shapes, nullptr, locations, weights);
}

std::tuple<Tensor, Tensor, Tensor> ms_deform_attn_fused_backward(
    Tensor grad_output, Tensor value, std::vector<int64_t> shapes, Tensor reference, Tensor offsets,
    Tensor logits, bool /* deterministic: always */) {
  return backward(grad_output, value, shapes, &reference, offsets, logits);
}

}  // namespace
}  // namespace loupe

STABLE_TORCH_LIBRARY_FRAGMENT(loupe, library) {
  library.def("cpu_kernels() -> str");
  library.def("use_cpu_kernels(str name) -> str");
}

STABLE_TORCH_LIBRARY_IMPL(loupe, CompositeExplicitAutograd, library) {
  library.impl("cpu_kernels", TORCH_BOX(&loupe::cpu_kernels));
  library.impl("use_cpu_kernels", TORCH_BOX(&loupe::use_cpu_kernels));
}

STABLE_TORCH_LIBRARY_IMPL(loupe, CPU, library) {
  library.impl("ms_deform_attn", TORCH_BOX(&loupe::ms_deform_attn));
  library.impl("ms_deform_attn_fused", TORCH_BOX(&loupe::ms_deform_attn_fused));
  library.impl("ms_deform_attn_backward", TORCH_BOX(&loupe::ms_deform_attn_backward));
  library.impl("ms_deform_attn_fused_backward", TORCH_BOX(&loupe::ms_deform_attn_fused_backward));
}
