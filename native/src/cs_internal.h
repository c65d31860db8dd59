/* Inside of the chunk server's engine.  Everything here runs on the engine thread (or, while the engine does not run,
 * on the thread of the one caller that acts for it).  On-disk structures: vstor/wire.h, explained in
 * daemons/docs/on_disk_format.md. */
#ifndef VSTOR_CS_INTERNAL_H
#define VSTOR_CS_INTERNAL_H
#include <pthread.h>
#include <stdint.h>
#include "cs_ring.h"
#include "vstor/cs.h"
#include "vstor/wire.h"

#define CS_BLOCK VST_BLOCK_BYTES
#define CS_PAGE_BLOCKS VST_TABLE_PAGE_BLOCKS
#define CS_GRANULE_BLOCKS (VST_GRANULE_BYTES / VST_BLOCK_BYTES)
#define CS_PAGES_MAX 342u /* of the largest chunk */
#define CS_MAGIC_CHUNK 0x4b4e554843545356ull /* "VSTCHUNK" */
#define CS_MAGIC_JOURNAL 0x4c414e524a545356ull /* "VSTJRNAL" */
#define CS_MAGIC_COPIES 0x5359504f43545356ull /* "VSTCOPYS" */
#define CS_MAGIC_GROUP 0x50554f5247545356ull /* "VSTGROUP" */
#define CS_MAGIC_PAGE 0x50545356u /* "VSTP" */

/* Limits (R15). */
#define CS_SMALL_BYTES 65536u /* shorter writes go through the journal with their data */
#define CS_GROUP_BLOCKS 256u /* blocks of one group: header and data */
#define CS_GROUP_HEADER_BLOCKS 16u
#define CS_COPIES_MAX 512u /* pages a checkpoint writes in one batch */
#define CS_JOURNAL_UNIT (64ull << 20)
#define CS_JOURNAL_RESERVE                                                                                             \
	(1ull << 20) /* of the log, kept for orders, so that a full journal can be emptied by deletes */
#define CS_INDEX_BYTES_MAX (256ull << 20) /* journaled data not yet applied, in memory; above it writes wait */
#define CS_REQUEST_BYTES_MAX (256ull << 20) /* buffers of requests; above it sockets are not read */
#define CS_POOL_BYTES_MAX (64ull << 20) /* free buffers kept */
#define CS_TABLE_BYTES_MAX (512ull << 20) /* tables in memory; those in use or not yet written stay above it */
#define CS_FILES_MAX 1024u /* open chunk files kept */
#define CS_APPLY_RUNS 16u /* writes of a checkpoint in flight */
#define CS_APPLY_BLOCKS 256u /* length of one of them */
#define CS_FLOORS 16384u
#define CS_EVENTS_MAX 1024u
#define CS_OUT_BYTES_MAX (8ull << 20) /* replies waiting on one connection; above it its requests wait */
#define CS_HANDSHAKE_MS 5000u
#define CS_FRAME_MS 30000u /* a begun frame must be complete in this time */
#define CS_IDLE_CHECKPOINT_MS 1000u
#define CS_RETRY_CHECKPOINT_MS 1000u
#define CS_APPLY_FAILURES_MAX 3u /* then the replica is quarantined */
#define CS_STOP_MS 5000u /* a stop waits this long for peers to take their replies */
#define CS_WHOLE_CHUNK UINT64_MAX /* offset in a CORRUPT event: the replica as a whole was quarantined */

struct cs;
struct cs_chunk;
struct cs_req;
struct cs_trash;

/* --- buffers (cs_buf.c): page aligned, counted references, kept for reuse */
struct cs_buf {
	struct cs_buf *next;
	uint32_t refs, cls;
	uint32_t index_refs; /* of refs: those of the index of unapplied data */
	uint64_t cap;
	uint8_t *data;
};
struct cs_buf *cs_buf_get(struct cs *cs, uint64_t len); /* NULL: out of memory. Content undefined */
struct cs_buf *cs_buf_ref(struct cs_buf *b);
void cs_buf_put(struct cs *cs, struct cs_buf *b); /* NULL is fine */
void cs_buf_drop_pool(struct cs *cs);

