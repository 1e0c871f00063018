// Reads a node's attributes, and a call's tensors and threads, from ONNX Runtime.
#pragma once

#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "matrix.hpp"
#include "ort_abi.hpp"
#include "threads.hpp"

namespace echovlm::ort {

// An error that ONNX Runtime reported; it is returned to ONNX Runtime unchanged.
struct Failure {
  Status* status;
};

// Runs `work` and returns its exception as a status, as "DualPathMoE: …": no exception, not even bad_alloc, may leave a callback.
template <class Work>
Status* guarded(const Api& api, const char* name, Work&& work) noexcept {
  const auto status = [&](ErrorCode code, const char* sentence) {
    try {
      return api.get<Api::CreateStatus>()(code, (std::string(name) + ": " + sentence).c_str());
    } catch (const std::exception&) {  // no memory for the name
      return api.get<Api::CreateStatus>()(code, sentence);
    }
  };
  try {
    work();
    return nullptr;
  } catch (const Failure& failure) {
    return failure.status;
  } catch (const std::invalid_argument& error) {
    return status(kInvalidArgument, error.what());
  } catch (const std::exception& error) {
    return status(kFail, error.what());
  }
}

template <class S, class... Arguments>
void call(const Api& api, Arguments... arguments) {
  if (Status* status = api.get<S>()(arguments...)) throw Failure{status};
}

class Attributes {
 public:
  Attributes(const Api& api, const KernelInfo* info) : api_(api), info_(info) {}

  // Throws std::invalid_argument if the node has no such attribute.
  std::int64_t integer(const char* name) const {
    std::int64_t value = 0;
    require(name, api_.get<Api::KernelInfoGetAttributeInt64>()(info_, name, &value));
    return value;
  }

  std::size_t size(const char* name) const {
    const std::int64_t value = integer(name);
    if (value < 0) throw std::invalid_argument("attribute " + std::string(name) + " is negative.");
    return static_cast<std::size_t>(value);
  }

  std::vector<std::size_t> sizes(const char* name) const {
    std::size_t count = 0;
    require(name, api_.get<Api::KernelInfoGetAttributeArrayInt64>()(info_, name, nullptr, &count));
    std::vector<std::int64_t> values(count);
    require(name, api_.get<Api::KernelInfoGetAttributeArrayInt64>()(info_, name, values.data(), &count));
    for (const std::int64_t value : values)
      if (value <= 0) throw std::invalid_argument("attribute " + std::string(name) + " holds a width that is not positive.");
    return {values.begin(), values.end()};
  }

  const KernelInfo* info() const { return info_; }

 private:
  void require(const char* name, Status* status) const {
    if (!status) return;
    api_.get<Api::ReleaseStatus>()(status);
    throw std::invalid_argument("attribute " + std::string(name) + " is missing.");
  }

  const Api& api_;
  const KernelInfo* info_;
};

struct Tensor {
  const void* data = nullptr;
  ElementType type = kUndefined;
  const std::int64_t* shape = nullptr;
  std::size_t rank = 0;

  std::size_t last() const { return rank == 0 ? 1 : static_cast<std::size_t>(shape[rank - 1]); }
  std::size_t leading() const {
    std::size_t product = 1;
    for (std::size_t axis = 0; axis + 1 < rank; ++axis) product *= static_cast<std::size_t>(shape[axis]);
    return product;
  }
  std::size_t count() const { return leading() * last(); }
};

// One call of a kernel.
class Call {
 public:
  Call(const Api& api, KernelContext* context) : api_(api), context_(context) {
    ort::call<Api::KernelContextGetInputCount>(api_, static_cast<const KernelContext*>(context_), &inputs_);
  }

