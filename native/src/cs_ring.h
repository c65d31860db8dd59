/* Disk I/O and readiness with completion callbacks, on one thread.  Three ways behind one interface:
 * SYNC executes at once (before and after the engine runs; no watches), URING is io_uring, POOL is epoll and a few I/O
 * threads. */
#ifndef VSTOR_CS_RING_H
#define VSTOR_CS_RING_H
#include <stddef.h>
#include <stdint.h>

enum cs_ring_mode { CS_RING_SYNC, CS_RING_URING, CS_RING_POOL };
enum cs_io_op { CS_IO_READ, CS_IO_WRITE, CS_IO_FDATASYNC, CS_IO_FSYNC, CS_IO_PUNCH, CS_IO_UNLINK };

/* One disk operation.  Owned by the caller, untouched by it until done is called (from cs_ring_turn, once).
 * res: 0 or negative errno; short transfers are carried on here, a read past the end gives zeros. */
struct cs_io {
	void (*done)(struct cs_io *io, int res);
	struct cs_io *next;
	uint8_t *buf;
	uint64_t off, len; /* bytes */
	uint64_t moved;
	const char *path; /* UNLINK: relative to fd, lives until done */
	int fd, res;
	uint8_t op, dsync; /* dsync: RWF_DSYNC on a write */
};

#define CS_EV_IN 1u
#define CS_EV_OUT 2u
#define CS_EV_END 4u /* with IN: the peer has closed, or the socket failed */
/* A file descriptor to be told about, edge triggered: read until EAGAIN. ready may come without cause. */
struct cs_watch {
	void (*ready)(struct cs_watch *w, unsigned events);
	void (*gone)(struct cs_watch *w); /* after cs_watch_del: no more callbacks, memory may go */
	struct cs_watch *next;
	int fd;
	uint8_t pending, closing, in_armed, out_armed;
};

struct cs_ring;
struct cs_ring *cs_ring_new(enum cs_ring_mode mode, int *err); /* NULL and *err = negative errno */
void cs_ring_free(struct cs_ring *r);
enum cs_ring_mode cs_ring_mode_of(const struct cs_ring *r);
void cs_ring_submit(struct cs_ring *r, struct cs_io *io);
int cs_watch_add(struct cs_ring *r, struct cs_watch *w); /* input events from now on */
void cs_watch_want_out(struct cs_ring *r, struct cs_watch *w); /* one output event when it can be written */
void cs_watch_del(struct cs_ring *r, struct cs_watch *w);
/* Submit, wait at most timeout_ms for something to happen (0: do not wait), call back. */
void cs_ring_turn(struct cs_ring *r, int timeout_ms);
unsigned cs_ring_inflight(const struct cs_ring *r); /* disk operations not done */
#endif
