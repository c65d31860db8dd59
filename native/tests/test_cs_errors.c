/* Failing disks.  The disk fails what a test asks it to fail. */
#include "fakedisk.h"

#define CHUNK_BYTES (2u << 20)
#define MIB (1u << 20)

static struct {
	int op, error, times; /* times < 0: always */
	const char *name; /* part of the path */
	uint64_t min_off; /* only from here on */
	int half; /* a write: the first half gets through */
} fault;

static int hit(const struct cs_io *io)
{
	if (!fault.times || io->op != fault.op || io->off < fault.min_off || !disk_is(io->fd, fault.name))
		return 0;
	fault.times -= fault.times > 0;
	return 1;
}

static int disk_execute(struct cs_io *io)
{
	if (!hit(io))
		return disk_sound(io);
	if (fault.half && io->op == CS_IO_WRITE)
		CHECK_EQ(vst_pwrite_full(io->fd, io->buf, io->len / 2 / CS_BLOCK * CS_BLOCK, io->off), 0);
	return -fault.error;
}

static unsigned disk_pick(unsigned n)
{
	(void)n;
	return 0;
}

static void disk_submitted(struct cs_io *io)
{
	(void)io;
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

static void end(void)
{
	memset(&fault, 0, sizeof fault);
	vst_cs_close(cs);
	remove_tree(dir);
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

/* What the device of files with this name asks of direct I/O; 0: the truth. */
static struct {
	int align;
	const char *name;
} device;

int __real_vst_dio_align(int fd);
int __wrap_vst_dio_align(int fd);
int __wrap_vst_dio_align(int fd)
{
	return device.align && disk_is(fd, device.name) ? device.align : __real_vst_dio_align(fd);
}

/* --- tests */

static void test_a_device_with_too_large_sectors_is_refused(void)
{
	static const struct {
		int align, rc;
	} cases[] = {{512, 0}, {4096, 0}, {8192, -EOPNOTSUPP}, {520, -EOPNOTSUPP}, {-EIO, -EIO}};
	static const char *const names[] = {"/lock", "/journal"};
	struct vst_cs_config cfg = {.dir = dir, .journal_bytes = CS_JOURNAL_UNIT, .cs_id = 7, .incarnation = 1};
	char err[512];

	begin();
	CHECK(vst_cs_direct(cs)); /* or there is nothing to ask */
	CHECK_EQ(put(9, 5, 1, 7), 0);
	vst_cs_close(cs);
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
		for (size_t k = 0; k < 2; k++) {
			device.align = cases[i].align;
			device.name = names[k];
			CHECK_EQ(vst_cs_open(&cfg, &cs, err, sizeof err), cases[i].rc);
			if (cases[i].rc == 0)
				vst_cs_close(cs);
			else
				CHECK(strstr(err, dir));
			if (cases[i].align == 8192)
				CHECK(strstr(err, "units of 8192 bytes") && (k == 0) == !strstr(err, "/journal"));
		}
	device.align = 0;
	reopen();
	CHECK_EQ(get(9, 5), 7);
	end();
}

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
	test_a_device_with_too_large_sectors_is_refused();
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
