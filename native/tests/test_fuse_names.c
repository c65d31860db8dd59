/* Names and attributes kept in the engine, over a socket pair that plays /dev/fuse: against a model. */
#include <poll.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>
#include "../src/fuse_internal.h"
#include "check.h"

#define INOS 40u
#define NAMES 3000u
#define STEPS 40000u
#define PARENT 7u

static vst_cl *cl;
static int kernel_fd;
static uint64_t unique;

/* One message; then its answer: bytes, or -1 when Python was asked. */
static ssize_t ask(uint32_t op, uint64_t nodeid, const char *name, void *out, size_t room)
{
	static uint8_t message[8192];
	struct fuse_in_header in = {.opcode = op, .nodeid = nodeid, .unique = unique += 2};
	size_t len = op == FUSE_LOOKUP ? strlen(name) + 1 : sizeof(struct fuse_getattr_in);
	struct pollfd p[2] = {{kernel_fd, POLLIN, 0}, {vst_cl_event_fd(cl), POLLIN, 0}};

	memset(message, 0, sizeof message);
	in.len = (uint32_t)(sizeof in + len);
	memcpy(message, &in, sizeof in);
	if (op == FUSE_LOOKUP)
		memcpy(message + sizeof in, name, len);
	CHECK_EQ(write(kernel_fd, message, in.len), in.len);
	for (;;) {
		CHECK(poll(p, 2, 20000) > 0);
		if (p[0].revents) {
			ssize_t n = read(kernel_fd, out, room);
			CHECK(n >= (ssize_t)sizeof(struct fuse_out_header));
			CHECK_EQ(((struct fuse_out_header *)out)->unique, unique);
			return n;
		}
		struct vst_cl_event ev;
		uint64_t drained;
		CHECK_EQ(read(vst_cl_event_fd(cl), &drained, sizeof drained), sizeof drained);
		while (vst_cl_next_event(cl, &ev))
			CHECK_EQ(ev.kind, VST_EV_FUSE);
		if (vst_fuse_take(cl, message, sizeof message) > 0)
			return -1;
	}
}

static struct {
	struct fuse_out_header head;
	union {
		struct fuse_entry_out entry;
		struct fuse_attr_out attr;
	};
} out;

static ssize_t lookup(uint64_t parent, const char *name)
{
	return ask(FUSE_LOOKUP, parent, name, &out, sizeof out);
}

static ssize_t getattr(uint64_t ino)
{
	return ask(FUSE_GETATTR, ino, NULL, &out, sizeof out);
}

static void put_attr(uint64_t ino, uint64_t size, vst_file *f)
{
	struct fuse_attr attr = {.ino = ino, .size = size, .nlink = 1};
	CHECK_EQ(vst_fuse_put_attr(cl, f, ino, ino + 1000, &attr, sizeof attr), 0);
}

static void put_name(uint64_t parent, const char *name, uint64_t ino)
{
	CHECK_EQ(vst_fuse_put_name(cl, parent, name, (uint32_t)strlen(name), ino), 0);
}

static int drop_name(uint64_t parent, const char *name)
{
	return vst_fuse_drop_name(cl, parent, name, (uint32_t)strlen(name));
}

static void name_of(char *text, uint32_t i)
{
	snprintf(text, 32, "%0*u", (int)(1 + i % 20), i);
}

/* Everything Python can do, in any order, and what the kernel hears of it. */
static void test_model(void)
{
	static struct {
		bool there;
		uint64_t ino;
	} names[NAMES];
	static struct {
		bool there;
		uint64_t size, lookups;
	} attrs[INOS];
	uint32_t rnd = 3;
	char text[32];

	for (uint32_t step = 0; step < STEPS; step++) {
		uint32_t i = test_random(&rnd) % NAMES, ino = 2 + test_random(&rnd) % (INOS - 2);
		name_of(text, i);
		switch (test_random(&rnd) % 12) {
		case 0:
		case 1:
		case 2:
		case 3:
			names[i].there = true;
			names[i].ino = test_random(&rnd) % 4 ? ino : 0;
			put_name(PARENT, text, names[i].ino);
			break;
		case 4:
			CHECK_EQ(drop_name(PARENT, text), 0);
			names[i].there = false;
			break;
		case 5:
		case 6:
			attrs[ino].there = true;
			attrs[ino].size = step;
			put_attr(ino, step, NULL);
			break;
		case 7:
			CHECK_EQ(vst_fuse_drop_attr(cl, ino), (int64_t)attrs[ino].lookups);
			attrs[ino].there = false;
			attrs[ino].lookups = 0;
			break;
		case 8:
			if (!attrs[ino].there) {
				CHECK_EQ(getattr(ino), -1);
				break;
			}
			CHECK_EQ(getattr(ino), sizeof out.head + sizeof out.attr);
			CHECK(out.attr.attr.ino == ino && out.attr.attr.size == attrs[ino].size);
			CHECK(out.attr.attr_valid + out.attr.attr_valid_nsec > 0);
			break;
		default:
			ino = (uint32_t)names[i].ino;
			if (!names[i].there || (ino && !attrs[ino].there)) {
				CHECK_EQ(lookup(PARENT, text), -1);
			} else if (!ino) {
				CHECK_EQ(lookup(PARENT, text), sizeof out.head);
				CHECK_EQ(out.head.error, -ENOENT);
			} else {
				CHECK_EQ(lookup(PARENT, text), sizeof out.head + sizeof out.entry);
				CHECK(out.entry.nodeid == ino && out.entry.generation == ino + 1000u);
				CHECK(out.entry.attr.size == attrs[ino].size && out.entry.entry_valid == 0);
				attrs[ino].lookups++;
			}
		}
	}
	for (uint32_t i = 0; i < NAMES; i++) {
		name_of(text, i);
		drop_name(PARENT, text);
	}
	for (uint32_t i = 2; i < INOS; i++)
		vst_fuse_drop_attr(cl, i);
}

