// The public face of libgodwit: everything the command line does, for programs. It is the sum of the headers
// below and of nothing else of the engine; none of them needs more than the standard library.
//
//   moving       migration::migrate(), receive(), check(), resolve()
//   security     transport::load_credentials() for LinkOptions and ReceiveOptions; make_psk() and
//                make_host_certificate() make what it loads
//   images       migration::checkpoint(), restore(), inspect(); sinks and sources in files or memory
//   algorithm    migration::Policy: when to freeze, from what the rounds measured; decide() is the default
//   measuring    migration::measure_dirty_rate(); migration::WriteWatch: which pages a process writes
//   steering     Progress and Report callbacks, a cancel flag, and migration::job_status() and its like for
//   the
//                jobs of other engines on this host
//
// Errors are values (Result, Status); nothing here throws, prints, or logs above debug. All sizes are bytes,
// all times Nanos. Whoever calls migrate() or checkpoint() becomes the tracer of the process and must have no
// other threads: a guardian is forked first, which puts the process back if this one is killed.
//
// TRY and CHECK, the macros of the engine's own sources, are defined unless GODWIT_WITHOUT_MACROS is.
#pragma once

#include "engine/base/clock.h"
#include "engine/base/kernel_features.h"
#include "engine/base/result.h"
#include "engine/base/units.h"
#include "engine/migration/checkpoint.h"
#include "engine/migration/convergence.h"
#include "engine/migration/dirty_rate.h"
#include "engine/migration/inspect.h"
#include "engine/migration/job.h"
#include "engine/migration/link_options.h"
#include "engine/migration/memory_image.h"
#include "engine/migration/migrate.h"
#include "engine/migration/page_counts.h"
#include "engine/migration/pid_namespace.h"
#include "engine/migration/receive.h"
#include "engine/migration/report.h"
#include "engine/migration/write_watch.h"
#include "engine/model/record_stream.h"
#include "engine/state/finding.h"
#include "engine/transport/credentials.h"
#include "engine/transport/keygen.h"
