// The process-wide generator: seed and call offset.
#pragma once

#include <cstdint>

namespace fastnn {

struct RandomState {
  uint64_t seed;
  uint64_t offset;
};

void manual_seed(uint64_t seed);
RandomState random_state();
void set_random_state(RandomState state);
// The state of this call; the offset moves on by that many draws.
RandomState next_random(uint64_t draws = 1);

// From here to the end all of the above is, for this thread, about a copy of the state: what a
// recording draws is drawn from the generator by its replays. Both return the copy.
RandomState begin_random_apart();
RandomState end_random_apart();

}  // namespace fastnn
