/* The store against a model: random writes, punches, orders, syncs, checkpoints; the process "dies" (nothing more is
 * written) and the store is opened again, over and over.  Everything acknowledged must be there.  VSTOR_SEED repeats a
 * run. */
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include "../src/cs_internal.h"
#include "check.h"
#include "vstor/crc32c.h"

#define CHUNK_BYTES (4u << 20)
#define CHUNKS 6
#define JOURNAL_BYTES (64ull << 20)

static char dir[64];
static uint32_t seed;
static uint8_t *model[CHUNKS]; /* content, NULL: no such chunk */
static uint32_t version[CHUNKS];
static uint8_t *buf, *back;

static void fresh_dir(void)
{
	snprintf(dir, sizeof dir, "/tmp/vstor-test-XXXXXX");
	CHECK(mkdtemp(dir) != NULL);
}

static void remove_dir(void)
{
	remove_tree(dir);
}

static int try_open(vst_cs **cs, char *err, size_t err_len)
{
	struct vst_cs_config cfg = {.dir = dir, .journal_bytes = JOURNAL_BYTES, .cs_id = 7, .incarnation = 1};
	memset(cfg.cluster_id, 0xc1, sizeof cfg.cluster_id);
	return vst_cs_open(&cfg, cs, err, err_len);
}

static vst_cs *open_store(void)
{
	char err[512] = "";
	vst_cs *cs;
	int rc = try_open(&cs, err, sizeof err);
	if (rc < 0) {
		fprintf(stderr, "open: %d %s (seed %u)\n", rc, err, seed);
		exit(1);
	}
	return cs;
}

static void crash(vst_cs *cs)
{
	cs_crash((struct cs *)cs);
}

static uint64_t id_of(int i)
{
	return 0x1000u + (uint64_t)i * 257;
}

static void random_bytes(uint8_t *p, size_t n)
{
	uint32_t x = test_random(&seed) | 1;
	for (size_t i = 0; i < n; i += 4) {
		x = x * 1664525u + 1013904223u;
		memcpy(p + i, &x, n - i < 4 ? n - i : 4);
	}
}

static uint32_t below(uint32_t n)
{
	return test_random(&seed) % n;
}

static void step_write(vst_cs *cs, int i)
{
	static const uint32_t sizes[] = {1, 1, 2, 3, 15, 16, 17, 100, 256};
	uint32_t blocks = sizes[below(9)], nblocks = CHUNK_BYTES / CS_BLOCK;
	uint32_t b0 = below(nblocks - blocks + 1);
	random_bytes(buf, (size_t)blocks * CS_BLOCK);
	CHECK_EQ(vst_cs_write(cs, id_of(i), version[i], (uint64_t)b0 * CS_BLOCK, blocks * CS_BLOCK, buf, (int)below(2)),
		 0);
	memcpy(model[i] + (size_t)b0 * CS_BLOCK, buf, (size_t)blocks * CS_BLOCK);
}

static void step_punch(vst_cs *cs, int i)
{
	uint64_t off = below(CHUNK_BYTES), len = 1 + below(below(4) ? 20000 : CHUNK_BYTES);
	if (len > CHUNK_BYTES - off)
		len = CHUNK_BYTES - off;
	CHECK_EQ(vst_cs_punch(cs, id_of(i), version[i], off, len), 0);
	memset(model[i] + off, 0, len);
}

static void step_create(vst_cs *cs, int i)
{
	version[i] = 1 + below(5);
	CHECK_EQ(vst_cs_create(cs, id_of(i), CHUNK_BYTES, version[i], 0), 0);
	CHECK_EQ(vst_cs_create(cs, id_of(i), CHUNK_BYTES, version[i], 0), VST_ERR_EXISTS);
	model[i] = calloc(1, CHUNK_BYTES);
}

