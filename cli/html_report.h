// What a migration measured, as a page for a browser: one text that needs nothing else.
#pragma once

#include <godwit/godwit.h>
#include <string>

namespace godwit::cli {

std::string html_report(const migration::Report& report);

}  // namespace godwit::cli
