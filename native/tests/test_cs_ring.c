/* The three ways of disk I/O: transfers that the kernel cuts short, ends of files, errors. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>
#include "../src/cs_ring.h"
#include "check.h"
#include "vstor/dio.h"

#define BLOCKS 8u
#define LEN (BLOCKS * VST_ALIGN)

struct done {
	struct cs_io io;
	int times, res;
};

static void done(struct cs_io *io, int res)
{
	struct done *d = (struct done *)io;
	d->times++;
	d->res = res;
}

static int run(struct cs_ring *r, uint8_t op, int fd, uint8_t *buf, uint64_t off, uint64_t len)
{
	struct done d = {.io = {.done = done, .op = op, .fd = fd, .buf = buf, .off = off, .len = len}};

	cs_ring_submit(r, &d.io);
	while (!d.times)
		cs_ring_turn(r, 1000);
	CHECK_EQ(d.times, 1);
	CHECK_EQ(cs_ring_inflight(r), 0);
	return d.res;
}

static void test_mode(enum cs_ring_mode mode, const char *dir)
{
	char path[256];
	int err = 0, direct;
	uint8_t *buf = vst_buf_alloc(LEN);
	struct cs_ring *r = cs_ring_new(mode, &err);
	struct rlimit old, small = {.rlim_cur = 3 * VST_ALIGN};

	CHECK(buf != NULL && r != NULL);
	snprintf(path, sizeof path, "%s/vstor-ring-%d", dir, (int)getpid());
	int fd = vst_open_direct(AT_FDCWD, path, O_RDWR | O_CREAT | O_EXCL, 0600, &direct);
	CHECK(fd >= 0);

	/* A write of which only a part finds room: the part is there, and the end is an error. */
	CHECK_EQ(getrlimit(RLIMIT_FSIZE, &old), 0);
	small.rlim_max = old.rlim_max;
	CHECK_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
	memset(buf, 'a', LEN);
	CHECK_EQ(run(r, CS_IO_WRITE, fd, buf, 0, LEN), -EFBIG);
	CHECK_EQ(setrlimit(RLIMIT_FSIZE, &old), 0);
	memset(buf, 1, LEN);
	CHECK_EQ(run(r, CS_IO_READ, fd, buf, 0, LEN), 0);
	for (uint32_t i = 0; i < LEN; i++)
		CHECK_EQ(buf[i], i < 3 * VST_ALIGN ? 'a' : 0);

	/* A read across an end that lies inside a block, at a sector of the smallest size and elsewhere. */
	for (uint32_t end = 2 * VST_ALIGN + 100; end <= 2 * VST_ALIGN + 612; end += 412) {
		CHECK_EQ(ftruncate(fd, end), 0);
		memset(buf, 1, LEN);
		CHECK_EQ(run(r, CS_IO_READ, fd, buf, 0, LEN), 0);
		for (uint32_t i = 0; i < LEN; i++)
			CHECK_EQ(buf[i], i < end && i < 2 * VST_ALIGN + 100 ? 'a' : 0);
		CHECK_EQ(run(r, CS_IO_READ, fd, buf, 4 * VST_ALIGN, VST_ALIGN), 0);
		CHECK_EQ(buf[0], 0);
	}
	CHECK_EQ(run(r, CS_IO_FDATASYNC, fd, NULL, 0, 0), 0);
	close(fd);

	fd = open("/dev/full", O_WRONLY | O_CLOEXEC);
	CHECK(fd >= 0);
	CHECK_EQ(run(r, CS_IO_WRITE, fd, buf, 0, LEN), -ENOSPC);
	close(fd);
	CHECK_EQ(run(r, CS_IO_READ, -1, buf, 0, LEN), -EBADF);
	CHECK_EQ(unlink(path), 0);
	cs_ring_free(r);
	vst_buf_free(buf, LEN);
}

int main(void)
{
	static const enum cs_ring_mode modes[] = {CS_RING_SYNC, CS_RING_POOL, CS_RING_URING};

	signal(SIGXFSZ, SIG_IGN);
	for (size_t i = 0; i < sizeof modes / sizeof *modes; i++) {
		test_mode(modes[i], "build"); /* a disk file system */
		test_mode(modes[i], "/dev/shm"); /* tmpfs */
	}
	return 0;
}
