/* The disk of the chunk server's tests: a cs_ring without a kernel behind it.  What is submitted waits until a turn
 * executes one operation, chosen by the test: so the order of completions, failing operations and power cuts are the
 * test's own.  The including program defines the three functions below; tests of the ring itself do not include this.
 */
#ifndef VSTOR_TESTS_FAKEDISK_H
#define VSTOR_TESTS_FAKEDISK_H
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>
#include "../src/cs_internal.h"
#include "check.h"
#include "vstor/dio.h"

#define DISK_PENDING_MAX 4096

static int disk_execute(struct cs_io *io); /* 0 or negative errno */
static unsigned disk_pick(unsigned n); /* which of n waiting operations (oldest first) is next */
static void disk_submitted(struct cs_io *io); /* io->moved is free for the test's use */

/* What a sound disk does. */
static inline int disk_sound(struct cs_io *io)
{
	int rc = 0;

	switch ((enum cs_io_op)io->op) {
	case CS_IO_READ:
		return vst_pread_full(io->fd, io->buf, io->len, io->off);
	case CS_IO_WRITE:
		return vst_pwrite_full(io->fd, io->buf, io->len, io->off);
	case CS_IO_PUNCH:
		rc = fallocate(io->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)io->off, (off_t)io->len);
		break;
	case CS_IO_UNLINK:
		rc = unlinkat(io->fd, io->path, 0);
		break;
	case CS_IO_FDATASYNC:
	case CS_IO_FSYNC:
		break; /* the machine does not fail here: the page cache is as good as the disk */
	}
	return rc < 0 ? -errno : 0;
}

/* Path of an open file, as the kernel has it. */
static inline void disk_path(int fd, char *path, size_t len)
{
	char link[64];

	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	ssize_t n = readlink(link, path, len - 1);
	CHECK(n > 0);
	path[n] = 0;
}

static inline int disk_is(int fd, const char *name)
{
	char path[512];
	disk_path(fd, path, sizeof path);
	return strstr(path, name) != NULL;
}

struct cs_ring {
	struct cs_io *pending[DISK_PENDING_MAX];
	unsigned n;
};

struct cs_ring *cs_ring_new(enum cs_ring_mode mode, int *err)
{
	(void)mode;
	*err = 0;
	return calloc(1, sizeof(struct cs_ring));
}

void cs_ring_free(struct cs_ring *r)
{
	free(r);
}

enum cs_ring_mode cs_ring_mode_of(const struct cs_ring *r)
{
	(void)r;
	return CS_RING_SYNC;
}

unsigned cs_ring_inflight(const struct cs_ring *r)
{
	return r->n;
}

void cs_ring_submit(struct cs_ring *r, struct cs_io *io)
{
	CHECK(r->n < DISK_PENDING_MAX);
	r->pending[r->n++] = io;
	disk_submitted(io);
}

void cs_ring_turn(struct cs_ring *r, int timeout_ms)
{
	(void)timeout_ms;
	if (!r->n)
		return;
	unsigned i = disk_pick(r->n);
	struct cs_io *io = r->pending[i];
	r->n--;
	memmove(r->pending + i, r->pending + i + 1, (r->n - i) * sizeof *r->pending);
	io->res = disk_execute(io);
	io->done(io, io->res);
}

int cs_watch_add(struct cs_ring *r, struct cs_watch *w)
{
	(void)r;
	(void)w;
	return -ENOTSUP;
}

void cs_watch_want_out(struct cs_ring *r, struct cs_watch *w)
{
	(void)r;
	(void)w;
}

void cs_watch_del(struct cs_ring *r, struct cs_watch *w)
{
	(void)r;
	(void)w;
}

#endif