/* --- block ranges in use (cs_lock.c), first come first served */
struct cs_lock {
	struct cs_lock *next, *prev;
	void (*granted)(struct cs_lock *lk);
	uint32_t b0, b1;
	uint8_t exclusive, held;
};
struct cs_locks {
	struct cs_lock *held, *head, *tail; /* head, tail: waiting */
};
int cs_lock_get(struct cs_locks *l, struct cs_lock *lk); /* 1: held now; 0: granted will be called */
void cs_lock_put(struct cs_locks *l, struct cs_lock *lk);

/* --- unapplied journaled data: index of a granule */
struct cs_ent {
	struct cs_buf *buf; /* one reference */
	const uint8_t *data; /* the block */
	uint64_t seq;
	uint32_t block, crc;
};
struct cs_granule {
	uint32_t count;
	struct cs_ent *ent[CS_GRANULE_BLOCKS];
};

struct cs_chunk {
	struct cs_chunk *hash_next;
	struct cs_chunk *lru_next, *lru_prev; /* loaded ones */
	struct cs_chunk *dirty_next, *dirty_prev; /* a checkpoint has something to do */
	uint64_t id, file_id;
	uint32_t version, chunk_bytes, nblocks, npages, ngranules, flags;
	uint64_t written;
	uint32_t bad;
	uint8_t in_lru, in_dirty;
	uint8_t unborn; /* made by a CREATE ticket, CREATE not yet in the journal */
	uint8_t gone; /* deleted or quarantined: lives on only for its references */
	uint8_t loading, loaded, file_made;
	uint8_t header_dirty;
	uint8_t sick; /* an fdatasync failed: nothing written to it can be promised */
	uint8_t fenced; /* orders that wait for or work on it: an order waits for the requests in flight; new ones are
			   refused as STALE */
	uint8_t apply_failures;
	uint8_t applying; /* a checkpoint changed the file, and the records it did that for are still in the log */
	uint32_t refs; /* handles, checkpoint, commands: the struct lives */
	uint32_t inflight; /* requests: it stays loaded */
	int fd;
	struct vst_table_page *pages;
	uint64_t dirty_pages[(CS_PAGES_MAX + 63) / 64];
	uint8_t present[48]; /* table pages that are on disk */
	struct cs_granule **index;
	uint32_t index_count;
	uint64_t write_gen, flushed_gen; /* writes to the file, and those an fdatasync has covered */
	uint64_t write_seq, *granule_seq; /* this incarnation; NULL: nothing written yet */
	uint32_t hole0, hole1; /* blocks in here that are unwritten may still occupy space: [hole0, hole1) */
	uint32_t ck_hole0,
		ck_hole1; /* the part whose PUNCH records are on stable storage, for the checkpoint at work */
	uint64_t *clear_seq; /* replay: sequence of the last DATA or PUNCH of each block */
	struct cs_locks locks; /* what readers and writers see */
	struct cs_locks flocks; /* writes to the file: in place by requests, and by the checkpoint */
	struct cs_req *load_waiters;
	struct cs_req *drain_waiters;
	struct cs_io load_io;
	struct cs_buf *load_buf;
	struct cs *cs;
};

/* --- requests */
enum cs_req_op {
	CS_READ = 1,
	CS_WRITE,
	CS_PUNCH,
	CS_HASH,
	CS_SYNC,
	CS_CREATE,
	CS_DELETE,
	CS_SET_VERSION,
	CS_FINISH_SYNC,
	CS_BEGIN_SYNC,
	CS_SCRUB
};

struct cs_rec { /* a journal record to be */
	uint8_t type;
	uint32_t b0, n;
	struct cs_buf *buf; /* DATA: where data lies */
	const uint8_t *data; /* DATA, INTENT: n blocks */
	const uint32_t *crc; /* new CRC of each */
	uint64_t seq; /* given when the group is built */
};

struct cs_run { /* one disk read */
	struct cs_io io;
	struct cs_rd *rd;
	uint32_t b0;
};
struct cs_rd { /* a verified read of whole blocks */
	void (*done)(struct cs_rd *rd);
	struct cs_req *req;
	struct cs_chunk *c;
	uint8_t *dst;
	uint32_t b0, b1, left, nruns;
	uint32_t bad; /* blocks found damaged */
	int status;
	uint8_t hole; /* nothing in the range is written */
	uint8_t from_disk; /* scrub: blocks that wait in memory are left out */
	uint64_t disk_bytes;
	struct cs_run one, *runs;
};

