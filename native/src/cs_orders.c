/* Control calls: orders of the MDS, keys and time. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "cs_internal.h"

void cs_cmd_req_done(struct cs_req *req)
{
	cs_cmd_done(req->cs, CS_CMD_OF(req), req->status);
}

void cs_cmd_req(struct cs *cs, struct cs_cmd *cmd, uint8_t op)
{
	cmd->req = (struct cs_req){.cs = cs,
				   .op = op,
				   .local = 1,
				   .done = cs_cmd_req_done,
				   .version = cmd->version,
				   .off = cmd->off,
				   .len = cmd->len};
}

/* The chunk of a command, or the command ends with NO_CHUNK. */
struct cs_chunk *cs_cmd_chunk(struct cs *cs, struct cs_cmd *cmd)
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
	cs_cmd_done(cs, CS_CMD_OF(req), req->status);
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
	cs_cmd_req(cs, cmd, op);
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
	struct cs_chunk *c = cs_cmd_chunk(cs, cmd);
	if (c)
		begin_order(cs, cmd, c, CS_FINISH_SYNC);
}

static void start_begin_sync(struct cs *cs, struct cs_cmd *cmd)
{
	struct cs_chunk *c = cs_cmd_chunk(cs, cmd);
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
