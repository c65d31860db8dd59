/* Control calls: keys and time, orders of the MDS, local access for recovery and scrub. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "cs_internal.h"

#define DURABLE 1
#define ONLY_BAD 2
/* A status where a count is returned too (cs.h). */
#define CS_STATUS(status) (-1000 - (status))
#define CMD_OF(req) ((struct cs_cmd *)((char *)(req)-offsetof(struct cs_cmd, req)))

static void req_done(struct cs_req *req)
{
	cs_cmd_done(req->cs, CMD_OF(req), req->status);
}

static void init_req(struct cs *cs, struct cs_cmd *cmd, uint8_t op)
{
	cmd->req = (struct cs_req){.cs = cs,
				   .op = op,
				   .local = 1,
				   .done = req_done,
				   .version = cmd->version,
				   .off = cmd->off,
				   .len = cmd->len};
}

/* The chunk of a command, or the command ends with NO_CHUNK. */
static struct cs_chunk *chunk_of(struct cs *cs, struct cs_cmd *cmd)
{
	struct cs_chunk *c = cs_chunk_find(cs, cmd->chunk_id);
	if (c && !c->unborn)
		return c;
	cs_cmd_done(cs, cmd, VST_ERR_NO_CHUNK);
	return NULL;
}

/* --- orders: wait until no request of the chunk is in flight, journal durably, change the state in memory */

static void order_done(struct cs_req *req)
{
	struct cs_chunk *c = req->c;
	struct cs *cs = req->cs;

	c->fenced--;
	cs_cmd_done(cs, CMD_OF(req), req->status);
	/* cs_req_finish goes on with the chunk, which this reference kept. */
	c->refs--;
}

static void order_journaled(struct cs_req *req, int error)
{
	struct cs *cs = req->cs;
	struct cs_chunk *c = req->c;
	int status = 0;

	if (error || c->gone) {
		status = error ? VST_ERR_IO_ERROR : VST_ERR_NO_CHUNK;
	} else if (req->op == CS_DELETE) {
		int rc = cs_chunk_trash(cs, c->id);
		if (rc < 0)
			cs_report(cs, VST_CS_EV_IO_ERROR, c->id, 0, -rc);
		cs->n.chunks--;
		cs_chunk_gone(cs, c);
	} else if (req->op == CS_BEGIN_SYNC) {
		c->flags |= VST_CHUNK_FLAG_SYNCING;
		cs_chunk_header_dirty(cs, c);
	} else if (req->op != CS_CREATE) {
		c->version = req->version;
		if (req->op == CS_FINISH_SYNC)
			c->flags &= ~(uint32_t)VST_CHUNK_FLAG_SYNCING;
		cs_chunk_header_dirty(cs, c);
	}
	cs_req_finish(req, status);
}

static uint8_t record_of(const struct cs_req *req)
{
	switch (req->op) {
	case CS_DELETE:
		return VST_JOURNAL_TYPE_DELETE;
	case CS_FINISH_SYNC:
		return VST_JOURNAL_TYPE_FINISH_SYNC;
	case CS_BEGIN_SYNC:
		return VST_JOURNAL_TYPE_BEGIN_SYNC;
	default:
		return VST_JOURNAL_TYPE_SET_VERSION;
	}
}

static int make_file(struct cs *cs, struct cs_chunk *c)
{
	int rc = cs->j.error ? -EIO : c->loaded ? 0 : cs_chunk_blank(cs, c);
	return rc < 0 ? rc : cs_chunk_open_file(cs, c, 1);
}

static void order_drained(struct cs_req *req)
{
	struct cs_chunk *c = req->c;

	cs_req_begin(req);
	if (c->gone) {
		cs_req_finish(req, req->op == CS_DELETE ? 0 : VST_ERR_NO_CHUNK);
		return;
	}
	if (req->op == CS_DELETE && c->unborn) {
		cs_chunk_drop_unborn(req->cs, c);
		cs_req_finish(req, 0);
		return;
	}
	if ((req->op == CS_SET_VERSION || req->op == CS_FINISH_SYNC) && req->version < c->version) {
		cs_req_finish(req, VST_ERR_STALE);
		return;
	}
	if (req->op == CS_SET_VERSION && req->version == c->version && !c->unborn) {
		cs_req_finish(req, 0);
		return;
	}
	int rc = c->unborn ? make_file(req->cs, c) : 0;
	if (rc < 0) {
		cs_req_finish(req, cs_errno_status(rc));
		return;
	}
	req->durable = 1;
	req->journaled = order_journaled;
	if (req->op != CS_CREATE)
		req->recs[req->nrecs++] = (struct cs_rec){.type = record_of(req)};
	cs_journal_add(req);
}