struct cs_req {
	struct cs_req *next;
	void (*done)(struct cs_req *req); /* once, with status set; the request may be freed in it */
	void *owner;
	struct cs *cs;
	struct cs_chunk *c;
	struct cs_buf *buf; /* WRITE: bytes at off % block; READ: result there */
	uint64_t off, len;
	uint32_t b0, b1, version;
	uint8_t op, durable, local, hole, locked, flocked, counted, order_flags;
	uint8_t only_bad; /* local write: only blocks that are quarantined */
	int status;
	uint32_t chunk_bytes;
	uint64_t start_ns;
	void (*ready)(struct cs_req *req); /* when the chunk is loaded, or drained */
	void (*journaled)(struct cs_req *req, int error); /* orders */
	struct cs_lock lock, flock;
	struct cs_rd rd, rd_tail;
	uint32_t edges_left;
	uint32_t *crc, crc_small[18];
	const uint32_t *table; /* CRCs of the pieces as the client sent them, or NULL */
	struct cs_buf *edge[2];
	uint32_t edge_crc[2];
	struct cs_rec recs[4];
	uint8_t nrecs, has_intent;
	uint8_t through; /* the write in place goes through the disk's cache */
	struct cs_io io;
	uint64_t intent_pos, intent_seq;
	struct cs_req *intent_next, *intent_prev;
	struct cs_chunk **sync_set; /* SYNC: referenced chunks; NULL: all */
	uint32_t sync_count;
	uint64_t bytes; /* scrub: read from disk */
	uint32_t bad;
	uint8_t hash[32];
};

/* --- journal (cs_journal.c) */
struct cs_flush_wait {
	struct cs_flush_wait *next;
	void (*done)(struct cs_flush_wait *w, int res);
	void *arg;
};
struct cs_journal {
	int fd, direct, busy, error, header_busy;
	uint64_t bytes, log_start, log_bytes, epoch, generation, copies_generation;
	uint64_t head, done_head, tail; /* positions: next group, end of completed ones, oldest needed */
	uint64_t next_seq, written_seq, flushed_seq, data_flushed_seq, tail_seq;
	struct cs_req *q_head, *q_tail, *group;
	uint8_t full; /* the next group waits for the checkpoint */
	struct cs_buf *gbuf, *hbuf, *cbuf;
	struct cs_io io, hio, fio;
	uint64_t group_pos, group_seq;
	uint32_t group_records, group_bytes;
	uint8_t group_flush; /* complete only after a flush */
	struct cs_flush_wait *flush_now, *flush_next, group_wait;
	uint8_t flush_busy;
	uint64_t flush_target;
	struct cs_req *intents, *intents_tail; /* in the log, not yet in place; oldest first */
	void (*header_done)(struct cs *cs, int res);
	int epoch_done, epoch_res; /* at opening */
};
int cs_journal_open(struct cs *cs, const char *path, uint64_t bytes, int may_create, char *err, size_t err_len);
void cs_journal_close(struct cs *cs);
void cs_journal_add(struct cs_req *req); /* queue; cs_req_journaled or cs_req_finish follows */
void cs_journal_kick(struct cs *cs);
void cs_journal_flush(struct cs *cs, struct cs_flush_wait *w); /* everything completed before is on stable storage */
void cs_journal_write_header(struct cs *cs, uint64_t tail, uint64_t tail_seq, void (*done)(struct cs *cs, int res));
void cs_journal_fail(struct cs *cs, int error);
uint64_t cs_journal_used(const struct cs_journal *j);
static inline uint64_t cs_journal_at(const struct cs_journal *j, uint64_t pos)
{
	return j->log_start + pos % j->log_bytes;
}
void cs_intent_add(struct cs *cs, struct cs_req *req);
void cs_intent_del(struct cs *cs, struct cs_req *req);
uint32_t cs_block_crc_zeroed(const void *block, size_t len,
			     size_t crc_at); /* CRC of len bytes with the u32 at crc_at as 0 */

