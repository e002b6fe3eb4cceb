// Replays the fuzzer's corpus: what it once found stays found, with every compiler.
#include <gtest/gtest.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

TEST(HandshakeFuzz, ReplaysItsCorpus) {
  size_t replayed = 0;
  for (const auto& entry :
       std::filesystem::directory_iterator(GODWIT_TEST_DATA "/../fuzz/corpus/handshake")) {
    SCOPED_TRACE(entry.path().filename().string());
    std::ifstream file(entry.path(), std::ios::binary);
    const std::vector<char> bytes(std::istreambuf_iterator<char>(file), {});
    const std::vector<uint8_t> input(bytes.begin(), bytes.end());
    EXPECT_EQ(LLVMFuzzerTestOneInput(input.data(), input.size()), 0);
    ++replayed;
  }
  EXPECT_GE(replayed, 10u);
}

}  // namespace