  // The data is null if an optional input is absent.
  Tensor input(std::size_t index) const {
    Tensor tensor;
    if (index >= inputs_) return tensor;
    const Value* value = nullptr;
    ort::call<Api::KernelContextGetInput>(api_, static_cast<const KernelContext*>(context_), index, &value);
    if (!value) return tensor;
    ort::call<Api::GetTensorElementTypeAndShape>(api_, value, &tensor.type, &tensor.shape, &tensor.rank);
    void* data = nullptr;
    ort::call<Api::GetTensorMutableData>(api_, const_cast<Value*>(value), &data);
    tensor.data = data;
    return tensor;
  }

  // Throws std::invalid_argument unless the input is float32 with `rows` x `columns` values.
  const float* floats(std::size_t index, const char* name, std::size_t rows, std::size_t columns) const {
    const Tensor tensor = input(index);
    if (tensor.type != kFloat || tensor.last() != columns || tensor.leading() != rows)
      throw std::invalid_argument(std::string(name) + " must be float32 [" + std::to_string(rows) + ", " +
                                  std::to_string(columns) + "].");
    return static_cast<const float*>(tensor.data);
  }

  // A weight [rows, columns] with its scales. Throws std::invalid_argument unless they are as README.md has them.
  Matrix weight(std::size_t index, std::size_t scale_index, const char* name, const Packing& packing, std::size_t rows,
                std::size_t columns) const {
    const Tensor values = input(index);
    const auto refuse = [name](const std::string& must) { throw std::invalid_argument(std::string(name) + must); };
    Matrix matrix;
    matrix.values = values.data;
    matrix.columns = columns;
    const std::size_t stored = packing.bits == 0 ? columns : columns * packing.bits / 8;
    if (values.rank != 2 || values.leading() != rows || values.last() != stored)
      refuse(" must have the shape [" + std::to_string(rows) + ", " + std::to_string(stored) + "].");
    if (packing.bits == 0) {
      if (values.type != kFloat && values.type != kFloat16 && values.type != kBFloat16)
        refuse(" must be float32, float16 or bfloat16 if bits is 0.");
      matrix.type = values.type == kFloat     ? FloatType::kFloat32
                    : values.type == kFloat16 ? FloatType::kFloat16
                                              : FloatType::kBFloat16;
      return matrix;
    }
    if (values.type != kInt8) refuse(" must be int8 if bits is " + std::to_string(packing.bits) + ".");
    const Tensor scales = input(scale_index);
    if ((scales.type != kFloat && scales.type != kFloat16) || scales.leading() != rows ||
        scales.last() != columns / packing.block)
      refuse("_scale must be float32 or float16 [" + std::to_string(rows) + ", " +
             std::to_string(columns / packing.block) + "].");
    matrix.scales = scales.data;
    matrix.half_scales = scales.type == kFloat16;
    return matrix;
  }

  float* output(const std::int64_t* shape, std::size_t rank) const { return static_cast<float*>(untyped_output(shape, rank)); }

  void* untyped_output(const std::int64_t* shape, std::size_t rank) const {
    Value* value = nullptr;
    void* data = nullptr;
    ort::call<Api::KernelContextGetOutput>(api_, context_, std::size_t{0}, shape, rank, &value);
    ort::call<Api::GetTensorMutableData>(api_, value, &data);
    return data;
  }

  const KernelContext* context() const { return context_; }

 private:
  const Api& api_;
  KernelContext* context_;
  std::size_t inputs_ = 0;
};

// ONNX Runtime's own thread pool: a second pool would compete for the same cores.
class SessionThreads final : public Threads {
 public:
  SessionThreads(const Api& api, const KernelContext* context) : api_(api), context_(context) {}

  void run(std::size_t count, void (*work)(void*, std::size_t), void* data) const override {
    constexpr std::size_t as_many_batches_as_threads = 0;
    if (count == 1)
      work(data, 0);
    else
      ort::call<Api::KernelContextParallelFor>(api_, context_, work, count, as_many_batches_as_threads, data);
  }

 private:
  const Api& api_;
  const KernelContext* context_;
};

}  // namespace echovlm::ort
