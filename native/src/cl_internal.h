/* Inside of the client engine (contract: include/vstor/client.h).
 *
 * DESIGN.  One engine thread owns everything here without locks.  Other threads hand in commands (cl_engine.c) and take
 * events (cl_event.c). req   what a caller asked: a byte range of a file, ordered by the file's range lock (cl_range.c)
 *   part  a piece of a req inside one chunk, at most io_bytes_max; it is sent, parked (waits for a map, a lease, a
 * newer version) or delayed (back-off) until it is done: a req ends when its parts have xfer  one frame of one part (or
 * raw call) to one chunk server, and its reply Nothing calls back synchronously: what may run again goes to
 * cl->run_parts, cl->run_reqs or cl->failed, which the loop empties (cl_run), so that recursion is bounded.  A buffer
 * is referenced by a connection until its xfer ends, and every xfer ends: by its reply or with the connection, which is
 * dropped when it makes no progress.  So a part is sent again only after all its xfers have ended. */
#ifndef VSTOR_CL_INTERNAL_H
#define VSTOR_CL_INTERNAL_H
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include "vstor/client.h"
#include "vstor/frame.h"
#include "vstor/session.h"

/* --- bounds ------------------------------------------------------------------------------------------------ */
#define CL_REQS_MAX 65536u /* submitted by vst_file_submit and not completed; above it -EAGAIN */
#define CL_XFERS_MAX 262144u /* frames in flight and waiting; above it parts are delayed */
#define CL_PARTS_PER_REQ 16u /* parts of one large request at work at a time */
#define CL_FRAMES_PER_CONN 256u /* in flight on one connection: what the server reads before it stops */
#define CL_BYTES_PER_CONN (32u << 20) /* of unanswered write data: so that a slow disk is not taken for a dead one */
#define CL_HANDLES_PER_CONN 32768u /* open chunks; the least recently used idle one is closed */
#define CL_ADDRESSES_MAX 8u
#define CL_BACKOFF_MIN_MS 50u /* between attempts to connect */
#define CL_BACKOFF_MAX_MS 2000u
#define CL_RETRY_MIN_MS 10u /* between passes of a part */
#define CL_RETRY_MAX_MS 1000u
#define CL_KEY_WAIT_MS 5000u /* how long a frame waits for vst_cl_set_cs before its part is delayed */
#define CL_SYNC_TIMEOUT_FACTOR 10u /* a flush may take longer than a write: times io_timeout_ms */
#define CL_HARD_TIMEOUT_FACTOR 10u /* one frame, though others on the connection are answered: times io_timeout_ms */
#define CL_CRC_RETRIES 3u /* CRC_MISMATCH answers to one part before the replica is reported */
#define CL_RBUF_BYTES (128u << 10)
#define CL_DIRECT_MIN 16384u /* larger replies are received straight into the destination */
#define CL_TOUCHED_MAX 64u
#define CL_BEHIND_MS 5u /* how long neighbours are waited for */
#define CL_BEHIND_BYTES_MAX                                                                                            \
	(16u << 20) /* answered, not on the replicas, of all files; above it writes are waited for */
#define CL_BEHIND_REQS_MAX 256u /* of one file */
#define CL_BAD_BLOCK_EVENTS_MAX 256u /* queued; more are only counted: the scrubber finds them too */
#define CL_INLINE_TABLE 10u /* CRC entries inside a part: 32 KiB and its unaligned ends */

#define CL_ST_NOKEY (-1) /* internal status: no session key came in time */

/* --- lists ------------------------------------------------------------------------------------------------- */
struct link {
	struct link *prev, *next;
};
static inline void list_init(struct link *l)
{
	l->prev = l->next = l;
}
static inline bool list_empty(const struct link *l)
{
	return l->next == l;
}
static inline void list_add(struct link *head, struct link *n) /* at the end */
{
	n->prev = head->prev;
	n->next = head;
	head->prev->next = n;
	head->prev = n;
}
static inline void list_del(struct link *n) /* idempotent */
{
	n->prev->next = n->next;
	n->next->prev = n->prev;
	n->prev = n->next = n;
}
static inline void list_move_all(struct link *from, struct link *to) /* to must be empty */
{
	list_init(to);
	if (list_empty(from))
		return;
	*to = *from;
	to->next->prev = to;
	to->prev->next = to;
	list_init(from);
}
#define cl_container(ptr, type, member) ((type *)(void *)((char *)(ptr)-offsetof(type, member)))
#define list_first(head, type, member) cl_container((head)->next, type, member)
#define list_each(pos, head) for (struct link *pos = (head)->next; pos != (head); pos = pos->next)

