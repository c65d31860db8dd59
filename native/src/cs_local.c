/* Control calls: local access for recovery, repair and scrub; what there is. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "cs_internal.h"

#define DURABLE 1
#define ONLY_BAD 2
/* A status where a count is returned too (cs.h). */
#define CS_STATUS(status) (-1000 - (status))

/* --- local reads and writes */

static int range_ok(const struct cs_chunk *c, uint64_t off, uint64_t len)
{
	return len > 0 && off <= c->chunk_bytes && len <= c->chunk_bytes - off;
}

static void read_done(struct cs_req *req)
{
	struct cs_cmd *cmd = CS_CMD_OF(req);

	if (!req->status && cmd->out)
		memcpy(cmd->out, req->buf->data + req->off % CS_BLOCK, req->len);
	if (req->op == CS_HASH && !req->status)
		memcpy(cmd->out2, req->hash, sizeof req->hash);
	else if (req->op == CS_READ && cmd->out2)
		*(int *)cmd->out2 = req->hole;
	cs_buf_put(req->cs, req->buf);
	cs_cmd_req_done(req);
}

static void start_read(struct cs *cs, struct cs_cmd *cmd)
{
	struct cs_chunk *c = cs_cmd_chunk(cs, cmd);

	if (!c)
		return;
	if (!range_ok(c, cmd->off, cmd->len)) {
		cs_cmd_done(cs, cmd, VST_ERR_BAD_REQUEST);
		return;
	}
	cs_cmd_req(cs, cmd, cmd->flag ? CS_HASH : CS_READ);
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
	cs_cmd_req_done(req);
}

static void start_write(struct cs *cs, struct cs_cmd *cmd)
{
	struct cs_chunk *c = cs_cmd_chunk(cs, cmd);

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
	cs_cmd_req(cs, cmd, cmd->in ? CS_WRITE : CS_PUNCH);
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
	struct cs_chunk *c = cs_cmd_chunk(cs, cmd);
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
	struct cs_cmd *cmd = CS_CMD_OF(req);
	uint32_t n = cs_granules_fill(req->c, cmd->out, cmd->max);

	req->bad = n;
	cs_req_finish(req, 0);
}

static void granules_done(struct cs_req *req)
{
	cs_cmd_done(req->cs, CS_CMD_OF(req), req->status ? CS_STATUS(req->status) : (int)req->bad);
}

static void start_granules(struct cs *cs, struct cs_cmd *cmd)
{
	struct cs_chunk *c = cs_chunk_find(cs, cmd->chunk_id);

	if (!c || c->unborn) {
		cs_cmd_done(cs, cmd, CS_STATUS(VST_ERR_NO_CHUNK));
		return;
	}
	cs_cmd_req(cs, cmd, CS_READ);
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
	struct cs_cmd *cmd = CS_CMD_OF(req);

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
	cs_cmd_req(cs, cmd, CS_SCRUB);
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
	cs_cmd_req(cs, cmd, CS_SYNC);
	cs_sync_add(&cmd->req);
}

int vst_cs_sync(vst_cs *cs)
{
	struct cs_cmd cmd = {.start = start_sync};
	return cs_call((struct cs *)cs, &cmd);
}