static void test_names_left_to_the_kernel(void)
{
	put_attr(5, 1, NULL);
	put_name(1, "here", 5);
	put_name(1, "none", 0);
	vst_fuse_new_epoch(cl, 1);
	CHECK_EQ(lookup(1, "here"), sizeof out.head + sizeof out.entry);
	CHECK(out.entry.nodeid == 5 && out.entry.entry_valid + out.entry.entry_valid_nsec > 0);
	CHECK_EQ(lookup(1, "none"), sizeof out.head + sizeof out.entry);
	CHECK(out.head.error == 0 && out.entry.nodeid == 0 && out.entry.entry_valid + out.entry.entry_valid_nsec > 0);
	CHECK_EQ(drop_name(1, "here"), 1);
	CHECK_EQ(drop_name(1, "here"), 0);
	CHECK_EQ(lookup(1, "here"), -1);
	vst_fuse_new_epoch(cl, 1);
	CHECK_EQ(drop_name(1, "none"), 0);
	CHECK_EQ(vst_fuse_drop_attr(cl, 5), 1);
	vst_fuse_new_epoch(cl, 0);
}

static void test_the_end_of_leases(void)
{
	put_attr(5, 1, NULL);
	CHECK(getattr(5) > 0);
	vst_cl_set_lease_until(cl, 0);
	CHECK_EQ(getattr(5), -1);
	vst_cl_set_lease_until(cl, cl_clock_ms() + 1000000);
	CHECK(getattr(5) > 0);
	vst_fuse_drop_attr(cl, 5);
}

static void test_odd_messages(void)
{
	char long_name[300];

	memset(long_name, 'n', sizeof long_name - 1);
	long_name[sizeof long_name - 1] = 0;
	CHECK_EQ(lookup(1, long_name), -1);
	CHECK_EQ(lookup(1, ""), -1);
	CHECK_EQ(vst_fuse_put_name(cl, 1, long_name, 299, 2), -EINVAL);
	CHECK_EQ(vst_fuse_put_name(cl, 1, "", 0, 2), -EINVAL);
	CHECK_EQ(vst_fuse_put_attr(cl, NULL, 2, 1, long_name, 10), -EINVAL);
}

/* Written to by the engine (here: as it notes it), known to Python or not. */
static void test_writes_end_attributes(void)
{
	vst_file *f = vst_file_new(cl, 9, 1u << 20, 0);
	uint64_t end, mtime_ns;

	CHECK(f);
	put_attr(9, 0, f);
	CHECK(getattr(9) > 0);
	atomic_store(&f->untaken, true);
	fuse_attr_written(f);
	CHECK_EQ(getattr(9), -1);
	put_attr(9, 0, f); /* without having asked the engine */
	CHECK_EQ(getattr(9), -1);
	vst_file_take_dirty(f, &end, &mtime_ns, NULL, 0);
	put_attr(9, 0, f);
	CHECK(getattr(9) > 0);
	CHECK_EQ(vst_fuse_drop_attr(cl, 9), 0);
	vst_file_free(f);
}

int main(void)
{
	struct vst_cl_config cfg = {.auth_mode = 1};
	struct vst_fuse_config fuse = {.max_write = 4096};
	struct vst_cl_counters n;
	int fds[2];

	CHECK_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds), 0);
	kernel_fd = fds[0];
	cl = vst_cl_new(&cfg);
	CHECK(cl && vst_cl_start(cl) == 0);
	CHECK_EQ(vst_fuse_drop_name(cl, 1, "a", 1), 0); /* nothing is mounted yet */
	CHECK_EQ(vst_fuse_drop_attr(cl, 1), 0);
	vst_cl_set_lease_until(cl, cl_clock_ms() + 1000000);
	CHECK_EQ(vst_fuse_start(cl, fds[1], &fuse), 0);
	test_model();
	test_names_left_to_the_kernel();
	test_the_end_of_leases();
	test_odd_messages();
	test_writes_end_attributes();
	put_attr(5, 1, NULL); /* something is left to be freed */
	put_name(1, "here", 5);
	vst_cl_get_counters(cl, &n);
	CHECK(n.fuse_kept > 0 && n.fuse_kept + n.fuse_slow == n.fuse_requests);
	vst_cl_stop(cl);
	vst_cl_free(cl);
	close(fds[0]);
	close(fds[1]);
	printf("ok\n");
	return 0;
}
