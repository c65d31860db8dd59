/* Failing disks.  This program brings its own cs_ring, which executes at once and fails what a test asks it to fail. */
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <sys/stat.h>
#include <unistd.h>
#include "../src/cs_internal.h"
#include "check.h"
#include "vstor/dio.h"

#define CHUNK_BYTES (2u << 20)
#define MIB (1u << 20)

static struct {
	int op, error, times; /* times < 0: always */
	const char *name; /* part of the path */
	uint64_t min_off; /* only from here on */
	int half; /* a write: the first half gets through */
} fault;

struct cs_ring {
	struct cs_io *head, *tail;
	unsigned n;
};

static int hit(const struct cs_io *io)
{
	char link[64], path[512];

	if (!fault.times || io->op != fault.op || io->off < fault.min_off)
		return 0;
	snprintf(link, sizeof link, "/proc/self/fd/%d", io->fd);
	ssize_t n = readlink(link, path, sizeof path - 1);
	CHECK(n > 0);
	path[n] = 0;
	if (!strstr(path, fault.name))
		return 0;
	fault.times -= fault.times > 0;
	return 1;
}

static int execute(const struct cs_io *io)
{
	if (hit(io)) {
		if (fault.half && io->op == CS_IO_WRITE)
			CHECK_EQ(vst_pwrite_full(io->fd, io->buf, io->len / 2 / CS_BLOCK * CS_BLOCK, io->off), 0);
		return -fault.error;
	}
	switch ((enum cs_io_op)io->op) {
	case CS_IO_READ:
		return vst_pread_full(io->fd, io->buf, io->len, io->off);
	case CS_IO_WRITE:
		return vst_pwrite_full(io->fd, io->buf, io->len, io->off);
	case CS_IO_UNLINK:
		return unlinkat(io->fd, io->path, 0) < 0 ? -errno : 0;
	default:
		return 0;
	}
}

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
	io->res = execute(io);
	io->next = NULL;
	if (r->n++)
		r->tail->next = io;
	else
		r->head = io;
	r->tail = io;
}

