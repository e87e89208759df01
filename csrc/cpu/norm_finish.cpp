// Between the passes over pixels: one step per channel or group (ops/rules/norm.h), too little work
// for threads.
#include "ops/slots.h"

namespace fastnn::cpu::FASTNN_ISA {
namespace {

void finish_batch(const BatchFinish& p, int64_t channels) {
  for (int64_t c = 0; c < channels; ++c) batch_finish(p, c);
}
void batch_gradients(const BatchGradient& p, int64_t channels) {
  for (int64_t c = 0; c < channels; ++c) batch_gradient(p, c);
}
void finish_groups(const GroupFinish& p, int64_t count) {
  for (int64_t i = 0; i < count; ++i) group_finish(p, i);
}
void group_gradients(const GroupGradient& p) {
  for (int64_t i = 0; i < p.images * p.groups; ++i) group_gradient(p, i);
  for (int64_t c = 0; c < p.groups * p.width; ++c) group_parameters(p, c);
}

}  // namespace

void fill_norm_finish(Slots& slots) {
  slots.norm.finish_batch = finish_batch;
  slots.norm.batch_gradients = batch_gradients;
  slots.norm.finish_groups = finish_groups;
  slots.norm.group_gradients = group_gradients;
}

}  // namespace fastnn::cpu::FASTNN_ISA
