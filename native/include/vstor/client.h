/* The client's data engine: connections to chunk servers, files with chunk maps under leases, reads, replicated writes,
 * and (vst_fuse_*) the kernel's FUSE protocol.  Engine threads never call into Python: what they need goes out as events
 * (eventfd), answers come in through these thread-safe calls.  0 or negative errno unless said otherwise. */
#ifndef VSTOR_CLIENT_H
#define VSTOR_CLIENT_H
#include <stddef.h>
#include <stdint.h>

typedef struct vst_cl vst_cl;
typedef struct vst_file vst_file;

struct vst_cl_config {
	uint32_t auth_mode;          /* vst_auth_mode to ask for */
	uint32_t io_timeout_ms;      /* a replica that does not answer a write for so long is reported failed (default 2000) */
	uint32_t connect_timeout_ms; /* default 2000 */
	uint32_t flags;              /* VST_CL_* */
};
#define VST_CL_ENOSPC 1u             /* a full cluster fails writes with ENOSPC instead of letting them wait */
vst_cl *vst_cl_new(const struct vst_cl_config *cfg);
int vst_cl_start(vst_cl *cl);   /* starts the engine thread */
void vst_cl_stop(vst_cl *cl);   /* fails what is in flight with ESHUTDOWN, joins */
void vst_cl_free(vst_cl *cl);

/* Where a chunk server is and the session key for it; again to refresh. addresses: "ip:port" or "unix:/path", in order of preference, separated by spaces.
 * Empty: not reachable for now (what waits for it goes elsewhere or is reported failed). */
int vst_cl_set_cs(vst_cl *cl, uint32_t cs_id, const char *addresses, uint64_t session_id, uint64_t expiry_ms, const uint8_t key[32]);

/* Files. A file is shared by all handles of an inode in this process. */
vst_file *vst_file_new(vst_cl *cl, uint64_t ino, uint32_t chunk_bytes, uint64_t size);
void vst_file_free(vst_file *f); /* waits for its requests; after it no event names the file */
#define VST_LEASE_NONE 0
#define VST_LEASE_SHARED 1
#define VST_LEASE_EXCLUSIVE 2
/* Grant or take back. Valid until CLOCK_BOOTTIME ms `until` (the session's; see vst_cl_set_lease_until). Lowering parks new requests
 * (they raise NEED_LEASE), waits for nothing; event DRAINED(token) comes when all earlier ones are done (on every lowering, and whenever token is not 0).
 * NONE with token 0 says that the lease is lost (the MDS counts somebody else): earlier requests wait for a lease again as well, instead of finishing.
 * At NONE the chunk maps are forgotten once drained, except those a SYNC still needs. SYNC needs no lease. */
int vst_file_set_lease(vst_file *f, int mode, uint64_t token);
/* All leases of this engine end at this CLOCK_BOOTTIME ms (0, so never begun, at the start) unless moved on; past it requests park and raise NEED_LEASE. */
void vst_cl_set_lease_until(vst_cl *cl, uint64_t until_boottime_ms);
void vst_file_set_size(vst_file *f, uint64_t size);
uint64_t vst_file_size(vst_file *f);
/* Chunk `index` of the file. ticket: 64 bytes. ncs = 0: known hole (reads zeros, a write raises NEED_MAP). flags as in ChunkMap.
 * for_write: the ticket allows writing. Wakes requests parked on it;
 * the same version again after REPLICA_FAILED means: try once more. */
int vst_file_set_chunk(vst_file *f, uint32_t index, uint64_t chunk_id, uint32_t version, uint32_t flags, int for_write,
                       const uint32_t *cs_ids, uint32_t ncs, const uint8_t *ticket);
/* The chunks from here on are no part of the file any more (truncated, or the session and all it had is lost): maps, what is unsynced, what was first written. */
void vst_file_drop_chunks(vst_file *f, uint32_t from_index);
/* The maps of [from, from + count) may be old: ask again. What is unsynced or first written stays known. */
void vst_file_forget_maps(vst_file *f, uint32_t from_index, uint32_t count);
/* Answer to NEED_MAP / NEED_LEASE / REPLICA_FAILED that failed for good: requests parked on the index (or on the lease: index ~0u) end with this errno > 0. */
void vst_file_fail(vst_file *f, uint32_t index, int error);
/* Written since the last call: largest end of write (0 none), and up to max indexes of chunks written the first time (count returned).
 * CLOCK_REALTIME ns of the last write in *mtime_ns. What was taken counts as uncommitted until a vst_file_committed(f, …, 0) after it. */
uint32_t vst_file_take_dirty(vst_file *f, uint64_t *end, uint64_t *mtime_ns, uint32_t *indexes, uint32_t max);

/* 1: writes were acknowledged that no SYNC has made durable since. Before a file is left to others (lease given back, session lost) this must be dealt with:
 * maps forgotten with vst_file_drop_chunks take the knowledge of what is unsynced with them. */
