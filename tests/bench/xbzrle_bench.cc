// Bench `xbzrle`: what a page costs in the codec, for the mixes of change that a migration meets: comparing
// and encoding, the encoder's whole path from a reader's buffer to a payload, and decoding. In one run with
// memcmp and memcpy of the same pages, all in turn, each on another part of them: `l2` works on few pages
// again and again, `dram` on more than any cache holds. One JSON object a row: nanoseconds a page. `--quick`
// for a look.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "engine/codec/decoder.h"
#include "engine/codec/encoder.h"
#include "engine/codec/xbzrle.h"
#include "engine/codec/zero_page.h"
#include "tests/bench/figures.h"

namespace godwit::codec {
namespace {

using bench::Samples;
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
  size_t slice;  // of them in one sample
};
constexpr Size kSizes[] = {{"l2", 48, 96}, {"dram", 16384, 128}};

void keep(const auto& value) {
  asm volatile("" : : "r"(&value) : "memory");
}

/// An old and a new version of many pages, each change of its own: the branches of the encoder must not learn
/// them by heart.
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
  [[nodiscard]] size_t count() const { return count_; }

  static Mapping make(size_t pages) {
    Mapping memory = Mapping::anonymous(pages * kPageSize).take();
    std::memset(memory.data(), 1, memory.size());  // first touches are not what is measured
    return memory;
  }

 private:
  Mapping old_, new_;
  size_t count_;
};

/// The things that are done with pages in one run, each with the time that a page takes it.
class Contest {
 public:
  using One = std::function<void(size_t begin, size_t end)>;  // pages [begin, end) of those there are

  explicit Contest(Size size, size_t rounds) : size_(size), rounds_(rounds) {}
  void enter(std::string name, One one) { entries_.push_back({std::move(name), std::move(one), {}}); }

  /// Each entry goes round the pages at its own distance, so that nobody finds what another has just fetched.
  void run() {
    for (Entry& entry : entries_) visit(entry, 0);  // branches, tables, the cache of pages
    for (size_t round = 0; round < rounds_; ++round) {
      for (size_t i = 0; i < entries_.size(); ++i) {
        const size_t slices = std::max<size_t>(1, size_.pages / size_.slice);
        const size_t slice = round + i * slices / entries_.size();
        if (slices == 1) entries_[i].one(0, size_.pages);  // back into the cache
        const double nanos = bench::nanos_of([&] { visit(entries_[i], slice % slices); });
        entries_[i].nanos.add(nanos / static_cast<double>(size_.slice));
      }
    }
  }
  [[nodiscard]] const Samples& of(std::string_view name) const {
    return std::find_if(entries_.begin(), entries_.end(), [&](const Entry& e) { return e.name == name; })
        ->nanos;
  }
  void report(std::string_view row, double delta_bytes) const {
    bench::Row out(row);
    out.word("size", size_.name);
    for (const Entry& entry : entries_) {
      out.samples(entry.name, entry.nanos);
      if (entry.name != "memcmp" && entry.name != "memcpy") {
        const char* yardstick = entry.name == "decode" ? "memcpy" : "memcmp";
        out.samples(entry.name + " of " + yardstick, bench::ratio(of(yardstick), entry.nanos));
      }
    }
    out.number("delta bytes", delta_bytes);
  }

 private:
  struct Entry {
    std::string name;
    One one;
    Samples nanos;
  };
  void visit(const Entry& entry, size_t slice) const {
    if (size_.slice < size_.pages) return entry.one(slice * size_.slice, (slice + 1) * size_.slice);
    for (size_t i = 0; i < size_.slice / size_.pages; ++i) entry.one(0, size_.pages);
  }

  Size size_;
  size_t rounds_;
  std::vector<Entry> entries_;
};

/// memcmp and memcpy of the pages: what the others are read against. memcmp reads pages to their end only if
/// they are equal.
class Yardsticks {
 public:
  Yardsticks(Contest& contest, const Pages& pages) : twin_(Pages::make(pages.count())) {
    const auto twin = [this](size_t i) { return twin_.data() + i * kPageSize; };
    for (size_t i = 0; i < pages.count(); ++i) std::memcpy(twin(i), pages.new_page(i).data(), kPageSize);
    contest.enter("memcmp", [&pages, twin](size_t begin, size_t end) {
      for (size_t i = begin; i < end; ++i) keep(std::memcmp(twin(i), pages.new_page(i).data(), kPageSize));
    });
    contest.enter("memcpy", [&pages, twin](size_t begin, size_t end) {
      for (size_t i = begin; i < end; ++i) keep(std::memcpy(twin(i), pages.new_page(i).data(), kPageSize));
    });
  }

