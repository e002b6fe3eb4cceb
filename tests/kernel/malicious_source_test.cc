// A source that is authenticated and lies: it speaks the protocol as Link does, and then sends what no honest
// one would. Each is refused with an error that names it, by the receiver and to the source.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <thread>

#include "engine/base/kernel_features.h"
#include "engine/migration/journal.h"
#include "engine/migration/link.h"
#include "engine/migration/receiver.h"
#include "engine/state/host_facts.h"
#include "engine/wire/layout_messages.h"
#include "engine/wire/rooms_fds.pb.h"
#include "engine/wire/rooms_memory.pb.h"
#include "engine/wire/rooms_process.pb.h"
#include "tests/support/key_files.h"

namespace godwit::migration {
namespace {

using namespace std::chrono_literals;
using testing::AllOf;
using testing::HasSubstr;
using wire::RecordType;

constexpr uint64_t kBase = 0x10000000, kSize = 16 * kPageSize;
constexpr pid_t kPid = 3'000'017;

Vma anonymous(uint64_t start, uint64_t size) {
  Vma vma;
  vma.range = {RemoteAddr(start), RemoteAddr(start + size)};
  vma.prot = PROT_READ | PROT_WRITE;
  vma.kind = VmaKind::kAnonymous;
  return vma;
}

Vma file_mapping(const std::string& path) {
  Vma vma = anonymous(kBase + kSize, kPageSize);
  vma.kind = VmaKind::kFileShared;
  vma.shared = true;
  vma.path = path;
  vma.inode = 4711;
  return vma;
}

wire::LayoutMessage layout_of(const std::vector<Vma>& areas) {
  wire::LayoutMessage message;
  for (const Vma& vma : areas) *message.add_areas() = wire::to_message(vma);
  return message;
}

class MaliciousSource : public testing::Test {
 protected:
  void SetUp() override {
    ReceiveOptions options;
    options.listen = "127.0.0.1:0";
    options.credentials = credentials_;
    options.pid_namespace = PidNamespace::kNew;
    options.cancelled = &cancelled_;
    options.on_listening = [&](const std::string&, uint16_t port) {
      link_.destination = "127.0.0.1:" + std::to_string(port);
    };
    options.on_failed = [&](const Error& error) {
      const std::lock_guard lock(mutex_);
      failed_ += error.message() + "\n";
    };
    receiver_ = Receiver::create(options).take();
    serving_ = std::thread([this] { EXPECT_TRUE(receiver_->serve().ok()); });
    link_.channels = 1;
    link_.credentials = credentials_;
  }
  void TearDown() override {
    cancelled_ = true;
    serving_.join();
  }

  std::unique_ptr<Link> connected() {
    auto link = Link::connect(link_);
    EXPECT_TRUE(link.ok()) << link.error().message();
    return link.take();
  }
  static wire::Inventory inventory() {
    wire::Inventory inventory;
    *inventory.mutable_facts() = state::collect_host_facts().take();
    wire::ProcessNode& node = *inventory.mutable_tree()->add_nodes();
    node.set_pid(kPid);
    node.add_tids(kPid);
    return inventory;
  }
  /// As far as an honest source: connected, accepted, its mappings described.
  std::unique_ptr<Link> introduced(const std::vector<Vma>& more = {}) {
    auto link = connected();
    EXPECT_TRUE(link->control().write_message(RecordType::kInventory, inventory()).ok());
    EXPECT_TRUE(link->control().flush().ok());
    const auto findings = link->await(RecordType::kFindings);
    EXPECT_TRUE(findings.ok()) << findings.error().message();
    std::vector<Vma> areas = {anonymous(kBase, kSize)};
    areas.insert(areas.end(), more.begin(), more.end());
    EXPECT_TRUE(link->control().write_message(RecordType::kLayout, layout_of(areas)).ok());
    return link;
  }
  /// What the destination answers in the end, which must be a refusal.
  static std::string refusal(Link& link) {
    EXPECT_TRUE(link.control().flush().ok());
    const auto answer = link.await(RecordType::kPrepared);
    return answer.ok() ? "prepared"
                       : std::string(to_string(answer.error().kind)) + ": " + answer.error().message();
  }
  template <typename Message>
  std::string refusal_of(RecordType type, const Message& message, const std::vector<Vma>& areas = {}) {
    auto link = introduced(areas);
    EXPECT_TRUE(link->control().write_message(type, message).ok());
    return refusal(*link);
  }
  std::string refusal_of_pages(const std::function<void(wire::PageBatchWriter&)>& fill,
                               const std::vector<Vma>& areas = {}) {
    auto link = introduced(areas);
    auto batch = wire::PageBatchWriter::create().take();
    fill(batch);
    EXPECT_TRUE(link->control().write_batch(batch).ok());
    return refusal(*link);
  }
  template <typename Message>
  static wire::RoomState room(const std::string& name, const Message& message) {
    wire::RoomState state;
    state.set_room(name);
    state.set_payload(message.SerializeAsString());
    return state;
  }
  std::string failed() {
    const std::lock_guard lock(mutex_);
    return failed_;
  }

