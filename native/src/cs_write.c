/* WRITE and PUNCH: partial blocks are merged with what they hold, then records go to the journal, then small data is
 * visible from memory and large data is written in place. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "cs_internal.h"
#include "vstor/crc32c.h"

static void write_ready(struct cs_req *req);

void cs_write_start(struct cs_req *req)
{
	int status = cs_may_write(req->cs, req);

	if (status)
		cs_req_finish(req, status);
	else if (req->op == CS_PUNCH && req->c->unborn)
		cs_req_finish(req, 0); /* nothing was ever written */
	else
		cs_chunk_ready(req, write_ready);
}

static struct cs_rec *add_rec(struct cs_req *req, uint8_t type, uint32_t b0, uint32_t n)
{
	struct cs_rec *rec = &req->recs[req->nrecs++];
	*rec = (struct cs_rec){.type = type, .b0 = b0, .n = n};
	return rec;
}

static void add_edge(struct cs_req *req, int i, uint32_t block)
{
	struct cs_rec *rec = add_rec(req, VST_JOURNAL_TYPE_DATA, block, 1);
	req->edge_crc[i] = vst_crc32c(0, req->edge[i]->data, CS_BLOCK);
	rec->buf = req->edge[i];
	rec->data = req->edge[i]->data;
	rec->crc = &req->edge_crc[i];
}

static int head_partial(const struct cs_req *req)
{
	return req->off % CS_BLOCK != 0 || (req->b1 - req->b0 == 1 && req->len % CS_BLOCK != 0);
}

static int tail_partial(const struct cs_req *req)
{
	return req->b1 - req->b0 > 1 && (req->off + req->len) % CS_BLOCK != 0;
}

/* CRC of each block of a write: of a whole block the client's own, so that it covers the way from there to the disk and
 * back. */
static int block_crcs(struct cs_req *req)
{
	uint32_t n = req->b1 - req->b0;
	int head = head_partial(req), tail = tail_partial(req);

	req->crc = n <= sizeof req->crc_small / sizeof *req->crc_small ? req->crc_small : calloc(n, sizeof *req->crc);
	if (!req->crc)
		return -ENOMEM;
	for (uint32_t i = 0; i < n; i++) {
		if (req->table && !(i == 0 && head) && !(i == n - 1 && tail))
			req->crc[i] = req->table[i];
		else
			req->crc[i] = vst_crc32c(0, req->buf->data + (size_t)i * CS_BLOCK, CS_BLOCK);
	}
	return 0;
}

/* A large write: whole blocks in place; its partial edges through the journal, so that bytes it does not touch cannot
 * be torn. */
static void large_records(struct cs_req *req)
{
	uint32_t b0 = req->b0, b1 = req->b1;
	int head = head_partial(req), tail = tail_partial(req);

	if (head)
		add_edge(req, 0, b0++);
	if (tail)
		add_edge(req, 1, --b1);
	struct cs_rec *rec = add_rec(req, VST_JOURNAL_TYPE_INTENT, b0, b1 - b0);
	rec->data = req->buf->data + (size_t)(b0 - req->b0) * CS_BLOCK;
	rec->crc = req->crc + (b0 - req->b0);
	req->has_intent = 1;
}

static void write_merged(struct cs_req *req)
{
	uint32_t skip = (uint32_t)(req->off % CS_BLOCK), n = req->b1 - req->b0;
	uint64_t end = skip + req->len;

	/* Old bytes around the new ones; and the merged block back, as a block of its own for a large write. */
	if (req->edge[0]) {
		memcpy(req->buf->data, req->edge[0]->data, skip);
		if (n == 1)
			memcpy(req->buf->data + end, req->edge[0]->data + end, CS_BLOCK - end);
		memcpy(req->edge[0]->data, req->buf->data, CS_BLOCK);
	}
	if (req->edge[1]) {
		uint64_t in_block = end % CS_BLOCK;
		uint8_t *last = req->buf->data + (size_t)(n - 1) * CS_BLOCK;
		memcpy(last + in_block, req->edge[1]->data + in_block, CS_BLOCK - in_block);
		memcpy(req->edge[1]->data, last, CS_BLOCK);
	}
	if (block_crcs(req) < 0) {
		cs_req_finish(req, VST_ERR_BUSY);
		return;
	}
	if (req->len >= CS_SMALL_BYTES) {
		large_records(req);
	} else {
		struct cs_rec *rec = add_rec(req, VST_JOURNAL_TYPE_DATA, req->b0, n);
		rec->buf = req->buf;
		rec->data = req->buf->data;
		rec->crc = req->crc;
	}
	cs_journal_add(req);
}

