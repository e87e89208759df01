#include "core/random.h"

#include <mutex>
#include <optional>

namespace fastnn {
namespace {

std::mutex mutex;
RandomState shared{0, 0};
thread_local std::optional<RandomState> apart;

// What `use` makes of the state that this thread draws from.
template <class Use>
RandomState with_state(const Use& use) {
  if (apart) return use(*apart);
  std::lock_guard<std::mutex> lock(mutex);
  return use(shared);
}

}  // namespace

void manual_seed(uint64_t seed) { set_random_state({seed, 0}); }

RandomState random_state() {
  return with_state([](const RandomState& state) { return state; });
}

void set_random_state(RandomState next) {
  with_state([=](RandomState& state) { return state = next; });
}

RandomState next_random(uint64_t draws) {
  return with_state([=](RandomState& state) {
    const RandomState current = state;
    state.offset += draws;
    return current;
  });
}

RandomState begin_random_apart() {
  apart = random_state();
  return *apart;
}

RandomState end_random_apart() {
  const RandomState last = random_state();
  apart.reset();
  return last;
}

}  // namespace fastnn
