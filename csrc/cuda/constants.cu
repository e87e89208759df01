// Small tables that kernels read: taps of convolutions, windows of pools, weights of resampling. Of
// equal contents there is one, and a network asks for the same ones in every step; images of ever
// other sizes would fill the device with them, so those that nobody uses are freed when they come
// to more than some megabytes. Whoever uses one shares it: a thread until its operator has launched
// what reads it, and a graph as long as it can be replayed. What is launched is waited for, all of
// it at once: seldom, and then nobody has to note which streams read which table. Where one step's
// tables alone come to more, that is in every step: they are freed and made anew each time.
#include <algorithm>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "cuda/capture.h"
#include "cuda/runtime.h"

namespace fastnn::cuda {
namespace {

constexpr int64_t kMostBytes = 16 << 20;  // on a device, or twice what is in use
constexpr int64_t kLeast = 512;           // that the driver takes for one

struct Constant {
  void* block;
  int64_t bytes;
};
using Shared = std::shared_ptr<const Constant>;
// Of equal contents are two where one came back (put_back) after another had been made.
using ByContents = std::unordered_multimap<std::string, Shared>;
using Taken = std::vector<ByContents::node_type>;

struct Constants {
  ByContents by_contents;
  int64_t bytes = 0, most = kMostBytes;
};
struct All {
  std::mutex mutex;
  std::unordered_map<int, Constants> of_device;
};
All& all() {
  static All* const instance = new All;  // graphs may outlive static destructors
  return *instance;
}

thread_local std::vector<Shared> in_use;  // by this thread's operator

int64_t taken(int64_t bytes) { return bytes < kLeast ? kLeast : bytes; }

// With the mutex held.
const void* use(const Shared& constant) {
  in_use.push_back(constant);
  if (recorded_graph()) keep_with_graph(std::const_pointer_cast<Constant>(constant));
  return constant->block;
}

Taken take_unused(int device) {
  std::lock_guard<std::mutex> lock(all().mutex);
  Constants& known = all().of_device[device];
  Taken unused;
  for (auto at = known.by_contents.begin(); at != known.by_contents.end();) {
    const auto one = at++;
    if (one->second.use_count() > 1) continue;
    known.bytes -= taken(one->second->bytes);
    unused.push_back(known.by_contents.extract(one));
  }
  known.most = std::max(kMostBytes, 2 * known.bytes);
  return unused;
}

// They may be read yet. There may be more of them from now on: the next table is not to try again.
void put_back(int device, Taken unused) {
  std::lock_guard<std::mutex> lock(all().mutex);
  Constants& known = all().of_device[device];
  for (auto& one : unused) {
    known.bytes += taken(one.mapped()->bytes);
    known.by_contents.insert(std::move(one));
  }
  known.most = std::max(kMostBytes, 2 * known.bytes);
}

}  // namespace

const void* constant(const void* data, int64_t bytes) {
  const int device = current_device();
  const std::string key(static_cast<const char*>(data), static_cast<size_t>(bytes));
  bool full = false;
  {
    std::lock_guard<std::mutex> lock(all().mutex);
    Constants& known = all().of_device[device];
    const auto found = known.by_contents.find(key);
    if (found != known.by_contents.end()) return use(found->second);
    full = known.bytes + taken(bytes) > known.most;
  }
  if (failing()) return nullptr;
  if (full) free_constants(device);
  void* block = upload(data, bytes);
  if (!block) return nullptr;
  const void* kept = nullptr;
  {
    std::lock_guard<std::mutex> lock(all().mutex);
    Constants& known = all().of_device[device];
    auto here = known.by_contents.find(key);
    if (here == known.by_contents.end()) {  // no other thread has come before
      here = known.by_contents.emplace(
          key, std::make_shared<const Constant>(Constant{std::exchange(block, nullptr), bytes}));
      known.bytes += taken(bytes);
    }
    kept = use(here->second);
  }
  if (block) deallocate(device, block, bytes);
  return kept;
}

void let_go_of_constants() {
  if (in_use.empty()) return;
  std::lock_guard<std::mutex> lock(all().mutex);
  in_use.clear();
}

void free_constants(int device) {
  const Selected there(device);
  Taken unused;
  {
    const NoRecordings none;  // which do not survive a wait for the device
    if (!none) return;
    unused = take_unused(device);
    if (unused.empty()) return;
    if (cudaDeviceSynchronize() != cudaSuccess) {  // another library records, say
      cudaGetLastError();
      return put_back(device, std::move(unused));
    }
  }
  for (const auto& one : unused) deallocate(device, one.mapped()->block, one.mapped()->bytes);
}

}  // namespace fastnn::cuda
