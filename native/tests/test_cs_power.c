/* Power cuts at random.  Operations are executed in random order; after a random number of them the power fails
 * (powerdisk.h), and the store is opened again. Whatever was acknowledged and flushed must be there; every block is
 * a state it had since, never anything else. The model lies in shared memory, the store runs in a child that ends with
 * the cut.  VSTOR_SEED repeats a run. */
#include <sys/wait.h>
#include <time.h>
#include "powerdisk.h"

#define CHUNK_BYTES (2u << 20)
#define NBLOCKS (CHUNK_BYTES / CS_BLOCK)
#define CHUNKS 4
#define STATES 24 /* a block may be in; before it is full a SYNC is made */
#define DEPTH 6 /* requests in flight */

static struct {
	int countdown; /* operations until the power fails */
	int plain; /* writes ask for nothing, and a cut loses all that was not flushed */
} power;

static void fail_at_random(void)
{
	static const uint32_t chances[] = {0, 3, 50, 97, 100};
	power_cut(power.plain ? 0 : chances[below(5)], NULL);
}

static void disk_executed(const struct cs_io *io)
{
	(void)io;
	if (power.countdown > 0 && --power.countdown == 0)
		fail_at_random();
}

static unsigned disk_pick(unsigned n)
{
	return below(n);
}

/* --- the model */

enum presence { ABSENT, PRESENT, APPEARING, VANISHING };
struct model {
	uint32_t seed, stamp, cuts, torn; /* torn: the last cut may have torn data blocks */
	enum presence presence[CHUNKS];
	struct {
		uint8_t n;
		uint32_t stamp[STATES]; /* [0]: flushed; the last: what a read returns */
	} block[CHUNKS][NBLOCKS];
};
static struct model *m;
static char dir[64];
static uint8_t *page;

static uint64_t id_of(int i)
{
	return 0x500u + (uint64_t)i;
}

static void fill(uint8_t *p, uint32_t stamp)
{
	for (uint32_t i = 0; i < CS_BLOCK; i += 4)
		memcpy(p + i, &stamp, 4);
}

static void set_block(int i, uint32_t b, uint32_t stamp)
{
	m->block[i][b].n = 1;
	m->block[i][b].stamp[0] = stamp;
}

