// The ISA levels and their kernel tables. Adding a kernel source adds one line to FASTNN_STEMS.
#include "ops/slots.h"

#if FASTNN_HAVE_avx512
#include <cpuid.h>
#endif
#if FASTNN_HAVE_amx
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <atomic>
#include <cstdlib>
#include <numeric>
#include <sstream>

#include "core/error.h"
#include "core/isa.h"
#include "core/parallel.h"

// Emulations are for tests: they have to be asked for.
#ifndef FASTNN_AVX512_EMULATE
#define FASTNN_AVX512_EMULATE 0
#endif
#ifndef FASTNN_AMX_EMULATE
#define FASTNN_AMX_EMULATE 0
#endif

// One per source in csrc/cpu, each defining fill_<stem>().
#define FASTNN_STEMS(X)   \
  X(activation)           \
  X(conv_forward)         \
  X(conv_backward_data)   \
  X(conv_backward_weight) \
  X(conv_depthwise)       \
  X(conv_winograd)        \
  X(conv_winograd_weight) \
  X(copy)                 \
  X(dropout)              \
  X(elementwise)          \
  X(elementwise_compare)  \
  X(elementwise_unary)    \
  X(interpolate)          \
  X(loss)                 \
  X(matmul_rows)          \
  X(norm)                 \
  X(norm_finish)          \
  X(norm_layer)           \
  X(optim)                \
  X(pool)                 \
  X(reduce)               \
  X(shape)                \
  X(softmax)

#define FASTNN_DECLARE(stem) void fill_##stem(Slots&);
#define FASTNN_CALL(stem) fill_##stem(slots);
#define FASTNN_LEVEL(isa)               \
  namespace fastnn::cpu::isa {          \
  FASTNN_STEMS(FASTNN_DECLARE)          \
  double multiply_adds(DType, int64_t); \
  static Slots fill() {                 \
    Slots slots{};                      \
    FASTNN_STEMS(FASTNN_CALL)           \
    return slots;                       \
  }                                     \
  }

FASTNN_LEVEL(portable)
#if FASTNN_HAVE_avx2
FASTNN_LEVEL(avx2)
#endif
#if FASTNN_HAVE_avx512
FASTNN_LEVEL(avx512)
#endif
#if FASTNN_HAVE_avx512_bf16
// The kernels of avx512, but for those that store much bfloat16, which this level rounds by an
// instruction, and those that multiply it, in pairs.
#define FASTNN_ROUNDING_STEMS(X) \
  X(activation)                  \
  X(conv_depthwise)              \
  X(copy)                        \
  X(dropout)                     \
  X(elementwise)                 \
  X(interpolate)                 \
  X(norm)                        \
  X(norm_layer)                  \
  X(pool)                        \
  X(softmax)
#define FASTNN_PAIRED_STEMS(X) \
  X(conv_forward)              \
  X(conv_backward_data)        \
  X(conv_backward_weight)      \
  X(matmul_rows)
namespace fastnn::cpu::avx512_bf16 {
FASTNN_ROUNDING_STEMS(FASTNN_DECLARE)
FASTNN_PAIRED_STEMS(FASTNN_DECLARE)
double multiply_adds(DType, int64_t);
static Slots fill_rounding() {
  Slots slots = avx512::fill();
  FASTNN_ROUNDING_STEMS(FASTNN_CALL)
  return slots;
}
static Slots fill() {
  Slots slots = fill_rounding();
  FASTNN_PAIRED_STEMS(FASTNN_CALL)
  return slots;
}
}  // namespace fastnn::cpu::avx512_bf16
#endif
#if FASTNN_HAVE_amx
// What tiles do not take, float32 vectors do: Intel's processors multiply pairs no faster.
#define FASTNN_AMX_STEMS(X) \
  X(conv)                   \
  X(matmul_rows)            \
  X(conv_backward_weight)
namespace fastnn::cpu::amx {
FASTNN_AMX_STEMS(FASTNN_DECLARE)
double multiply_adds(DType, int64_t);
static Slots fill() {
  Slots slots = avx512_bf16::fill_rounding();
  FASTNN_AMX_STEMS(FASTNN_CALL)
  return slots;
}
}  // namespace fastnn::cpu::amx
#endif

