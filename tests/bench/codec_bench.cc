// What a page costs in the codec, in bytes of page a second: comparing and encoding, the encoder's whole
// path, and decoding, for the mixes of change that a migration meets. `l2` works on few pages again and
// again, `dram` on more than any cache holds. memcpy and memcmp of the same pages stand beside them: read
// every figure against those.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "engine/codec/decoder.h"
#include "engine/codec/encoder.h"
#include "engine/codec/xbzrle.h"
#include "engine/codec/zero_page.h"

namespace godwit::codec {
namespace {

using Random = std::mt19937_64;
using Change = void (*)(Random&, std::byte* page);

void flip(std::byte& b, Random& random) {
  b ^= static_cast<std::byte>(1 + random() % 255);
}
void unchanged(Random&, std::byte*) {}
void one_byte(Random& random, std::byte* page) {
  flip(page[random() % kPageSize], random);
}
void eight_words(Random& random, std::byte* page) {
  for (int i = 0; i < 8; ++i) {
    std::byte* const word = page + random() % (kPageSize / 8) * 8;
    for (int j = 0; j < 8; ++j) flip(word[j], random);
  }
}
void tenth_in_runs(Random& random, std::byte* page) {
  constexpr size_t kRun = 51;
  for (size_t i = 0; i < 8; ++i) {
    std::byte* const run = page + i * 512 + random() % (512 - kRun);
    for (size_t j = 0; j < kRun; ++j) flip(run[j], random);
  }
}
void tenth_of_bytes(Random& random, std::byte* page) {
  for (size_t i = 0; i < kPageSize; ++i) {
    if (random() % 10 == 0) flip(page[i], random);
  }
}
void half_of_bytes(Random& random, std::byte* page) {
  for (size_t i = 0; i < kPageSize; ++i) {
    if (random() % 2 == 0) flip(page[i], random);
  }
}
void every_byte(Random& random, std::byte* page) {
  for (size_t i = 0; i < kPageSize; ++i) flip(page[i], random);
}

struct Case {
  const char* name;
  Change change;
};
constexpr Case kCases[] = {{"unchanged", unchanged},
                           {"1_byte", one_byte},
                           {"8_words", eight_words},
                           {"10%_in_runs", tenth_in_runs},
                           {"10%_of_bytes", tenth_of_bytes},
                           {"50%_of_bytes", half_of_bytes},
                           {"all", every_byte}};

struct Size {
  const char* name;
  size_t pages;  // in each of the buffers
};
constexpr Size kSizes[] = {{"l2", 48}, {"dram", 24576}};

// An old and a new version of many pages. Their differences repeat every 64 pages: the branches of the
// encoder must not learn them by heart, and in `l2` there are 48 of them.
class Pages {
 public:
  Pages(Size size, Change change) : old_(make(size.pages)), new_(make(size.pages)), count_(size.pages) {
    Random random(1);
    for (size_t i = 0; i < old_.size(); i += sizeof(uint64_t)) {
      const uint64_t word = random();
      std::memcpy(old_.data() + i, &word, sizeof(word));
    }
    std::memcpy(new_.data(), old_.data(), old_.size());
    for (size_t i = 0; i < count_; ++i) change(random, new_.data() + i * kPageSize);
  }
  [[nodiscard]] PageView old_page(size_t i) const { return PageView(old_.data() + i * kPageSize, kPageSize); }
  [[nodiscard]] PageView new_page(size_t i) const { return PageView(new_.data() + i * kPageSize, kPageSize); }
  [[nodiscard]] PageBytes target(size_t i) { return PageBytes(old_.data() + i * kPageSize, kPageSize); }
  [[nodiscard]] size_t count() const { return count_; }

 private:
  static Mapping make(size_t pages) { return Mapping::anonymous(pages * kPageSize).take(); }
  Mapping old_, new_;
  size_t count_;
};

void report(benchmark::State& state) {
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations()) * static_cast<int64_t>(kPageSize));
}

// Runs `one(i)` for each page in turn.
template <typename One>
void over_pages(benchmark::State& state, size_t count, One one) {
  size_t i = 0;
  for (auto _ : state) {
    one(i);
    if (++i == count) i = 0;
  }
  report(state);
}

void bench_memcpy(benchmark::State& state, Size size) {
  const Pages pages(size, unchanged);
  Mapping to = Mapping::anonymous(size.pages * kPageSize).take();
  std::memset(to.data(), 1, to.size());  // first touches are not what is measured
  over_pages(state, pages.count(), [&](size_t i) {
    std::memcpy(to.data() + i * kPageSize, pages.new_page(i).data(), kPageSize);
    benchmark::ClobberMemory();
  });
}

void bench_memcmp(benchmark::State& state, Size size) {
  const Pages pages(size, unchanged);
  over_pages(state, pages.count(), [&](size_t i) {
    benchmark::DoNotOptimize(std::memcmp(pages.old_page(i).data(), pages.new_page(i).data(), kPageSize));
  });
}