static void begin_order(struct cs *cs, struct cs_cmd *cmd, struct cs_chunk *c, uint8_t op)
{
	init_req(cs, cmd, op);
	cmd->req.c = c;
	cmd->req.done = order_done;
	c->refs++;
	c->fenced++;
	cs_drain(&cmd->req, order_drained);
}

/* Also of a chunk that exists only as an open handle with CREATE: it is made at the new version, so that writes of the
 * old one are refused.  And one that is not here at all is remembered for the OPEN with an old CREATE ticket that may
 * still come. */
static void start_set_version(struct cs *cs, struct cs_cmd *cmd)
{
	struct cs_chunk *c = cs_chunk_find(cs, cmd->chunk_id);
	if (c) {
		begin_order(cs, cmd, c, CS_SET_VERSION);
		return;
	}
	struct cs_floor *f = cs_floor_slot(cs, cmd->chunk_id);
	if (f->chunk_id != cmd->chunk_id || f->version < cmd->version)
		*f = (struct cs_floor){cmd->chunk_id, cmd->version};
	cs_cmd_done(cs, cmd, VST_ERR_NO_CHUNK);
}

static void start_finish_sync(struct cs *cs, struct cs_cmd *cmd)
{
	struct cs_chunk *c = chunk_of(cs, cmd);
	if (c)
		begin_order(cs, cmd, c, CS_FINISH_SYNC);
}

static void start_begin_sync(struct cs *cs, struct cs_cmd *cmd)
{
	struct cs_chunk *c = chunk_of(cs, cmd);
	if (!c)
		return;
	cmd->version = c->version;
	begin_order(cs, cmd, c, CS_BEGIN_SYNC);
}

static void start_delete(struct cs *cs, struct cs_cmd *cmd)
{
	struct cs_chunk *c = cs_chunk_find(cs, cmd->chunk_id);
	if (c)
		begin_order(cs, cmd, c, CS_DELETE);
	else
		cs_cmd_done(cs, cmd, 0);
}

static void start_create(struct cs *cs, struct cs_cmd *cmd)
{
	if (!cs_chunk_bytes_ok(cmd->chunk_bytes)) {
		cs_cmd_done(cs, cmd, VST_ERR_BAD_REQUEST);
		return;
	}
	if (cs_chunk_find(cs, cmd->chunk_id)) {
		cs_cmd_done(cs, cmd, VST_ERR_EXISTS);
		return;
	}
	struct cs_chunk *c =
		cs_chunk_new(cs, cmd->chunk_id, cmd->chunk_bytes, cmd->version, cmd->flag ? VST_CHUNK_FLAG_SYNCING : 0);
	if (!c) {
		cs_cmd_done(cs, cmd, VST_ERR_BUSY);
		return;
	}
	c->unborn = 1;
	begin_order(cs, cmd, c, CS_CREATE);
}

static int order(vst_cs *handle, void (*start)(struct cs *cs, struct cs_cmd *cmd), uint64_t chunk_id,
		 uint32_t chunk_bytes, uint32_t version, int flag)
{
	struct cs_cmd cmd = {
		.start = start, .chunk_id = chunk_id, .chunk_bytes = chunk_bytes, .version = version, .flag = flag};
	return cs_call((struct cs *)handle, &cmd);
}

int vst_cs_set_version(vst_cs *cs, uint64_t chunk_id, uint32_t version)
{
	return order(cs, start_set_version, chunk_id, 0, version, 0);
}

int vst_cs_create(vst_cs *cs, uint64_t chunk_id, uint32_t chunk_bytes, uint32_t version, int syncing)
{
	return order(cs, start_create, chunk_id, chunk_bytes, version, syncing);
}

int vst_cs_begin_sync(vst_cs *cs, uint64_t chunk_id)
{
	return order(cs, start_begin_sync, chunk_id, 0, 0, 0);
}

int vst_cs_finish_sync(vst_cs *cs, uint64_t chunk_id, uint32_t version)
{
	return order(cs, start_finish_sync, chunk_id, 0, version, 0);
}

int vst_cs_delete(vst_cs *cs, uint64_t chunk_id)
{
	return order(cs, start_delete, chunk_id, 0, 0, 0);
}

/* --- local reads and writes */

