// Between the passes over pixels: one thread per channel or group (ops/rules/norm.h).
#include "cuda/device/device.h"
#include "ops/slots.h"

namespace fastnn::cuda {
namespace {

struct FinishBatch {
  BatchFinish p;
  __device__ void operator()(int64_t c) const { batch_finish(p, c); }
};
struct BatchGradients {
  BatchGradient p;
  __device__ void operator()(int64_t c) const { batch_gradient(p, c); }
};
struct FinishGroups {
  GroupFinish p;
  __device__ void operator()(int64_t i) const { group_finish(p, i); }
};
struct GroupGradients {
  GroupGradient p;
  __device__ void operator()(int64_t i) const { group_gradient(p, i); }
};
struct GroupParameters {
  GroupGradient p;
  __device__ void operator()(int64_t c) const { group_parameters(p, c); }
};

void finish_batch(const BatchFinish& p, int64_t channels) { each(channels, FinishBatch{p}); }
void batch_gradients(const BatchGradient& p, int64_t channels) {
  each(channels, BatchGradients{p});
}
void finish_groups(const GroupFinish& p, int64_t count) { each(count, FinishGroups{p}); }
void group_gradients(const GroupGradient& p) {
  each(p.images * p.groups, GroupGradients{p});
  each(p.groups * p.width, GroupParameters{p});
}

}  // namespace

void fill_norm_finish(Slots& slots) {
  slots.norm.finish_batch = finish_batch;
  slots.norm.batch_gradients = batch_gradients;
  slots.norm.finish_groups = finish_groups;
  slots.norm.group_gradients = group_gradients;
}

}  // namespace fastnn::cuda