void bench_zero(benchmark::State& state, Size size) {
  Mapping zeros = Mapping::anonymous(size.pages * kPageSize).take();
  std::memset(zeros.data(), 0, zeros.size());
  over_pages(state, size.pages, [&](size_t i) {
    benchmark::DoNotOptimize(is_zero_page(PageView(zeros.data() + i * kPageSize, kPageSize)));
  });
}

void bench_hash(benchmark::State& state, Size size) {
  const Pages pages(size, unchanged);
  over_pages(state, pages.count(), [&](size_t i) { benchmark::DoNotOptimize(base_hash(pages.new_page(i))); });
}

void bench_encode(benchmark::State& state, Size size, Change change) {
  const Pages pages(size, change);
  std::array<std::byte, kPageSize> out;
  size_t delta_bytes = 0;
  over_pages(state, pages.count(), [&](size_t i) {
    delta_bytes += encode_xbzrle(pages.old_page(i), pages.new_page(i), out).size;
    benchmark::ClobberMemory();
  });
  state.counters["delta"] =
      benchmark::Counter(static_cast<double>(delta_bytes), benchmark::Counter::kAvgIterations);
}

// From a page in a reader's buffer to a payload, the cache kept current: old and new take turns, so that
// every visit finds the difference again.
void bench_page_path(benchmark::State& state, Size size, Change change) {
  const Pages pages(size, change);
  PageEncoder encoder = PageEncoder::create(2 * size.pages * PageCache::kBytesPerEntry).take();
  std::array<std::byte, kMaxPayload> out;
  const auto key = [](size_t i) { return PageKey{0, RemoteAddr(i * kPageSize)}; };
  for (size_t i = 0; i < pages.count(); ++i) encoder.encode({key(i), pages.old_page(i)}, out);
  const CacheStats before = encoder.cache_stats();
  bool to_new = true;
  over_pages(state, pages.count(), [&](size_t i) {
    encoder.encode({key(i), to_new ? pages.new_page(i) : pages.old_page(i)}, out);
    benchmark::ClobberMemory();
    if (i + 1 == pages.count()) to_new = !to_new;
  });
  state.counters["hits"] = benchmark::Counter(static_cast<double>(encoder.cache_stats().hits - before.hits),
                                              benchmark::Counter::kAvgIterations);
}

// The first send of every page: nothing is known, nothing is kept.
void bench_bulk_path(benchmark::State& state, Size size) {
  const Pages pages(size, unchanged);
  PageEncoder encoder = PageEncoder::create(PageCache::kMinBudget).take();
  std::array<std::byte, kMaxPayload> out;
  over_pages(state, pages.count(), [&](size_t i) {
    encoder.encode({{0, RemoteAddr(i * kPageSize)}, pages.new_page(i), KeepBase::kIfRoom}, out);
    benchmark::ClobberMemory();
  });
}

std::vector<std::vector<std::byte>> deltas_of(const Pages& pages) {
  std::vector<std::vector<std::byte>> deltas(pages.count());
  std::array<std::byte, 2 * kPageSize> out;
  for (size_t i = 0; i < pages.count(); ++i) {
    const size_t size = encode_xbzrle(pages.old_page(i), pages.new_page(i), out).size;
    deltas[i].assign(out.begin(), out.begin() + static_cast<ptrdiff_t>(size));
  }
  return deltas;
}

// A delta carries new bytes, so applying it to a page that already is the new one costs the same again.
void bench_decode(benchmark::State& state, Size size, Change change) {
  Pages pages(size, change);
  const auto deltas = deltas_of(pages);
  over_pages(state, pages.count(), [&](size_t i) {
    benchmark::DoNotOptimize(decode_xbzrle(deltas[i], pages.target(i)).ok());
    benchmark::ClobberMemory();
  });
}

void add(const std::string& name, Size size, auto function, auto... arguments) {
  benchmark::RegisterBenchmark((name + "/" + size.name).c_str(), function, size, arguments...);
}

}  // namespace
}  // namespace godwit::codec

int main(int argc, char** argv) {
  using namespace godwit::codec;
  for (const Size size : kSizes) {
    add("memcpy", size, bench_memcpy);
    add("memcmp", size, bench_memcmp);
    add("is_zero", size, bench_zero);
    add("base_hash", size, bench_hash);
    add("bulk_path", size, bench_bulk_path);
    for (const Case& c : kCases) add(std::string("encode/") + c.name, size, bench_encode, c.change);
    for (const Case& c : kCases) add(std::string("page_path/") + c.name, size, bench_page_path, c.change);
    for (const Case& c : kCases) {
      if (c.change != unchanged) add(std::string("decode/") + c.name, size, bench_decode, c.change);
    }
  }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
