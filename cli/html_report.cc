// Three pictures and a table: what each round sent and how it travelled, how fast the process wrote against
// how fast it was sent, and what the downtime was made of. SVG by hand: no script, nothing from the network.
#include "cli/html_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "cli/milliseconds.h"

namespace godwit::cli {
namespace {

using migration::PageCounts;
using migration::Report;
using migration::RoundStats;

constexpr double kWidth = 860, kHeight = 240, kLeft = 70, kBottom = 30;

struct Part {
  const char* name;
  const char* colour;
  double value;
};

double megabytes(uint64_t pages) {
  return static_cast<double>(pages * kPageSize) / 1e6;
}

std::vector<Part> parts_of(const PageCounts& counts) {
  return {{"whole", "#4c78a8", megabytes(counts.raw)},
          {"delta", "#f58518", megabytes(counts.xbzrle)},
          {"zero", "#b8b8b8", megabytes(counts.zero)},
          {"unchanged", "#54a24b", megabytes(counts.unchanged)}};
}

std::vector<Part> parts_of(const migration::Downtime& downtime) {
  constexpr const char* kColours[] = {"#e45756", "#f58518", "#4c78a8", "#54a24b", "#b279a2", "#9d755d"};
  std::vector<Part> parts;
  for (const auto& [name, time] : downtime.parts())
    parts.push_back({name, kColours[parts.size()], to_ms(time)});
  return parts;
}

double sum(const std::vector<Part>& parts) {
  double all = 0;
  for (const Part& part : parts) all += part.value;
  return all;
}

std::string legend(const std::vector<Part>& parts) {
  std::string text = "<p class='legend'>";
  for (const Part& part : parts)
    text += fmt::format("<i style='background:{}'></i>{} ", part.colour, part.name);
  return text + "</p>\n";
}

std::string rectangle(double x, double y, double width, double height, const Part& part,
                      const std::string& unit) {
  return fmt::format(
      "<rect x='{:.1f}' y='{:.1f}' width='{:.1f}' height='{:.1f}' fill='{}'><title>{}: {:.2f} "
      "{}</title></rect>\n",
      x, y, width, height, part.colour, part.name, part.value, unit);
}

/// On a logarithmic axis, for rounds differ by orders of magnitude: three of them below `most`, and zero.
double height_of(double value, double most) {
  constexpr double kUsable = kHeight - kBottom - 10;
  return kUsable * std::log10(1 + 999 * value / most) / 3;
}

std::string axis(double most, const std::string& unit) {
  std::string text;
  for (double mark = most; mark > most / 2000; mark /= 10) {
    const double y = kHeight - kBottom - height_of(mark, most);
    text += fmt::format(
        "<line x1='{0}' x2='{1}' y1='{2:.1f}' y2='{2:.1f}' class='grid' /><text x='{3}' y='{4:.1f}' "
        "class='mark'>{5:.3g} "
        "{6}</text>\n",
        kLeft, kWidth, y, kLeft - 5, y + 4, mark, unit);
  }
  return text;
}

std::string picture(const std::string& inside) {
  return fmt::format("<svg viewBox='0 0 {} {}'>\n{}</svg>\n", kWidth, kHeight, inside);
}

/// Where the column of a round begins, and how wide it is.
std::pair<double, double> column(size_t index, size_t count) {
  const double width = (kWidth - kLeft) / static_cast<double>(count);
  return {kLeft + width * static_cast<double>(index), width};
}

std::string label(size_t index, size_t count) {
  const auto [x, width] = column(index, count);
  if (count > 40 && index % 5 != 0) return {};
  return fmt::format("<text x='{:.1f}' y='{}' class='label'>{}</text>\n", x + width / 2, kHeight - 10, index);
}

std::string rounds_picture(const std::vector<RoundStats>& rounds) {
  double most = 0.1;
  for (const RoundStats& round : rounds) most = std::max(most, sum(parts_of(round.travelled)));
  std::string inside = axis(most, "MB");
  for (size_t i = 0; i < rounds.size(); ++i) {
    const auto [x, width] = column(i, rounds.size());
    const std::vector<Part> parts = parts_of(rounds[i].travelled);
    const double all = sum(parts), height = height_of(all, most);
    double y = kHeight - kBottom;
    // The height is that of the sum; inside a column the parts keep their proportions.
    for (const Part& part : parts) {
      const double piece = all > 0 ? height * part.value / all : 0;
      y -= piece;
      inside += rectangle(x + 2, y, width - 4, piece, part, "MB");
    }
    inside += label(i, rounds.size());
  }
  return picture(inside) + legend(parts_of(PageCounts{}));
}

double per_second(double amount, Nanos time) {
  return time > Nanos{} ? amount / to_seconds(time) : 0;
}

std::string rates_picture(const std::vector<RoundStats>& rounds) {
  std::vector<std::vector<Part>> rates;
  double most = 0.1;
  for (const RoundStats& round : rounds) {
    rates.push_back(
        {{"written", "#e45756", round.round == 0 ? 0 : per_second(megabytes(round.pages), round.interval)},
         {"sent", "#4c78a8", per_second(static_cast<double>(round.wire_bytes) / 1e6, round.duration)}});
    for (const Part& part : rates.back()) most = std::max(most, part.value);
  }
  std::string inside = axis(most, "MB/s");
  for (size_t i = 0; i < rates.size(); ++i) {
    const auto [x, width] = column(i, rates.size());
    for (size_t j = 0; j < rates[i].size(); ++j) {
      const double height = height_of(rates[i][j].value, most);
      inside += rectangle(x + 2 + static_cast<double>(j) * (width - 4) / 2, kHeight - kBottom - height,
                          (width - 4) / 2, height, rates[i][j], "MB/s");
    }
    inside += label(i, rates.size());
  }
  return picture(inside) +
         legend({{"memory written anew", "#e45756", 0}, {"bytes on the wire", "#4c78a8", 0}});
}

std::string downtime_picture(const migration::Downtime& downtime) {
  const std::vector<Part> parts = parts_of(downtime);
  std::string inside;
  double x = 0;
  for (const Part& part : parts) {
    const double width = kWidth * part.value / std::max(sum(parts), 1e-9);
    inside += rectangle(x, 0, width, 40, part, "ms");
    if (width > 60)
      inside += fmt::format("<text x='{:.1f}' y='25' class='inside'>{} {:.2f}</text>\n", x + width / 2,
                            part.name, part.value);
    x += width;
  }
  return fmt::format("<svg viewBox='0 0 {} 40'>\n{}</svg>\n", kWidth, inside) + legend(parts);
}

std::string table(const std::vector<RoundStats>& rounds) {
  std::string text =
      "<table><tr><th>round<th>pages<th>whole<th>delta<th>zero<th>unchanged<th>MB on the wire<th>ms<th>of it "
      "looking<th>throttled %</tr>\n";
  for (const RoundStats& r : rounds)
    text += fmt::format("<tr><td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{:.2f}<td>{:.1f}<td>{:.2f}<td>{}</tr>\n",
                        r.round, r.pages, r.travelled.raw, r.travelled.xbzrle, r.travelled.zero,
                        r.travelled.unchanged, static_cast<double>(r.wire_bytes) / 1e6, to_ms(r.duration),
                        to_ms(r.scan), r.throttle_percent);
  return text + "</table>\n";
}

constexpr const char* kHead = R"(<!doctype html>
<html lang=en><head><meta charset=utf-8><title>godwit: a migration</title><style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #222 }
svg { width: 100%; } h2 { font-size: 1.1em; margin-top: 2em } .grid { stroke: #ddd }
.mark { font-size: 11px; text-anchor: end; fill: #666 } .label { font-size: 11px; text-anchor: middle; fill: #666 }
.inside { font-size: 12px; text-anchor: middle; fill: #fff } .legend i { display: inline-block; width: 1em;
height: 1em; margin: 0 .3em 0 1em; vertical-align: -.15em }
table { border-collapse: collapse; font-variant-numeric: tabular-nums } th, td { text-align: right; padding: .1em .7em;
border-bottom: 1px solid #ddd; font-weight: normal } th { color: #666 }
</style></head><body>
)";

}  // namespace

std::string html_report(const Report& r) {
  std::string page = kHead;
  page += fmt::format(
      "<h1>pid {}: {:.2f} ms of downtime</h1>\n<p>{:.0f} ms in all, {} rounds, {} pages sent; {:.1f} MB of "
      "memory as "
      "{:.1f} MB on the wire.",
      r.pid, to_ms(r.downtime.total()), to_ms(r.total), r.rounds.size(), r.pages.sent,
      static_cast<double>(r.raw_bytes) / 1e6, static_cast<double>(r.wire_bytes) / 1e6);
  if (r.bad_instants > 0) page += fmt::format(" {} freezes were undone.", r.bad_instants);
  if (r.throttle_percent > 0) page += fmt::format(" Throttled by up to {} %.", r.throttle_percent);
  page += "</p>\n<h2>Downtime, ms</h2>\n" + downtime_picture(r.downtime);
  page += "<h2>What each round sent (logarithmic)</h2>\n" + rounds_picture(r.rounds);
  page += "<h2>Written and sent a second (logarithmic)</h2>\n" + rates_picture(r.rounds);
  page += "<h2>Rounds</h2>\n" + table(r.rounds);
  return page + "</body></html>\n";
}

}  // namespace godwit::cli
