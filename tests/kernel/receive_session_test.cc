// A session on the destination, over real connections.
#include <gtest/gtest.h>

#include "engine/migration/receive_session.h"
#include "engine/transport/listener.h"

namespace godwit::migration {
namespace {

struct Connection {
  std::unique_ptr<transport::Channel> source, destination;
};

Connection connected() {
  transport::Listener listener = transport::Listener::create("127.0.0.1:0").take();
  Connection made;
  made.source = transport::connect({"127.0.0.1", listener.port()}, std::chrono::seconds(10)).take();
  made.destination = listener.accept(std::chrono::seconds(10)).take();
  return made;
}

/// A resolver may have found the session just before it ended, and asks when its connections are gone: a use
/// after free, which AddressSanitizer sees.
TEST(ReceiveSession, AnswersAfterItsConnectionsAreGone) {
  const ReceiveOptions options;
  wire::StreamHeader header;
  header.channels = 2;
  ReceiveSession session(options, header);
  {
    Connection control = connected(), further = connected();
    control.source.reset();
    further.source.reset();
    wire::RecordReader reader(*control.destination), other(*further.destination);
    EXPECT_FALSE(session.run(*control.destination, reader).ok());
    EXPECT_FALSE(session.join(*further.destination, other, 1).ok());
  }
  EXPECT_EQ(session.verdict(), wire::Verdict::ABORTED);
}

}  // namespace
}  // namespace godwit::migration