enum timer_kind { TIMER_PART = 1, TIMER_CS = 2, TIMER_GATHER = 3 };
struct timer {
	uint64_t at_ms;
	uint32_t pos; /* index in the heap + 1, 0: not armed */
	uint8_t kind;
};

/* --- chunk servers ----------------------------------------------------------------------------------------- */
enum cs_state {
	CS_IDLE, /* never tried, or worth a try */
	CS_NOKEY, /* waits for vst_cl_set_cs */
	CS_CONNECTING,
	CS_HELLO,
	CS_PROVE,
	CS_READY,
	CS_BACKOFF, /* the last attempt failed */
};
enum pollee_kind { POLL_WAKE = 1, POLL_CS = 2, POLL_FUSE = 3 };
struct pollee {
	int kind;
};
struct cs_addr {
	struct sockaddr_storage ss;
	socklen_t len;
};
struct xfer;
struct cs {
	struct pollee poll; /* first: epoll's pointer */
	struct cs *hash_next;
	struct vst_cl *cl;
	uint32_t id;
	enum cs_state state;
	/* access */
	struct cs_addr addr[CL_ADDRESSES_MAX];
	uint32_t naddr, addr_at;
	bool local; /* has a unix address */
	bool have_key, need_cs_sent, wanted;
	bool refused; /* this key was */
	bool renew; /* reconnect with the new key when nothing is in flight */
	bool key_suspect; /* a request got EXPIRED: a new key replaces the session even while it lives */
	uint64_t session_id, expiry_ms;
	uint8_t key[32];
	/* connection */
	int fd;
	bool polling_out, dirty; /* dirty: on cl->dirty */
	bool broken; /* cannot go on: conn_flush drops the connection */
	struct link dirty_link;
	struct vst_hello hello;
	struct vst_hello_ack ack;
	uint8_t proof[32];
	struct vst_seal *tx_seal, *rx_seal;
	size_t tag_len;
	uint64_t incarnation; /* of the running connection */
	struct link waiting; /* xfers that are not on the connection yet */
	struct link inflight; /* xfers on the connection, oldest first */
	uint32_t ninflight;
	uint64_t inflight_bytes;
	struct link tx; /* of xfers not fully sent (tx_link) */
	size_t tx_off; /* sent of the first */
	/* receiving */
	uint8_t *rbuf;
	size_t rpos, rend;
	struct xfer *direct; /* reply being received into its destination */
	struct vst_frame direct_hdr;
	uint32_t direct_table[VST_TABLE_BYTES_MAX / 4];
	uint8_t direct_tag[16];
	size_t direct_got;
	/* handles */
	struct link handles; /* least recently used first */
	uint32_t nhandles, next_slot, nfree;
	uint32_t *free_slots;
	/* time */
	struct timer timer;
	uint32_t backoff_ms;
	uint64_t progress_ms; /* last time the connection moved */
	uint64_t tick_ms; /* last conn_tick */
	uint32_t read_lat; /* how long reads took here, moving average, ms * 16 */
	uint64_t read_lat_ms; /* when that was last measured, or when a slow one was last tried again */
};

/* A chunk opened on the connection. */
enum handle_state { HANDLE_OPENING, HANDLE_OPEN, HANDLE_FAILED };
struct rep;
struct handle {
	struct link lru; /* on cs->handles */
	struct cs *cs; /* NULL: its connection is gone */
	struct rep *rep; /* who looks it up; NULL: forgotten */
	uint64_t chunk_id;
	uint32_t slot, refs;
	enum handle_state state;
	int status; /* why opening failed */
	struct link held; /* failed xfers that wait for the OPEN reply to know why */
};

/* One version of a chunk's map; immutable but for handles. */
struct rep {
	struct cs *cs;
	struct handle *handle;
};
struct cmap {
	uint32_t refs, version, flags, n, rotor;
	uint64_t chunk_id;
	uint32_t failed_mask; /* replicas reported with REPLICA_FAILED */
	bool for_write;
	uint8_t ticket[sizeof(struct vst_ticket)];
	struct rep rep[VST_REPLICAS_MAX];
};
#define CMAP_VOID 1u /* flag of ChunkMap: never reported written */