/* --- checkpoint (cs_checkpoint.c, cs_pages.c) */
enum cs_ckpt_state { CS_CK_IDLE, CS_CK_FLUSH, CS_CK_APPLY, CS_CK_PAGES, CS_CK_HEADER };
struct cs_apply { /* writes neighbouring unapplied blocks to the file, or punches a hole */
	struct cs_lock flock;
	struct cs_io io;
	struct cs *cs;
	struct cs_chunk *c;
	struct cs_buf *buf;
	uint32_t b0, n, at; /* blocks of the run; at: next one to look at */
	uint32_t w0, wn; /* being written now */
	uint64_t seq[CS_APPLY_BLOCKS];
	uint8_t busy, hole;
};
struct cs_ckpt {
	uint8_t state, wanted, holes, pages_begun;
	int failed;
	uint64_t mark, mark_seq, limit; /* limit: records up to it are on stable storage */
	struct cs_chunk **list; /* referenced */
	uint32_t count, at, block, busy;
	struct cs_apply runs[CS_APPLY_RUNS];
	struct cs_flush_wait wait;
	uint32_t page_at, page, first_at; /* pages phase: chunk in list, page in it; first chunk of the batch */
	uint32_t copies, written, sync_at, sync_end, shard_at;
	struct cs_io copy_io;
	struct cs_page_ref {
		struct cs_chunk *c;
		uint32_t block;
	} refs[CS_COPIES_MAX];
	struct cs_page_io {
		struct cs_io io;
		struct cs *cs;
		struct cs_chunk *c;
		uint32_t shard;
		uint64_t gen;
		uint8_t busy;
	} ios[CS_APPLY_RUNS];
	uint64_t retry_ms;
};
void cs_ckpt_kick(struct cs *cs);
int cs_ckpt_active(const struct cs *cs);
int cs_ckpt_needed(const struct cs *cs); /* something is not in its place yet */
void cs_ckpt_pages(struct cs *cs); /* cs_pages.c: table pages and headers of the list; then cs_ckpt_pages_done */
void cs_ckpt_pages_done(struct cs *cs);
void cs_ckpt_failed(struct cs *cs, struct cs_chunk *c, int error); /* c NULL: not the fault of a chunk */
int cs_copies_restore(struct cs *cs, char *err,
		      size_t err_len); /* after a crash: pages torn by it, from their copies */

/* --- sync rounds (cs_sync.c) */
void cs_sync_add(struct cs_req *req);
void cs_sync_kick(struct cs *cs);
struct cs_sync_io {
	struct cs_io io;
	struct cs *cs;
	struct cs_chunk *c; /* NULL: directory; else referenced */
	uint32_t shard;
	uint64_t gen;
};
struct cs_sync {
	struct cs_req *waiting, *round;
	struct cs_sync_io *ios;
	uint32_t count, at, busy;
	uint8_t active, journal_busy, all;
	int status;
	uint64_t intent_mark;
	struct cs_flush_wait wait;
};

/* --- the network side (cs_server.c, cs_conn.c, cs_proto.c) */
struct cs_conn;
struct cs_listener;

/* Versions ordered for chunks that are not here, by hash of the id (a later one takes the place of an earlier one). */
struct cs_floor {
	uint64_t chunk_id;
	uint32_t version;
};

enum cs_state { CS_IDLE, CS_RUNNING, CS_STOPPING };

struct cs_cmd { /* a control call */
	struct cs_cmd *next;
	void (*start)(struct cs *cs, struct cs_cmd *cmd);
	int done, result;
	struct cs_req req;
	uint64_t chunk_id, off, len;
	uint32_t version, chunk_bytes, max;
	int flag;
	const void *in;
	void *out, *out2;
};

#define CS_CMD_OF(request) ((struct cs_cmd *)((char *)(request)-offsetof(struct cs_cmd, req)))
void cs_cmd_req(struct cs *cs, struct cs_cmd *cmd, uint8_t op); /* cs_orders.c: prepare cmd->req */
void cs_cmd_req_done(struct cs_req *req); /* its done: ends the command with the status */
struct cs_chunk *cs_cmd_chunk(struct cs *cs, struct cs_cmd *cmd); /* or NULL and the command ended with NO_CHUNK */

struct cs {
	struct vst_cs_config cfg;
	char *dir, *journal_path;
	int dirfd, chunksfd, quarantinefd, trashfd, lockfd, shardfd[256];
	int direct; /* chunk files are opened with O_DIRECT */
	uint64_t shard_gen[256], shard_flushed[256]; /* changes of a directory, and those an fsync has covered */
	uint64_t trash_serial;
	struct cs_trash *trash;
	struct cs_ring *ring;
	int wakefd;
	struct cs_watch wake;
	pthread_mutex_t mu; /* guards state, cmds, acting */
	pthread_cond_t cv;
	enum cs_state state;
	int acting, stop; /* acting: a caller acts as the engine; stop: atomic */
	struct cs_cmd *cmds, *cmds_tail;