int vst_file_unsynced(vst_file *f);
/* Acknowledged writes are gone: every SYNC under way ends with EIO, or the next one does. */
void vst_file_note_lost(vst_file *f);

/* Answer to VST_EV_COMMIT: error 0, or positive errno the caller gets. cookie 0: a commit nobody waits for was done. */
int vst_file_committed(vst_file *f, uint64_t cookie, int error);
/* Byte ranges of buffered FUSE READ and WRITE (not O_DIRECT handles) answered since the last call, as pairs (offset, end): what the kernel may have in
 * its page cache. Count of pairs; -EOVERFLOW: more than 64 happened (and are forgotten). For recalls: clear it, drop the kernel's pages, lower the
 * lease, DRAINED, then drop the pages of what was answered meanwhile. */
int vst_file_take_touched(vst_file *f, uint64_t *pairs, uint32_t npairs);

/* I/O. buf any alignment, kept until the completion. Completion: event IO_DONE with the cookie; result bytes or -errno.
 * READ stops at vst_file_size. WRITE moves it; one that begins behind it clears what lies between in the last chunk. PUNCH stops at it
 * without flag 4. flags: 1 durable, 2 append (offset ignored: the size at execution), 4 tail. */
/* FLUSH waits until all earlier writes are on their replicas (not: on stable storage); needs no lease, and is no error when they failed. */
enum vst_io_op { VST_IO_READ = 1, VST_IO_WRITE = 2, VST_IO_SYNC = 3, VST_IO_PUNCH = 4, VST_IO_FLUSH = 5 };
int vst_file_submit(vst_file *f, int op, uint64_t off, uint64_t len, void *buf, uint32_t flags, uint64_t cookie);
int64_t vst_file_io(vst_file *f, int op, uint64_t off, uint64_t len, void *buf, uint32_t flags); /* the same, blocking */

/* One chunk of one chunk server, without a file: for recovery and tools. Blocking. status > 0 or 0 or -errno. */
struct vst_raw { uint32_t cs_id; uint64_t chunk_id; uint32_t version; const uint8_t *ticket; };
int vst_raw_read(vst_cl *cl, const struct vst_raw *r, uint64_t off, uint32_t len, void *buf, int *hole);
int vst_raw_hash(vst_cl *cl, const struct vst_raw *r, uint64_t off, uint32_t len, uint8_t out[32]);
int vst_raw_granules(vst_cl *cl, const struct vst_raw *r, uint64_t *pairs, uint32_t npairs); /* count, -errno, or -1000 - status */
int vst_raw_stat(vst_cl *cl, const struct vst_raw *r, void *chunk_stat48);
int vst_raw_sync(vst_cl *cl, const struct vst_raw *r);

enum vst_cl_event_kind {
	VST_EV_NONE = 0,
	VST_EV_NEED_MAP = 1,       /* ino, index, write: install it with vst_file_set_chunk or vst_file_fail. Once per index until answered */
	VST_EV_NEED_LEASE = 2,     /* ino, write */
	VST_EV_NEED_CS = 3,        /* cs_id: address or fresh key wanted */
	VST_EV_REPLICA_FAILED = 4, /* ino, index, chunk_id, version, cs_id, error = status: a write could not reach this replica; writes to the chunk park until a newer version is installed */
	VST_EV_BAD_BLOCK = 5,      /* ino, chunk_id, version, cs_id, offset: a replica returned or reported damaged data (the read went on elsewhere) */
	VST_EV_DRAINED = 6,        /* ino, cookie = token */
	VST_EV_IO_DONE = 7,        /* cookie, result */
	VST_EV_FUSE = 8,           /* a kernel request for Python: fetch with vst_fuse_take */
	VST_EV_FUSE_CLOSED = 9,    /* unmounted */
	VST_EV_APPEND_MOVED = 11,  /* ino, offset, result: an O_APPEND write of `result` bytes that the kernel meant for `offset` went to another place (its size was
	                            * old): the pages it cached at offset are wrong and are to be dropped */
	VST_EV_COMMIT = 10,        /* ino, cookie: a sync (FSYNC, VST_IO_SYNC) or a durable write has its data on stable storage, but the size grew or
	                            * chunks were written first since they were last committed: Python takes them (vst_file_take_dirty), commits
	                            * at the MDS and calls vst_file_committed, which completes it. An mtime alone never raises it */
};
struct vst_cl_event {
	uint32_t kind; uint32_t index; uint64_t ino; uint64_t chunk_id; uint32_t version; uint32_t cs_id; uint64_t offset;
	int32_t error; uint32_t write; uint64_t cookie; int64_t result;
};
int vst_cl_event_fd(const vst_cl *cl);
int vst_cl_next_event(vst_cl *cl, struct vst_cl_event *ev); /* 1, 0 */