static void add_state(int i, uint32_t b, uint32_t stamp)
{
	CHECK(m->block[i][b].n < STATES);
	m->block[i][b].stamp[m->block[i][b].n++] = stamp;
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

static void wrong(int i, uint32_t b, const char *what, uint32_t found)
{
	fprintf(stderr, "chunk %d block %u %s %u; may be", i, b, what, found);
	for (int k = 0; k < m->block[i][b].n; k++)
		fprintf(stderr, " %u", m->block[i][b].stamp[k]);
	fprintf(stderr, "\n");
	exit(1);
}

static void check_block(vst_cs *cs, int i, uint32_t b)
{
	int hole, status = vst_cs_read(cs, id_of(i), (uint64_t)b * CS_BLOCK, CS_BLOCK, page, &hole);
	uint32_t found;
	uint8_t want[CS_BLOCK];

	if (status == VST_ERR_CORRUPT && m->torn && m->block[i][b].n > 1) {
		/* Torn, known to be, and nothing flushed was promised about the new content: mend it as a repair would.
		 */
		fill(want, m->block[i][b].stamp[0]);
		CHECK_EQ(vst_cs_write(cs, id_of(i), 1, (uint64_t)b * CS_BLOCK, CS_BLOCK, want, 1), 0);
		set_block(i, b, m->block[i][b].stamp[0]);
		return;
	}
	if (status)
		wrong(i, b, "status", (uint32_t)status);
	memcpy(&found, page, sizeof found);
	fill(want, found);
	if (memcmp(want, page, CS_BLOCK) != 0)
		wrong(i, b, "is torn, begins with", found);
	for (int k = 0; k < m->block[i][b].n; k++)
		if (m->block[i][b].stamp[k] == found) {
			/* Read, not flushed: it must stay readable, but a cut may bring an older state back only until
			 * now. */
			set_block(i, b, found);
			return;
		}
	wrong(i, b, "holds", found);
}

static void check_all(struct cs *cs)
{
	struct vst_cs_chunk st;

	for (int i = 0; i < CHUNKS; i++) {
		int status = vst_cs_stat((vst_cs *)cs, id_of(i), &st);
		if (m->presence[i] == APPEARING || m->presence[i] == VANISHING)
			m->presence[i] = status == 0 ? PRESENT : ABSENT;
		CHECK_EQ(status, m->presence[i] == PRESENT ? 0 : VST_ERR_NO_CHUNK);
		for (uint32_t b = 0; b < NBLOCKS; b++) {
			if (status == 0)
				check_block((vst_cs *)cs, i, b);
			else
				set_block(i, b, 0);
		}
	}
}

struct action {
	struct cs_req req;
	int i, done;
	uint32_t b0, n, stamp;
};

static void finished(struct cs_req *req)
{
	struct action *a = (struct action *)req;
	CHECK_EQ(req->status, 0);
	cs_buf_put(req->cs, req->buf);
	/* Durable: nothing older can come back. (Others in flight do not overlap.) */
	if (req->durable)
		for (uint32_t b = a->b0; b < a->b0 + a->n; b++)
			set_block(a->i, b, a->stamp);
	a->done = 1;
}

static int overlaps(const struct action *acts, int n, int i, uint32_t b0, uint32_t blocks)
{
	for (int k = 0; k < n; k++)
		if (acts[k].i == i && acts[k].b0 < b0 + blocks && b0 < acts[k].b0 + acts[k].n)
			return 1;
	return 0;
}

static int room(int i, uint32_t b0, uint32_t blocks)
{
	for (uint32_t b = b0; b < b0 + blocks; b++)
		if (m->block[i][b].n >= STATES)
			return 0;
	return 1;
}

static void start(struct cs *cs, struct action *a, int i, uint32_t b0, uint32_t blocks)
{
	*a = (struct action){.i = i, .b0 = b0, .n = blocks};
	struct cs_req *r = &a->req;
	r->cs = cs;
	r->c = cs_chunk_find(cs, id_of(i));
	CHECK(r->c != NULL);
	r->op = power.plain || below(5) ? CS_WRITE : CS_PUNCH;
	r->local = 1;
	r->done = finished;
	r->version = 1;
	r->durable = !power.plain && below(5) == 0;
	r->off = (uint64_t)b0 * CS_BLOCK;
	r->len = (uint64_t)blocks * CS_BLOCK;
	a->stamp = r->op == CS_WRITE ? ++m->stamp : 0;
	for (uint32_t b = b0; b < b0 + blocks; b++)
		add_state(i, b, a->stamp);
	if (r->op == CS_WRITE) {
		r->buf = cs_buf_get(cs, r->len);
		for (uint32_t b = 0; b < blocks; b++)
			fill(r->buf->data + (size_t)b * CS_BLOCK, a->stamp);
	} else {
		/* A PUNCH of what is unwritten journals nothing: then durable says nothing about an earlier one. */
		r->durable = 0;
	}
	cs_req_start(r);
}

static void step_io(struct cs *cs)
{
	static const uint32_t sizes[] = {1, 1, 1, 2, 5, 15, 16, 40, 200};
	struct action acts[DEPTH];
	int n = 0, want = 1 + (int)below(DEPTH);

	for (int tries = 0; n < want && tries < 20; tries++) {
		uint32_t blocks = sizes[below(9)], b0 = below(NBLOCKS - blocks + 1);
		int i = (int)below(CHUNKS);
		if (m->presence[i] == PRESENT && !overlaps(acts, n, i, b0, blocks) && room(i, b0, blocks))
			start(cs, &acts[n++], i, b0, blocks);
	}
	for (int k = 0; k < n; k++)
		while (!acts[k].done)
			cs_turn(cs, 0);
}

static void step_sync(struct cs *cs)
{
	CHECK_EQ(vst_cs_sync((vst_cs *)cs), 0);
	for (int i = 0; i < CHUNKS; i++)
		for (uint32_t b = 0; b < NBLOCKS; b++)
			set_block(i, b, m->block[i][b].stamp[m->block[i][b].n - 1]);
}

static void step_order(struct cs *cs)
{
	int i = (int)below(CHUNKS);

	if (m->presence[i] == ABSENT) {
		m->presence[i] = APPEARING;
		CHECK_EQ(vst_cs_create((vst_cs *)cs, id_of(i), CHUNK_BYTES, 1, 0), 0);
		m->presence[i] = PRESENT;
	} else if (below(3) == 0) {
		m->presence[i] = VANISHING;
		CHECK_EQ(vst_cs_delete((vst_cs *)cs, id_of(i)), 0);
		m->presence[i] = ABSENT;
		for (uint32_t b = 0; b < NBLOCKS; b++)
			set_block(i, b, 0);
	}
}

static void child(void)
{
	seed = m->seed;
	int torn = below(4) == 0;
	power.countdown = 1 + (int)below(below(3) ? 300 : 3000);
	struct cs *cs = open_store();
	check_all(cs);
	m->torn = (uint32_t)torn;
	power_torn = torn;
	for (;;) {
		uint32_t what = below(100);
		if (what < 70)
			step_io(cs);
		else if (what < 80) {
			/* What SYNC itself flushes is only seen when nothing else flushed it before or after. */
			if ((power.plain = below(6) == 0))
				step_io(cs);
			step_sync(cs);
			if (power.plain)
				fail_at_random();
		} else if (what < 90)
			cs->ck.wanted = 1; /* a checkpoint runs beside what follows */
		else if (what < 92)
			CHECK_EQ(cs_drain_all(cs), 0);
		else
			step_order(cs);
		if (below(20) == 0)
			for (int i = 0; i < CHUNKS; i++)
				for (uint32_t b = 0; b < NBLOCKS && m->presence[i] == PRESENT; b++)
					if (m->block[i][b].n > STATES / 2) {
						step_sync(cs);
						break;
					}
	}
}

int main(void)
{
	const char *s = getenv("VSTOR_SEED"), *c = getenv("VSTOR_CUTS");
	uint32_t cuts = c ? (uint32_t)atoi(c) : 40, first = s ? (uint32_t)strtoul(s, NULL, 0) : (uint32_t)time(NULL);

	printf("seed %u\n", first);
	fflush(stdout);
	m = mmap(NULL, sizeof *m, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(m != MAP_FAILED);
	power_data_off = (1 + (NBLOCKS + CS_PAGE_BLOCKS - 1) / CS_PAGE_BLOCKS) * CS_BLOCK;
	power_file_bytes = power_data_off + CHUNK_BYTES;
	page = vst_buf_alloc(CS_BLOCK);
	CHECK(page != NULL);
	for (int i = 0; i < CHUNKS; i++)
		for (uint32_t b = 0; b < NBLOCKS; b++)
			set_block(i, b, 0);
	snprintf(dir, sizeof dir, "/tmp/vstor-test-XXXXXX");
	CHECK(mkdtemp(dir) != NULL);
	for (m->cuts = 0; m->cuts < cuts; m->cuts++) {
		m->seed = first + m->cuts;
		pid_t pid = fork();
		CHECK(pid >= 0);
		if (pid == 0)
			child();
		int status;
		CHECK_EQ(waitpid(pid, &status, 0), pid);
		if (!WIFEXITED(status) || WEXITSTATUS(status) != 42) {
			fprintf(stderr, "cut %u of seed %u: child ended with %d; directory %s\n", m->cuts, first,
				status, dir);
			return 1;
		}
	}
	remove_tree(dir);
	return 0;
}