/* --- files ------------------------------------------------------------------------------------------------- */
struct chunk {
	struct chunk *hash_next;
	struct vst_file *f;
	uint32_t index;
	struct cmap *map; /* NULL: unknown, or a hole */
	bool hole;
	uint8_t asked; /* NEED_MAP out: 0, 1 read, 2 write */
	bool failed; /* writes wait for a newer map than failed_version */
	uint32_t failed_version;
	uint32_t fail_seq; /* answers of vst_file_fail so far, and the last one's errno */
	int fail_error;
	struct link parked; /* parts */
	/* written and not known to be on stable storage: which incarnation of which server has acknowledged it first */
	struct link dirty; /* on f->dirty */
	uint64_t ack_seq; /* last write acknowledged */
	uint32_t nunsynced;
	struct {
		uint32_t cs_id;
		uint64_t incarnation;
	} unsynced[VST_REPLICAS_MAX + 1];
	/* first write of a void chunk, for vst_file_take_dirty */
	struct link first; /* on f->first */
	uint64_t first_chunk_id; /* chunk already listed */
};

struct drain {
	struct link link; /* on f->drains */
	uint64_t epoch, token;
	uint32_t remaining;
};

struct vst_file {
	struct link link; /* on cl->files */
	struct link idle; /* on cl->idle: the last request went, and someone waits to free it */
	struct vst_cl *cl;
	uint64_t ino;
	uint32_t chunk_bytes;
	_Atomic uint64_t size;
	uint64_t append_end; /* size and all writes under way: where an append goes */
	uint64_t tail_end; /* up to here, the end of a chunk, there may be data of a writer that died behind append_end
			    */
	int tail_error; /* > 0: clearing it failed */
	struct chunk **table;
	uint32_t table_size, nchunks;
	struct link dirty, first;
	uint64_t ack_seq;
	uint32_t losses, losses_told; /* times acknowledged writes were lost; up to which a SYNC has said so */
	/* lease */
	int mode;
	uint8_t asked_lease; /* NEED_LEASE out: 0, 1 read, 2 write */
	uint64_t epoch;
	uint64_t revoked; /* requests admitted before this epoch wait for the lease again */
	uint32_t active; /* requests that run under a lease */
	struct link drains;
	struct link lease_reqs; /* not admitted */
	struct link lease_parts; /* stopped by the end of the lease */
	/* order */
	struct link ranges; /* reqs in order of arrival */
	uint32_t nreqs; /* all there are, wherever they wait */
	/* what the MDS must learn */
	uint64_t dirty_end, dirty_mtime_ns;
	atomic_bool untaken; /* there is something for vst_file_take_dirty */
	atomic_bool attr_kept; /* its attributes are among what LOOKUP and GETATTR are answered with (fuse_names.c) */
	uint64_t meta_seq, committed_seq; /* moves with size and first-written chunks; last known to be committed */
	struct link commits; /* reqs that raised COMMIT */
	uint64_t taken_seq; /* meta_seq when vst_file_take_dirty last left nothing behind */
	bool flush_slow; /* FLUSH goes to Python, which releases POSIX locks */
	uint64_t touched[CL_TOUCHED_MAX * 2];
	int ntouched; /* -1: overflow */
	uint32_t nbinds; /* kernel handles bound to it */
	/* write-behind */
	struct req *gather; /* answered, not begun: neighbours may join it */
	struct timer gather_timer;
	uint32_t nbehind;
	int behind_error; /* of a write that was answered before; not yet told */
	struct cmd *free_waiter;
};

