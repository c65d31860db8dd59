/* The chunk server's data engine: chunk store with write-ahead journal, and the server loop, one thread, io_uring.
 * Contract (also what cffi sees).  Every function returns 0 or a negative errno, or a positive vst_error code where it says "status".
 * Control calls are thread-safe, block until the engine thread has done them, and are made by Python with the GIL released.
 * Before vst_cs_run runs (or after it returned) they act at once on the caller's thread. */
#ifndef VSTOR_CS_H
#define VSTOR_CS_H
#include <stddef.h>
#include <stdint.h>

typedef struct vst_cs vst_cs;

struct vst_cs_config {
	const char *dir;           /* existing directory of this CS; chunk files below it in chunks/XX/ */
	const char *journal;       /* path of the journal file; NULL: dir/journal */
	uint64_t journal_bytes;    /* multiple of 64 MiB; used when the file is made */
	uint8_t cluster_id[16];
	uint32_t cs_id;
	uint64_t incarnation;      /* new on each start */
	uint64_t reserve_bytes;    /* free space below which WRITE gets NO_SPACE (deletes and recovery writes still work) */
	uint32_t min_auth_mode;    /* refuse sessions weaker than this */
	uint32_t flags;            /* VST_CS_* */
};
#define VST_CS_NO_URING 1u         /* use the fallback event loop */

struct vst_cs_chunk {              /* one replica, as listed */
	uint64_t chunk_id;
	uint32_t version;
	uint32_t chunk_bytes;
	uint64_t written_blocks;
	uint32_t bad_blocks;
	uint32_t flags;            /* bit 0: a copy in progress (made by vst_cs_create with syncing=1), not to be served */
};

enum vst_cs_event_kind {
	VST_CS_EV_NONE = 0,
	VST_CS_EV_CORRUPT = 1,     /* a block does not match its checksum: chunk_id, offset; the block is quarantined (reads of it get CORRUPT).
	                            * offset UINT64_MAX: header or table is damaged, the whole replica is gone (its file is in quarantine/) */
	VST_CS_EV_IO_ERROR = 2,    /* chunk_id, offset, error = errno */
	VST_CS_EV_NO_SPACE = 3,
	VST_CS_EV_JOURNAL_ERROR = 4,
	VST_CS_EV_FATAL = 5,       /* the engine stops */
};
struct vst_cs_event { uint32_t kind; int32_t error; uint64_t chunk_id; uint64_t offset; uint64_t count; };

struct vst_cs_counters {
	uint64_t connections, requests, bytes_read, bytes_written, crc_errors, auth_failures, bad_frames;
	uint64_t reads, writes, syncs, punches, stale_refused, io_errors, corrupt_blocks;
	uint64_t journal_bytes, journal_used, journal_records, journal_flushes, checkpoints;
	uint64_t read_ns_sum, write_ns_sum, sync_ns_sum, read_ns_max, write_ns_max, sync_ns_max; /* max: since the last reading */
	uint64_t inflight, chunks, written_blocks, replayed_records, events_lost;
};

/* Open the store: make journal and directories when the directory is fresh, check headers, replay the journal.
 * On failure *err holds one line naming the file and what is wrong. -EUCLEAN damaged, -EPROTO newer format, -EBUSY locked, -EINVAL foreign. */
int vst_cs_open(const struct vst_cs_config *cfg, vst_cs **out, char *err, size_t err_len);
/* addr: "IPv4", "IPv6" or "unix:/path". *port: wanted (0 any) and then the one bound. Before or while running. */
int vst_cs_listen(vst_cs *cs, const char *addr, uint16_t *port);
int vst_cs_run(vst_cs *cs);        /* the event loop; returns after vst_cs_stop: replies sent, journal checkpointed, files synced */
void vst_cs_stop(vst_cs *cs);      /* from any thread or a signal handler */
void vst_cs_close(vst_cs *cs);
int vst_cs_direct(const vst_cs *cs); /* 1: files are opened with O_DIRECT (the file system can) */