void cs_ring_turn(struct cs_ring *r, int timeout_ms)
{
	(void)timeout_ms;
	if (!r->n)
		return;
	struct cs_io *io = r->head;
	r->head = io->next;
	r->n--;
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

/* --- helpers */

static char dir[64];
static uint8_t *buf, *back;
static vst_cs *cs;

static void reopen(void)
{
	char err[512] = "";
	struct vst_cs_config cfg = {.dir = dir, .journal_bytes = CS_JOURNAL_UNIT, .cs_id = 7, .incarnation = 1};
	int rc = vst_cs_open(&cfg, &cs, err, sizeof err);
	if (rc < 0) {
		fprintf(stderr, "open: %d %s\n", rc, err);
		exit(1);
	}
}

static void begin(void)
{
	memset(&fault, 0, sizeof fault);
	snprintf(dir, sizeof dir, "/tmp/vstor-test-XXXXXX");
	CHECK(mkdtemp(dir) != NULL);
	reopen();
	CHECK_EQ(vst_cs_create(cs, 9, CHUNK_BYTES, 1, 0), 0);
	CHECK_EQ(vst_cs_create(cs, 10, CHUNK_BYTES, 1, 0), 0);
	CHECK_EQ(cs_drain_all((struct cs *)cs), 0); /* so that no checkpoint is under way beside a test */
}

static int remove_one(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
	(void)st;
	(void)flag;
	(void)ftw;
	return remove(path);
}

static void end(void)
{
	memset(&fault, 0, sizeof fault);
	vst_cs_close(cs);
	CHECK_EQ(nftw(dir, remove_one, 16, FTW_DEPTH | FTW_PHYS), 0);
}

static void fail(int op, int error, int times, const char *name)
{
	fault.op = op;
	fault.error = error;
	fault.times = times;
	fault.name = name;
	/* Of a chunk file only the data part: one table page at this size. */
	fault.min_off = op == CS_IO_WRITE && strstr(name, "00000000000000") ? 2 * CS_BLOCK : 0;
}

static void calm(void)
{
	fault.times = 0;
}

static int put(uint64_t chunk, uint32_t block, uint32_t blocks, int value)
{
	memset(buf, value, (size_t)blocks * CS_BLOCK);
	return vst_cs_write(cs, chunk, 1, (uint64_t)block * CS_BLOCK, blocks * CS_BLOCK, buf, 0);
}

/* The value of a block, or minus the status. */
static int get(uint64_t chunk, uint32_t block)
{
	int hole, status = vst_cs_read(cs, chunk, (uint64_t)block * CS_BLOCK, CS_BLOCK, back, &hole);
	return status ? -status : back[0];
}

static void expect_event(uint32_t kind, uint64_t chunk)
{
	struct vst_cs_event ev;
	while (vst_cs_next_event(cs, &ev))
		if (ev.kind == kind && ev.chunk_id == chunk)
			return;
	fprintf(stderr, "no event %u of chunk %llu\n", kind, (unsigned long long)chunk);
	exit(1);
}

static int exists(uint64_t chunk)
{
	struct vst_cs_chunk st;
	return vst_cs_stat(cs, chunk, &st) == 0;
}

/* --- tests */

static void test_a_large_write_that_fails_leaves_old_or_new_blocks(void)
{
	for (int half = 0; half < 2; half++) {
		begin();
		CHECK_EQ(put(9, 0, 256, 1), 0);
		fault.half = half;
		fail(CS_IO_WRITE, EIO, 1, "0000000000000009");
		CHECK_EQ(put(9, 0, 256, 2), VST_ERR_IO_ERROR);
		expect_event(VST_CS_EV_IO_ERROR, 9);
		for (int round = 0; round < 2; round++) {
			for (uint32_t b = 0; b < 256; b++)
				CHECK_EQ(get(9, b), half && b < 128 ? 2 : 1);
			CHECK_EQ(put(9, 300, 256 - 100, 3), 0); /* it goes on */
			cs_crash((struct cs *)cs);
			reopen();
		}
		end();
	}
}

static void test_no_space_in_place(void)
{
	begin();
	fail(CS_IO_WRITE, ENOSPC, 1, "0000000000000009");
	CHECK_EQ(put(9, 0, 256, 2), VST_ERR_NO_SPACE);
	expect_event(VST_CS_EV_NO_SPACE, 9);
	CHECK_EQ(get(9, 0), 0);
	CHECK_EQ(put(9, 0, 256, 2), 0);
	CHECK_EQ(get(9, 0), 2);
	end();
}

static void test_a_failed_journal_refuses_writes_and_goes_on_reading(void)
{
	static const int ops[] = {CS_IO_WRITE, CS_IO_FDATASYNC};
	for (int i = 0; i < 2; i++) {
		begin();
		CHECK_EQ(put(9, 0, 4, 1), 0);
		CHECK_EQ(put(9, 0, 256, 1), 0);
		fail(ops[i], EIO, 1, "/journal");
		CHECK_EQ(vst_cs_write(cs, 9, 1, 0, CS_BLOCK, buf, 1) ? VST_ERR_IO_ERROR : vst_cs_sync(cs),
			 i == 0 ? VST_ERR_IO_ERROR : 0);
		if (i == 1) { /* nothing was unflushed: make something so, then flush it */
			CHECK_EQ(put(9, 8, 1, 1), 0);
			fail(ops[i], EIO, 1, "/journal");
			CHECK_EQ(vst_cs_sync(cs), VST_ERR_IO_ERROR);
		}
		calm();
		expect_event(VST_CS_EV_JOURNAL_ERROR, 0);
		CHECK_EQ(put(9, 1, 1, 2), VST_ERR_IO_ERROR);
		CHECK_EQ(put(9, 0, 256, 2), VST_ERR_IO_ERROR);
		CHECK_EQ(vst_cs_set_version(cs, 9, 2), VST_ERR_IO_ERROR);
		CHECK_EQ(vst_cs_sync(cs), VST_ERR_IO_ERROR);
		CHECK_EQ(get(9, 1), 1);
		vst_cs_close(cs);
		reopen();
		CHECK_EQ(get(9, 1), 1);
		CHECK_EQ(put(9, 1, 1, 3), 0);
		end();
	}
}

static void test_a_file_whose_flush_failed_is_not_trusted(void)
{
	begin();
	CHECK_EQ(put(9, 0, 256, 1), 0);
	CHECK_EQ(put(10, 0, 256, 1), 0);
	fail(CS_IO_FDATASYNC, EIO, 1, "0000000000000009");
	CHECK_EQ(vst_cs_sync(cs), VST_ERR_IO_ERROR);
	expect_event(VST_CS_EV_IO_ERROR, 9);
	CHECK_EQ(vst_cs_sync(cs), VST_ERR_IO_ERROR); /* though the kernel would now say success */
	CHECK_EQ(put(9, 0, 1, 2), VST_ERR_IO_ERROR);
	CHECK_EQ(put(10, 0, 1, 2), 0);
	CHECK_EQ(cs_drain_all((struct cs *)cs), 0);
	expect_event(VST_CS_EV_CORRUPT, 9);
	CHECK(!exists(9));
	CHECK_EQ(vst_cs_sync(cs), 0);
	CHECK_EQ(get(10, 0), 2);
	end();
}

static void test_a_checkpoint_without_space_is_tried_again(void)
{
	begin();
	CHECK_EQ(put(9, 5, 1, 7), 0);
	fail(CS_IO_WRITE, ENOSPC, -1, "0000000000000009");
	CHECK_EQ(cs_drain_all((struct cs *)cs), -ENOSPC);
	expect_event(VST_CS_EV_NO_SPACE, 9);
	CHECK_EQ(get(9, 5), 7);
	CHECK(exists(9));
	/* A crash now: it comes up with the disk still full, serves, and can delete. */
	cs_crash((struct cs *)cs);
	reopen();
	CHECK_EQ(get(9, 5), 7);
	CHECK_EQ(put(10, 0, 1, 8), 0);
	CHECK_EQ(vst_cs_delete(cs, 10), 0);
	cs_crash((struct cs *)cs);
	reopen();
	CHECK_EQ(get(9, 5), 7);
	CHECK(!exists(10));
	calm();
	((struct cs *)cs)->ck.retry_ms = 0;
	((struct cs *)cs)->ck.failed = 0;
	CHECK_EQ(cs_drain_all((struct cs *)cs), 0);
	CHECK_EQ(((struct cs *)cs)->index_bytes, 0);
	CHECK_EQ(get(9, 5), 7);
	end();
}

static void test_a_file_that_takes_no_data_is_quarantined(void)
{
	struct cs *inner;

	begin();
	inner = (struct cs *)cs;
	CHECK_EQ(put(9, 5, 1, 7), 0);
	CHECK_EQ(put(10, 5, 1, 7), 0);
	fail(CS_IO_WRITE, EIO, -1, "0000000000000009");
	for (uint32_t i = 0; i < CS_APPLY_FAILURES_MAX && exists(9); i++) {
		inner->ck.retry_ms = 0;
		inner->ck.failed = 0;
		cs_drain_all(inner);
	}
	CHECK(!exists(9));
	expect_event(VST_CS_EV_CORRUPT, 9);
	inner->ck.retry_ms = 0;
	inner->ck.failed = 0;
	CHECK_EQ(cs_drain_all(inner), 0);
	CHECK_EQ(get(10, 5), 7);
	CHECK_EQ(inner->j.tail, inner->j.head);
	end();
}

static void test_a_block_that_cannot_be_read(void)
{
	begin();
	CHECK_EQ(put(9, 0, 256, 1), 0);
	fail(CS_IO_READ, EIO, 1, "0000000000000009");
	CHECK_EQ(get(9, 3), -VST_ERR_IO_ERROR);
	expect_event(VST_CS_EV_IO_ERROR, 9);
	CHECK_EQ(get(9, 3), 1);
	fail(CS_IO_READ, EIO, 1, "0000000000000009");
	uint64_t bytes;
	CHECK_EQ(vst_cs_scrub(cs, 9, &bytes), -1000 - VST_ERR_IO_ERROR);
	CHECK_EQ(vst_cs_scrub(cs, 9, &bytes), 0);
	CHECK_EQ(bytes, MIB);
	end();
}

int main(void)
{
	CHECK_EQ(posix_memalign((void **)&buf, CS_BLOCK, MIB), 0);
	CHECK_EQ(posix_memalign((void **)&back, CS_BLOCK, MIB), 0);
	test_a_large_write_that_fails_leaves_old_or_new_blocks();
	test_no_space_in_place();
	test_a_failed_journal_refuses_writes_and_goes_on_reading();
	test_a_file_whose_flush_failed_is_not_trusted();
	test_a_checkpoint_without_space_is_tried_again();
	test_a_file_that_takes_no_data_is_quarantined();
	test_a_block_that_cannot_be_read();
	free(buf);
	free(back);
	return 0;
}