/* --- requests ---------------------------------------------------------------------------------------------- */
enum done_kind { DONE_EVENT, DONE_WAITER, DONE_FUSE, DONE_TAIL };
struct waiter {
	sem_t sem;
	int64_t result;
};
struct req {
	struct link link; /* f->lease_reqs, cl->run_reqs or f->commits */
	struct link order; /* f->ranges */
	struct vst_file *f;
	int op;
	uint32_t flags;
	uint64_t off, len, next; /* next: first byte without a part */
	uint8_t *buf;
	uint32_t blockers; /* earlier conflicting requests */
	uint32_t parts, lease_parked;
	uint64_t lo, hi; /* range locked, whole blocks */
	bool writes, queued, counted, started, behind_gap;
	int error; /* > 0 */
	uint32_t losses_told; /* of the file, when a SYNC began */
	uint64_t epoch, seq; /* seq: f->ack_seq a SYNC covers; f->meta_seq a COMMIT covers */
	uint64_t t0_ns;
	struct link ready; /* SYNC: parts to group into frames */
	enum done_kind done_kind;
	uint64_t cookie; /* of the caller */
	uint64_t commit_cookie;
	struct waiter *waiter;
	/* FUSE */
	void *fuse_buf; /* buffer to give back, and its class */
	int fuse_class;
	bool parked; /* counted as waiting */
	bool touch, seek_hole;
	bool behind; /* answered already (cl_behind.c) */
	uint32_t fuse_op;
	uint64_t asked_off; /* where the kernel meant an append to go; LSEEK */
};
#define REQ_DURABLE 1u
#define REQ_APPEND 2u
#define REQ_TAIL 4u /* PUNCH also behind the end of the file */

struct part {
	uint32_t fail_seq; /* of the chunk when this pass began */
	struct link link; /* chunk->parked, f->lease_parts, cl->run_parts or req->ready */
	struct req *req;
	struct chunk *chunk;
	struct cmap *map; /* of this pass */
	uint64_t asked_ms; /* READ: when the replica was asked */
	uint64_t off; /* in the chunk */
	uint32_t len, table_len;
	uint8_t *buf;
	uint32_t *table;
	uint32_t inline_table[CL_INLINE_TABLE];
	uint32_t outstanding; /* xfers */
	uint32_t tried, corrupt, badmap, absent; /* READ: masks of replicas of this pass */
	uint32_t ok; /* WRITE, SYNC: replicas done */
	uint32_t bad; /* WRITE, SYNC: replicas reported */
	uint32_t changed; /* SYNC: replicas that restarted */
	bool stale, nospace, again; /* WRITE, SYNC: what the pass met */
	int fatal; /* errno */
	uint8_t crc_errors, attempts;
	bool asked_map;
	bool parked; /* counted as waiting */
	bool on_lease, alone; /* alone: SYNC in a frame of its own, to know whose error it is */
	uint64_t not_before_ms;
	struct timer timer;
	uint64_t incarnation[VST_REPLICAS_MAX]; /* at the acknowledgement */
	uint64_t revoked; /* WRITE: of the file, when this pass began */
};

enum xfer_kind { X_GREETING, X_OPEN, X_CLOSE, X_PART, X_SYNC, X_RAW };
struct sync_item {
	struct part *part;
	uint32_t replica;
	struct handle *handle;
};
struct raw_op {
	struct cmap *map;
	uint8_t type;
	uint64_t off;
	uint32_t len;
	void *buf; /* READ: destination; else the reply's data */
	uint32_t buf_len, got;
	int hole, status;
	struct cmd *cmd;
};
struct xfer {
	struct link link; /* cs->waiting, cs->inflight, handle->held or cl->failed */
	struct link tx_link;
	struct cs *cs;
	uint64_t id; /* generation << 32 | index in the slab */
	enum xfer_kind kind;
	bool on_wire, sent, replied;
	int status;
	struct part *part;
	uint32_t replica;
	struct raw_op *raw;
	struct handle *handle;
	struct sync_item *items;
	uint32_t *slots; /* SYNC data */
	uint32_t nitems;
	uint64_t sent_ms;
	const void *table;
	const void *data; /* of the request */
	void *dest; /* READ: where the reply's data goes */
	void *bounce; /* encrypted copy */
	struct vst_frame hdr;
	uint8_t tag[16];
};

/* --- engine ------------------------------------------------------------------------------------------------ */
struct cmd {
	struct cmd *next;
	void (*run)(struct vst_cl *cl, struct cmd *c); /* engine thread; a call without sem frees itself */
	sem_t *sem; /* posted when done, by run or later */
	int64_t result;
	struct vst_file *f;
	uint64_t a, b;
	const void *p;
	void *q, *r;
	uint32_t n;
};

