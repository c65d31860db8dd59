/* The client engine in C, for the sanitizers: timers and ranges against models, then both engines of the data plane
 * talking to each other in one process: data, holes, append, sync with commit, leases, raw calls.  Faults are tested
 * from Python (tests/unit/native/test_cl*.py). */
#include <poll.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>
#include "../src/cl_internal.h"
#include "check.h"
#include "vstor/cs.h"

#define CHUNK_BYTES (1u << 20)
#define SESSION 77u
#define EXPIRY (1ull << 42)
#define INO 5u
#define SERVERS 2u

/* --- timers ------------------------------------------------------------------------------------------------- */

static void test_timers(void)
{
	enum { N = 500 };
	static struct timer t[N];
	struct vst_cl cl = {0};
	uint32_t rnd = 1, armed = 0;
	uint64_t last = 0;

	for (int step = 0; step < 20000; step++) {
		struct timer *x = &t[test_random(&rnd) % N];
		if (test_random(&rnd) % 3) {
			armed += x->pos == 0;
			CHECK_EQ(timer_set(&cl, x, test_random(&rnd) % 1000), 0);
		} else {
			armed -= x->pos != 0;
			timer_cancel(&cl, x);
		}
		CHECK_EQ(cl.nheap, armed);
		for (uint32_t i = 1; i < cl.nheap; i += 7)
			CHECK(cl.heap[(i - 1) / 2]->at_ms <= cl.heap[i]->at_ms);
	}
	for (struct timer *x; (x = timer_pop(&cl, 500)) != NULL; last = x->at_ms)
		CHECK(x->at_ms >= last && x->at_ms <= 500 && x->pos == 0);
	CHECK(cl.nheap == 0 || cl.heap[0]->at_ms > 500);
	free(cl.heap);
}

/* --- ranges ------------------------------------------------------------------------------------------------- */

/* The rule, said again in the plainest way. */
static bool must_wait(const struct req *later, const struct req *earlier)
{
	bool overlap = later->lo < earlier->hi && earlier->lo < later->hi;
	if (later->op == VST_IO_SYNC)
		return earlier->writes;
	if (earlier->op == VST_IO_SYNC)
		return false;
	return overlap && (later->writes || earlier->writes);
}

static void test_ranges(void)
{
	enum { N = 60 };
	static struct req r[N];
	struct vst_cl cl = {0};
	struct vst_file f = {.cl = &cl};
	uint32_t rnd = 7;

	list_init(&cl.run_reqs);
	list_init(&f.ranges);
	for (int round = 0; round < 200; round++) {
		bool done[N] = {0};
		for (int i = 0; i < N; i++) {
			memset(&r[i], 0, sizeof r[i]);
			r[i].f = &f;
			r[i].op = (int)(1 + test_random(&rnd) % 3);
			r[i].writes = r[i].op == VST_IO_WRITE;
			r[i].lo = r[i].op == VST_IO_SYNC ? 0 : test_random(&rnd) % 40 * VST_BLOCK_BYTES;
			r[i].hi = r[i].op == VST_IO_SYNC ? 0 : r[i].lo + (1 + test_random(&rnd) % 8) * VST_BLOCK_BYTES;
			list_init(&r[i].link);
			list_init(&r[i].order);
			range_add(&r[i]);
		}
		for (int left = N; left > 0; left--) {
			/* each is ready exactly when nothing it must wait for is left */
			struct req *next = NULL;
			for (int i = 0; i < N; i++) {
				bool blocked = false;
				for (int k = 0; k < i; k++)
					blocked |= !done[k] && must_wait(&r[i], &r[k]);
				CHECK(done[i] || (r[i].blockers == 0) == !blocked);
				CHECK(done[i] || r[i].queued == !blocked);
				if (!done[i] && !blocked && (!next || test_random(&rnd) % 2))
					next = &r[i];
			}
			CHECK(next != NULL);
			list_del(&next->link);
			done[next - r] = true;
			range_remove(next);
		}
		CHECK(list_empty(&f.ranges) && list_empty(&cl.run_reqs));
	}
}

/* --- both engines ------------------------------------------------------------------------------------------- */

static char dir[SERVERS][64];
static vst_cs *cs[SERVERS];
static uint16_t port[SERVERS];
static pthread_t thread[SERVERS];
static const uint8_t ticket_key[32] = "tickets";

static void *serve(void *arg)
{
	CHECK_EQ(vst_cs_run(arg), 0);
	return NULL;
}

static void cs_key_of(uint32_t i, uint8_t key[32])
{
	memset(key, (int)i + 1, 32);
}