	struct cs_chunk **hash;
	uint32_t hash_size, nchunks;
	struct cs_chunk *lru_head, *lru_tail, *dirty_head, *dirty_tail;
	uint32_t nfiles, files_max;
	uint64_t table_bytes;
	uint64_t inflight;
	struct cs_buf *pool[16];
	uint64_t pool_bytes, used_bytes, index_bytes;
	uint64_t last_write_ms, no_space_told, free_bytes, statfs_ms;
	struct cs_journal j;
	struct cs_ckpt ck;
	struct cs_sync sy;
	int replaying;

	uint8_t cs_key[32], have_cs_key;
	struct {
		uint32_t id;
		uint8_t used, key[32];
		uint64_t age;
	} ticket_key[4];
	struct cs_floor floor[CS_FLOORS];
	uint64_t ticket_key_age;
	int64_t time_offset_ms;
	uint64_t serve_until_ms;
	uint8_t have_time;

	struct cs_listener *listeners;
	struct cs_conn *conns, *ready, *flush, *starved;
	uint32_t nconns;
	uint8_t *scratch;
	uint64_t timer_ms, stop_ms;

	pthread_mutex_t ev_mu;
	int evfd;
	struct vst_cs_event ev[CS_EVENTS_MAX];
	uint32_t ev_head, ev_count;
	struct vst_cs_counters n;
};

/* cs.c */
uint64_t cs_now_ms(void); /* CLOCK_BOOTTIME */
uint64_t cs_now_ns(void); /* CLOCK_MONOTONIC */
void cs_report(struct cs *cs, uint32_t kind, uint64_t chunk_id, uint64_t offset, int error);
void cs_turn(struct cs *cs, int timeout_ms);
void cs_look_at_space(struct cs *cs, uint64_t now, uint64_t max_age_ms); /* free_bytes */
int cs_call(struct cs *cs, struct cs_cmd *cmd); /* run a command on the engine and return its result */
void cs_cmd_done(struct cs *cs, struct cs_cmd *cmd, int result);
int cs_idle(const struct cs *cs); /* nothing in flight */
int cs_errno_status(int error); /* negative errno of the disk -> vst_error */
void cs_crash(struct cs *cs); /* tests: free everything without writing, as if the process had died */

/* cs_chunk.c: the table of chunks; cs_chunk_file.c: their files */
static inline struct cs_floor *cs_floor_slot(struct cs *cs, uint64_t chunk_id)
{
	return &cs->floor[(chunk_id * 0x9e3779b97f4a7c15ull >> 32) % CS_FLOORS];
}
struct cs_chunk *cs_chunk_find(struct cs *cs, uint64_t id);
struct cs_chunk *cs_chunk_new(struct cs *cs, uint64_t id, uint32_t chunk_bytes, uint32_t version, uint32_t flags);
void cs_chunk_gone(struct cs *cs, struct cs_chunk *c); /* out of the table; memory of its index is freed */
void cs_chunk_drop_unborn(struct cs *cs, struct cs_chunk *c);
void cs_chunk_unref(struct cs *cs, struct cs_chunk *c);
void cs_chunk_free(struct cs *cs, struct cs_chunk *c);
void cs_chunk_ready(struct cs_req *req,
		    void (*ready)(struct cs_req *req)); /* load the table; failure ends the request */
int cs_chunk_open_file(struct cs *cs, struct cs_chunk *c, int create);
int cs_chunk_load_sync(struct cs *cs, struct cs_chunk *c); /* replay: 0, or negative errno; -EUCLEAN damaged table */
int cs_chunk_blank(struct cs *cs, struct cs_chunk *c); /* an empty table in memory */
void cs_chunk_quarantine(struct cs *cs, struct cs_chunk *c, int error);
int cs_chunk_trash(struct cs *cs, uint64_t id); /* move the file away and unlink it in the background */
void cs_trash_free(struct cs *cs);
void cs_chunk_path(char out[40], uint64_t id);
void cs_chunk_evict(struct cs *cs);
int cs_shard_fd(struct cs *cs, uint64_t id);
void cs_shard_set_dirty(struct cs *cs, uint64_t id);
static inline int cs_shard_dirty(const struct cs *cs, unsigned shard)
{
	return cs->shard_gen[shard] != cs->shard_flushed[shard];
}
static inline int cs_chunk_unflushed(const struct cs_chunk *c)
{
	return c->write_gen != c->flushed_gen;
}
int cs_chunk_bytes_ok(uint32_t chunk_bytes);
uint64_t cs_chunk_data_off(const struct cs_chunk *c);
uint64_t cs_chunk_file_bytes(const struct cs_chunk *c);
void cs_chunk_used(struct cs *cs, struct cs_chunk *c); /* to the front of the loaded ones */
void cs_chunk_dirty(struct cs *cs, struct cs_chunk *c);
void cs_chunk_clean(struct cs *cs, struct cs_chunk *c); /* off the dirty list when nothing is left to do */
void cs_chunk_header_dirty(struct cs *cs, struct cs_chunk *c);
void cs_chunk_header_image(const struct cs *cs, const struct cs_chunk *c, void *block);
int cs_chunk_header_check(const struct cs *cs, const void *block,
			  uint64_t id); /* 0, -EUCLEAN, -EPROTO, -EINVAL foreign */