static void step(vst_cs *cs)
{
	int i = (int)below(CHUNKS);
	uint32_t what = below(100);

	if (!model[i]) {
		step_create(cs, i);
	} else if (what < 70) {
		step_write(cs, i);
	} else if (what < 85) {
		step_punch(cs, i);
	} else if (what < 88) {
		CHECK_EQ(vst_cs_set_version(cs, id_of(i), version[i] + 1), 0);
		CHECK_EQ(vst_cs_set_version(cs, id_of(i), version[i]), VST_ERR_STALE);
		version[i]++;
	} else if (what < 90) {
		CHECK_EQ(vst_cs_delete(cs, id_of(i)), 0);
		CHECK_EQ(vst_cs_delete(cs, id_of(i)), 0);
		free(model[i]);
		model[i] = NULL;
	} else if (what < 95) {
		CHECK_EQ(vst_cs_sync(cs), 0);
	} else if (what < 97) {
		CHECK_EQ(cs_drain_all((struct cs *)cs), 0);
	} else {
		uint64_t bytes;
		CHECK_EQ(vst_cs_scrub(cs, id_of(i), &bytes), 0);
	}
}

static void compare(vst_cs *cs)
{
	struct vst_cs_chunk list[CHUNKS + 1], st;
	uint32_t n = 0;

	for (int i = 0; i < CHUNKS; i++) {
		int hole;
		if (!model[i]) {
			CHECK_EQ(vst_cs_stat(cs, id_of(i), &st), VST_ERR_NO_CHUNK);
			continue;
		}
		n++;
		CHECK_EQ(vst_cs_stat(cs, id_of(i), &st), 0);
		CHECK_EQ(st.version, version[i]);
		CHECK_EQ(st.bad_blocks, 0);
		for (uint64_t off = 0; off < CHUNK_BYTES; off += VST_IO_BYTES_MAX) {
			CHECK_EQ(vst_cs_read(cs, id_of(i), off, VST_IO_BYTES_MAX, back, &hole), 0);
			if (memcmp(back, model[i] + off, VST_IO_BYTES_MAX) == 0)
				continue;
			for (uint32_t b = 0; b < VST_IO_BYTES_MAX; b++)
				if (back[b] != model[i][off + b]) {
					fprintf(stderr, "chunk %d differs at block %llu (seed %u)\n", i,
						(unsigned long long)(off + b) / CS_BLOCK, seed);
					exit(1);
				}
		}
	}
	CHECK_EQ(vst_cs_list(cs, 0, list, CHUNKS + 1), n);
}

static void forget_model(void)
{
	for (int i = 0; i < CHUNKS; i++) {
		free(model[i]);
		model[i] = NULL;
	}
}

static void test_histories(int rounds, int steps)
{
	fresh_dir();
	for (int r = 0; r < rounds; r++) {
		vst_cs *cs = open_store();
		compare(cs);
		for (uint32_t k = below((uint32_t)steps); k; k--)
			step(cs);
		if (below(4) == 0)
			compare(cs);
		if (below(4) == 0)
			vst_cs_close(cs);
		else
			crash(cs);
	}
	vst_cs *cs = open_store();
	compare(cs);
	vst_cs_close(cs);
	forget_model();
	remove_dir();
}

/* --- the journal file damaged in different ways */

#define LOG_START (4u << 20)
#define ONE_BLOCK_GROUP (2u * CS_BLOCK) /* header and one block of data */

static void flip(const char *name, uint64_t at)
{
	char path[128];
	uint8_t byte;
	snprintf(path, sizeof path, "%s/%s", dir, name);
	int fd = open(path, O_RDWR | O_CLOEXEC);
	CHECK(fd >= 0);
	CHECK_EQ(pread(fd, &byte, 1, (off_t)at), 1);
	byte ^= 0x10;
	CHECK_EQ(pwrite(fd, &byte, 1, (off_t)at), 1);
	CHECK_EQ(fsync(fd), 0);
	close(fd);
}