static int range_ok(const struct cs_chunk *c, uint64_t off, uint64_t len)
{
	return len > 0 && off <= c->chunk_bytes && len <= c->chunk_bytes - off;
}

static void read_done(struct cs_req *req)
{
	struct cs_cmd *cmd = CMD_OF(req);

	if (!req->status && cmd->out)
		memcpy(cmd->out, req->buf->data + req->off % CS_BLOCK, req->len);
	if (req->op == CS_HASH && !req->status)
		memcpy(cmd->out2, req->hash, sizeof req->hash);
	else if (req->op == CS_READ && cmd->out2)
		*(int *)cmd->out2 = req->hole;
	cs_buf_put(req->cs, req->buf);
	req_done(req);
}

static void start_read(struct cs *cs, struct cs_cmd *cmd)
{
	struct cs_chunk *c = chunk_of(cs, cmd);

	if (!c)
		return;
	if (!range_ok(c, cmd->off, cmd->len)) {
		cs_cmd_done(cs, cmd, VST_ERR_BAD_REQUEST);
		return;
	}
	init_req(cs, cmd, cmd->flag ? CS_HASH : CS_READ);
	cmd->req.c = c;
	cmd->req.done = read_done;
	cs_req_start(&cmd->req);
}

int vst_cs_read(vst_cs *cs, uint64_t chunk_id, uint64_t off, uint32_t len, void *buf, int *hole)
{
	struct cs_cmd cmd = {
		.start = start_read, .chunk_id = chunk_id, .off = off, .len = len, .out = buf, .out2 = hole};
	if (len > VST_IO_BYTES_MAX || off % CS_BLOCK || len % CS_BLOCK)
		return VST_ERR_BAD_REQUEST;
	return cs_call((struct cs *)cs, &cmd);
}

int vst_cs_hash(vst_cs *cs, uint64_t chunk_id, uint64_t off, uint32_t len, uint8_t out[32])
{
	struct cs_cmd cmd = {.start = start_read, .chunk_id = chunk_id, .off = off, .len = len, .out2 = out, .flag = 1};
	if (len > VST_IO_BYTES_MAX)
		return VST_ERR_BAD_REQUEST;
	return cs_call((struct cs *)cs, &cmd);
}

static void write_done(struct cs_req *req)
{
	cs_buf_put(req->cs, req->buf);
	req_done(req);
}

static void start_write(struct cs *cs, struct cs_cmd *cmd)
{
	struct cs_chunk *c = chunk_of(cs, cmd);

	if (!c)
		return;
	if (!range_ok(c, cmd->off, cmd->len)) {
		cs_cmd_done(cs, cmd, VST_ERR_BAD_REQUEST);
		return;
	}
	if (c->fenced || ((cmd->flag & ONLY_BAD) && cmd->version != c->version)) {
		cs_cmd_done(cs, cmd, c->fenced ? VST_ERR_BUSY : VST_ERR_STALE);
		return;
	}
	init_req(cs, cmd, cmd->in ? CS_WRITE : CS_PUNCH);
	struct cs_req *req = &cmd->req;
	req->c = c;
	req->durable = cmd->flag & DURABLE ? 1 : 0;
	if (cmd->in) {
		req->done = write_done;
		req->only_bad = cmd->flag & ONLY_BAD ? 1 : 0;
		req->buf = cs_buf_get(cs, cmd->len);
		if (!req->buf) {
			cs_cmd_done(cs, cmd, VST_ERR_BUSY);
			return;
		}
		memcpy(req->buf->data, cmd->in, cmd->len);
	}
	cs_req_start(req);
}

static int aligned(uint64_t off, uint32_t len)
{
	return len > 0 && len <= VST_IO_BYTES_MAX && off % CS_BLOCK == 0 && len % CS_BLOCK == 0;
}

int vst_cs_write(vst_cs *cs, uint64_t chunk_id, uint32_t version, uint64_t off, uint32_t len, const void *buf,
		 int durable)
{
	struct cs_cmd cmd = {.start = start_write,
			     .chunk_id = chunk_id,
			     .version = version,
			     .off = off,
			     .len = len,
			     .in = buf,
			     .flag = durable ? DURABLE : 0};
	return aligned(off, len) ? cs_call((struct cs *)cs, &cmd) : VST_ERR_BAD_REQUEST;
}