/* Zeros into [from, to) of an edge block, if it holds anything. */
static void zero_edge(struct cs_req *req, int i, uint32_t block, uint32_t from, uint32_t to, int hole)
{
	if (hole)
		return;
	memset(req->edge[i]->data + from, 0, to - from);
	add_edge(req, i, block);
}

static void punch_merged(struct cs_req *req)
{
	struct cs_chunk *c = req->c;
	uint64_t end = req->off + req->len;
	uint32_t b0 = req->b0, b1 = req->b1;

	if (req->edge[0]) {
		uint64_t block_end = (uint64_t)(b0 + 1) * CS_BLOCK;
		uint32_t to = end < block_end ? (uint32_t)(end % CS_BLOCK) : CS_BLOCK;
		zero_edge(req, 0, b0, (uint32_t)(req->off % CS_BLOCK), to, req->rd.hole);
		b0++;
	}
	if (req->edge[1])
		zero_edge(req, 1, --b1, 0, (uint32_t)(end % CS_BLOCK), req->rd_tail.hole);
	while (b0 < b1 && cs_tab_state(c, b0) == CS_UNWRITTEN)
		b0++;
	while (b0 < b1 && cs_tab_state(c, b1 - 1) == CS_UNWRITTEN)
		b1--;
	if (b0 < b1)
		add_rec(req, VST_JOURNAL_TYPE_PUNCH, b0, b1 - b0);
	if (req->nrecs)
		cs_journal_add(req);
	else
		cs_req_finish(req, 0); /* nothing is stored there; what made it so was journaled before */
}

static void edge_read(struct cs_rd *rd)
{
	struct cs_req *req = rd->req;

	if (--req->edges_left)
		return;
	int status = req->edge[0] ? req->rd.status : 0;
	if (!status && req->edge[1])
		status = req->rd_tail.status;
	if (status)
		cs_req_finish(req, status);
	else if (req->op == CS_WRITE)
		write_merged(req);
	else
		punch_merged(req);
}

static int start_edge(struct cs_req *req, int i, uint32_t block, struct cs_rd *rd)
{
	req->edge[i] = cs_buf_get(req->cs, CS_BLOCK);
	if (!req->edge[i])
		return -ENOMEM;
	*rd = (struct cs_rd){
		.req = req, .c = req->c, .done = edge_read, .dst = req->edge[i]->data, .b0 = block, .b1 = block + 1};
	req->edges_left++;
	return 0;
}

static void write_locked(struct cs_lock *lk)
{
	struct cs_req *req = (struct cs_req *)((char *)lk - offsetof(struct cs_req, lock));
	int rc = 0;

	req->locked = 1;
	if (req->c->gone) {
		cs_req_finish(req, VST_ERR_NO_CHUNK);
		return;
	}
	if (req->only_bad && cs_tab_state(req->c, req->b0) != CS_BAD) {
		cs_req_finish(req, 0);
		return;
	}
	req->edges_left = 1; /* this function */
	if (head_partial(req))
		rc = start_edge(req, 0, req->b0, &req->rd);
	if (rc == 0 && tail_partial(req))
		rc = start_edge(req, 1, req->b1 - 1, &req->rd_tail);
	if (rc < 0) {
		cs_req_finish(req, VST_ERR_BUSY);
		return;
	}
	if (req->edge[0])
		cs_read_blocks(&req->rd);
	if (req->edge[1])
		cs_read_blocks(&req->rd_tail);
	struct cs_rd self = {.req = req};
	edge_read(&self);
}

