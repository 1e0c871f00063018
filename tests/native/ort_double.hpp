// A stand-in for ONNX Runtime's C API on a GPU: what the CUDA kernel calls, on host memory that the test gives.
//
// As strict about ownership as ONNX Runtime: scratch memory is given back to the allocator that lent it, and each allocator and status
// is released once.
#pragma once

#include <array>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "ort_abi.hpp"

namespace echovlm::ort {

struct Status {
  ErrorCode code;
  std::string message;
};

struct Value {
  ElementType type = kUndefined;
  std::vector<std::int64_t> shape;
  void* data = nullptr;
};

struct MemoryInfo {
  struct Provider* provider;
};

// An execution provider of one session.
struct Provider {
  std::mutex mutex;
  std::set<void*> lent;
  std::size_t last_bytes = 0;
  int allocators = 0;  // not released yet
  bool exhausted = false;
  MemoryInfo memory{this};
};

struct Allocator {
  Provider* provider;
};

struct KernelInfo {
  Provider* provider;
  std::map<std::string, std::vector<std::int64_t>> attributes;
};

struct KernelContext {
  Provider* provider;
  std::vector<const Value*> inputs;  // null if absent
  void* stream;
  Value output;
  void* output_data;
};

// The table; every slot that is not here is null.
class ApiDouble {
 public:
  ApiDouble() {
    set<Api::CreateStatus>([](ErrorCode code, const char* message) { return new Status{code, message}; });
    set<Api::ReleaseStatus>([](Status* status) { delete status; });
    set<Api::KernelInfoGetAttributeInt64>([](const KernelInfo* info, const char* name, std::int64_t* value) -> Status* {
      const auto found = info->attributes.find(name);
      if (found == info->attributes.end()) return new Status{kFail, "no such attribute"};
      *value = found->second.at(0);
      return nullptr;
    });
    set<Api::KernelInfoGetAttributeArrayInt64>(
        [](const KernelInfo* info, const char* name, std::int64_t* values, std::size_t* count) -> Status* {
          const auto found = info->attributes.find(name);
          if (found == info->attributes.end()) return new Status{kFail, "no such attribute"};
          if (values) std::copy(found->second.begin(), found->second.end(), values);
          *count = found->second.size();
          return nullptr;
        });
    set<Api::KernelInfoGetAllocator>([](const KernelInfo* info, MemoryType, Allocator** allocator) -> Status* {
      ++info->provider->allocators;
      *allocator = new Allocator{info->provider};
      return nullptr;
    });
    set<Api::ReleaseAllocator>([](Allocator* allocator) {
      --allocator->provider->allocators;
      delete allocator;
    });
    set<Api::AllocatorGetInfo>([](const Allocator* allocator, const MemoryInfo** info) -> Status* {
      *info = &allocator->provider->memory;
      return nullptr;
    });
    set<Api::AllocatorFree>([](Allocator* allocator, void* data) -> Status* {
      const std::lock_guard lock(allocator->provider->mutex);
      if (allocator->provider->lent.erase(data) != 1) return new Status{kFail, "not lent by this allocator"};
      ::operator delete(data);
      return nullptr;
    });
    set<Api::KernelContextGetScratchBuffer>(
        [](const KernelContext* context, const MemoryInfo* info, std::size_t bytes, void** data) -> Status* {
          Provider& provider = *context->provider;
          const std::lock_guard lock(provider.mutex);
          if (info != &provider.memory) return new Status{kInvalidArgument, "memory of another provider"};
          if (provider.exhausted) return new Status{kFail, "Failed to allocate memory"};
          provider.last_bytes = bytes;
          provider.lent.insert(*data = ::operator new(bytes));
          return nullptr;
        });
    set<Api::KernelContextGetGPUComputeStream>([](const KernelContext* context, void** stream) -> Status* {
      *stream = context->stream;
      return nullptr;
    });
    set<Api::KernelContextGetInputCount>([](const KernelContext* context, std::size_t* count) -> Status* {
      *count = context->inputs.size();
      return nullptr;
    });
    set<Api::KernelContextGetInput>([](const KernelContext* context, std::size_t index, const Value** value) -> Status* {
      *value = context->inputs.at(index);
      return nullptr;
    });
    set<Api::KernelContextGetOutput>(
        [](KernelContext* context, std::size_t, const std::int64_t* shape, std::size_t rank, Value** value) -> Status* {
          context->output = {kUndefined, {shape, shape + rank}, context->output_data};
          *value = &context->output;
          return nullptr;
        });
    set<Api::GetTensorMutableData>([](Value* value, void** data) -> Status* {
      *data = value->data;
      return nullptr;
    });
    set<Api::GetTensorElementTypeAndShape>(
        [](const Value* value, ElementType* type, const std::int64_t** shape, std::size_t* rank) -> Status* {
          *type = value->type;
          *shape = value->shape.data();
          *rank = value->shape.size();
          return nullptr;
        });
  }

  const Api& api() const { return *reinterpret_cast<const Api*>(slots_.data()); }

 private:
  template <class Slot>
  void set(typename Slot::type function) {
    slots_[Slot::index] = reinterpret_cast<void (*)()>(function);
  }

  std::array<void (*)(), sizeof(Api) / sizeof(void (*)())> slots_{};
};

}  // namespace echovlm::ort
