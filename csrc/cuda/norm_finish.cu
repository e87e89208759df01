// Between the passes over pixels (ops/rules/norm.h): a thread per channel or group, a team per
// group (device/teams.h) where groups are wide.
#include "cuda/device/teams.h"
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

// group_finish(), the group's sums by a team.
template <class Team>
__global__ void __launch_bounds__(kThreads) finish_wide_kernel(GroupFinish p, int64_t count) {
  const auto width = static_cast<double>(p.width);
  Team::over_rows(count, [&](int64_t i, bool there) {
    const float *const m = p.mean + i * p.width, *const m2 = p.m2 + i * p.width;
    double average = 0, square = 0;
    for (int64_t c = Team::member(); c < p.width; c += Team::size) average += m[c];
    average = Team::sum(average) / width;
    // Unrolled further, eight threads' kernel spills.
#pragma unroll 2
    for (int64_t c = Team::member(); c < p.width; c += Team::size)
      square += m2[c] + p.pixels * (m[c] - average) * (m[c] - average);
    square = Team::sum(square);
    if (!there) return;
    const auto inverse = static_cast<float>(inverse_root(square / (p.pixels * width) + p.eps));
    if (Team::member() == 0) {
      p.group_mean[i] = static_cast<float>(average);
      p.group_invstd[i] = inverse;
    }
    for (int64_t c = Team::member(); c < p.width; c += Team::size)
      finish_channel(p, i, c, average, inverse);
  });
}
// group_gradient() likewise, with one division by the count.
template <class Team>
__global__ void __launch_bounds__(kThreads) wide_gradients_kernel(GroupGradient p) {
  const double share = 1.0 / (p.pixels * static_cast<double>(p.width));
  Team::over_rows(p.images * p.groups, [&](int64_t i, bool there) {
    const float *const g = p.sum_g + i * p.width, *const gx = p.sum_gx + i * p.width;
    const float* const weight = p.weight ? p.weight + i % p.groups * p.width : nullptr;
    const double inverse = p.invstd[i];
    double first = 0, second = 0;
    for (int64_t c = Team::member(); c < p.width; c += Team::size) {
      const double scale = weight ? weight[c] : 1.0;
      first += g[c] * scale;
      second += gx[c] * scale;
    }
    first = Team::sum(first) * share;
    second = Team::sum(second) * inverse * share;
    if (!there) return;
    for (int64_t c = Team::member(); c < p.width; c += Team::size)
      channel_gradient(p, i, c, inverse, first, second);
  });
}

constexpr int64_t kWide = 8;  // channels of a group, and more

void finish_batch(const BatchFinish& p, int64_t channels) { each(channels, FinishBatch{p}); }
void batch_gradients(const BatchGradient& p, int64_t channels) {
  each(channels, BatchGradients{p});
}
void finish_groups(const GroupFinish& p, int64_t count) {
  if (p.width < kWide) return each(count, FinishGroups{p});
  with_team(count, p.width, [&](auto team, dim3 grid) {
    launch(finish_wide_kernel<decltype(team)>, grid, kThreads, 0, p, count);
  });
}
void group_gradients(const GroupGradient& p) {
  if (p.width < kWide)
    each(p.images * p.groups, GroupGradients{p});
  else
    with_team(p.images * p.groups, p.width, [&](auto team, dim3 grid) {
      launch(wide_gradients_kernel<decltype(team)>, grid, kThreads, 0, p);
    });
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
