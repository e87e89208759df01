// Bank conflicts of the loads of device/tile.h: per kind of tile, "name ways", the most words that
// one load of a warp has in one bank. Only the emulator can be asked: its threads' stages note what
// they are asked for.
#include <algorithm>
#include <cstdio>
#include <set>
#include <string>
#include <type_traits>
#include <vector>

#include "cuda/device/tile.h"

using namespace fastnn;
using namespace fastnn::cuda;

static std::vector<ptrdiff_t> noted[256];  // of each thread, the bytes at which its loads begin

template <class Stage>
struct Noting : Stage {
  typename Stage::T* at(int row, int k) const {
    typename Stage::T* const place = Stage::at(row, k);
    noted[threadIdx.x].push_back(reinterpret_cast<char*>(place) -
                                 reinterpret_cast<char*>(this->data));
    return place;
  }
};

template <class Tile, bool kTurned>
static void multiply_kernel() {
  using A = Noting<Stage<Tile, Tile::kRows, kTurned>>;
  using B = Noting<Stage<Tile, Tile::kColumns, kTurned>>;
  auto* const memory = reinterpret_cast<typename Tile::T*>(dynamic_shared());
  typename Tile::Sums sums = {};
  multiply<Tile>(A{{memory}}, B{{memory + A::kElements}}, sums);
}

// Of loads that `lanes` neighbours make together, each of `words` words.
static size_t ways(int threads, int lanes, int words) {
  size_t most = 0;
  for (int first = 0; first < threads; first += lanes)
    for (size_t load = 0; load < noted[first].size(); ++load) {
      std::set<ptrdiff_t> banks[32];
      for (int lane = 0; lane < lanes; ++lane)
        for (int w = 0; w < words; ++w) {
          const ptrdiff_t word = noted[first + lane][load] / 4 + w;
          banks[word % 32].insert(word);
        }
      for (const auto& bank : banks) most = std::max(most, bank.size());
    }
  return most;
}

template <class Tile, bool kTurned>
static void print_ways() {
  using T = typename Tile::T;
  constexpr bool matrices = Tile::kMath == Math::tensor && sizeof(T) == 2;
  for (auto& of_thread : noted) of_thread.clear();
  const size_t elements = Stage<Tile, Tile::kRows, kTurned>::kElements +
                          Stage<Tile, Tile::kColumns, kTurned>::kElements;
  launch(multiply_kernel<Tile, kTurned>, dim3(1), Tile::kThreads, elements * sizeof(T));
  synchronize();
  std::printf("%s-%s-%dx%d-%s %zu\n", sizeof(T) == 2 ? "bfloat16" : "float32",
              Tile::kMath == Math::tensor ? "tensor" : "exact", Tile::kRows, Tile::kColumns,
              kTurned ? "turned" : "rows",
              matrices ? ways(Tile::kThreads, 8, 4) : ways(Tile::kThreads, 32, 1));
}

template <class T, Math math>
static void print_tiles() {
  using Large = Tile<T, math, 128, 128, 64, 32>;
  using Small = Tile<T, math, 64, 64, 32, 32>;
  print_ways<Large, false>();
  print_ways<Tile<T, math, 128, 64, 64, 32>, false>();
  print_ways<Small, false>();
  print_ways<Large, true>();
  print_ways<Small, true>();
}

int main() {
  select(0);
  print_tiles<bfloat16, Math::tensor>();
  print_tiles<float, Math::tensor>();
  print_tiles<bfloat16, Math::exact>();
  print_tiles<float, Math::exact>();
  bool out_of_memory = false;
  if (const char* message = take_error(&out_of_memory)) {
    std::fprintf(stderr, "%s\n", message);
    return 1;
  }
  return 0;
}