  transport::KeyFiles keys_;
  std::shared_ptr<const transport::Credentials> credentials_ = keys_.psk();
  LinkOptions link_;
  std::atomic<bool> cancelled_ = false;
  std::unique_ptr<Receiver> receiver_;
  std::thread serving_;
  std::mutex mutex_;
  std::string failed_;
  std::vector<std::byte> page_ = std::vector<std::byte>(kPageSize, std::byte{0x5a});
};

const auto kOutside = AllOf(HasSubstr("corrupt"), HasSubstr("record"), HasSubstr("outside the mappings"));

TEST_F(MaliciousSource, AnHonestOneGetsThrough) {
  auto link = introduced();
  auto batch = wire::PageBatchWriter::create().take();
  batch.begin(0);
  ASSERT_TRUE(batch.append_raw(kBase, page_) && batch.append_zero(kBase + kPageSize, 15));
  ASSERT_TRUE(link->control().write_batch(batch).ok());
  EXPECT_TRUE(link->barrier().ok());
}

// ---- memory

TEST_F(MaliciousSource, WritesOutsideTheMappings) {
  const auto raw = [&](uint64_t at) {
    return [this, at](wire::PageBatchWriter& b) {
      b.begin(0);
      (void)b.append_raw(at, page_);
    };
  };
  EXPECT_THAT(refusal_of_pages(raw(kBase + kSize)), kOutside) << "just behind";
  EXPECT_THAT(refusal_of_pages(raw(kBase - kPageSize)), kOutside) << "just before";
  EXPECT_THAT(refusal_of_pages(raw(0x10000)), kOutside) << "where the shell has its own code, perhaps";
}

TEST_F(MaliciousSource, LetsARunOfPagesCrossTheEndOfAMapping) {
  EXPECT_THAT(refusal_of_pages([](auto& b) {
                b.begin(0);
                (void)b.append_zero(kBase + kSize - kPageSize, 2);
              }),
              kOutside);
  EXPECT_THAT(refusal_of_pages([](auto& b) {
                b.begin(0);
                (void)b.append_zero(kBase, 60000);
              }),
              kOutside);
}

TEST_F(MaliciousSource, SendsADeltaOfWhatIsNotMapped) {
  EXPECT_THAT(refusal_of_pages([&](auto& b) {
                b.begin(0);
                (void)b.append_encoded(wire::PageEncoding::kXbzrle, kBase + kSize, 1,
                                       std::span(page_).first(10));
              }),
              kOutside);
}

TEST_F(MaliciousSource, SendsPagesOfAnotherProcess) {
  EXPECT_THAT(refusal_of_pages([&](auto& b) {
                b.begin(1);
                (void)b.append_raw(kBase, page_);
              }),
              HasSubstr("unknown process"));
}

TEST_F(MaliciousSource, SendsPagesBeforeAnyMapping) {
  auto link = connected();
  auto batch = wire::PageBatchWriter::create().take();
  batch.begin(0);
  ASSERT_TRUE(batch.append_raw(kBase, page_));
  ASSERT_TRUE(link->control().write_batch(batch).ok());
  EXPECT_THAT(refusal(*link), AllOf(HasSubstr("corrupt"), HasSubstr("no process is being built")));
}

TEST_F(MaliciousSource, DiscardsWhatIsNotMapped) {
  wire::Discard discard;
  *discard.add_ranges() = wire::to_message(
      AddressRange{RemoteAddr(kBase + kSize - kPageSize), RemoteAddr(kBase + kSize + kPageSize)});
  EXPECT_THAT(refusal_of(RecordType::kDiscard, discard), kOutside);
}

TEST_F(MaliciousSource, HashesMoreThanIsMappedOrThanFits) {
  wire::PageHashes hashes;
  hashes.set_start(kBase + kSize);
  hashes.add_hashes(1);
  EXPECT_THAT(refusal_of(RecordType::kPageHashes, hashes), HasSubstr("outside the mappings"));
  hashes.set_start(kBase);
  for (int i = 0; i < 1'000'000; ++i) hashes.add_hashes(1);
  EXPECT_THAT(refusal_of(RecordType::kPageHashes, hashes), HasSubstr("their number or place"));
}

TEST_F(MaliciousSource, WritesBehindTheEndOfAnObject) {
  wire::MemoryObjects objects;
  wire::MemoryObject& object = *objects.add_objects();
  object.set_id(7);
  object.set_kind(wire::MemoryObject::MEMFD);
  object.set_name("object");
  object.set_size(2 * kPageSize);
  const auto send = [&](uint64_t id, uint64_t at) {
    auto link = introduced();
    EXPECT_TRUE(
        link->control().write_message(RecordType::kDescription, room("memory-objects", objects)).ok());
    auto batch = wire::PageBatchWriter::create().take();
    batch.begin_object(id);
    EXPECT_TRUE(batch.append_raw(at, page_));
    EXPECT_TRUE(link->control().write_batch(batch).ok());
    return refusal(*link);
  };
  EXPECT_THAT(send(7, 2 * kPageSize),
              AllOf(HasSubstr("corrupt"), HasSubstr("record"), HasSubstr("behind its end")));
  EXPECT_THAT(send(7, uint64_t{1} << 40), HasSubstr("behind its end"));
  EXPECT_THAT(send(8, 0), HasSubstr("never announced"));
}

// ---- names of files

TEST_F(MaliciousSource, MapsFilesByOddPaths) {
  const auto map = [&](const std::string& path) {
    return refusal_of(RecordType::kLayout, layout_of({anonymous(kBase, kSize), file_mapping(path)}));
  };
  EXPECT_THAT(map("/tmp/../etc/passwd"), AllOf(HasSubstr("corrupt"), HasSubstr("no kernel reports")));
  EXPECT_THAT(map("/tmp/./x"), HasSubstr("no kernel reports"));
  EXPECT_THAT(map("//etc/passwd"), HasSubstr("no kernel reports"));
  EXPECT_THAT(map("etc/passwd"), HasSubstr("not absolute"));
  EXPECT_THAT(map(""), HasSubstr("not absolute"));
  EXPECT_THAT(map("/dev/zero"), HasSubstr("no regular file"));
}

TEST_F(MaliciousSource, WritesThroughASymbolicLink) {
  const std::string victim = keys_.path("victim"), link = keys_.path("link");
  std::ofstream(victim) << std::string(kPageSize, 'v');
  std::filesystem::create_symlink(victim, link);
  EXPECT_THAT(refusal_of(RecordType::kLayout, layout_of({file_mapping(link)})), HasSubstr("symbolic link"));
}

/// A named pipe would keep whoever opens it waiting.
TEST_F(MaliciousSource, MapsAPipe) {
  const std::string pipe = keys_.path("pipe");
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  EXPECT_THAT(refusal_of(RecordType::kLayout, layout_of({file_mapping(pipe)})), HasSubstr("no regular file"));
}

TEST_F(MaliciousSource, MapsWhatCannotBeCarried) {
  Vma vma = anonymous(kBase + kSize, kPageSize);
  vma.kind = VmaKind::kUnsupported;
  EXPECT_THAT(refusal_of(RecordType::kLayout, layout_of({vma})), HasSubstr("cannot be carried"));
}

wire::DescriptorTable table_with(const wire::RegularFileState& file) {
  wire::DescriptorTable table;
  wire::Description& description = *table.add_descriptions();
  description.set_room("regular-file");
  description.set_key("1");
  description.set_subject("fd 3");
  description.add_numbers()->set_number(3);
  description.set_payload(file.SerializeAsString());
  return table;
}

TEST_F(MaliciousSource, OpensFilesByOddPaths) {
  wire::RegularFileState file;
  file.set_mode(S_IFREG | 0644);
  file.set_path("/tmp/../etc/passwd");
  EXPECT_THAT(refusal_of(RecordType::kState, room("descriptors", table_with(file))),
              HasSubstr("no kernel reports"));
  file.set_path("../../etc/passwd");
  EXPECT_THAT(refusal_of(RecordType::kState, room("descriptors", table_with(file))),
              HasSubstr("not absolute"));
}

TEST_F(MaliciousSource, OpensASymbolicLinkToWrite) {
  const std::string link = keys_.path("link");
  std::ofstream(keys_.path("victim")) << "mine";
  std::filesystem::create_symlink(keys_.path("victim"), link);
  wire::RegularFileState file;
  file.set_path(link);
  file.set_mode(S_IFREG | 0600);
  file.set_flags(O_RDWR);
  file.set_size(4);
  EXPECT_THAT(refusal_of(RecordType::kState, room("descriptors", table_with(file))),
              HasSubstr("symbolic link"));
}

/// Prepared under its name, finished as if it had none: its owner would be whom the source likes.
TEST_F(MaliciousSource, GivesAFileOfThisHostAnotherOwner) {
  const std::string victim = keys_.path("victim");
  std::ofstream(victim) << "mine";
  ::chmod(victim.c_str(), 0600);
  wire::RegularFileState file;
  file.set_path(victim);
  file.set_mode(S_IFREG | 0600);
  file.set_size(4);
  auto link = introduced();
  ASSERT_TRUE(
      link->control().write_message(RecordType::kDescription, room("descriptors", table_with(file))).ok());
  file.set_object(99);
  file.set_uid(65534);
  file.set_mode(S_IFREG | 0777);
  ASSERT_TRUE(link->control().write_message(RecordType::kState, room("descriptors", table_with(file))).ok());
  EXPECT_THAT(refusal(*link), HasSubstr("has a name"));
  struct stat found {};
  ASSERT_EQ(::stat(victim.c_str(), &found), 0);
  EXPECT_EQ(found.st_uid, ::getuid());
  EXPECT_EQ(found.st_mode & 07777, 0600u);
}

TEST_F(MaliciousSource, ComparesFilesByOddPaths) {
  wire::Inventory odd = inventory();
  odd.add_files()->set_path("/etc/../etc/passwd");
  auto link = connected();
  ASSERT_TRUE(link->control().write_message(RecordType::kInventory, odd).ok());
  EXPECT_THAT(refusal(*link), HasSubstr("no kernel reports"));
}

// ---- processes

TEST_F(MaliciousSource, ClaimsWhatIsNoProcess) {
  for (const pid_t pid : {0, -1}) {
    wire::Inventory odd = inventory();
    odd.mutable_tree()->mutable_nodes(0)->set_pid(pid);
    auto link = connected();
    ASSERT_TRUE(link->control().write_message(RecordType::kInventory, odd).ok());
    EXPECT_THAT(refusal(*link), HasSubstr("no number of a process"));
  }
}

TEST_F(MaliciousSource, ClaimsTwoProcesses) {
  wire::Inventory odd = inventory();
  odd.mutable_tree()->add_nodes()->set_pid(1);
  auto link = connected();
  ASSERT_TRUE(link->control().write_message(RecordType::kInventory, odd).ok());
  EXPECT_THAT(refusal(*link), HasSubstr("2 processes"));
}

TEST_F(MaliciousSource, SendsASecondInventory) {
  EXPECT_THAT(refusal_of(RecordType::kInventory, inventory()),
              AllOf(HasSubstr("corrupt"), HasSubstr("the second one")));
}

TEST_F(MaliciousSource, ClaimsAThreadThatIsSomebodyElse) {
  wire::ThreadsState threads;
  threads.add_threads()->set_tid(kPid);
  threads.add_threads()->set_tid(1);  // the init of the new pid namespace
  EXPECT_THAT(refusal_of(RecordType::kDescription, room("threads", threads)), HasSubstr("1"));
}

TEST_F(MaliciousSource, FinishesARoomTwice) {
  auto link = introduced();
  const wire::RoomState state = room("memory-locks", wire::MemoryObjects());
  ASSERT_TRUE(link->control().write_message(RecordType::kState, state).ok());
  ASSERT_TRUE(link->control().write_message(RecordType::kState, state).ok());
  EXPECT_THAT(refusal(*link), AllOf(HasSubstr("corrupt"), HasSubstr("has come already")));
}

TEST_F(MaliciousSource, NamesARoomThatNobodyKnows) {
  EXPECT_THAT(refusal_of(RecordType::kState, room("../../bin/sh", wire::MemoryObjects())),
              HasSubstr("does not know"));
}

// ---- the end

TEST_F(MaliciousSource, CommitsBeforeItIsPrepared) {
  wire::Commit commit;
  auto link = introduced();
  commit.set_session(link->session().data(), link->session().size());
  ASSERT_TRUE(link->control().write_message(RecordType::kCommit, commit).ok());
  EXPECT_THAT(refusal(*link), AllOf(HasSubstr("corrupt"), HasSubstr("commit"), HasSubstr("no place here")));
}

class MaliciousEnd : public MaliciousSource {
 protected:
  void SetUp() override {
    MaliciousSource::SetUp();
    link_at_end_ = introduced();
    ASSERT_TRUE(link_at_end_->control().write_message(RecordType::kEndOfState, wire::EndOfState()).ok());
    ASSERT_TRUE(link_at_end_->control().flush().ok());
    const auto prepared = link_at_end_->await(RecordType::kPrepared);
    ASSERT_TRUE(prepared.ok()) << prepared.error().message();
  }
  std::unique_ptr<Link> link_at_end_;
};

TEST_F(MaliciousEnd, SendsPagesAfterTheState) {
  auto batch = wire::PageBatchWriter::create().take();
  batch.begin(0);
  ASSERT_TRUE(batch.append_raw(kBase, page_));
  ASSERT_TRUE(link_at_end_->control().write_batch(batch).ok());
  EXPECT_THAT(refusal(*link_at_end_), AllOf(HasSubstr("corrupt"), HasSubstr("pages")));
}

TEST_F(MaliciousEnd, CommitsAnotherSession) {
  wire::Commit commit;
  commit.set_session(std::string(16, 'x'));
  ASSERT_TRUE(link_at_end_->control().write_message(RecordType::kCommit, commit).ok());
  EXPECT_THAT(refusal(*link_at_end_), HasSubstr("it is for another session"));
}

/// It asks, is told that the session is aborted, and commits all the same.
TEST_F(MaliciousEnd, CommitsWhatItWasToldIsAborted) {
  EXPECT_EQ(ask_verdict(link_, link_at_end_->session(), link_at_end_->query_key()).value(),
            wire::Verdict::ABORTED);
  wire::Commit commit;
  commit.set_session(link_at_end_->session().data(), link_at_end_->session().size());
  (void)link_at_end_->control().write_message(RecordType::kCommit, commit);
  (void)link_at_end_->control().flush();
  EXPECT_FALSE(link_at_end_->await(RecordType::kRunning).ok());
}

// ---- sessions

/// A channel by hand, its TLS up and nothing said yet.
class MaliciousChannels : public MaliciousSource {
 protected:
  std::unique_ptr<transport::Channel> channel() {
    auto made = transport::connect(transport::parse_host_port(link_.destination).value(), 10s).take();
    EXPECT_TRUE(made->start_tls(credentials_, transport::TlsRole::kClient, 10s).ok());
    EXPECT_TRUE(made->set_read_timeout(20s).ok());
    return made;
  }
  static wire::StreamHeader header(uint8_t session, uint16_t index, uint16_t channels = 3) {
    wire::StreamHeader header;
    header.session.fill(static_cast<std::byte>(session));
    // Journals of earlier runs must not know it.
    std::memcpy(header.session.data() + 8, &kStarted, sizeof kStarted);
    header.channel = index;
    header.channels = channels;
    return header;
  }
  /// Greets, and gives what the destination says to it: "hello", or its error.
  std::string greet(transport::Channel& over, const wire::StreamHeader& header, const std::string& proof,
                    wire::Role role = wire::ROLE_SOURCE) {
    wire::RecordWriter writer(over, header);
    wire::Hello hello = make_hello(header.session, role, header.channels);
    hello.set_proof(proof);
    EXPECT_TRUE(writer.start().ok() && writer.write_message(RecordType::kHello, hello).ok());
    wire::Query query;
    query.set_session(header.session.data(), header.session.size());
    if (role == wire::ROLE_RESOLVER) {
      EXPECT_TRUE(writer.write_message(RecordType::kQuery, query).ok());
    }
    EXPECT_TRUE(writer.flush().ok());
    wire::RecordReader reader(over);
    if (auto started = reader.start(); !started.ok()) return started.error().message();
    auto answer = wire::expect(reader, RecordType::kHello);
    return answer.ok() ? "hello" : answer.error().message();
  }
  struct Control {
    std::unique_ptr<transport::Channel> channel;
    SessionBinding binding;
  };
  Control open(uint8_t session) {
    Control made{channel(), {}};
    made.binding = SessionBinding::of(*made.channel, header(session, 0).session).take();
    const std::string proof = made.binding.prove(*made.channel, wire::ROLE_SOURCE, header(session, 0)).take();
    EXPECT_EQ(greet(*made.channel, header(session, 0), proof), "hello");
    return made;
  }
  static std::string prove(const Control& control, transport::Channel& over,
                           const wire::StreamHeader& header) {
    return control.binding.prove(over, wire::ROLE_SOURCE, header).take();
  }
  static inline const uint64_t kStarted = static_cast<uint64_t>(monotonic_now().count());
};

const auto kNoProof = HasSubstr("has not proven that it belongs to this session");

TEST_F(MaliciousChannels, JoinsAsItShould) {
  const Control control = open(1);
  const auto second = channel();
  EXPECT_EQ(greet(*second, header(1, 1), prove(control, *second, header(1, 1))), "hello");
}

TEST_F(MaliciousChannels, JoinsWithoutAProof) {
  const Control control = open(1);
  EXPECT_THAT(greet(*channel(), header(1, 1), ""), kNoProof);
  while (failed().empty()) std::this_thread::yield();
  EXPECT_THAT(failed(), AllOf(kNoProof, HasSubstr("pre-shared key")));
}

TEST_F(MaliciousChannels, TakesAChannelIntoAnotherSession) {
  const Control one = open(1), other = open(2);
  const auto mixed = channel();
  EXPECT_THAT(greet(*mixed, header(2, 1), prove(one, *mixed, header(2, 1))), kNoProof);
  const auto right = channel();
  EXPECT_EQ(greet(*right, header(2, 1), prove(other, *right, header(2, 1))), "hello") << "both go on";
  const auto second = channel();
  EXPECT_EQ(greet(*second, header(1, 1), prove(one, *second, header(1, 1))), "hello");
}

/// What was a proof on one connection is none on the next.
TEST_F(MaliciousChannels, ReplaysAGreeting) {
  const Control control = open(1);
  const auto second = channel();
  const std::string proof = prove(control, *second, header(1, 1));
  EXPECT_THAT(greet(*channel(), header(1, 1), proof), kNoProof);
  EXPECT_EQ(greet(*second, header(1, 1), proof), "hello");
}

TEST_F(MaliciousChannels, TakesAnotherPlaceThanItProved) {
  const Control control = open(1);
  const auto second = channel();
  EXPECT_THAT(greet(*second, header(1, 2), prove(control, *second, header(1, 1))), kNoProof);
  const auto third = channel();
  EXPECT_THAT(greet(*third, header(1, 1, 9), prove(control, *third, header(1, 1, 9))),
              HasSubstr("otherwise"));
}

TEST_F(MaliciousChannels, ReflectsTheDestinationsProof) {
  const Control control = open(1);
  const auto second = channel();
  EXPECT_THAT(greet(*second, header(1, 1),
                    control.binding.prove(*second, wire::ROLE_DESTINATION, header(1, 1)).take()),
              kNoProof);
}

TEST_F(MaliciousChannels, OpensASessionThatIsThere) {
  const Control control = open(1);
  const auto again = channel();
  const auto binding = SessionBinding::of(*again, header(1, 0).session).take();
  EXPECT_THAT(greet(*again, header(1, 0), binding.prove(*again, wire::ROLE_SOURCE, header(1, 0)).take()),
              HasSubstr("a session of this name exists"));
}

TEST_F(MaliciousChannels, OpensASessionThatHasRunHere) {
  ASSERT_TRUE(write_verdict(header(3, 0).session, "running", {}).ok());
  const auto again = channel();
  const auto binding = SessionBinding::of(*again, header(3, 0).session).take();
  EXPECT_THAT(greet(*again, header(3, 0), binding.prove(*again, wire::ROLE_SOURCE, header(3, 0)).take()),
              HasSubstr("has run here"));
  remove_verdict(header(3, 0).session);
}

/// An answer "aborted" would end the session.
TEST_F(MaliciousChannels, AsksAboutASessionThatIsNotItsOwn) {
  const Control control = open(1);
  const auto question = channel();
  QueryKey wrong = control.binding.query_key();
  wrong.key[0] ^= std::byte{1};
  const wire::StreamHeader asked = header(1, 0, 1);
  EXPECT_THAT(
      greet(*question, asked, prove_query(wrong, *question, wire::ROLE_RESOLVER, asked.session).take(),
            wire::ROLE_RESOLVER),
      kNoProof);
  const auto second = channel();
  EXPECT_EQ(greet(*second, header(1, 1), prove(control, *second, header(1, 1))), "hello") << "it goes on";
  const auto asker = channel();
  EXPECT_EQ(greet(*asker, asked,
                  prove_query(control.binding.query_key(), *asker, wire::ROLE_RESOLVER, asked.session).take(),
                  wire::ROLE_RESOLVER),
            "hello");
}

/// The same from the journal, when the session is over.
TEST_F(MaliciousChannels, AsksAboutASessionThatHasRun) {
  const QueryKey key{true, {std::byte{7}}};
  const wire::SessionId id = header(4, 0).session;
  ASSERT_TRUE(write_verdict(id, "running", key).ok());
  EXPECT_EQ(read_verdict(id), wire::Verdict::RUNNING);
  EXPECT_EQ(read_query_key(id)->key, key.key);
  EXPECT_EQ(ask_verdict(link_, id, key).value(), wire::Verdict::RUNNING);
  EXPECT_EQ(ask_verdict(link_, id, {true, {}}).error().kind, ErrorKind::kUntrusted);
  EXPECT_EQ(ask_verdict(link_, id, {}).error().kind, ErrorKind::kUntrusted);
  remove_verdict(id);
}

/// A destination that claims to run a session and cannot prove that it had it: the original must not die of
/// it.
TEST_F(MaliciousChannels, ADestinationThatOnlyClaimsToRunItIsNotBelieved) {
  const wire::SessionId id = header(5, 0).session;
  ASSERT_TRUE(write_verdict(id, "running", {}).ok());
  EXPECT_EQ(ask_verdict(link_, id, {true, {std::byte{7}}}).error().kind, ErrorKind::kUntrusted);
  remove_verdict(id);
}

}  // namespace
}  // namespace godwit::migration