 private:
  Mapping twin_;
};

/// From a page in a reader's buffer to a payload, the cache kept current: old and new take turns, so that
/// every visit finds the difference again.
class PagePath {
 public:
  PagePath(Size size, const Pages& pages)
      : pages_(pages),
        encoder_(PageEncoder::create(2 * size.pages * PageCache::kBytesPerEntry).take()),
        to_new_(pages.count(), true) {
    for (size_t i = 0; i < pages.count(); ++i) encoder_.encode({key(i), pages.old_page(i)}, out_);
  }
  void encode(size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) {
      encoder_.encode({key(i), to_new_[i] ? pages_.new_page(i) : pages_.old_page(i)}, out_);
      to_new_[i] = !to_new_[i];
      keep(out_);
    }
  }

 private:
  static PageKey key(size_t i) { return {0, RemoteAddr(i * kPageSize)}; }
  const Pages& pages_;
  PageEncoder encoder_;
  std::vector<bool> to_new_;
  std::array<std::byte, kMaxPayload> out_;
};

/// Deltas, and pages to apply them to: a delta carries new bytes, so applying it to a page that already is
/// the new one costs the same again.
class Decoding {
 public:
  explicit Decoding(const Pages& pages) : targets_(Pages::make(pages.count())), deltas_(pages.count()) {
    std::array<std::byte, 2 * kPageSize> out;
    for (size_t i = 0; i < pages.count(); ++i) {
      std::memcpy(target(i).data(), pages.old_page(i).data(), kPageSize);
      const size_t size = encode_xbzrle(pages.old_page(i), pages.new_page(i), out).size;
      deltas_[i].assign(out.begin(), out.begin() + static_cast<ptrdiff_t>(size));
    }
  }
  void decode(size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) keep(decode_xbzrle(deltas_[i], target(i)).ok());
  }
  [[nodiscard]] double bytes_a_page() const {
    size_t all = 0;
    for (const auto& delta : deltas_) all += delta.size();
    return static_cast<double>(all) / static_cast<double>(deltas_.size());
  }

 private:
  [[nodiscard]] PageBytes target(size_t i) { return PageBytes(targets_.data() + i * kPageSize, kPageSize); }
  Mapping targets_;
  std::vector<std::vector<std::byte>> deltas_;
};

void bench_case(Size size, const Case& which, size_t rounds) {
  const Pages pages(size, which.change);
  Contest contest(size, rounds);
  const Yardsticks yardsticks(contest, pages);
  PagePath path(size, pages);
  Decoding decoding(pages);
  contest.enter("encode", [&](size_t begin, size_t end) {
    std::array<std::byte, kPageSize> out;
    for (size_t i = begin; i < end; ++i) {
      keep(encode_xbzrle(pages.old_page(i), pages.new_page(i), out));
      keep(out);
    }
  });
  contest.enter("page path", [&](size_t begin, size_t end) { path.encode(begin, end); });
  if (which.change != unchanged)
    contest.enter("decode", [&](size_t begin, size_t end) { decoding.decode(begin, end); });
  contest.run();
  contest.report(which.name, decoding.bytes_a_page());
}

/// What is done once a page whatever became of it, and the first send of all, where nothing is known or kept.
void bench_rest(Size size, size_t rounds) {
  const Pages pages(size, unchanged);
  Mapping zeros = Pages::make(size.pages);
  std::memset(zeros.data(), 0, zeros.size());
  Contest contest(size, rounds);
  const Yardsticks yardsticks(contest, pages);
  contest.enter("is_zero", [&](size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i)
      keep(is_zero_page(PageView(zeros.data() + i * kPageSize, kPageSize)));
  });
  contest.enter("base_hash", [&](size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) keep(base_hash(pages.new_page(i)));
  });
  PageEncoder encoder = PageEncoder::create(PageCache::kMinBudget).take();
  contest.enter("first send", [&](size_t begin, size_t end) {
    std::array<std::byte, kMaxPayload> out;
    for (size_t i = begin; i < end; ++i) {
      keep(encoder.encode({{0, RemoteAddr(i * kPageSize)}, pages.new_page(i), KeepBase::kIfRoom}, out));
      keep(out);
    }
  });
  contest.run();
  contest.report("rest", 0);
}

}  // namespace
}  // namespace godwit::codec

int main(int argc, char** argv) {
  using namespace godwit::codec;
  const size_t rounds = argc > 1 && std::strcmp(argv[1], "--quick") == 0 ? 45 : 301;
  for (const Size size : kSizes) {
    for (const Case& which : kCases) bench_case(size, which, rounds);
    bench_rest(size, rounds);
  }
  return 0;
}
