/* A disk that can lose its power.  Every write is remembered until an fdatasync of its file that was asked for after it
 * was done (no other: journal and chunks may lie on different devices, and a flush that runs covers nothing that ends
 * beside it).  At a cut, of what was not flushed, each sector is as it was or as one of the writes left it.  The
 * process ends with the cut: the store runs in a child, and is opened again by the next. */
#ifndef VSTOR_TESTS_POWERDISK_H
#define VSTOR_TESTS_POWERDISK_H
#include "fakedisk.h"

#define SECTOR 512u
#define POWER_CUT_STATUS 42 /* of the child */

static void disk_executed(const struct cs_io *io); /* after each operation, before it is known to be done */

static uint32_t seed; /* of all that is random */
static int power_torn; /* data blocks may be torn inside, too */
static uint64_t power_data_off, power_file_bytes; /* of chunk files: what is data in them */

static inline uint32_t below(uint32_t n)
{
	return test_random(&seed) % n;
}

struct write {
	struct write *next;
	int fd; /* one of our own */
	dev_t dev;
	ino_t ino;
	uint64_t off, len, serial;
	uint8_t *old, *new, *stable; /* stable: of each block, it was overwritten through the cache since */
};
static struct write *log_head;
static uint64_t write_serial;

/* These bytes of the file are on stable storage, as far as they were written up to this serial. */
static inline void forget(int fd, uint64_t off, uint64_t len, uint64_t serial)
{
	struct stat st;
	CHECK_EQ(fstat(fd, &st), 0);
	for (struct write **p = &log_head; *p;) {
		struct write *w = *p;
		int same = w->dev == st.st_dev && w->ino == st.st_ino && w->serial <= serial;
		for (uint64_t at = 0; same && at < w->len; at += CS_BLOCK)
			w->stable[at / CS_BLOCK] |= w->off + at >= off && w->off + at < off + len;
		if (!same || memchr(w->stable, 0, w->len / CS_BLOCK)) {
			p = &w->next;
			continue;
		}
		*p = w->next;
		free(w->stable);
		close(w->fd);
		free(w->old);
		free(w->new);
		free(w);
	}
}

static inline void remember(const struct cs_io *io)
{
	struct stat st;
	struct write *w = calloc(1, sizeof *w);
	CHECK(w != NULL);
	CHECK_EQ(fstat(io->fd, &st), 0);
	char path[64];
	snprintf(path, sizeof path, "/proc/self/fd/%d", io->fd);
	w->fd = open(path, O_RDWR | O_CLOEXEC); /* buffered: any size and address */
	CHECK(w->fd >= 0);
	w->dev = st.st_dev;
	w->ino = st.st_ino;
	w->off = io->off;
	w->len = io->len;
	w->serial = ++write_serial;
	w->old = malloc(io->len);
	w->new = calloc(1, io->len);
	w->stable = calloc(1, io->len / CS_BLOCK);
	CHECK(w->stable != NULL);
	CHECK(w->old != NULL);
	CHECK(w->new != NULL);
	CHECK_EQ(vst_pread_full(w->fd, w->old, io->len, io->off), 0);
	if (io->op == CS_IO_WRITE)
		memcpy(w->new, io->buf, io->len);
	w->next = log_head;
	log_head = w;
}

/* Blocks of data are written whole by the devices this is made for, headers and tables must not depend on it. */
static inline uint64_t unit_at(const struct write *w, uint64_t off)
{
	struct stat st;
	CHECK_EQ(fstat(w->fd, &st), 0);
	int is_data = (uint64_t)st.st_size == power_file_bytes && off >= power_data_off;
	return is_data && !power_torn ? CS_BLOCK : SECTOR;
}

static inline void reinstate(struct write *w, uint32_t percent, const char *lost)
{
	if (!w)
		return;
	reinstate(w->next, percent, lost); /* oldest first */
	if (lost && disk_is(w->fd, lost))
		return;
	for (uint64_t at = 0; at < w->len;) {
		uint64_t n = unit_at(w, w->off + at);
		n = n < w->len - at ? n : w->len - at;
		if (below(100) < percent && !w->stable[at / CS_BLOCK])
			CHECK_EQ(vst_pwrite_full(w->fd, w->new + at, n, w->off + at), 0);
		at += n;
	}
}

/* Of the unflushed writes each unit stays with this chance; none to files whose path contains `lost` (NULL: no such).
 */
static inline void power_cut(uint32_t percent, const char *lost)
{
	for (struct write *w = log_head; w; w = w->next) /* newest first */
		for (uint64_t at = 0; at < w->len; at += CS_BLOCK)
			if (!w->stable[at / CS_BLOCK])
				CHECK_EQ(vst_pwrite_full(w->fd, w->old + at, CS_BLOCK, w->off + at), 0);
	reinstate(log_head, percent, lost);
	for (struct write *w = log_head; w; w = w->next)
		CHECK_EQ(fsync(w->fd), 0);
	_exit(POWER_CUT_STATUS);
}

static void disk_submitted(struct cs_io *io)
{
	io->moved = write_serial;
}

static int disk_execute(struct cs_io *io)
{
	int rc = 0;

	if (io->op == CS_IO_WRITE || io->op == CS_IO_PUNCH)
		remember(io);
	if (io->op == CS_IO_FDATASYNC)
		forget(io->fd, 0, UINT64_MAX / 2, io->moved);
	else
		rc = disk_sound(io); /* changes of names are not undone here, so an fsync of directories is nothing */
	disk_executed(io);
	/* A write through the cache is on stable storage when it is done, and nothing else is. */
	if (io->op == CS_IO_WRITE && io->dsync)
		forget(io->fd, io->off, io->len, UINT64_MAX);
	return rc;
}
#endif