static void write_ready(struct cs_req *req)
{
	req->b0 = (uint32_t)(req->off / CS_BLOCK);
	req->b1 = (uint32_t)((req->off + req->len + CS_BLOCK - 1) / CS_BLOCK);
	req->lock = (struct cs_lock){.b0 = req->b0, .b1 = req->b1, .exclusive = 1, .granted = write_locked};
	if (cs_lock_get(&req->c->locks, &req->lock))
		write_locked(&req->lock);
}

/* --- after the journal */

static struct cs_rec *intent_of(struct cs_req *req)
{
	struct cs_rec *rec = req->recs;
	while (rec->type != VST_JOURNAL_TYPE_INTENT)
		rec++;
	return rec;
}

static void finish_write(struct cs_req *req, int status)
{
	if (!status && !req->c->gone) {
		cs_tab_touch(req->cs, req->c, req->b0, req->b1, req->version);
		if (req->op == CS_WRITE)
			req->cs->n.bytes_written += req->len;
	}
	cs_req_finish(req, req->c->gone ? VST_ERR_NO_CHUNK : status);
}

struct reread { /* after a failed write in place: what do the blocks hold? */
	struct cs_io io;
	struct cs_req *req;
	struct cs_buf *buf;
	int error;
};

static void reread_done(struct cs_io *io, int res)
{
	struct reread *rr = (struct reread *)((char *)io - offsetof(struct reread, io));
	struct cs_req *req = rr->req;
	struct cs_rec *rec = intent_of(req);
	struct cs_chunk *c = req->c;
	int status = cs_errno_status(rr->error);

	for (uint32_t i = 0; i < rec->n && !c->gone; i++) {
		uint32_t b = rec->b0 + i;
		int state = cs_tab_state(c, b);
		if (res < 0 && !cs_index_get(c, b) && state != CS_UNWRITTEN)
			cs_tab_bad(req->cs, c, b);
		else if (res == 0)
			cs_resolve(req->cs, c, b, io->buf + (size_t)i * CS_BLOCK, rec->crc[i], state, cs_tab_crc(c, b));
	}
	if (!c->gone)
		cs_tab_touch(req->cs, c, rec->b0, rec->b0 + rec->n, req->version); /* some of it may be new */
	cs_intent_del(req->cs, req);
	cs_buf_put(req->cs, rr->buf);
	free(rr);
	finish_write(req, status);
}

static void in_place_failed(struct cs_req *req, int error)
{
	struct cs *cs = req->cs;
	struct cs_rec *rec = intent_of(req);
	struct reread *rr = calloc(1, sizeof *rr);

	cs->n.io_errors++;
	cs_report(cs, error == -ENOSPC ? VST_CS_EV_NO_SPACE : VST_CS_EV_IO_ERROR, req->c->id,
		  (uint64_t)rec->b0 * CS_BLOCK, -error);
	struct cs_buf *buf = rr ? cs_buf_get(cs, (uint64_t)rec->n * CS_BLOCK) : NULL;
	if (!buf) {
		free(rr);
		for (uint32_t i = 0; i < rec->n; i++)
			if (cs_tab_state(req->c, rec->b0 + i) != CS_UNWRITTEN && !cs_index_get(req->c, rec->b0 + i))
				cs_tab_bad(cs, req->c, rec->b0 + i);
		cs_intent_del(cs, req);
		finish_write(req, cs_errno_status(error));
		return;
	}
	rr->req = req;
	rr->buf = buf;
	rr->error = error;
	rr->io = (struct cs_io){.done = reread_done,
				.op = CS_IO_READ,
				.fd = req->c->fd,
				.buf = buf->data,
				.len = (uint64_t)rec->n * CS_BLOCK,
				.off = cs_chunk_data_off(req->c) + (uint64_t)rec->b0 * CS_BLOCK};
	cs_ring_submit(cs->ring, &rr->io);
}