/* Block by block: whether one is still quarantined is decided under its range lock. */
int vst_cs_repair(vst_cs *cs, uint64_t chunk_id, uint32_t version, uint64_t off, uint32_t len, const void *buf,
		  uint32_t *mended)
{
	int status = aligned(off, len) ? 0 : VST_ERR_BAD_REQUEST;

	*mended = 0;
	for (uint32_t at = 0; at < len && !status; at += CS_BLOCK) {
		struct cs_cmd cmd = {.start = start_write,
				     .chunk_id = chunk_id,
				     .version = version,
				     .off = off + at,
				     .len = CS_BLOCK,
				     .in = (const uint8_t *)buf + at,
				     .flag = DURABLE | ONLY_BAD};
		status = cs_call((struct cs *)cs, &cmd);
		*mended += !status && cmd.req.nrecs;
	}
	return status;
}

int vst_cs_punch(vst_cs *cs, uint64_t chunk_id, uint32_t version, uint64_t off, uint64_t len)
{
	struct cs_cmd cmd = {.start = start_write, .chunk_id = chunk_id, .version = version, .off = off, .len = len};
	return cs_call((struct cs *)cs, &cmd);
}

/* --- what there is */

static void fill(const struct cs_chunk *c, struct vst_cs_chunk *out)
{
	*out = (struct vst_cs_chunk){.chunk_id = c->id,
				     .version = c->version,
				     .chunk_bytes = c->chunk_bytes,
				     .written_blocks = c->written,
				     .bad_blocks = c->bad,
				     .flags = c->flags};
}

static void start_stat(struct cs *cs, struct cs_cmd *cmd)
{
	struct cs_chunk *c = chunk_of(cs, cmd);
	if (!c)
		return;
	fill(c, cmd->out);
	cs_cmd_done(cs, cmd, 0);
}

int vst_cs_stat(vst_cs *cs, uint64_t chunk_id, struct vst_cs_chunk *out)
{
	struct cs_cmd cmd = {.start = start_stat, .chunk_id = chunk_id, .out = out};
	return cs_call((struct cs *)cs, &cmd);
}

static int by_id(const void *a, const void *b)
{
	const struct vst_cs_chunk *x = a, *y = b;
	return x->chunk_id < y->chunk_id ? -1 : x->chunk_id > y->chunk_id;
}

static void start_list(struct cs *cs, struct cs_cmd *cmd)
{
	struct vst_cs_chunk *all = calloc(cs->nchunks + 1, sizeof *all);
	uint32_t n = 0;

	if (!all) {
		cs_cmd_done(cs, cmd, -ENOMEM);
		return;
	}
	for (uint32_t i = 0; i < cs->hash_size; i++)
		for (const struct cs_chunk *c = cs->hash[i]; c; c = c->hash_next)
			if (!c->unborn && c->id > cmd->chunk_id)
				fill(c, &all[n++]);
	qsort(all, n, sizeof *all, by_id);
	if (n > cmd->max)
		n = cmd->max;
	memcpy(cmd->out, all, n * sizeof *all);
	free(all);
	cs_cmd_done(cs, cmd, (int)n);
}

int vst_cs_list(vst_cs *cs, uint64_t after, struct vst_cs_chunk *out, uint32_t max)
{
	struct cs_cmd cmd = {.start = start_list, .chunk_id = after, .out = out, .max = max};
	return cs_call((struct cs *)cs, &cmd);
}

/* The table must be in memory: a request that does nothing else brings it. */
static void granules_ready(struct cs_req *req)
{
	struct cs_cmd *cmd = CMD_OF(req);
	uint32_t n = cs_granules_fill(req->c, cmd->out, cmd->max);

	req->bad = n;
	cs_req_finish(req, 0);
}

static void granules_done(struct cs_req *req)
{
	cs_cmd_done(req->cs, CMD_OF(req), req->status ? CS_STATUS(req->status) : (int)req->bad);
}

static void start_granules(struct cs *cs, struct cs_cmd *cmd)
{
	struct cs_chunk *c = cs_chunk_find(cs, cmd->chunk_id);

	if (!c || c->unborn) {
		cs_cmd_done(cs, cmd, CS_STATUS(VST_ERR_NO_CHUNK));
		return;
	}
	init_req(cs, cmd, CS_READ);
	cmd->req.c = c;
	cmd->req.done = granules_done;
	cs_req_begin(&cmd->req);
	cs_chunk_ready(&cmd->req, granules_ready);
}

