/* Power cuts at chosen moments: what the random ones of test_cs_power.c meet only now and then. */
#include <sys/wait.h>
#include "powerdisk.h"

#define CHUNK 9u
#define CHUNK_BYTES (2u << 20)

static char dir[64];
static uint8_t *buf;

static void disk_executed(const struct cs_io *io)
{
	(void)io;
}

static unsigned first_pick; /* the operation executed next: here in the order they came, unless a test says otherwise */

static unsigned disk_pick(unsigned n)
{
	unsigned pick = first_pick < n ? first_pick : n - 1;
	first_pick = 0;
	return pick;
}

static struct cs *open_store(void)
{
	char err[512] = "";
	struct vst_cs_config cfg = {.dir = dir, .journal_bytes = CS_JOURNAL_UNIT, .cs_id = 7, .incarnation = 1};
	vst_cs *cs;
	int rc = vst_cs_open(&cfg, &cs, err, sizeof err);
	if (rc < 0) {
		fprintf(stderr, "open: %d %s\n", rc, err);
		exit(1);
	}
	return (struct cs *)cs;
}

static void put(struct cs *cs, uint32_t block, uint32_t blocks, int value)
{
	memset(buf, value, (size_t)blocks * CS_BLOCK);
	CHECK_EQ(vst_cs_write((vst_cs *)cs, CHUNK, 1, (uint64_t)block * CS_BLOCK, blocks * CS_BLOCK, buf, 0), 0);
}

static void expect(struct cs *cs, uint32_t block, int value)
{
	int hole, status = vst_cs_read((vst_cs *)cs, CHUNK, (uint64_t)block * CS_BLOCK, CS_BLOCK, buf, &hole);
	if (status || buf[0] != value || memcmp(buf, buf + 1, CS_BLOCK - 1) != 0) {
		fprintf(stderr, "block %u: status %d, holds %d, not %d\n", block, status, buf[0], value);
		exit(1);
	}
}

/* The scenario up to its cut in a child, then the check on the store as it is opened again. */
static void cut_and_check(void (*scenario)(struct cs *cs), void (*check)(struct cs *cs))
{
	snprintf(dir, sizeof dir, "/tmp/vstor-test-XXXXXX");
	CHECK(mkdtemp(dir) != NULL);
	pid_t pid = fork();
	CHECK(pid >= 0);
	if (pid == 0) {
		struct cs *cs = open_store();
		CHECK_EQ(vst_cs_create((vst_cs *)cs, CHUNK, CHUNK_BYTES, 1, 0), 0);
		CHECK_EQ(cs_drain_all(cs), 0);
		scenario(cs);
		exit(1); /* no cut came */
	}
	int status;
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	CHECK(WIFEXITED(status));
	CHECK_EQ(WEXITSTATUS(status), POWER_CUT_STATUS);
	struct cs *cs = open_store();
	check(cs);
	vst_cs_close((vst_cs *)cs);
	remove_tree(dir);
}

/* --- SYNC: what was acknowledged before it is there after it (R1) */

static void small_then_sync(struct cs *cs)
{
	put(cs, 3, 1, 1);
	CHECK_EQ(vst_cs_sync((vst_cs *)cs), 0);
	power_cut(0, NULL);
}

static void small_is_there(struct cs *cs)
{
	expect(cs, 3, 1);
}

static void large_then_sync(struct cs *cs)
{
	put(cs, 100, 256, 2);
	CHECK_EQ(vst_cs_sync((vst_cs *)cs), 0);
	power_cut(0, NULL);
}

static void large_is_there(struct cs *cs)
{
	for (uint32_t b = 100; b < 356; b++)
		expect(cs, b, 2);
}

static void both_in_turn_then_sync(struct cs *cs)
{
	put(cs, 100, 256, 7);
	CHECK_EQ(vst_cs_sync((vst_cs *)cs), 0);
	put(cs, 3, 1, 7);
	CHECK_EQ(vst_cs_sync((vst_cs *)cs), 0);
	put(cs, 100, 256, 2);
	put(cs, 3, 1, 1);
	CHECK_EQ(vst_cs_sync((vst_cs *)cs), 0);
	power_cut(0, NULL);
}

