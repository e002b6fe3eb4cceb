#include "engine/migration/inspect.h"

#include "engine/transport/file.h"
#include "engine/wire/printer.h"

namespace godwit::migration {

Status inspect(const std::string& path, const std::function<void(std::string_view line)>& print) {
  auto source = TRY(transport::FileSource::open(path));
  return wire::print_stream(source, print);
}

}  // namespace godwit::migration