static void in_place_done(struct cs_io *io, int res)
{
	struct cs_req *req = (struct cs_req *)((char *)io - offsetof(struct cs_req, io));
	struct cs_rec *rec = intent_of(req);
	struct cs_chunk *c = req->c;

	c->write_gen++;
	if (res < 0) {
		in_place_failed(req, res);
		return;
	}
	for (uint32_t i = 0; i < rec->n && !c->gone; i++) {
		cs_index_drop(req->cs, c, rec->b0 + i);
		cs_tab_write(req->cs, c, rec->b0 + i, rec->crc[i]);
	}
	cs_intent_del(req->cs, req);
	finish_write(req, 0);
}

static void in_place(struct cs_lock *lk)
{
	struct cs_req *req = (struct cs_req *)((char *)lk - offsetof(struct cs_req, flock));
	struct cs_rec *rec = intent_of(req);

	req->flocked = 1;
	req->io = (struct cs_io){.done = in_place_done,
				 .op = CS_IO_WRITE,
				 .fd = req->c->fd,
				 .buf = (uint8_t *)(uintptr_t)rec->data,
				 .len = (uint64_t)rec->n * CS_BLOCK,
				 .dsync = req->through,
				 .off = cs_chunk_data_off(req->c) + (uint64_t)rec->b0 * CS_BLOCK};
	cs_ring_submit(req->cs->ring, &req->io);
}

static void hole_in(struct cs *cs, struct cs_chunk *c, uint32_t b0, uint32_t b1)
{
	if (b0 < c->hole0)
		c->hole0 = b0;
	if (b1 > c->hole1)
		c->hole1 = b1;
	cs_chunk_dirty(cs, c);
}

/* A completed record of small data, or a PUNCH, becomes what readers see. */
static int show(struct cs_req *req, const struct cs_rec *rec)
{
	struct cs *cs = req->cs;
	struct cs_chunk *c = req->c;

	if (rec->type == VST_JOURNAL_TYPE_PUNCH)
		hole_in(cs, c, rec->b0, rec->b0 + rec->n);
	for (uint32_t i = 0; i < rec->n; i++) {
		uint32_t b = rec->b0 + i;
		if (rec->type == VST_JOURNAL_TYPE_PUNCH) {
			cs_index_drop(cs, c, b);
			cs_tab_clear(cs, c, b);
			continue;
		}
		int rc = cs_index_put(cs, c, b, rec->buf, rec->data + (size_t)i * CS_BLOCK, rec->crc[i], rec->seq);
		if (rc < 0)
			return rc;
		cs_tab_write(cs, c, b, rec->crc[i]);
	}
	return 0;
}

void cs_req_journaled(struct cs_req *req, int error)
{
	struct cs *cs = req->cs;
	struct cs_chunk *c = req->c;

	if (req->op != CS_WRITE && req->op != CS_PUNCH) {
		req->journaled(req, error);
		return;
	}
	if (error) {
		cs_req_finish(req, VST_ERR_IO_ERROR);
		return;
	}
	cs->last_write_ms = cs_now_ms();
	if (req->has_intent)
		cs_intent_add(cs, req);
	for (int i = 0; i < req->nrecs && !c->gone; i++) {
		if (req->recs[i].type == VST_JOURNAL_TYPE_INTENT || show(req, &req->recs[i]) == 0)
			continue;
		/* In the journal, but there is no memory to show it: as after a failed journal only a restart can tell
		 * what holds. */
		cs_journal_fail(cs, ENOMEM);
		if (req->has_intent)
			cs_intent_del(cs, req);
		cs_req_finish(req, VST_ERR_IO_ERROR);
		return;
	}
	if (!req->has_intent) {
		finish_write(req, 0);
		return;
	}
	struct cs_rec *rec = intent_of(req);
	req->flock = (struct cs_lock){.b0 = rec->b0, .b1 = rec->b0 + rec->n, .exclusive = 1, .granted = in_place};
	if (cs_lock_get(&c->flocks, &req->flock))
		in_place(&req->flock);
}