namespace fastnn {
namespace {

#if FASTNN_HAVE_avx512
// Zen 4, of all that has AVX-512 the one of AMD's family 25, takes two cycles for 16 lanes.
bool has_half_vectors() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __builtin_cpu_is("amd") && __get_cpuid(1, &a, &b, &c, &d) &&
         (a >> 8 & 15) + (a >> 20 & 255) == 25;
}
#endif
#if FASTNN_HAVE_avx512_bf16
bool has_bfloat16() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned kBfloat16 = 1u << 5;
  if (FASTNN_AVX512_EMULATE) return true;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & kBfloat16);
}
#endif
#if FASTNN_HAVE_amx
// Whether the processor has bfloat16 tiles, and Linux grants this process the tile registers: they
// are 8 KB more to save per thread, so a process has to ask for them, once.
bool has_amx() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned kTiles = 1u << 24, kTilesBfloat16 = 1u << 22;
  if (FASTNN_AMX_EMULATE) return true;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & kTiles) || !(d & kTilesBfloat16))
    return false;
  constexpr long kAskPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kAskPermission, kTileData) == 0;
}
#endif

struct Level {
  const char* name;
  bool available;
  Slots slots;  // none where it is not available
  double (*multiply_adds)(DType, int64_t);
  int per_cycle;  // multiply-adds of float32
  double bfloat16_rate;
  bool fast;  // not an emulation
};

const std::vector<Level>& levels() {
  static const std::vector<Level> table = [] {
    std::vector<Level> out;
    // A level's own code fills its slots, in instructions that the machine may lack.
    const auto add = [&out](const char* name, bool available, Slots (*fill)(),
                            double (*multiply_adds)(DType, int64_t), int per_cycle, double rate = 1,
                            bool fast = true) {
      out.push_back(
          {name, available, available ? fill() : Slots{}, multiply_adds, per_cycle, rate, fast});
    };
    add("portable", true, cpu::portable::fill, cpu::portable::multiply_adds, 8);
#if FASTNN_HAVE_avx2
    add("avx2", __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"), cpu::avx2::fill,
        cpu::avx2::multiply_adds, 16);
#endif
#if FASTNN_HAVE_avx512
    bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (FASTNN_AVX512_EMULATE) avx512 = out.back().available;  // AVX2's
    const int wide = has_half_vectors() ? 16 : 32;
    add("avx512", avx512, cpu::avx512::fill, cpu::avx512::multiply_adds, wide, 1,
        !FASTNN_AVX512_EMULATE);
#endif
#if FASTNN_HAVE_avx512_bf16
    const bool bfloat16 = avx512 && has_bfloat16();
    // Intel's processors add products of pairs half as often as they add products.
    const double rate = __builtin_cpu_is("intel") ? 1 : 2;
    add("avx512_bf16", bfloat16, cpu::avx512_bf16::fill, cpu::avx512_bf16::multiply_adds, wide,
        rate, !FASTNN_AVX512_EMULATE);
#endif
#if FASTNN_HAVE_amx
    add("amx", bfloat16 && has_amx(), cpu::amx::fill, cpu::amx::multiply_adds, wide, 16,
        !FASTNN_AMX_EMULATE);
#endif
    return out;
  }();
  return table;
}

const Level& find(const std::string& name, const char* asked_by) {
  std::string known;
  for (const Level& level : levels()) {
    if (level.available && name == level.name) return level;
    if (level.available) known += (known.empty() ? "" : ", ") + std::string(level.name);
  }
  throw ValueError(text(asked_by, ": expected one of this machine's ISA levels (", known,
                        "), got '", name, "'"));
}

const Level& initial() {
  if (const char* name = std::getenv("FASTNN_ISA")) return find(name, "FASTNN_ISA");
  const Level* best = &levels().front();
  for (const Level& level : levels())
    if (level.available && level.fast) best = &level;
  return *best;
}

std::atomic<const Level*>& active() {
  static std::atomic<const Level*> level{&initial()};
  return level;
}

}  // namespace

const Slots& cpu_slots() { return active().load(std::memory_order_relaxed)->slots; }

std::vector<std::string> compiled_isas() {
  std::vector<std::string> names;
  for (const Level& level : levels()) names.push_back(level.name);
  return names;
}

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const Level& level : levels())
    if (level.available) names.push_back(level.name);
  return names;
}

std::string active_isa() { return active().load()->name; }

double bfloat16_rate() { return active().load()->bfloat16_rate; }

int multiply_adds_per_cycle() { return active().load()->per_cycle; }

double multiply_adds(DType dtype, int64_t rounds) {
  const auto run = active().load()->multiply_adds;
  const int64_t threads = get_num_threads();
  std::vector<double> each(static_cast<size_t>(threads));
  parallel_for(threads,
               [&](int64_t thread) { each[static_cast<size_t>(thread)] = run(dtype, rounds); });
  return std::accumulate(each.begin(), each.end(), 0.0);
}

void set_isa(const std::string& name) { active().store(&find(name, "set_isa")); }

}  // namespace fastnn
