/* Group commit: what gathered while one journal write was in flight goes out as the next single write. */
#include <errno.h>
#include <string.h>
#include "cs_internal.h"
#include "vstor/crc32c.h"

static int is_order(const struct cs_req *r)
{
	return r->op >= CS_CREATE && r->op <= CS_BEGIN_SYNC;
}

void cs_journal_add(struct cs_req *req)
{
	struct cs_journal *j = &req->cs->j;

	if (j->error) {
		cs_req_journaled(req, -EIO);
		return;
	}
	req->next = NULL;
	if (j->q_tail)
		j->q_tail->next = req;
	else
		j->q_head = req;
	j->q_tail = req;
}

static struct cs_req *take_all(struct cs_journal *j)
{
	struct cs_req *r = j->q_head;
	j->q_head = j->q_tail = NULL;
	return r;
}

static void fail_list(struct cs_req *r)
{
	while (r) {
		struct cs_req *next = r->next;
		cs_req_journaled(r, -EIO);
		r = next;
	}
}

void cs_journal_fail(struct cs *cs, int error)
{
	struct cs_journal *j = &cs->j;

	if (!j->error) {
		j->error = error ? error : EIO;
		cs->n.io_errors++;
		cs_report(cs, VST_CS_EV_JOURNAL_ERROR, 0, 0, j->error);
	}
	fail_list(take_all(j));
}

static uint32_t extra_len(const struct cs_rec *rec)
{
	uint32_t n = 0;
	if (rec->type == VST_JOURNAL_TYPE_DATA)
		n = 4 * rec->n;
	else if (rec->type == VST_JOURNAL_TYPE_INTENT)
		n = 8 * rec->n + 2 * ((rec->n + 7) / 8);
	return (n + 7) / 8 * 8;
}

static void measure(const struct cs_req *r, uint32_t *header_bytes, uint32_t *data_blocks)
{
	*header_bytes = r->c->unborn ? (uint32_t)sizeof(struct vst_journal_record) : 0;
	*data_blocks = 0;
	for (int i = 0; i < r->nrecs; i++) {
		*header_bytes += (uint32_t)sizeof(struct vst_journal_record) + extra_len(&r->recs[i]);
		if (r->recs[i].type == VST_JOURNAL_TYPE_DATA)
			*data_blocks += r->recs[i].n;
	}
}

static uint32_t header_blocks(uint32_t bytes)
{
	return (bytes + CS_BLOCK - 1) / CS_BLOCK;
}

/* Bytes of the log from here that a group of this size needs, with what is left over at the end of the ring. */
static uint64_t needs(const struct cs_journal *j, uint64_t bytes)
{
	uint64_t to_end = j->log_bytes - j->head % j->log_bytes;
	return bytes > to_end ? to_end + bytes : bytes;
}

static int fits(const struct cs_journal *j, uint64_t bytes, int order)
{
	uint64_t limit = j->log_bytes - (order ? 0 : CS_JOURNAL_RESERVE);
	return cs_journal_used(j) + needs(j, bytes) <= limit;
}

/* The requests of the next group, in order; only orders when the log or the memory for unapplied data is full. */
static struct cs_req *choose(struct cs *cs, uint32_t *bytes, uint32_t *blocks)
{
	struct cs_journal *j = &cs->j;
	struct cs_req *group = NULL, **end = &group, **p = &j->q_head, *last = NULL;
	int orders_only = cs->index_bytes > CS_INDEX_BYTES_MAX;

	*bytes = (uint32_t)sizeof(struct vst_journal_group);
	*blocks = 0;
	if (orders_only)
		cs->ck.wanted = 1;
	j->full = 0;
	while (*p) {
		struct cs_req *r = *p;
		uint32_t h, d;
		measure(r, &h, &d);
		uint64_t total = (uint64_t)(header_blocks(*bytes + h) + *blocks + d) * CS_BLOCK;
		if (header_blocks(*bytes + h) > CS_GROUP_HEADER_BLOCKS || total > (uint64_t)CS_GROUP_BLOCKS * CS_BLOCK)
			break;
		int order = is_order(r);
		if ((orders_only && !order) || !fits(j, total, order)) {
			if (!order && !orders_only) {
				orders_only = 1;
				j->full = 1;
				cs->ck.wanted = 1;
			}
			if (order)
				break;
			last = r;
			p = &r->next;
			continue;
		}
		*bytes += h;
		*blocks += d;
		*p = r->next;
		if (j->q_tail == r)
			j->q_tail = last;
		r->next = NULL;
		*end = r;
		end = &r->next;
	}
	return group;
}