static void start_server(uint32_t i)
{
	struct vst_cs_config cfg = {.journal_bytes = 64ull << 20, .cs_id = i + 1, .incarnation = 1};
	uint8_t key[32];
	char err[512] = "";

	snprintf(dir[i], sizeof dir[i], "/tmp/vstor-test-XXXXXX");
	CHECK(mkdtemp(dir[i]) != NULL);
	cfg.dir = dir[i];
	CHECK_EQ(vst_cs_open(&cfg, &cs[i], err, sizeof err), 0);
	CHECK_EQ(vst_cs_listen(cs[i], "127.0.0.1", &port[i]), 0);
	cs_key_of(i, key);
	CHECK_EQ(vst_cs_set_cs_key(cs[i], key), 0);
	CHECK_EQ(vst_cs_set_ticket_key(cs[i], 1, ticket_key), 0);
	CHECK_EQ(vst_cs_set_time(cs[i], 0, cl_clock_ms() + 3600000), 0);
	CHECK_EQ(pthread_create(&thread[i], NULL, serve, cs[i]), 0);
}

static void stop_server(uint32_t i)
{
	vst_cs_stop(cs[i]);
	pthread_join(thread[i], NULL);
	vst_cs_close(cs[i]);
	remove_tree(dir[i]);
}

static void ticket_for(uint64_t chunk_id, uint8_t out[64])
{
	struct vst_ticket t = {.session_id = SESSION,
			       .chunk_id = chunk_id,
			       .expiry_ms = EXPIRY,
			       .chunk_version = 1,
			       .chunk_bytes = CHUNK_BYTES,
			       .key_id = 1,
			       .mode = VST_TICKET_MODE_WRITE,
			       .flags = VST_TICKET_FLAG_CREATE};
	vst_ticket_mac(ticket_key, &t, t.mac);
	memcpy(out, &t, 64);
}

static void give_access(vst_cl *cl, uint32_t id)
{
	char address[64];
	uint8_t cs_key[32], key[32];

	snprintf(address, sizeof address, "127.0.0.1:%u", port[id - 1]);
	cs_key_of(id - 1, cs_key);
	vst_session_key(cs_key, SESSION, EXPIRY, key);
	CHECK_EQ(vst_cl_set_cs(cl, id, address, SESSION, EXPIRY, key), 0);
}

/* Answers events until the completion with this cookie, or the event of this kind. */
static struct vst_cl_event run_until(vst_cl *cl, vst_file *f, uint32_t kind, uint64_t cookie)
{
	const uint32_t ids[SERVERS] = {1, 2};
	struct vst_cl_event ev;
	uint64_t end, mtime;
	uint32_t index[8];
	uint8_t ticket[64];

	for (;;) {
		struct pollfd p = {.fd = vst_cl_event_fd(cl), .events = POLLIN};
		CHECK_EQ(poll(&p, 1, 30000), 1);
		while (vst_cl_next_event(cl, &ev)) {
			switch (ev.kind) {
			case VST_EV_NEED_CS:
				give_access(cl, ev.cs_id);
				break;
			case VST_EV_NEED_MAP:
				ticket_for(100 + ev.index, ticket);
				if (ev.write)
					CHECK_EQ(vst_file_set_chunk(f, ev.index, 100 + ev.index, 1, 1, 1, ids, SERVERS,
								    ticket),
						 0);
				else
					CHECK_EQ(vst_file_set_chunk(f, ev.index, 0, 0, 0, 0, NULL, 0, NULL), 0);
				break;
			case VST_EV_COMMIT:
				vst_file_take_dirty(f, &end, &mtime, index, 8);
				CHECK(end == vst_file_size(f) && mtime != 0);
				CHECK_EQ(vst_file_committed(f, ev.cookie, 0), 0);
				break;
			default:
				break;
			}
			if (ev.kind == kind && (kind != VST_EV_IO_DONE || ev.cookie == cookie))
				return ev;
		}
	}
}

static int64_t io(vst_cl *cl, vst_file *f, int op, uint64_t off, uint64_t len, void *buf, uint32_t flags)
{
	static uint64_t cookie;

	CHECK_EQ(vst_file_submit(f, op, off, len, buf, flags, ++cookie), 0);
	return run_until(cl, f, VST_EV_IO_DONE, cookie).result;
}