struct event_node {
	struct link link;
	struct vst_file *f;
	struct vst_cl_event ev;
};
enum engine_state { ENGINE_NEW, ENGINE_RUNNING, ENGINE_STOPPED };
#define CS_HASH 256u
struct fuse;
struct vst_cl {
	struct vst_cl_config cfg;
	struct pollee wake;
	pthread_t thread;
	int epfd, wake_fd, event_fd;
	/* commands */
	pthread_mutex_t mu;
	enum engine_state state;
	struct cmd *cmd_head, *cmd_tail;
	atomic_bool cmds_waiting;
	atomic_bool stopping;
	atomic_uint nreqs;
	/* events */
	pthread_mutex_t event_mu;
	struct link events, free_events;
	uint32_t nfree_events;
	bool event_signalled, event_pending;
	uint32_t bad_block_events; /* queued */
	/* engine thread only */
	struct cs *cs[CS_HASH];
	struct link files, dirty, failed, run_parts, run_reqs, idle;
	struct link free_parts, free_reqs;
	uint32_t nfree_parts, nfree_reqs;
	struct xfer **xfers; /* slab by index */
	uint32_t nxfers, nxfers_free;
	uint32_t *xfers_free;
	struct timer **heap;
	uint32_t nheap, heap_size;
	uint64_t now_ms; /* CLOCK_BOOTTIME, once a turn */
	_Atomic uint64_t lease_until;
	uint64_t lease_seen;
	uint64_t next_commit;
	uint64_t behind_bytes;
	struct fuse *fuse;
	struct vst_cl_counters n; /* written by the engine thread, read with relaxed atomics */
};
/* Requests and parts that wait for Python: a gauge. */
#define PARK(obj, cl, on)                                                                                              \
	do {                                                                                                           \
		if ((obj)->parked != (on))                                                                             \
			COUNT(cl, parked, (on) ? 1 : -1);                                                              \
		(obj)->parked = (on);                                                                                  \
	} while (0)
#define COUNT(cl, field, by) __atomic_fetch_add(&(cl)->n.field, (uint64_t)(by), __ATOMIC_RELAXED)

/* cl_engine.c */
uint64_t cl_clock_ms(void);
uint64_t cl_clock_ns(void);
int cl_post(struct vst_cl *cl, struct cmd *c); /* asynchronous, c from calloc */
int64_t cl_call(struct vst_cl *cl, struct cmd *c); /* blocks for c->result */
void cl_cmd_done(struct cmd *c, int64_t result);
void cl_run_cmds(struct vst_cl *cl);
void cl_run(struct vst_cl *cl);

/* cl_timer.c */
int timer_set(struct vst_cl *cl, struct timer *t, uint64_t at_ms);
void timer_cancel(struct vst_cl *cl, struct timer *t);
struct timer *timer_pop(struct vst_cl *cl, uint64_t now_ms); /* NULL: none is due */

/* cl_event.c */
void event_push(struct vst_cl *cl, struct vst_file *f, const struct vst_cl_event *ev);
void event_forget(struct vst_cl *cl, struct vst_file *f);
void event_signal(struct vst_cl *cl); /* end of a turn */

/* cl_cs.c: access to chunk servers, connecting */
struct cs *cs_get(struct vst_cl *cl, uint32_t id); /* made when new; NULL no memory */
void cs_submit(struct cs *cs, struct xfer *x);
void cs_want(struct cs *cs); /* try to connect although nothing waits */
void cs_need_key(struct cs *cs);
void cs_suspect_key(struct cs *cs); /* a request got EXPIRED: the session may be over */
void cs_fail(struct cs *cs, int status); /* drop the connection, end its xfers */
void cs_fail_waiting(struct cs *cs, int status);
void cs_renew(struct cs *cs); /* nothing is in flight: reconnect with the new key */
void cs_event(struct cs *cs, uint32_t epoll_events);
void cs_timer(struct cs *cs);
void cs_free(struct cs *cs);
void cs_pollout(struct cs *cs, bool on);

/* cl_conn.c: sending; cl_rx.c: receiving */
void conn_start(struct cs *cs); /* connected: say HELLO */
void conn_flush(struct cs *cs);
void conn_mark(struct cs *cs); /* flush at the end of the turn */
int conn_greeted(struct cs *cs, const struct vst_frame *hdr, const void *data); /* 0 or a status: drop it */
void conn_queue(struct cs *cs, struct xfer *x); /* seal and append */
void conn_readable(struct cs *cs);
void conn_tick(struct cs *cs);

