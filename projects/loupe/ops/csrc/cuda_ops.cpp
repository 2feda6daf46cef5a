// The CUDA operators: arguments in, kernels on the current stream of the value's device, tensors out.
#include "cuda_launch.h"
#include "op_arguments.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include <tuple>

namespace loupe {
namespace {

using torch::stable::contiguous;
using torch::stable::new_empty;
using torch::stable::new_zeros;
using torch::stable::to;

constexpr int64_t kMaxLevels = 16;

Scalar scalar_of(const Tensor& value) {
  switch (value.scalar_type()) {
    case ScalarType::Float:
      return Scalar::kFloat;
    case ScalarType::Double:
      return Scalar::kDouble;
    case ScalarType::BFloat16:
      return Scalar::kBFloat16;
    case ScalarType::Half:
      return Scalar::kHalf;
    default:
      STD_TORCH_CHECK(false, "value must be float32, float64, bfloat16 or float16");
  }
  return Scalar::kFloat;
}

struct Call {
  Sizes sizes;  // first: nothing is copied before it is checked
  torch::stable::accelerator::DeviceGuard guard;
  Tensor value, reference, locations, weights;  // contiguous
  Problem problem;

  Call(const Tensor& value_, const std::vector<int64_t>& shapes, const Tensor* reference_,
       const Tensor& locations_, const Tensor& weights_)
      : sizes(checked_sizes(value_, shapes, reference_, locations_, weights_)),
        guard(value_.get_device_index()),
        value(contiguous(value_)),
        reference(contiguous(reference_ ? *reference_ : locations_)),
        locations(contiguous(locations_)),
        weights(contiguous(weights_)) {
    const Sizes& s = sizes;
    for (const Tensor* tensor : {&reference, &locations, &weights}) {
      STD_TORCH_CHECK(tensor->is_cuda() && tensor->get_device_index() == value.get_device_index(),
                      "all tensors must be on the value's device");
    }
    STD_TORCH_CHECK(s.levels <= kMaxLevels, "more than ", kMaxLevels, " levels");
    STD_TORCH_CHECK(product_fits({s.pixels, s.heads, s.channels}, kIntMax),
                    "one image has more than 2^31 values");
    STD_TORCH_CHECK(s.queries <= kIntMax, "more than 2^31 queries");
    STD_TORCH_CHECK(product_fits({s.batch, s.queries, s.heads}, 32 * kIntMax),
                    "more rows than a grid has blocks");
    problem = Problem{};
    problem.batch = s.batch, problem.pixels = s.pixels, problem.queries = s.queries;
    problem.heads = s.heads, problem.channels = s.channels;
    problem.levels = s.levels, problem.points = s.points;
    problem.shapes = shapes.data();
    problem.scalar = scalar_of(value);
    problem.fused = reference_ != nullptr;
    problem.value = value.const_data_ptr();
    problem.reference = reference.const_data_ptr();
    problem.locations = locations.const_data_ptr();
    problem.weights = weights.const_data_ptr();
  }

  bool empty() const { return problem.batch == 0 || problem.queries == 0; }