struct vst_cl_counters {
	uint64_t reads, writes, syncs, bytes_read, bytes_written, retries, replica_failures, bad_blocks, reconnects;
	uint64_t parked, inflight; /* now: waiting for a map, a lease or the next attempt; all */
	uint64_t fuse_requests, fuse_slow, fuse_kept; /* slow: handed to Python; kept: LOOKUP and GETATTR answered without it */
	uint64_t read_ns_sum, write_ns_sum, sync_ns_sum, read_ns_max, write_ns_max, sync_ns_max; /* max: since the last reading */
};
void vst_cl_get_counters(vst_cl *cl, struct vst_cl_counters *out);

/* ---- FUSE: fd is /dev/fuse, already mounted. One reader thread which is also the engine thread. INIT is answered in C.
 * READ, WRITE, FSYNC, FLUSH, FALLOCATE(punch), LSEEK (in files of one chunk) are answered in C for handles bound by vst_fuse_bind; GETATTR and LOOKUP from what
 * vst_fuse_put_* left there, as long as the leases are valid (vst_cl_set_lease_until);
 * all else becomes VST_EV_FUSE. FORGET is counted in C and reported in batches through take as well. */
/* INIT: no FUSE_WRITEBACK_CACHE (with it the kernel never believes a size changed by another client), FUSE_EXPLICIT_INVAL_DATA instead of AUTO_INVAL_DATA
 * (pages are dropped by recalls), FUSE_HANDLE_KILLPRIV_V2 (without it each write asks for security.capability), ATOMIC_O_TRUNC, EXPORT_SUPPORT,
 * POSIX_LOCKS, FLOCK_LOCKS, PARALLEL_DIROPS, DO_READDIRPLUS with AUTO, ASYNC_READ, ASYNC_DIO, MAX_PAGES, BIG_WRITES; DIRECT_IO_ALLOW_MMAP where known.
 * Page writeback (FUSE_WRITE_CACHE) comes with any writable handle of the inode. */
struct vst_fuse_config { uint32_t max_write; uint32_t max_background; uint32_t flags; /* VST_FUSE_* */ };
int vst_fuse_start(vst_cl *cl, int fd, const struct vst_fuse_config *cfg);
/* Take one slow request: whole kernel message (fuse_in_header and body) copied to buf. length, or 0 none. */
int vst_fuse_take(vst_cl *cl, void *buf, size_t len);
/* Answer. error: 0 or positive errno; data: body after fuse_out_header. Written to the kernel before it returns, so that a later notification cannot overtake it.
 * -ENOENT: interrupted, nobody waits any more (after OPEN: no RELEASE will come). */
int vst_fuse_reply(vst_cl *cl, uint64_t unique, int error, const void *data, size_t len);
/* Raw notification (body after fuse_out_header; code FUSE_NOTIFY_*). May block on page locks: never call it on the engine thread. */
int vst_fuse_notify(vst_cl *cl, int code, const void *data, size_t len);
/* fh given in an OPEN/CREATE reply -> file. flags: 1 writable, 2 append, 4 sync (O_SYNC/O_DSYNC: writes durable),
 * 8 the inode has suid or sgid bits: a WRITE with FUSE_WRITE_KILL_SUIDGID goes to Python (which clears them and writes).
 * 16 POSIX locks may be held on the inode: FLUSH of any of its handles goes to Python from now on (a close releases locks at FLUSH).
 * 32 the handle is FOPEN_DIRECT_IO: its ranges are not counted as touched. Bind again to change flags. Bind before the reply to OPEN. */
int vst_fuse_bind(vst_cl *cl, uint64_t fh, vst_file *f, uint32_t flags);
int vst_fuse_unbind(vst_cl *cl, uint64_t fh); /* at RELEASE */
/* Names and attributes for LOOKUP and GETATTR, valid until dropped: whoever puts them drops them before they may change. None of these waits.
 * put_name: ino 0 says that there is no such name. It is answered together with the attributes of ino only.
 * drop_name: 1 when the kernel was given it for a time (see new_epoch), 0 not.
 * put_attr: attr is struct fuse_attr; f the engine's file of ino if there is one: its next write ends what was put (also a write before that Python has
 * not taken with vst_file_take_dirty). drop_attr: how many references (entries) the kernel got here since it was put the first time.
 * 0 or -errno; without FUSE there is nothing to drop. */
int vst_fuse_put_name(vst_cl *cl, uint64_t parent, const char *name, uint32_t len, uint64_t ino);
int vst_fuse_drop_name(vst_cl *cl, uint64_t parent, const char *name, uint32_t len);
int vst_fuse_put_attr(vst_cl *cl, vst_file *f, uint64_t ino, uint64_t generation, const void *attr, size_t len);
int64_t vst_fuse_drop_attr(vst_cl *cl, uint64_t ino);
/* Call it before the kernel is told to drop all names: those given so far count as not given. give_names: it may use names without asking for the rest of the
 * lease (at the start: not). */
void vst_fuse_new_epoch(vst_cl *cl, int give_names);
#endif