int cs_page_check(const struct vst_table_page *p, const struct cs_chunk *c, uint32_t page); /* 1 valid */

/* cs_table.c: block states and the index of unapplied data */
enum { CS_UNWRITTEN = 0, CS_WRITTEN = 1, CS_BAD = 2 };
int cs_tab_state(const struct cs_chunk *c, uint32_t block);
uint32_t cs_tab_crc(const struct cs_chunk *c, uint32_t block);
void cs_tab_write(struct cs *cs, struct cs_chunk *c, uint32_t block, uint32_t crc);
void cs_tab_clear(struct cs *cs, struct cs_chunk *c, uint32_t block);
void cs_tab_bad(struct cs *cs, struct cs_chunk *c, uint32_t block);
void cs_tab_touch(struct cs *cs, struct cs_chunk *c, uint32_t b0, uint32_t b1,
		  uint32_t version); /* mod_version, write_seq */
uint32_t cs_tab_mod_version(const struct cs_chunk *c, uint32_t granule);
uint32_t cs_granules_fill(const struct cs_chunk *c, uint64_t *pairs,
			  uint32_t npairs); /* (mod_version, write_seq) each; how many */
void cs_tab_recount(struct cs *cs, struct cs_chunk *c);
struct cs_ent *cs_index_get(const struct cs_chunk *c, uint32_t block);
int cs_index_put(struct cs *cs, struct cs_chunk *c, uint32_t block, struct cs_buf *buf, const uint8_t *data,
		 uint32_t crc, uint64_t seq);
void cs_index_drop(struct cs *cs, struct cs_chunk *c, uint32_t block);
void cs_index_drop_all(struct cs *cs, struct cs_chunk *c);
uint32_t cs_index_next(const struct cs_chunk *c, uint32_t block); /* first indexed block >= block, or nblocks */

/* cs_read.c, cs_write.c, cs_req.c */
void cs_read_blocks(struct cs_rd *rd);
void cs_req_start(struct cs_req *req); /* READ, HASH, WRITE, PUNCH: chunk, range and buffer are set */
void cs_req_finish(struct cs_req *req, int status);
void cs_req_begin(struct cs_req *req); /* count it in flight; cs_req_finish undoes it */
void cs_write_start(struct cs_req *req);
void cs_req_journaled(struct cs_req *req, int error);
void cs_drain(struct cs_req *req,
	      void (*ready)(struct cs_req *req)); /* wait until no request of the chunk is in flight */
int cs_may_write(struct cs *cs, const struct cs_req *req); /* status */

/* cs_replay.c, cs_store.c */
int cs_replay(struct cs *cs, char *err, size_t err_len);
int cs_resolve(struct cs *cs, struct cs_chunk *c, uint32_t block, const uint8_t *content, uint32_t new_crc,
	       int old_state, uint32_t old_crc);
int cs_store_open(struct cs *cs, char *err, size_t err_len);
void cs_store_close(struct cs *cs);
int cs_drain_all(struct cs *cs); /* checkpoint until everything is in its place; 0 or -EIO */

/* cs_server.c, cs_conn.c */
int cs_server_start(struct cs *cs);
void cs_server_stop(struct cs *cs); /* no new requests */
int cs_server_quiet(struct cs *cs); /* 1: all replies are out */
void cs_server_close(struct cs *cs); /* drop connections */
int cs_server_gone(struct cs *cs);
void cs_server_free(struct cs *cs);
void cs_net_ready(struct cs *cs);
void cs_net_flush(struct cs *cs);
void cs_net_timer(struct cs *cs, uint64_t now_ms);
#endif