static void both_are_there(struct cs *cs)
{
	small_is_there(cs);
	large_is_there(cs);
}

/* --- a checkpoint changes nothing in a file before the record that explains it is on stable storage */

struct late {
	struct cs_req req;
	int done;
};

static void late_done(struct cs_req *req)
{
	CHECK_EQ(req->status, 0);
	cs_buf_put(req->cs, req->buf);
	((struct late *)req)->done = 1;
}

static void late_start(struct cs *cs, struct late *l, uint8_t op, uint32_t block, int value)
{
	*l = (struct late){.req = {.cs = cs,
				   .c = cs_chunk_find(cs, CHUNK),
				   .op = op,
				   .local = 1,
				   .done = late_done,
				   .version = 1,
				   .off = (uint64_t)block * CS_BLOCK,
				   .len = CS_BLOCK}};
	if (op == CS_WRITE) {
		l->req.buf = cs_buf_get(cs, CS_BLOCK);
		CHECK(l->req.buf != NULL);
		memset(l->req.buf->data, value, CS_BLOCK);
	}
	cs_req_start(&l->req);
}

/* Blocks 0 to 199 hold 3 on the disk. A checkpoint is to punch 0 and 150 and to apply 40 and 60. While it flushes the
 * journal, 100 is freed and 50 written: their records come too late for that flush, so the checkpoint must leave both
 * blocks of the file alone. Then the power fails, with all changes of the file kept and the journal's tail lost. */
static void late_records(struct cs *cs)
{
	static struct late punch, write;

	put(cs, 0, 200, 3);
	CHECK_EQ(vst_cs_sync((vst_cs *)cs), 0);
	CHECK_EQ(cs_drain_all(cs), 0);
	CHECK_EQ(vst_cs_punch((vst_cs *)cs, CHUNK, 1, 0, CS_BLOCK), 0);
	CHECK_EQ(vst_cs_punch((vst_cs *)cs, CHUNK, 1, 150 * CS_BLOCK, CS_BLOCK), 0);
	put(cs, 40, 1, 4);
	put(cs, 60, 1, 4);
	late_start(cs, &punch, CS_PUNCH, 100, 0);
	late_start(cs, &write, CS_WRITE, 50, 5);
	cs->ck.wanted = 1;
	cs_ckpt_kick(cs);
	CHECK_EQ(cs->ck.state, CS_CK_FLUSH); /* its fdatasync waits; the group of the late records comes behind it */
	cs_journal_kick(cs);
	CHECK_EQ(cs_ring_inflight(cs->ring), 2);
	first_pick = 1;
	cs_ring_turn(cs->ring, 0);
	CHECK(punch.done && write.done);
	CHECK_EQ(cs->ck.state, CS_CK_FLUSH);
	cs_ring_turn(cs->ring, 0);
	CHECK_EQ(cs->ck.state, CS_CK_APPLY);
	while (cs->ck.state == CS_CK_APPLY)
		cs_ring_turn(cs->ring, 0);
	CHECK_EQ(cs->ck.failed, 0);
	power_cut(100, "/journal");
}

static void old_blocks_are_whole(struct cs *cs)
{
	for (uint32_t b = 0; b < 200; b++)
		expect(cs, b, b == 0 || b == 150 ? 0 : b == 40 || b == 60 ? 4 : 3);
}

int main(void)
{
	power_data_off = 2 * CS_BLOCK; /* one table page at this size */
	power_file_bytes = power_data_off + CHUNK_BYTES;
	buf = vst_buf_alloc(1 << 20);
	CHECK(buf != NULL);
	cut_and_check(small_then_sync, small_is_there);
	cut_and_check(large_then_sync, large_is_there);
	cut_and_check(both_in_turn_then_sync, both_are_there);
	cut_and_check(late_records, old_blocks_are_whole);
	return 0;
}