static void test_data(uint32_t mode)
{
	struct vst_cl_config cfg = {.auth_mode = mode, .io_timeout_ms = 10000};
	size_t len = 2 * CHUNK_BYTES + 777;
	uint8_t *data = malloc(len), *back = malloc(len + 100), ticket[64], hash[32];
	struct vst_cl_counters n;
	uint32_t rnd = mode + 1;
	vst_cl *cl = vst_cl_new(&cfg);
	vst_file *f;

	CHECK(cl && data && back);
	for (uint32_t i = 0; i < SERVERS; i++)
		start_server(i);
	CHECK_EQ(vst_cl_start(cl), 0);
	CHECK_EQ(vst_cl_start(cl), -EALREADY);
	vst_cl_set_lease_until(cl, cl_clock_ms() + 3600000);
	f = vst_file_new(cl, INO, CHUNK_BYTES, 4 * CHUNK_BYTES);
	CHECK(f && !vst_file_new(cl, INO, CHUNK_BYTES + 1, 0));
	CHECK_EQ(vst_file_set_lease(f, VST_LEASE_EXCLUSIVE, 0), 0);

	CHECK_EQ(io(cl, f, VST_IO_READ, 0, len, back, 0), (int64_t)len);
	for (size_t i = 0; i < len; i++)
		CHECK(back[i] == 0);
	vst_file_set_size(f, 0);
	for (size_t i = 0; i < len; i++)
		data[i] = (uint8_t)test_random(&rnd);
	CHECK_EQ(io(cl, f, VST_IO_WRITE, 3, len, data, 0), (int64_t)len);
	CHECK_EQ(io(cl, f, VST_IO_WRITE, 0, 100, data, REQ_APPEND | REQ_DURABLE), 100);
	CHECK_EQ(vst_file_size(f), len + 103);
	CHECK_EQ(io(cl, f, VST_IO_SYNC, 0, 0, NULL, 0), 0);
	CHECK_EQ(io(cl, f, VST_IO_READ, 3, len + 5000, back, 0), (int64_t)len + 100);
	CHECK(memcmp(back, data, len) == 0 && memcmp(back + len, data, 100) == 0);
	CHECK_EQ(io(cl, f, VST_IO_PUNCH, 5003, 60000, NULL, 0), 0);
	memset(data + 5000, 0, 60000);
	CHECK_EQ(io(cl, f, VST_IO_READ, 3, len, back, 0), (int64_t)len);
	CHECK(memcmp(back, data, len) == 0);

	ticket_for(101, ticket);
	struct vst_raw raw = {.cs_id = 2, .chunk_id = 101, .version = 1, .ticket = ticket};
	struct vst_chunk_stat st;
	uint64_t pairs[2];
	int hole = 1;
	CHECK_EQ(vst_raw_read(cl, &raw, 0, CHUNK_BYTES, back, &hole), 0);
	CHECK(!hole && memcmp(back, data + CHUNK_BYTES - 3, CHUNK_BYTES) == 0);
	CHECK_EQ(vst_raw_stat(cl, &raw, &st), 0);
	CHECK_EQ(st.chunk_id, 101);
	CHECK_EQ(vst_raw_granules(cl, &raw, pairs, 1), 1);
	CHECK_EQ(vst_raw_hash(cl, &raw, 0, 4096, hash), 0);
	CHECK_EQ(vst_raw_sync(cl, &raw), 0);
	raw.version = 2;
	CHECK_EQ(vst_raw_stat(cl, &raw, &st), VST_ERR_STALE);

	CHECK_EQ(vst_file_set_lease(f, VST_LEASE_NONE, 9), 0);
	CHECK_EQ(run_until(cl, f, VST_EV_DRAINED, 0).cookie, 9);
	CHECK_EQ(vst_file_submit(f, VST_IO_WRITE, 0, 10, data, 0, 4711), 0); /* parked when the engine stops */
	run_until(cl, f, VST_EV_NEED_LEASE, 0);
	vst_cl_get_counters(cl, &n);
	CHECK(n.writes == 2 && n.syncs == 1 && n.reads == 3 && n.replica_failures == 0 && n.inflight == 1);
	vst_cl_stop(cl);
	CHECK_EQ(run_until(cl, f, VST_EV_IO_DONE, 4711).result, -ESHUTDOWN);
	vst_file_free(f);
	vst_cl_free(cl);
	for (uint32_t i = 0; i < SERVERS; i++)
		stop_server(i);
	free(data);
	free(back);
}

int main(void)
{
	test_timers();
	test_ranges();
	for (uint32_t mode = VST_AUTH_MODE_CRC; mode <= VST_AUTH_MODE_SECURE; mode++)
		test_data(mode);
	printf("ok\n");
	return 0;
}