int vst_cs_granules(vst_cs *cs, uint64_t chunk_id, uint64_t *pairs, uint32_t npairs)
{
	struct cs_cmd cmd = {.start = start_granules, .chunk_id = chunk_id, .out = pairs, .max = npairs};
	return cs_call((struct cs *)cs, &cmd);
}

static void scrub_done(struct cs_req *req)
{
	struct cs_cmd *cmd = CMD_OF(req);

	if (cmd->out)
		*(uint64_t *)cmd->out = req->bytes;
	cs_buf_put(req->cs, req->buf);
	cs_cmd_done(req->cs, cmd, req->status ? CS_STATUS(req->status) : (int)req->bad);
}

static void start_scrub(struct cs *cs, struct cs_cmd *cmd)
{
	struct cs_chunk *c = cs_chunk_find(cs, cmd->chunk_id);

	if (!c || c->unborn) {
		cs_cmd_done(cs, cmd, CS_STATUS(VST_ERR_NO_CHUNK));
		return;
	}
	init_req(cs, cmd, CS_SCRUB);
	cmd->req.c = c;
	cmd->req.done = scrub_done;
	cs_req_start(&cmd->req);
}

int vst_cs_scrub(vst_cs *cs, uint64_t chunk_id, uint64_t *bytes_read)
{
	struct cs_cmd cmd = {.start = start_scrub, .chunk_id = chunk_id, .out = bytes_read};
	return cs_call((struct cs *)cs, &cmd);
}

static void start_sync(struct cs *cs, struct cs_cmd *cmd)
{
	init_req(cs, cmd, CS_SYNC);
	cs_sync_add(&cmd->req);
}

int vst_cs_sync(vst_cs *cs)
{
	struct cs_cmd cmd = {.start = start_sync};
	return cs_call((struct cs *)cs, &cmd);
}

/* --- keys and time */

static void start_cs_key(struct cs *cs, struct cs_cmd *cmd)
{
	memcpy(cs->cs_key, cmd->in, sizeof cs->cs_key);
	cs->have_cs_key = 1;
	cs_cmd_done(cs, cmd, 0);
}

int vst_cs_set_cs_key(vst_cs *cs, const uint8_t key[32])
{
	struct cs_cmd cmd = {.start = start_cs_key, .in = key};
	return cs_call((struct cs *)cs, &cmd);
}

static void start_ticket_key(struct cs *cs, struct cs_cmd *cmd)
{
	size_t best = 0, n = sizeof cs->ticket_key / sizeof *cs->ticket_key;

	/* Its own slot, else a free one, else the one set longest ago. */
	for (size_t i = 0; i < n; i++) {
		if (cs->ticket_key[i].used && cs->ticket_key[i].id == cmd->version) {
			best = i;
			break;
		}
		if (cs->ticket_key[i].used < cs->ticket_key[best].used ||
		    (cs->ticket_key[best].used && cs->ticket_key[i].age < cs->ticket_key[best].age))
			best = i;
	}
	cs->ticket_key[best].id = cmd->version;
	cs->ticket_key[best].used = 1;
	cs->ticket_key[best].age = ++cs->ticket_key_age;
	memcpy(cs->ticket_key[best].key, cmd->in, sizeof cs->ticket_key[best].key);
	cs_cmd_done(cs, cmd, 0);
}

int vst_cs_set_ticket_key(vst_cs *cs, uint32_t key_id, const uint8_t key[32])
{
	struct cs_cmd cmd = {.start = start_ticket_key, .version = key_id, .in = key};
	return cs_call((struct cs *)cs, &cmd);
}

static void start_min_auth(struct cs *cs, struct cs_cmd *cmd)
{
	cs->cfg.min_auth_mode = cmd->version;
	cs_cmd_done(cs, cmd, 0);
}

int vst_cs_set_min_auth(vst_cs *cs, uint32_t mode)
{
	struct cs_cmd cmd = {.start = start_min_auth, .version = mode};
	return cs_call((struct cs *)cs, &cmd);
}

static void start_time(struct cs *cs, struct cs_cmd *cmd)
{
	memcpy(&cs->time_offset_ms, cmd->in, sizeof cs->time_offset_ms);
	cs->serve_until_ms = cmd->off;
	cs->have_time = 1;
	cs_cmd_done(cs, cmd, 0);
}

int vst_cs_set_time(vst_cs *cs, int64_t offset_ms, uint64_t serve_until_boottime_ms)
{
	struct cs_cmd cmd = {.start = start_time, .in = &offset_ms, .off = serve_until_boottime_ms};
	return cs_call((struct cs *)cs, &cmd);
}
