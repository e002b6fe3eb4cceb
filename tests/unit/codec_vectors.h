// Loads tests/data/xbzrle/vectors.bin; pack.py beside it describes the format.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

namespace godwit::codec {

using ByteVector = std::vector<std::byte>;

struct Vector {
  uint32_t id = 0;
  bool encode = false;  // else decode
  std::string name;
  ByteVector old_page;
  ByteVector new_page;
  ByteVector delta;
  uint32_t room = 0;
  int32_t result = 0;
};

class VectorReader {
 public:
  explicit VectorReader(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    data_.assign(std::istreambuf_iterator<char>(file), {});
  }

  std::vector<Vector> read_all() {
    if (bytes(8) != std::string("GWXBZ1\0\0", 8)) throw std::runtime_error("not a pack of vectors");
    std::vector<ByteVector> pages(number<uint32_t>());
    for (ByteVector& page : pages) page = blob(number<uint32_t>());
    std::vector<Vector> vectors(number<uint32_t>());
    for (Vector& v : vectors) v = read_case(pages);
    if (at_ != data_.size()) throw std::runtime_error("bytes behind the last vector");
    return vectors;
  }

 private:
  Vector read_case(const std::vector<ByteVector>& pages) {
    Vector v;
    v.id = number<uint32_t>();
    v.encode = number<uint8_t>() == 1;
    v.old_page = pages.at(number<uint32_t>());
    v.room = number<uint32_t>();
    v.result = number<int32_t>();
    v.name = bytes(number<uint16_t>());
    v.new_page = v.old_page;
    for (auto patches = number<uint32_t>(); patches > 0; --patches) {
      const auto offset = number<uint32_t>();
      const ByteVector patch = blob(number<uint32_t>());
      if (offset + patch.size() > v.new_page.size()) throw std::runtime_error("a patch outside its page");
      std::memcpy(v.new_page.data() + offset, patch.data(), patch.size());
    }
    v.delta = blob(number<uint32_t>());
    return v;
  }
  std::string bytes(size_t n) {
    at_ += n;
    if (at_ > data_.size()) throw std::runtime_error("the pack of vectors is cut short");
    return data_.substr(at_ - n, n);
  }
  ByteVector blob(size_t n) {
    const std::string s = bytes(n);
    const auto* p = reinterpret_cast<const std::byte*>(s.data());
    return {p, p + n};
  }
  template <typename T>
  T number() {
    T value;
    std::memcpy(&value, bytes(sizeof(T)).data(), sizeof(T));
    return value;
  }

  std::string data_;
  size_t at_ = 0;
};

}  // namespace godwit::codec
