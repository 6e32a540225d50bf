#include "evenkeel/model_io/atomic_file.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <thread>

#include "evenkeel/core/error.h"
#include "evenkeel/model_io/test_folder.h"

namespace evenkeel {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

std::string as_text(const std::vector<std::byte>& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

TEST(AtomicFile, writes_all_pieces_in_order_and_leaves_nothing_else) {
  const TestFolder folder;
  const std::string a = "first ", b, c = "second";
  const std::vector<std::span<const std::byte>> pieces = {std::as_bytes(std::span(a)), std::as_bytes(std::span(b)),
                                                          std::as_bytes(std::span(c))};
  write_file_atomically(folder / "f", pieces);
  EXPECT_EQ(as_text(read_file(folder / "f")), "first second");
  EXPECT_THAT(folder.names(), ElementsAre("f"));
}

TEST(AtomicFile, writes_an_empty_file_and_replaces_an_old_one) {
  const TestFolder folder;
  write_file_atomically(folder / "f", "old and longer");
  write_file_atomically(folder / "f", "new");
  EXPECT_EQ(text_of_file(folder / "f"), "new");
  write_file_atomically(folder / "f", "");
  EXPECT_TRUE(read_file(folder / "f").empty());
}

TEST(AtomicFile, keeps_the_permissions_of_the_file_it_replaces) {
  const TestFolder folder;
  write_text(folder / "f", "old");
  ASSERT_EQ(::chmod((folder / "f").c_str(), 0640), 0);
  write_file_atomically(folder / "f", "new");
  struct stat status {};
  ASSERT_EQ(::stat((folder / "f").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777u, 0640u);
}

TEST(AtomicFile, follows_a_symbolic_link) {
  const TestFolder folder;
  std::filesystem::create_directory(folder / "elsewhere");
  write_text(folder / "elsewhere/f", "old");
  std::filesystem::create_symlink("elsewhere/f", folder / "link");
  write_file_atomically(folder / "link", "new");
  EXPECT_TRUE(std::filesystem::is_symlink(folder / "link"));
  EXPECT_EQ(text_of_file(folder / "elsewhere/f"), "new");
}

TEST(AtomicFile, follows_links_to_a_file_that_is_not_there_yet) {
  const TestFolder folder;
  std::filesystem::create_directory(folder / "elsewhere");
  std::filesystem::create_symlink("elsewhere/second", folder / "first");
  std::filesystem::create_symlink(folder / "elsewhere/f", folder / "elsewhere/second");
  write_file_atomically(folder / "first", "new");
  EXPECT_TRUE(std::filesystem::is_symlink(folder / "first"));
  EXPECT_TRUE(std::filesystem::is_symlink(folder / "elsewhere/second"));
  EXPECT_EQ(text_of_file(folder / "elsewhere/f"), "new");
  EXPECT_THAT(folder.names(), ElementsAre("elsewhere", "first"));
}

TEST(AtomicFile, links_that_lead_nowhere_are_io_errors_and_stay) {
  const TestFolder folder;
  std::filesystem::create_symlink("round", folder / "round");
  std::filesystem::create_symlink("missing/f", folder / "away");
  EXPECT_THAT(message_of<IoError>([&] { write_file_atomically(folder / "round", "x"); }), HasSubstr(folder / "round"));
  EXPECT_THAT(message_of<IoError>([&] { write_file_atomically(folder / "away", "x"); }),
              AllOf(HasSubstr((folder / "away") + " (a link to " + (folder / "missing/f") + ")"),
                    HasSubstr("create the folder it is in first")));
  EXPECT_THAT(folder.names(), ElementsAre("away", "round"));
}

// What a shell's >> opened, by every name that it has.
TEST(AtomicFile, writes_an_open_file_of_this_process_at_its_place) {
  const TestFolder folder;
  write_text(folder / "log", "kept;");
  const int fd = ::open((folder / "log").c_str(), O_WRONLY | O_APPEND | O_CLOEXEC);
  ASSERT_GE(fd, 0);
  struct stat before {
  }, after{};
  ASSERT_EQ(::stat((folder / "log").c_str(), &before), 0);
  const std::string number = std::to_string(fd);
  std::filesystem::create_symlink("/dev/fd/" + number, folder / "link");
  write_file_atomically("/dev/fd/" + number, "a;");
  write_file_atomically("/proc/self/fd/" + number, "b;");
  write_file_atomically("/proc/" + std::to_string(::getpid()) + "/fd/" + number, "c;");
  write_file_atomically(folder / "link", "d;");
  EXPECT_EQ(text_of_file(folder / "log"), "kept;a;b;c;d;");
  ASSERT_EQ(::stat((folder / "log").c_str(), &after), 0);
  EXPECT_EQ(after.st_ino, before.st_ino) << "never replaced";
  EXPECT_THAT(folder.names(), ElementsAre("link", "log"));
  ::close(fd);
  EXPECT_THROW(write_file_atomically("/dev/fd/" + number, "a"), IoError) << "closed";
}

TEST(AtomicFile, writes_standard_output_whatever_it_is) {
  const TestFolder folder;
  const std::string log = folder / "log";
  write_text(log, "kept;");
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const int fd = ::open(log.c_str(), O_WRONLY | O_APPEND);
    ::dup2(fd, STDOUT_FILENO);
    write_file_atomically("/dev/stdout", "a;");
    write_file_atomically("/dev/stdout", "b;");
    ::_exit(0);
  }
  int status = 1;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(text_of_file(log), "kept;a;b;");
}

TEST(AtomicFile, a_name_without_folder_is_in_the_current_one) {
  const TestFolder folder;
  const std::filesystem::path before = std::filesystem::current_path();
  std::filesystem::current_path(folder.path());
  write_file_atomically("f", "here");
  std::filesystem::current_path(before);
  EXPECT_EQ(text_of_file(folder / "f"), "here");
}

TEST(AtomicFile, a_full_disk_is_an_io_error_with_path_reason_and_remedy) {
  EXPECT_THAT(message_of<IoError>([] { write_file_atomically("/dev/full", "x"); }),
              AllOf(HasSubstr("/dev/full"), HasSubstr("No space left on device"), HasSubstr("free some")));
  EXPECT_TRUE(std::filesystem::is_character_file("/dev/full")) << "a device is never replaced";
}

// A limit of file sizes is the one way to fail in the middle of a regular file that root cannot
// pass.
TEST(AtomicFile, a_failure_half_way_leaves_the_old_file_and_no_temporary) {
  const TestFolder folder;
  write_text(folder / "f", "old");
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    std::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit = {.rlim_cur = 4096, .rlim_max = 4096};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    const std::string message =
        message_of<IoError>([&] { write_file_atomically(folder / "f", std::string(10000, 'x')); });
    ::_exit(message.find("File too large") != std::string::npos ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0) << "the write did not fail as it should";
  EXPECT_EQ(text_of_file(folder / "f"), "old");
  EXPECT_THAT(folder.names(), ElementsAre("f"));
}

TEST(AtomicFile, says_what_to_try_for_a_missing_or_impossible_parent) {
  const TestFolder folder;
  write_text(folder / "f", "");
  EXPECT_THAT(message_of<IoError>([&] { write_file_atomically(folder / "no/f", "x"); }),
              AllOf(HasSubstr(folder / "no/f"), HasSubstr("create the folder")));
  EXPECT_THAT(message_of<IoError>([&] { write_file_atomically(folder / "f/g", "x"); }),
              AllOf(HasSubstr(folder / "f/g"), HasSubstr("is a file, not a folder")));
  EXPECT_THAT(message_of<IoError>([&] { write_file_atomically(folder / std::string(300, 'x'), "x"); }),
              HasSubstr("shorter name"));
  EXPECT_THROW(write_file_atomically(folder.path(), "x"), UsageError);
  EXPECT_THROW(write_file_atomically(folder / "new/", "x"), UsageError);
  EXPECT_THROW(write_file_atomically("", "x"), UsageError);
}

TEST(AtomicFile, a_read_only_folder_is_an_io_error) {
  if (::geteuid() == 0) GTEST_SKIP() << "root may write anywhere";
  const TestFolder folder;
  ASSERT_EQ(::chmod(folder.path().c_str(), 0555), 0);
  EXPECT_THAT(message_of<IoError>([&] { write_file_atomically(folder / "f", "x"); }), HasSubstr("permissions"));
  EXPECT_THROW(check_folder_is_writable(folder.path()), IoError);
  ASSERT_EQ(::chmod(folder.path().c_str(), 0755), 0);
}

TEST(AtomicFile, readers_see_the_old_bytes_or_the_new_but_never_half) {
  const TestFolder folder;
  const std::string a(50000, 'a'), b(70000, 'b');
  write_file_atomically(folder / "f", a);
  std::thread one([&] {
    for (int i = 0; i < 50; ++i) write_file_atomically(folder / "f", a);
  });
  std::thread two([&] {
    for (int i = 0; i < 50; ++i) write_file_atomically(folder / "f", b);
  });
  for (int i = 0; i < 200; ++i) {
    const std::string seen = text_of_file(folder / "f");
    EXPECT_TRUE(seen == a || seen == b) << "a file of " << seen.size() << " bytes";
  }
  one.join();
  two.join();
  EXPECT_THAT(folder.names(), ElementsAre("f"));
}

TEST(AtomicFile, reading_a_missing_file_or_a_folder_or_a_device_is_a_usage_error) {
  const TestFolder folder;
  write_text(folder / "f", "");
  EXPECT_THAT(message_of<UsageError>([&] { read_file(folder / "no"); }),
              AllOf(HasSubstr(folder / "no"), HasSubstr("no such file")));
  EXPECT_THAT(message_of<UsageError>([&] { read_file(folder.path()); }), HasSubstr("is a folder"));
  EXPECT_THROW(read_file(folder / "f/g"), UsageError);
  EXPECT_THROW(read_file("/dev/zero"), UsageError);
  EXPECT_THROW(read_file(""), UsageError);
}

TEST(AtomicFile, an_unreadable_file_is_an_io_error) {
  if (::geteuid() == 0) GTEST_SKIP() << "root may read anything";
  const TestFolder folder;
  write_text(folder / "f", "x");
  ASSERT_EQ(::chmod((folder / "f").c_str(), 0), 0);
  EXPECT_THAT(message_of<IoError>([&] { read_file(folder / "f"); }), HasSubstr("permissions"));
}

TEST(AtomicFile, a_reader_knows_the_size_and_gives_the_bytes_in_pieces) {
  const TestFolder folder;
  const std::string path = folder / "ten";
  write_file_atomically(path, "0123456789");
  FileReader reader(path);
  EXPECT_EQ(reader.size(), 10u);
  std::vector<std::byte> piece(4);
  std::string all;
  while (const size_t got = reader.read(piece)) {
    EXPECT_LE(got, 4u);
    all.append(reinterpret_cast<const char*>(piece.data()), got);
  }
  EXPECT_EQ(all, "0123456789");
  EXPECT_THROW(FileReader(folder / "none"), UsageError);
}

TEST(AtomicFile, reads_a_pipe_to_its_end) {
  const TestFolder folder;
  ASSERT_EQ(::mkfifo((folder / "pipe").c_str(), 0600), 0);
  const std::string sent(300000, 'p');
  std::thread writer([&] { write_text(folder / "pipe", sent); });
  EXPECT_EQ(as_text(read_file(folder / "pipe")), sent);
  writer.join();
}

TEST(AtomicFile, checks_a_folder_and_leaves_nothing_in_it) {
  const TestFolder folder;
  check_folder_is_writable(folder.path());
  EXPECT_TRUE(folder.names().empty());
  write_text(folder / "f", "");
  EXPECT_THROW(check_folder_is_writable(folder / "f"), IoError);
  EXPECT_THROW(check_folder_is_writable(folder / "no"), IoError);
}

TEST(AtomicFile, knows_its_own_temporaries_and_nobody_elses) {
  EXPECT_EQ(target_of_temporary(".model.safetensors.tmp-412-0"), "model.safetensors");
  for (const char* other : {"", ".", "model.safetensors", "model.tmp-1-2", ".tmp-1-2", ".a.tmp-1", ".a.tmp-1-",
                            ".a.tmp--2", ".a.tmp-x-2", ".a.tmp-1-2x"}) {
    EXPECT_FALSE(target_of_temporary(other).has_value()) << other;
  }
}

}  // namespace
}  // namespace evenkeel
