// Fibers of a block: a stack each, changed by saving the callee-saved registers.
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <algorithm>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "cuda/emulator/emulator.h"
#include "cuda/emulator/recorder.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace fastnn::cuda::emulator {
namespace {

constexpr size_t kStack = 256 << 10;
constexpr unsigned kMaxThreads = 1024;
constexpr int kWarp = 32;
constexpr size_t kMaxExchange = 64;  // bytes per lane

#if defined(__x86_64__)
// Saves the registers on this stack and its pointer in *from, and goes on at `to`.
extern "C" void fastnn_switch_stack(void** from, void* to);
asm(R"(
.text
.type fastnn_switch_stack, @function
fastnn_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size fastnn_switch_stack, .-fastnn_switch_stack
)");
#endif

enum class State { ready, at_block_barrier, in_exchange, at_barrier, done };

struct Free {
  void operator()(char* block) const { free(block); }
};
using Block = std::unique_ptr<char, Free>;

// Ends exactly with the last of `bytes`, which begin `at` bytes behind a multiple of 1024; all NaN.
Block poisoned(size_t bytes, size_t at = 0) {
  void* block = nullptr;
  if (bytes && posix_memalign(&block, 1024, at + bytes)) abort();
  if (bytes) memset(block, 0xff, at + bytes);
#if defined(__SANITIZE_ADDRESS__)
  if (bytes) __asan_poison_memory_region(block, at);
#endif
  return Block(static_cast<char*>(block));
}

struct Copy {
  void* dst;
  const void* src;
  size_t bytes, src_bytes;
  int group;
};

struct Product {
  float* d;
  int count, group;
  std::function<void(float*)> add;
};

// A barrier of sm_90: what its phase still waits for.
struct PhaseBarrier {
  unsigned arrivals = 0, missing = 0;
  int64_t bytes = 0;
  unsigned parity = 0;  // of the phase under way
  std::vector<std::pair<size_t, std::function<void()>>> copies;
};

struct Fiber {
  char* stack = nullptr;
#if defined(__x86_64__)
  void* pointer = nullptr;
#else
  ucontext_t context;
#endif
  State state = State::done;
  int exchanges = 0;
  std::vector<Copy> copies;
  int group = 0;
  std::vector<Product> products;
  std::map<float*, std::vector<float>> sums;  // of products not waited for
  int product_group = 0;
  const void* barrier = nullptr;  // waited for
  void* fake_stack = nullptr;     // AddressSanitizer's
};

struct Warp {
  int arrived = 0;
  size_t bytes = 0;
  alignas(64) char buffer[2][kWarp * kMaxExchange];
};

struct Machine {
  std::vector<Fiber> fibers{kMaxThreads};
  std::vector<Warp> warps{kMaxThreads / kWarp};
  Fiber scheduler;
  unsigned threads = 0, current = 0, arrived = 0, finished = 0;
  const std::function<void()>* body = nullptr;
  std::map<const void*, Block> shared;
  std::map<const void*, PhaseBarrier> barriers;
  Block dynamic;
  std::string error;
  std::mt19937 random{1};
};

// Never destroyed: arrays may outlive static destructors.
Machine& machine() {
  static Machine* const instance = new Machine;
  return *instance;
}

void go(Fiber& from, Fiber& to, bool from_ends = false) {
#if defined(__SANITIZE_ADDRESS__)
  Machine& m = machine();
  static const void* main_bottom = nullptr;
  static size_t main_size = 0;
  const bool to_main = &to == &m.scheduler;
  __sanitizer_start_switch_fiber(from_ends ? nullptr : &from.fake_stack,
                                 to_main ? main_bottom : to.stack, to_main ? main_size : kStack);
#else
  (void)from_ends;
#endif
#if defined(__x86_64__)
  fastnn_switch_stack(&from.pointer, to.pointer);
#else
  swapcontext(&from.context, &to.context);
#endif
#if defined(__SANITIZE_ADDRESS__)
  const void* bottom = nullptr;
  size_t size = 0;
  __sanitizer_finish_switch_fiber(from.fake_stack, &bottom, &size);
  if (&from != &m.scheduler && !main_bottom) main_bottom = bottom, main_size = size;
#endif
}

void to_scheduler(bool ends = false) {
  Machine& m = machine();
  go(m.fibers[m.current], m.scheduler, ends);
}

void thread_main() {
  Machine& m = machine();
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
  (*m.body)();
  Fiber& self = m.fibers[m.current];
  if (!self.copies.empty()) m.error = "a thread ended with asynchronous copies not waited for";
  if (!self.products.empty()) m.error = "a thread ended with products not waited for";
  self.state = State::done;
  ++m.finished;
  to_scheduler(true);
  abort();
}

void prepare(Fiber& f) {
  if (!f.stack) {
    f.stack = static_cast<char*>(mmap(nullptr, kStack, PROT_READ | PROT_WRITE,
                                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (f.stack == MAP_FAILED) abort();
  }
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(f.stack, kStack);  // frames of threads that ended without returning
#endif
  f.state = State::ready;
  f.exchanges = 0;
  f.group = 0;
  f.copies.clear();
  f.products.clear();
  f.sums.clear();
  f.product_group = 0;
#if defined(__x86_64__)
  void** top = reinterpret_cast<void**>(f.stack + kStack) - 1;  // so aligned as after a call
  *top = nullptr;
  *--top = reinterpret_cast<void*>(&thread_main);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  f.pointer = top;
#else
  getcontext(&f.context);
  f.context.uc_stack.ss_sp = f.stack;
  f.context.uc_stack.ss_size = kStack;
  f.context.uc_link = nullptr;
  makecontext(&f.context, &thread_main, 0);
#endif
}

void set_thread(unsigned t) {
  machine().current = t;
  threadIdx = {t, 0, 0};
}

std::string where() {
  return " (block " + std::to_string(blockIdx.x) + ", " + std::to_string(blockIdx.y) + ", " +
         std::to_string(blockIdx.z) + ")";
}

bool run_block() {
  Machine& m = machine();
  m.arrived = m.finished = 0;
  m.shared.clear();
  m.barriers.clear();
  for (Warp& w : m.warps) w.arrived = 0;
  for (unsigned t = 0; t < m.threads; ++t) prepare(m.fibers[t]);
  std::vector<unsigned> order(m.threads);
  for (unsigned t = 0; t < m.threads; ++t) order[t] = t;
  std::shuffle(order.begin(), order.end(), m.random);
  while (m.finished < m.threads) {
    bool moved = false;
    for (unsigned t : order) {
      if (m.fibers[t].state != State::ready) continue;
      moved = true;
      set_thread(t);
      go(m.scheduler, m.fibers[t]);
      if (!m.error.empty()) return false;
    }
    if (moved) continue;
    const bool waits = std::any_of(order.begin(), order.end(), [&](unsigned t) {
      return m.fibers[t].state == State::at_barrier;
    });
    m.error =
        waits ? "a wait for a barrier's phase that does not complete"
        : m.finished || m.arrived
            ? "a barrier that not all threads of the block reach: " + std::to_string(m.arrived) +
                  " of " + std::to_string(m.threads) + " wait, " + std::to_string(m.finished) +
                  " have ended"
            : "a warp collective that not all 32 lanes reach";
    return false;
  }
  for (const auto& [barrier, b] : m.barriers)
    if (!b.copies.empty()) {
      m.error = "a block ended with copies not waited for";
      return false;
    }
  return true;
}

PhaseBarrier& phase_barrier(const void* barrier) {
  const auto found = machine().barriers.find(barrier);
  if (found == machine().barriers.end()) fail("a barrier that was not initialised");
  return found->second;
}

// Lets those that wait look again.
void wake(const void* barrier) {
  Machine& m = machine();
  for (unsigned t = 0; t < m.threads; ++t)
    if (m.fibers[t].state == State::at_barrier && m.fibers[t].barrier == barrier)
      m.fibers[t].state = State::ready;
}

// Ends the phase if nothing is missing.
void settle(const void* barrier, PhaseBarrier& b) {
  if (b.missing || b.bytes) return;
  b.parity ^= 1;
  b.missing = b.arrivals;
  wake(barrier);
}

}  // namespace

int lane() { return static_cast<int>(machine().current % kWarp); }

void fail(const char* message) {
  machine().error = message;
  to_scheduler();
  abort();
}

static void run(dim3 grid, unsigned threads, size_t shared_bytes,
                const std::function<void()>& thread) {
  Machine& m = machine();
  m.error.clear();
  m.threads = threads;
  m.body = &thread;
  blockDim = dim3(threads);
  gridDim = grid;
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = {x, y, z};
        m.dynamic = poisoned(shared_bytes, kDynamicAt);
        if (!run_block()) {
          report((m.error + where()).c_str(), cudaErrorLaunchFailure);
          return;
        }
      }
}

void launch(cudaStream_t stream, dim3 grid, unsigned threads, size_t shared_bytes,
            std::function<void()> thread) {
  if (threads == 0 || threads > kMaxThreads || grid.x == 0 || grid.y == 0 || grid.z == 0 ||
      grid.y > 65535 || grid.z > 65535 || grid.x > 0x7fffffffu || shared_bytes > shared_limit())
    return report("invalid launch configuration", cudaErrorInvalidConfiguration);
  enqueue(stream, [=, body = std::move(thread)] { run(grid, threads, shared_bytes, body); });
}

void block_barrier() {
  Machine& m = machine();
  Fiber& self = m.fibers[m.current];
  if (m.finished) fail("a barrier after a thread of the block has ended");
  self.state = State::at_block_barrier;
  if (++m.arrived == m.threads) {
    m.arrived = 0;
    for (unsigned t = 0; t < m.threads; ++t)
      if (m.fibers[t].state == State::at_block_barrier) m.fibers[t].state = State::ready;
  }
  to_scheduler();
}

const void* warp_exchange(const void* value, size_t bytes) {
  Machine& m = machine();
  const unsigned warp = m.current / kWarp, first = warp * kWarp;
  Fiber& self = m.fibers[m.current];
  Warp& w = m.warps[warp];
  if (bytes > kMaxExchange) fail("a warp exchange of too many bytes");
  if (w.arrived == 0) w.bytes = bytes;
  if (w.bytes != bytes) fail("lanes of a warp in different collectives");
  char* const buffer = w.buffer[self.exchanges++ % 2];
  memcpy(buffer + bytes * (m.current - first), value, bytes);
  self.state = State::in_exchange;
  if (++w.arrived == kWarp) {
    w.arrived = 0;
    for (unsigned t = first; t < first + kWarp; ++t) m.fibers[t].state = State::ready;
  }
  to_scheduler();
  return buffer;
}

void* shared(size_t bytes, const void* key) {
  Block& block = machine().shared[key];
  if (!block) block = poisoned(bytes);
  return block.get();
}

void* dynamic_shared() { return machine().dynamic.get() + kDynamicAt; }

void async_copy(void* dst, const void* src, size_t bytes, size_t src_bytes) {
  Machine& m = machine();
  Fiber& self = m.fibers[m.current];
  if (reinterpret_cast<uintptr_t>(dst) % bytes ||
      (src_bytes && reinterpret_cast<uintptr_t>(src) % bytes))
    fail("a misaligned asynchronous copy");
  memset(dst, 0xff, bytes);
  self.copies.push_back({dst, src, bytes, src_bytes, self.group});
}

void async_commit() {
  Machine& m = machine();
  ++m.fibers[m.current].group;
}

void async_wait(int groups_left) {
  Machine& m = machine();
  Fiber& self = m.fibers[m.current];
  std::shuffle(self.copies.begin(), self.copies.end(), m.random);
  std::vector<Copy> later;
  for (const Copy& c : self.copies) {
    if (c.group >= self.group - groups_left) {
      later.push_back(c);
      continue;
    }
    memset(c.dst, 0, c.bytes);
    if (c.src_bytes) memcpy(c.dst, c.src, c.src_bytes);
  }
  self.copies = std::move(later);
}

void barrier_init(const void* barrier, unsigned arrivals) {
  PhaseBarrier b;
  b.arrivals = b.missing = arrivals;
  machine().barriers[barrier] = b;
}

void barrier_arrive(const void* barrier, unsigned expected_bytes) {
  PhaseBarrier& b = phase_barrier(barrier);
  if (b.missing == 0) fail("more arrivals at a barrier than its phase has");
  b.bytes += expected_bytes;
  --b.missing;
  settle(barrier, b);
}

void barrier_wait(const void* barrier, unsigned parity) {
  Machine& m = machine();
  PhaseBarrier& b = phase_barrier(barrier);
  while (b.parity == parity) {
    // Whatever is under way may arrive now, in any order.
    auto copies = std::move(b.copies);
    b.copies.clear();
    std::shuffle(copies.begin(), copies.end(), m.random);
    for (auto& [bytes, copy] : copies) {
      copy();
      b.bytes -= static_cast<int64_t>(bytes);
    }
    if (!copies.empty()) settle(barrier, b);
    if (b.parity != parity) return;
    Fiber& self = m.fibers[m.current];
    self.state = State::at_barrier;
    self.barrier = barrier;
    to_scheduler();
  }
}

void bulk_copy(void* dst, size_t bytes, const void* barrier, std::function<void()> copy) {
  PhaseBarrier& b = phase_barrier(barrier);
  if (reinterpret_cast<uintptr_t>(dst) % 1024) fail("a misaligned copy of a box");
  memset(dst, 0xff, bytes);
  b.copies.emplace_back(bytes, std::move(copy));
  wake(barrier);
}

void later_product(float* d, int count, std::function<void(float*)> product) {
  Fiber& self = machine().fibers[machine().current];
  if (!self.sums.count(d)) self.sums[d].assign(d, d + count);
  memset(d, 0xff, static_cast<size_t>(count) * sizeof(float));
  self.products.push_back({d, count, self.product_group, std::move(product)});
}

void commit_products() { ++machine().fibers[machine().current].product_group; }

void wait_products(int groups_left) {
  Fiber& self = machine().fibers[machine().current];
  std::vector<Product> later;
  for (Product& p : self.products)
    if (p.group < self.product_group - groups_left)
      p.add(self.sums[p.d].data());
    else
      later.push_back(std::move(p));
  self.products = std::move(later);
  for (auto sums = self.sums.begin(); sums != self.sums.end();) {
    const bool under_way = std::any_of(self.products.begin(), self.products.end(),
                                       [&](const Product& p) { return p.d == sums->first; });
    if (!under_way) memcpy(sums->first, sums->second.data(), sums->second.size() * sizeof(float));
    sums = under_way ? std::next(sums) : self.sums.erase(sums);
  }
}

}  // namespace fastnn::cuda::emulator