int vst_cs_event_fd(const vst_cs *cs);                      /* readable when events wait */
int vst_cs_next_event(vst_cs *cs, struct vst_cs_event *ev); /* 1 got one, 0 none */
void vst_cs_get_counters(vst_cs *cs, struct vst_cs_counters *out);

/* Keys. cs_key proves the MDS to clients of this CS; ticket keys by id (at most 4 kept). */
int vst_cs_set_cs_key(vst_cs *cs, const uint8_t key[32]);
int vst_cs_set_ticket_key(vst_cs *cs, uint32_t key_id, const uint8_t key[32]);
/* Keys with smaller ids are not accepted any more; what was opened with them is closed: its requests get EXPIRED. */
int vst_cs_forget_ticket_keys(vst_cs *cs, uint32_t below);
/* As min_auth_mode of the configuration, for new connections (the MDS says it at registration). */
int vst_cs_set_min_auth(vst_cs *cs, uint32_t mode);
/* cluster time = CLOCK_BOOTTIME ms + offset; requests are served while CLOCK_BOOTTIME ms < serve_until (0: never yet). */
int vst_cs_set_time(vst_cs *cs, int64_t offset_ms, uint64_t serve_until_boottime_ms);

/* Orders of the MDS. All durable when they return. status results (0 or a vst_error code). */
int vst_cs_set_version(vst_cs *cs, uint64_t chunk_id, uint32_t version); /* only upwards (equal is fine); NO_CHUNK; in-flight requests of the old version finish before it returns */
int vst_cs_create(vst_cs *cs, uint64_t chunk_id, uint32_t chunk_bytes, uint32_t version, int syncing); /* EXISTS */
int vst_cs_begin_sync(vst_cs *cs, uint64_t chunk_id); /* sets the syncing flag of an existing (stale) replica: not served until finish_sync */
int vst_cs_finish_sync(vst_cs *cs, uint64_t chunk_id, uint32_t version); /* clears the syncing flag, sets the version */
int vst_cs_delete(vst_cs *cs, uint64_t chunk_id);                        /* idempotent */
/* Local access for recovery, scrub and tests. buf: any address; offset, len multiples of 4096, at most io_bytes_max.
 * read: *hole = 1 when unwritten. write: clears quarantine of the blocks; mod_version recorded is `version`; BUSY while an order changes
 * the chunk. punch: any alignment. status results. */
int vst_cs_read(vst_cs *cs, uint64_t chunk_id, uint64_t off, uint32_t len, void *buf, int *hole);
int vst_cs_write(vst_cs *cs, uint64_t chunk_id, uint32_t version, uint64_t off, uint32_t len, const void *buf, int durable);
/* Mend quarantined blocks of [off, off+len) from good data: each block that is not quarantined (any more: a client may have overwritten
 * it since the data was fetched) is left as it is. Durable. STALE when the replica's version is not `version`. *mended: blocks written. */
int vst_cs_repair(vst_cs *cs, uint64_t chunk_id, uint32_t version, uint64_t off, uint32_t len, const void *buf, uint32_t *mended);
int vst_cs_punch(vst_cs *cs, uint64_t chunk_id, uint32_t version, uint64_t off, uint64_t len);
int vst_cs_hash(vst_cs *cs, uint64_t chunk_id, uint64_t off, uint32_t len, uint8_t out[32]);
int vst_cs_granules(vst_cs *cs, uint64_t chunk_id, uint64_t *pairs, uint32_t npairs); /* count or -1000-status */
int vst_cs_stat(vst_cs *cs, uint64_t chunk_id, struct vst_cs_chunk *out);
/* Chunks with id > after, ascending, at most max: the count. */
int vst_cs_list(vst_cs *cs, uint64_t after, struct vst_cs_chunk *out, uint32_t max);
int vst_cs_sync(vst_cs *cs);                                 /* everything on stable storage */
/* Read every written block of a chunk from the disk itself (not from memory) against its checksum; bad ones are quarantined and reported as events. Count of bad blocks, or -1000-status */
int vst_cs_scrub(vst_cs *cs, uint64_t chunk_id, uint64_t *bytes_read);
#endif