static void put_bit(uint8_t *map, uint32_t i)
{
	map[i / 8] = (uint8_t)(map[i / 8] | 1u << i % 8);
}

/* Is what the file holds in the block something else than its state says (unapplied data, a hole not punched yet)? */
static int differs(const struct cs_chunk *c, uint32_t block)
{
	return cs_index_get(c, block) || (block >= c->hole0 && block < c->hole1) ||
	       (block >= c->ck_hole0 && block < c->ck_hole1);
}

/* Old and new CRCs, so that after a crash each block is known by what it holds. 1: the log must be flushed before the
 * write. Replay knows the states a block went through, but not what the file held beneath unapplied data. So that the
 * file never holds that any more once a second INTENT comes, a write over such a block goes through the disk's cache at
 * once. */
static int put_intent(struct cs_req *r, const struct cs_rec *rec, uint8_t *out)
{
	const struct cs_chunk *c = r->c;
	uint8_t *written = out + 8 * (size_t)rec->n, *bad = written + (rec->n + 7) / 8;
	int flush = 0;

	r->through = r->durable | c->applying;
	for (uint32_t i = 0; i < rec->n; i++) {
		uint32_t b = rec->b0 + i;
		int state = cs_tab_state(c, b);
		uint32_t pair[2] = {cs_tab_crc(c, b), rec->crc[i]};
		memcpy(out + 8 * (size_t)i, pair, sizeof pair);
		if (state != CS_UNWRITTEN)
			put_bit(written, i);
		if (state == CS_BAD)
			put_bit(bad, i);
		r->through |= (uint8_t)differs(c, b);
		flush |= state != CS_UNWRITTEN || r->through;
	}
	return flush;
}

struct builder {
	struct cs *cs;
	uint8_t *at, *data;
	uint64_t seq;
	uint32_t records;
	int flush;
};

static void put_record(struct builder *b, struct cs_req *r, struct cs_rec *rec)
{
	struct vst_journal_record h = {
		.chunk_id = r->c->id,
		.offset = (uint64_t)rec->b0 * CS_BLOCK,
		.length = (uint64_t)rec->n * CS_BLOCK,
		.chunk_version = r->version,
		.chunk_bytes = r->c->chunk_bytes,
		.type = rec->type,
		.flags = r->c->flags,
		.extra_len = extra_len(rec),
	};
	rec->seq = b->seq++;
	b->records++;
	memcpy(b->at, &h, sizeof h);
	b->at += sizeof h;
	if (rec->type == VST_JOURNAL_TYPE_INTENT) {
		b->flush |= put_intent(r, rec, b->at);
	} else if (rec->type == VST_JOURNAL_TYPE_DATA) {
		memcpy(b->at, rec->crc, 4 * (size_t)rec->n);
		memcpy(b->data, rec->data, (size_t)rec->n * CS_BLOCK);
		b->data += (size_t)rec->n * CS_BLOCK;
	}
	b->at += h.extra_len;
}

static void put_request(struct builder *b, struct cs_req *r)
{
	struct cs_chunk *c = r->c;

	if (c->unborn) {
		struct cs_rec create = {.type = VST_JOURNAL_TYPE_CREATE};
		uint32_t version = r->version;
		r->version = c->version;
		put_record(b, r, &create);
		r->version = version;
		c->file_id = create.seq;
		c->unborn = 0;
		c->cs->n.chunks++;
		cs_chunk_header_dirty(b->cs, c);
	}
	for (int i = 0; i < r->nrecs; i++)
		put_record(b, r, &r->recs[i]);
	b->flush |= r->durable;
}

static void complete(struct cs *cs)
{
	struct cs_journal *j = &cs->j;
	struct cs_req *r = j->group;

	j->group = NULL;
	j->busy = 0;
	j->done_head = j->head;
	cs->n.journal_records += j->group_records;
	while (r) {
		struct cs_req *next = r->next;
		cs_req_journaled(r, 0);
		r = next;
	}
}

static void failed(struct cs *cs, int res)
{
	struct cs_journal *j = &cs->j;
	struct cs_req *r = j->group;

	j->group = NULL;
	j->busy = 0;
	cs_journal_fail(cs, -res);
	fail_list(r);
}