/* A chunk with three one-block writes, each in a group of its own behind that of the CREATE, none checkpointed. */
static void three_writes(int durable)
{
	fresh_dir();
	vst_cs *cs = open_store();
	CHECK_EQ(vst_cs_create(cs, 9, CHUNK_BYTES, 1, 0), 0);
	for (uint32_t b = 0; b < 3; b++) {
		memset(buf, (int)b + 1, CS_BLOCK);
		CHECK_EQ(vst_cs_write(cs, 9, 1, b * CS_BLOCK, CS_BLOCK, buf, durable), 0);
	}
	crash(cs);
}

static int first_byte(vst_cs *cs, uint32_t block)
{
	int hole;
	CHECK_EQ(vst_cs_read(cs, 9, (uint64_t)block * CS_BLOCK, CS_BLOCK, back, &hole), 0);
	CHECK_EQ(hole, back[0] == 0);
	return back[0];
}

static uint64_t group_at(uint32_t write)
{
	return LOG_START + CS_BLOCK + (uint64_t)write * ONE_BLOCK_GROUP;
}

static void expect_refusal(int want, const char *text)
{
	char err[512] = "";
	vst_cs *cs;
	CHECK_EQ(try_open(&cs, err, sizeof err), want);
	if (!strstr(err, text)) {
		fprintf(stderr, "message: %s\n", err);
		exit(1);
	}
}

static void test_a_torn_tail_ends_the_log(void)
{
	static const uint32_t where[] = {100, CS_BLOCK - 1, CS_BLOCK + 5};
	for (size_t i = 0; i < 3; i++) {
		three_writes(0);
		flip("journal", group_at(2) + where[i]);
		vst_cs *cs = open_store();
		CHECK_EQ(first_byte(cs, 0), 1);
		CHECK_EQ(first_byte(cs, 1), 2);
		CHECK_EQ(first_byte(cs, 2), 0);
		vst_cs_close(cs);
		remove_dir();
	}
}

static void test_damage_to_what_was_flushed_is_no_torn_tail(void)
{
	three_writes(1);
	flip("journal", group_at(1) + CS_BLOCK + 5);
	expect_refusal(-EUCLEAN, "damaged after record 3");
	flip("journal", group_at(1) + CS_BLOCK + 5);
	vst_cs *cs = open_store();
	for (uint32_t b = 0; b < 3; b++)
		CHECK_EQ(first_byte(cs, b), (int)b + 1);
	vst_cs_close(cs);
	remove_dir();
}

/* A group of the run before, in the place where the log goes on, is not taken for a part of it. */
static void test_groups_of_an_earlier_run_are_not_replayed(void)
{
	three_writes(0);
	flip("journal", group_at(1) + 100); /* ends the log; the third group is whole and stays on the disk */
	vst_cs *cs = open_store();
	memset(buf, 0x77, CS_BLOCK);
	CHECK_EQ(vst_cs_write(cs, 9, 1, 10 * CS_BLOCK, CS_BLOCK, buf, 0), 0); /* as long as the one that was lost */
	crash(cs);
	cs = open_store();
	CHECK_EQ(first_byte(cs, 10), 0x77);
	CHECK_EQ(first_byte(cs, 1), 0);
	CHECK_EQ(first_byte(cs, 2), 0);
	vst_cs_close(cs);
	remove_dir();
}

static void test_one_journal_header_is_enough(void)
{
	three_writes(0);
	flip("journal", 20);
	vst_cs *cs = open_store();
	vst_cs_close(cs);
	flip("journal", 21);
	flip("journal", CS_BLOCK + 20);
	expect_refusal(-EUCLEAN, "journal header");
	remove_dir();
}

