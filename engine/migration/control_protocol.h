// What travels over the control socket: one JSON object a line, in the manner of QEMU's monitor (QMP), with
// its names where they mean the same. docs/control.md is the reference. Pure: text in, text out.
//
//   {"execute": "set", "arguments": {"max-bandwidth": 1000000}}   ->   {"return": {}}
//                                                               or     {"error": {"class": .., "desc": ..}}
#pragma once

#include <string>
#include <string_view>

#include "engine/migration/control.h"

namespace godwit::migration {

enum class Wish : uint8_t { kInvalid = 0, kStatus, kSet, kCancel, kPause, kResume, kFreezeNow, kPostcopy };
std::string_view to_string(Wish wish);

struct Request {
  Wish wish = Wish::kInvalid;
  Changes changes;  ///< of a set
};

/// The longest line of a request, without its end.
constexpr size_t kMaxRequest = 4096;

/// Errors: Usage naming what is wrong. Any text is answered so; none does harm.
Result<Request> parse_request(std::string_view line);
/// One line without its end. parse_request() reads it back.
std::string encode(const Request& request);

/// Carries out what a line asks for, and gives the line that answers it.
std::string serve(Control& control, std::string_view line);
std::string encode_error(const Error& error);
/// The answer to `status`: see docs/control.md.
std::string encode_status(const Statistics& statistics, const Limits& limits, uint64_t bandwidth);

/// What an answer holds: the text of its "return" object, or the error that the engine sent. Errors: Corrupt.
Result<std::string> parse_answer(std::string_view line);

}  // namespace godwit::migration