/* cl_xfer.c */
struct xfer *xfer_new(struct vst_cl *cl, struct cs *cs, enum xfer_kind kind, uint8_t type);
void xfer_free(struct vst_cl *cl, struct xfer *x);
struct xfer *xfer_find(struct vst_cl *cl, uint64_t id);
void xfer_fail_later(struct vst_cl *cl, struct xfer *x, int status);
void xfer_end(struct xfer *x, int status, const struct vst_frame *hdr, const void *data); /* reply complete or failed */

/* cl_handle.c */
struct cmap *cmap_new(struct vst_cl *cl, uint64_t chunk_id, uint32_t version, uint32_t flags, int for_write,
		      const uint32_t *cs_ids, uint32_t n, const uint8_t *ticket);
void cmap_unref(struct cmap *m);
int handle_get(struct cs *cs, struct cmap *m, struct rep *rep, struct handle **out); /* may queue an OPEN */
void handle_put(struct handle *h);
void handle_opened(struct handle *h, int status);
void handles_lost(struct cs *cs); /* with the connection */

/* cl_file.c */
struct chunk *chunk_get(struct vst_file *f, uint32_t index); /* made when new */
struct chunk *chunk_find(struct vst_file *f, uint32_t index);
void chunk_need_map(struct chunk *c, int write, int status);
void chunk_drop_map(struct chunk *c, struct cmap *m); /* when it is still this one */
void chunk_drop(struct chunk *c);
void file_free_now(struct vst_file *f);
void file_check_idle(struct vst_file *f); /* after its last request, maybe */
void file_idle(struct vst_file *f);
/* cl_lease.c */
bool lease_admit(struct req *r); /* false: parked */
bool lease_valid(struct vst_cl *cl);
bool lease_revoked(const struct req *r);
void lease_park_part(struct part *p);
void lease_uncount(struct req *r);
void lease_wake(struct vst_file *f);
void lease_wake_all(struct vst_cl *cl);
/* cl_range.c */
void range_add(struct req *r);
void range_remove(struct req *r);
/* cl_req.c */
struct req *req_new(struct vst_cl *cl, struct vst_file *f, int op);
void req_free(struct vst_cl *cl, struct req *r);
void req_begin(struct req *r); /* from the caller: admission, order, parts */
void req_prepare(struct req *r); /* its first part: it exists */
void req_written(struct req *r); /* size and times */
void req_admitted(struct req *r);
void req_queue(struct req *r); /* to cl->run_reqs */
void req_run(struct req *r);
void req_end_early(struct req *r, int error); /* not yet running */
void req_committed(struct req *r, int error);
void req_append_end(struct vst_file *f);
void req_finish(struct req *r);
void part_queue(struct part *p); /* to cl->run_parts */
void part_run(struct part *p);
void part_park(struct part *p);
void part_park_for_map(struct part *p);
void part_retry(struct part *p); /* with back-off, from chunk->parked */
void part_backoff(struct part *p); /* parked parts woken by a map wait for it */
void part_done(struct part *p, int error);
void part_wake_chunk(struct chunk *c);
void part_timer(struct part *p);
struct part *part_new(struct req *r, struct chunk *c);
/* cl_read.c, cl_write.c, cl_sync.c, cl_raw.c */
void read_start(struct part *p);
void read_done(struct part *p, uint32_t replica, int status, const struct vst_frame *hdr, int bad_piece);
void write_start(struct part *p);
void write_done(struct part *p, uint32_t replica, uint64_t incarnation, int status);
void replica_failed(struct part *p, uint32_t replica, int status);
bool write_map_ready(struct part *p); /* false: parked, or done since the chunk is a hole */
void part_take_map(struct part *p); /* the chunk's, for this pass */
void sync_begin(struct req *r);
void sync_start(struct part *p);
void sync_group(struct req *r);
void sync_done(struct xfer *x, uint64_t incarnation, int status);
void raw_done(struct xfer *x, int status, const struct vst_frame *hdr, const void *data);
/* cl_behind.c */
void behind_write(struct fuse *fu, struct req *r); /* a buffered WRITE, ready to begin */
void behind_close(struct vst_file *f); /* what was gathered takes its place: before anything else of the file does */
void behind_done(struct req *r);
void behind_revoke(struct vst_file *f);
/* fuse_*.c */
void fuse_complete(struct req *r, int64_t result);
void fuse_readable(struct vst_cl *cl);
void fuse_stop(struct vst_cl *cl);
void fuse_free(struct vst_cl *cl);
void fuse_unbind_file(struct vst_file *f);
void fuse_attr_written(struct vst_file *f);
#endif
