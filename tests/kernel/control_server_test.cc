// The control socket for real: who may speak, what a client may do to it, what a killed engine leaves behind.
#include "engine/migration/control_server.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>

#include "engine/migration/control_protocol.h"
#include "tests/kernel/tracee_target.h"

namespace godwit::migration {
namespace {

using testing::HasSubstr;

constexpr const char* kStatus = R"({"execute": "status"})";

class ControlServerTest : public testing::Test {
 protected:
  void SetUp() override {
    char folder[] = "/tmp/godwit-control-XXXXXX";
    ASSERT_NE(::mkdtemp(folder), nullptr);
    ASSERT_EQ(::chmod(folder, 0755), 0);
    folder_ = folder;
    path_ = folder_ + "/job.1.sock";
  }
  void TearDown() override {
    ::unlink(path_.c_str());
    ::rmdir(folder_.c_str());
  }
  void start() {
    auto started = ControlServer::start(control_, path_);
    ASSERT_OK(started);
    server_ = started.take();
  }
  [[nodiscard]] Fd connect() const {
    Fd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, path_.data(), path_.size());
    if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) fd.reset();
    return fd;
  }
  /// What a client of user `uid` gets for its question.
  [[nodiscard]] std::string ask_as(uid_t uid) const {
    int ends[2];
    if (::pipe(ends) != 0) std::abort();
    const pid_t child = ::fork();
    if (child == 0) {
      if (::setuid(uid) != 0) ::_exit(1);
      const auto answer = ask_job(path_, kStatus);
      const std::string text = answer.ok() ? answer.value() : answer.error().message();
      ::_exit(::write(ends[1], text.data(), text.size()) < 0 ? 1 : 0);
    }
    ::close(ends[1]);
    char text[4096] = {};
    const ssize_t got = ::read(ends[0], text, sizeof text - 1);
    ::close(ends[0]);
    ::waitpid(child, nullptr, 0);
    return {text, static_cast<size_t>(std::max<ssize_t>(got, 0))};
  }
  /// All that comes until the server ends the connection.
  static std::string rest_of(const Fd& fd) {
    std::string all;
    char piece[4096];
    for (ssize_t got = 0; (got = ::recv(fd.get(), piece, sizeof piece, 0)) > 0;)
      all.append(piece, static_cast<size_t>(got));
    return all;
  }

  std::string folder_, path_;
  Control control_{1, Limits{}, 0, nullptr};
  std::unique_ptr<ControlServer> server_;
};

TEST_F(ControlServerTest, AnswersAndLeavesNothingBehind) {
  start();
  const auto answer = ask_job(path_, kStatus);
  ASSERT_OK(answer);
  EXPECT_THAT(answer.value(), HasSubstr(R"("status":"setup")"));
  struct stat found {};
  ASSERT_EQ(::stat(path_.c_str(), &found), 0);
  EXPECT_EQ(found.st_mode & 0777, 0600u);
  server_.reset();
  EXPECT_NE(::stat(path_.c_str(), &found), 0);
  const auto nobody = ask_job(path_, kStatus);
  ASSERT_FALSE(nobody.ok());
  EXPECT_EQ(nobody.error().kind, ErrorKind::kRefused);
}

TEST_F(ControlServerTest, AForeignUserIsRefusedWhateverTheFilesMode) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root can try it as somebody else";
  start();
  EXPECT_THAT(ask_as(65534), HasSubstr("Permission denied"));
  ASSERT_EQ(::chmod(path_.c_str(), 0666), 0);
  EXPECT_THAT(ask_as(65534), HasSubstr("only root"));
  EXPECT_THAT(ask_as(65534), testing::Not(HasSubstr("setup")));
  EXPECT_THAT(ask_as(0), HasSubstr("setup"));
}

TEST_F(ControlServerTest, SeveralLinesInOnePieceAndOneLineInPieces) {
  start();
  const Fd fd = connect();
  ASSERT_TRUE(fd.valid());
  const std::string text = fmt::format("{0}\nnonsense\n{0}\n", R"({"execute": "pause"})");
  for (const char letter : text) ASSERT_EQ(::send(fd.get(), &letter, 1, 0), 1);
  ASSERT_EQ(::send(fd.get(), text.data(), text.size(), 0), static_cast<ssize_t>(text.size()));
  ::shutdown(fd.get(), SHUT_WR);
  const std::string answers = rest_of(fd);
  EXPECT_EQ(std::count(answers.begin(), answers.end(), '\n'), 6);
  EXPECT_TRUE(control_.statistics().paused);
}

TEST_F(ControlServerTest, AnOverlongLineIsRefusedAndEndsTheConnection) {
  start();
  const Fd fd = connect();
  ASSERT_TRUE(fd.valid());
  const std::string text(3 * kMaxRequest, 'x');
  (void)::send(fd.get(), text.data(), text.size(), MSG_NOSIGNAL);
  EXPECT_THAT(rest_of(fd), HasSubstr("at most"));
  EXPECT_OK(ask_job(path_, kStatus));
}

TEST_F(ControlServerTest, ClientsThatSayNothingDoNotKeepOthersOut) {
  start();
  std::vector<Fd> idle;
  for (int i = 0; i < 40; ++i) idle.push_back(connect());
  EXPECT_OK(ask_job(path_, kStatus));
}

TEST_F(ControlServerTest, AClientThatNeverReadsIsLetGo) {
  start();
  const Fd fd = connect();
  ASSERT_TRUE(fd.valid());
  const std::string text = std::string(kStatus) + '\n';
  while (::send(fd.get(), text.data(), text.size(), MSG_NOSIGNAL) > 0) {
  }
  EXPECT_OK(ask_job(path_, kStatus));
}

TEST_F(ControlServerTest, ALivingEngineKeepsItsSocketADeadOneDoesNot) {
  start();
  Control other(1, Limits{}, 0, nullptr);
  const auto second = ControlServer::start(other, path_);
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.error().kind, ErrorKind::kRefused);
  server_.reset();
  const pid_t child = ::fork();
  if (child == 0) {
    const auto doomed = ControlServer::start(other, path_);
    ::_exit(doomed.ok() ? 0 : 1);  // without destructors, as if it were killed
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  ASSERT_EQ(status, 0);
  struct stat found {};
  ASSERT_EQ(::stat(path_.c_str(), &found), 0);
  start();
  EXPECT_OK(ask_job(path_, kStatus));
  remove_dead_socket(path_);  // which leaves a living one alone
  EXPECT_OK(ask_job(path_, kStatus));
}

}  // namespace
}  // namespace godwit::migration