  cudaStream_t stream() const {
    void* result = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(value.get_device_index(), &result));
    return static_cast<cudaStream_t>(result);
  }
};

// Vector loads need their addresses on 16 bytes; a view into a larger tensor may begin elsewhere.
Tensor aligned(const Tensor& tensor) {
  const Tensor dense = contiguous(tensor);
  const bool fits = reinterpret_cast<uintptr_t>(dense.const_data_ptr()) % 16 == 0;
  return fits ? dense : torch::stable::clone(dense);
}

Tensor forward(const Tensor& value, const std::vector<int64_t>& shapes, const Tensor* reference,
               const Tensor& locations, const Tensor& weights) {
  Call call(aligned(value), shapes, reference, aligned(locations), weights);
  Problem& problem = call.problem;
  Tensor output = new_empty(call.value, {problem.batch, problem.queries,
                                         problem.heads * problem.channels});
  if (call.empty()) return output;
  problem.output = output.mutable_data_ptr();
  STD_CUDA_CHECK(cuda::forward(problem, call.stream()));
  return output;
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad_output, const Tensor& value,
                                            const std::vector<int64_t>& shapes,
                                            const Tensor* reference, const Tensor& locations,
                                            const Tensor& weights, bool deterministic) {
  Call call(aligned(value), shapes, reference, aligned(locations), weights);
  Problem& problem = call.problem;
  const Tensor gradient = aligned(grad_output);
  check_gradient(gradient, value, call.sizes);
  STD_TORCH_CHECK(gradient.is_cuda() && gradient.get_device_index() == value.get_device_index(),
                  "all tensors must be on the value's device");
  Tensor grad_locations = new_empty(call.locations, call.locations.sizes());
  Tensor grad_weights = new_empty(call.weights, call.weights.sizes());
  problem.grad_output = gradient.const_data_ptr();
  problem.grad_locations = grad_locations.mutable_data_ptr();
  problem.grad_weights = grad_weights.mutable_data_ptr();
  if (deterministic && !call.empty()) {
    const Tensor sums = new_zeros(call.value, call.value.sizes(), ScalarType::Long);
    const Tensor statistics = new_zeros(call.value, {4}, ScalarType::Double);
    Tensor grad_value = new_empty(call.value, call.value.sizes());
    problem.grad_value = grad_value.mutable_data_ptr();
    STD_CUDA_CHECK(cuda::backward_deterministic(problem, sums.mutable_data_ptr(),
                                                statistics.mutable_data_ptr(), call.stream()));
    return {grad_value, grad_locations, grad_weights};
  }
  // Summed in full precision: below sm_90, and under contention above, bfloat16 sums are biased.
  Tensor grad_value = new_zeros(call.value, call.value.sizes(), compute_type(value));
  problem.grad_value = grad_value.mutable_data_ptr();
  if (!call.empty()) STD_CUDA_CHECK(cuda::backward(problem, call.stream()));
  if (compute_type(value) != value.scalar_type()) grad_value = to(grad_value, value.scalar_type());
  return {grad_value, grad_locations, grad_weights};
}

Tensor ms_deform_attn(Tensor value, std::vector<int64_t> shapes, Tensor locations, Tensor weights) {
  return forward(value, shapes, nullptr, locations, weights);
}

Tensor ms_deform_attn_fused(Tensor value, std::vector<int64_t> shapes, Tensor reference,
                            Tensor offsets, Tensor logits) {
  const Tensor aligned_reference = aligned(reference);
  return forward(value, shapes, &aligned_reference, offsets, logits);
}

std::tuple<Tensor, Tensor, Tensor> ms_deform_attn_backward(Tensor grad_output, Tensor value,
                                                           std::vector<int64_t> shapes,
                                                           Tensor locations, Tensor weights,
                                                           bool deterministic) {
  return backward(grad_output, value, shapes, nullptr, locations, weights, deterministic);
}

std::tuple<Tensor, Tensor, Tensor> ms_deform_attn_fused_backward(
    Tensor grad_output, Tensor value, std::vector<int64_t> shapes, Tensor reference, Tensor offsets,
    Tensor logits, bool deterministic) {
  const Tensor aligned_reference = aligned(reference);
  return backward(grad_output, value, shapes, &aligned_reference, offsets, logits, deterministic);
}

}  // namespace
}  // namespace loupe

STABLE_TORCH_LIBRARY_IMPL(loupe, CUDA, library) {
  library.impl("ms_deform_attn", TORCH_BOX(&loupe::ms_deform_attn));
  library.impl("ms_deform_attn_fused", TORCH_BOX(&loupe::ms_deform_attn_fused));
  library.impl("ms_deform_attn_backward", TORCH_BOX(&loupe::ms_deform_attn_backward));
  library.impl("ms_deform_attn_fused_backward", TORCH_BOX(&loupe::ms_deform_attn_fused_backward));
}