static void group_flushed(struct cs_flush_wait *w, int res)
{
	struct cs *cs = w->arg;
	if (res < 0)
		failed(cs, res);
	else
		complete(cs);
}

static void group_written(struct cs_io *io, int res)
{
	struct cs *cs = (struct cs *)((char *)io - offsetof(struct cs, j.io));
	struct cs_journal *j = &cs->j;

	if (res < 0 || j->error) {
		failed(cs, res < 0 ? res : -j->error);
		return;
	}
	j->written_seq = j->group_seq + j->group_records - 1;
	if (j->group_flush) {
		j->group_wait = (struct cs_flush_wait){.done = group_flushed, .arg = cs};
		cs_journal_flush(cs, &j->group_wait);
		return;
	}
	if (io->dsync)
		j->flushed_seq = j->written_seq;
	complete(cs);
}

static void seal(struct cs *cs, const struct builder *b, uint32_t hblocks, uint32_t blocks, uint32_t bytes)
{
	struct cs_journal *j = &cs->j;
	struct vst_journal_group h = {
		.magic = CS_MAGIC_GROUP,
		.epoch = j->epoch,
		.seq = j->group_seq,
		.position = j->group_pos,
		.flushed_seq = j->flushed_seq,
		.data_flushed_seq = j->data_flushed_seq,
		.records = b->records,
		.header_blocks = hblocks,
		.data_blocks = blocks,
		.header_bytes = bytes,
	};
	memcpy(j->gbuf->data, &h, sizeof h);
	h.crc = vst_crc32c(0, j->gbuf->data, (size_t)hblocks * CS_BLOCK);
	memcpy(j->gbuf->data, &h, sizeof h);
}

void cs_journal_kick(struct cs *cs)
{
	struct cs_journal *j = &cs->j;
	uint32_t bytes, blocks;

	if (j->busy || j->error || !j->q_head)
		return;
	struct cs_req *group = choose(cs, &bytes, &blocks);
	if (!group)
		return;
	uint32_t hblocks = header_blocks(bytes);
	/* Unborn chunks were measured for each of their requests, but get one CREATE: the header may end earlier than
	 * measured. */
	memset(j->gbuf->data, 0, (size_t)hblocks * CS_BLOCK);
	j->group_bytes = (hblocks + blocks) * CS_BLOCK;
	uint64_t need = needs(j, j->group_bytes);
	j->group_pos = j->head + need - j->group_bytes;
	j->group_seq = j->next_seq;
	struct builder b = {.cs = cs,
			    .seq = j->next_seq,
			    .at = j->gbuf->data + sizeof(struct vst_journal_group),
			    .data = j->gbuf->data + (size_t)hblocks * CS_BLOCK};
	for (struct cs_req *r = group; r; r = r->next) {
		r->intent_pos = j->group_pos;
		r->intent_seq = j->next_seq;
		put_request(&b, r);
	}
	j->group = group;
	j->group_records = b.records;
	j->next_seq = b.seq;
	j->busy = 1;
	seal(cs, &b, hblocks, blocks, (uint32_t)(b.at - j->gbuf->data));
	/* RWF_DSYNC may be no more than a write through the cache (FUA): enough only when nothing before it waits for a
	 * flush. */
	int dsync = b.flush && j->flushed_seq == j->written_seq;
	j->group_flush = b.flush && !dsync;
	j->head += need;
	j->io = (struct cs_io){.done = group_written,
			       .op = CS_IO_WRITE,
			       .fd = j->fd,
			       .buf = j->gbuf->data,
			       .len = j->group_bytes,
			       .off = cs_journal_at(j, j->group_pos),
			       .dsync = (uint8_t)dsync};
	cs_ring_submit(cs->ring, &j->io);
}

void cs_intent_add(struct cs *cs, struct cs_req *req)
{
	struct cs_journal *j = &cs->j;
	req->intent_next = NULL;
	req->intent_prev = j->intents_tail;
	if (j->intents_tail)
		j->intents_tail->intent_next = req;
	else
		j->intents = req;
	j->intents_tail = req;
}

void cs_intent_del(struct cs *cs, struct cs_req *req)
{
	struct cs_journal *j = &cs->j;
	if (req->intent_prev)
		req->intent_prev->intent_next = req->intent_next;
	else
		j->intents = req->intent_next;
	if (req->intent_next)
		req->intent_next->intent_prev = req->intent_prev;
	else
		j->intents_tail = req->intent_prev;
}