static void test_refusals(void)
{
	char err[512], path[128];
	vst_cs *cs, *other;

	three_writes(1);
	cs = open_store();
	CHECK_EQ(try_open(&other, err, sizeof err), -EBUSY);
	vst_cs_close(cs);
	struct vst_cs_config cfg = {.dir = dir, .journal_bytes = JOURNAL_BYTES, .cs_id = 8};
	memset(cfg.cluster_id, 0xc1, sizeof cfg.cluster_id);
	CHECK_EQ(vst_cs_open(&cfg, &cs, err, sizeof err), -EINVAL);
	cfg.cs_id = 7;
	cfg.cluster_id[0] = 0;
	CHECK_EQ(vst_cs_open(&cfg, &cs, err, sizeof err), -EINVAL);
	snprintf(path, sizeof path, "%s/journal", dir);
	CHECK_EQ(unlink(path), 0);
	expect_refusal(-EUCLEAN, "journal is missing");
	remove_dir();
	cfg.dir = "/nonexistent";
	CHECK_EQ(vst_cs_open(&cfg, &cs, err, sizeof err), -ENOENT);
}

static void test_a_newer_format_is_refused(void)
{
	uint8_t *block = back;

	three_writes(1);
	char path[128];
	snprintf(path, sizeof path, "%s/chunks/09/0000000000000009", dir);
	int fd = open(path, O_RDWR | O_CLOEXEC);
	CHECK(fd >= 0);
	vst_cs_close(open_store());
	CHECK_EQ(pread(fd, block, CS_BLOCK, 0), CS_BLOCK);
	struct vst_chunk_header h;
	memcpy(&h, block, sizeof h);
	h.format++;
	h.crc = 0;
	memcpy(block, &h, sizeof h);
	h.crc = vst_crc32c(0, block, CS_BLOCK);
	memcpy(block, &h, sizeof h);
	CHECK_EQ(pwrite(fd, block, CS_BLOCK, 0), CS_BLOCK);
	CHECK_EQ(fsync(fd), 0);
	close(fd);
	expect_refusal(-EPROTO, "newer version");
	remove_dir();
}

/* More than the journal holds: writers wait for the checkpoint, nothing fails. */
static void test_a_full_journal_only_delays(void)
{
	struct vst_cs_counters n;
	uint32_t len = 15 * CS_BLOCK, per_chunk = CHUNK_BYTES / len;

	fresh_dir();
	vst_cs *cs = open_store();
	CHECK_EQ(vst_cs_create(cs, 9, CHUNK_BYTES, 1, 0), 0);
	for (uint32_t i = 0; i < 2500; i++) {
		memset(buf, (int)(i % 251), len);
		CHECK_EQ(vst_cs_write(cs, 9, 1, (uint64_t)(i % per_chunk) * len, len, buf, 0), 0);
	}
	vst_cs_get_counters(cs, &n);
	CHECK(n.checkpoints > 0);
	crash(cs);
	cs = open_store();
	for (uint32_t i = 2500 - per_chunk; i < 2500; i++)
		CHECK_EQ(first_byte(cs, i % per_chunk * 15), i % 251);
	vst_cs_close(cs);
	remove_dir();
}

int main(void)
{
	const char *s = getenv("VSTOR_SEED");
	seed = s ? (uint32_t)strtoul(s, NULL, 0) : (uint32_t)time(NULL);
	printf("seed %u\n", seed);
	CHECK_EQ(posix_memalign((void **)&buf, CS_BLOCK, VST_IO_BYTES_MAX), 0);
	CHECK_EQ(posix_memalign((void **)&back, CS_BLOCK, VST_IO_BYTES_MAX), 0);
	test_a_torn_tail_ends_the_log();
	test_damage_to_what_was_flushed_is_no_torn_tail();
	test_groups_of_an_earlier_run_are_not_replayed();
	test_one_journal_header_is_enough();
	test_refusals();
	test_a_newer_format_is_refused();
	test_a_full_journal_only_delays();
	test_histories(30, 120);
	free(buf);
	free(back);
	return 0;
}
