"""Bench `mapping-cache`: reading pages of another process, by ways that set something up for each batch and by ways that
keep it (mapping_cache_bench.cc), on the same pages in turn. The engine reads by process_vm_readv, up to 512 ranges a call."""
from bench_record import markdown, rows_of, told
from godwit import BUILD


def add_options(parser):
    pass


def run(arguments):
    return {"rows": rows_of([BUILD / "tests/bench/mapping_cache_bench"] + ["--quick"] * arguments.quick)}


def table(result):
    sizes = sorted({row["pages"] for row in result["rows"]})
    cells = {(row["row"], row["pages"]): row for row in result["rows"]}
    rows = []
    for way in dict.fromkeys(row["row"] for row in result["rows"]):
        own = [cells[way, size] for size in sizes]
        rows.append([way, "each batch" if own[0]["set up for each batch"] else "kept",
                     *(f"{told(one['ns a page'], 0)} = {one['of process_vm_readv']['median']:.2f}, {one['of process_vm_readv, 1 MiB']['median']:.2f}"
                       for one in own)])
    return "ns a page, quartiles = times what process_vm_readv takes with batches as large, and with batches of 1 MiB\n\n" + markdown(
        ["way", "set up", *(f"batches of {size:.0f}" for size in sizes)], rows)
