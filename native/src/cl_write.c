/* Writing a part (WRITE and PUNCH): to all replicas of the map at once, done when all have it; else again, on a newer
 * map. */
#include "cl_internal.h"

/* May the chunk be written now? false: the part waits, or is done because there is nothing to discard. */
bool write_map_ready(struct part *p)
{
	struct chunk *c = p->chunk;
	int op = p->req->op;

	if (c->hole && op != VST_IO_WRITE) {
		part_done(p, 0);
		return false;
	}
	if (!c->map || !c->map->for_write) {
		/* PUNCH asks as a reader at first: a writer would be given a new chunk for a hole */
		chunk_need_map(c, op == VST_IO_PUNCH && !c->map ? 0 : 1, 0);
		part_park_for_map(p);
		return false;
	}
	if (c->failed && c->map->version <= c->failed_version) {
		part_backoff(
			p); /* an attempt: with the next map a server in back-off is waited for, not reported again */
		return false;
	}
	return true;
}

/* The CRCs travel with every copy: computed once. */
static int fill_table(struct part *p)
{
	uint32_t n;

	if (p->table || p->req->op != VST_IO_WRITE)
		return 0;
	n = vst_pieces(p->off, p->len);
	p->table = n <= CL_INLINE_TABLE ? p->inline_table : malloc(n * sizeof(*p->table));
	if (!p->table)
		return -ENOMEM;
	p->table_len = n * (uint32_t)sizeof(*p->table);
	vst_pieces_crc(p->off, p->len, p->buf, p->table);
	return 0;
}

static int send_to(struct part *p, uint32_t replica)
{
	struct cs *cs = p->map->rep[replica].cs;
	bool write = p->req->op == VST_IO_WRITE;
	struct xfer *x = xfer_new(cs->cl, cs, X_PART, write ? VST_FRAME_TYPE_WRITE : VST_FRAME_TYPE_PUNCH);

	if (!x)
		return -ENOBUFS;
	x->part = p;
	x->replica = replica;
	x->hdr.flags = p->req->flags & REQ_DURABLE ? VST_FRAME_FLAG_DURABLE : 0;
	x->hdr.offset = p->off;
	x->hdr.length = p->len;
	if (write) {
		x->table = p->table;
		x->hdr.table_len = p->table_len;
		x->data = p->buf;
		x->hdr.data_len = p->len;
	}
	p->outstanding++;
	/* A server known to be away is reported at once; a second try waits for the next attempt to connect. */
	if (cs->state == CS_BACKOFF && !p->attempts)
		xfer_fail_later(cs->cl, x, VST_ERR_DISCONNECTED);
	else
		cs_submit(cs, x);
	return 0;
}

void write_start(struct part *p)
{
	if (!write_map_ready(p))
		return;
	part_take_map(p);
	p->fail_seq = p->chunk->fail_seq;
	p->revoked = p->chunk->f->revoked;
	p->ok = p->bad = 0;
	p->stale = p->nospace = p->again = false;
	if (fill_table(p) < 0) {
		part_retry(p);
		return;
	}
	for (uint32_t i = 0; i < p->map->n && !p->again; i++)
		p->again = send_to(p, i) < 0;
	if (!p->outstanding)
		part_retry(p);
}

void replica_failed(struct part *p, uint32_t replica, int status)
{
	struct chunk *c = p->chunk;
	struct cmap *m = p->map;
	struct vst_cl_event ev = {.kind = VST_EV_REPLICA_FAILED,
				  .index = c->index,
				  .chunk_id = m->chunk_id,
				  .version = m->version,
				  .cs_id = m->rep[replica].cs->id,
				  .error = status};

	p->bad |= 1u << replica;
	if (c->map != m) /* a newer map came meanwhile: it is tried first */
		return;
	c->failed = true;
	c->failed_version = m->version;
	if (m->failed_mask & (1u << replica))
		return;
	m->failed_mask |= 1u << replica;
	COUNT(c->f->cl, replica_failures, 1);
	event_push(c->f->cl, c->f, &ev);
}

/* Acknowledged by all, but not on stable storage: a later SYNC must find these servers still running as they were. */
static void remember_unsynced(struct part *p)
{
	struct chunk *c = p->chunk;

	c->ack_seq = ++c->f->ack_seq;
	if (list_empty(&c->dirty))
		list_add(&c->f->dirty, &c->dirty);
	for (uint32_t i = 0; i < p->map->n; i++) {
		uint32_t id = p->map->rep[i].cs->id, k = 0;
		while (k < c->nunsynced && c->unsynced[k].cs_id != id)
			k++;
		if (k < c->nunsynced) /* an older incarnation stays: what it had may be lost */
			continue;
		if (k == VST_REPLICAS_MAX + 1) /* cannot be: maps are pruned when installed */
			abort();
		c->unsynced[k].cs_id = id;
		c->unsynced[k].incarnation = p->incarnation[i];
		c->nunsynced++;
	}
}

static void first_write(struct part *p)
{
	struct chunk *c = p->chunk;

	if (!(p->map->flags & CMAP_VOID) || p->req->op != VST_IO_WRITE || c->first_chunk_id == p->map->chunk_id)
		return;
	c->first_chunk_id = p->map->chunk_id;
	list_del(&c->first);
	list_add(&c->f->first, &c->first);
	c->f->meta_seq++;
	atomic_store(&c->f->untaken, true);
}

/*
 * All replicas have it, but the lease was lost meanwhile: what the MDS makes of the chunk is not known here, so no SYNC
 * of it would prove anything. Sent again it could undo what others have written since. It is lost as what was unsynced
 * when the lease went: the next SYNC says so.
 */
static void done_too_late(struct part *p)
{
	if (p->req->flags & REQ_DURABLE) {
		part_queue(p); /* was not promised yet */
		return;
	}
	p->chunk->f->losses++;
	part_done(p, 0);
}

static void pass_done(struct part *p)
{
	struct chunk *c = p->chunk;

	if (p->ok == (1u << p->map->n) - 1 && p->revoked != c->f->revoked) {
		done_too_late(p);
	} else if (p->ok == (1u << p->map->n) - 1) {
		if (!(p->req->flags & REQ_DURABLE))
			remember_unsynced(p);
		first_write(p);
		part_done(p, 0);
	} else if (p->fatal) {
		part_done(p, p->fatal);
	} else if (p->stale) {
		if (c->map == p->map)
			chunk_need_map(c, 1, VST_ERR_STALE);
		chunk_drop_map(c, p->map);
		part_backoff(p);
		if (c->map)
			part_wake_chunk(c);
	} else if (p->bad && p->fail_seq != c->fail_seq) {
		part_done(p, c->fail_error); /* the answer came before the last reply */
	} else if (p->bad) {
		part_backoff(p);
		if (c->map != p->map)
			part_wake_chunk(c);
	} else if (p->nospace && c->f->cl->cfg.flags & VST_CL_ENOSPC) {
		part_done(p, ENOSPC);
	} else {
		part_retry(p);
	}
}

void write_done(struct part *p, uint32_t replica, uint64_t incarnation, int status)
{
	p->outstanding--;
	switch (status) {
	case 0:
		p->ok |= 1u << replica;
		p->incarnation[replica] = incarnation;
		break;
	case VST_ERR_EXPIRED:
		cs_suspect_key(p->map->rep[replica].cs);
		p->stale = true;
		break;
	case VST_ERR_STALE:
	case VST_ERR_DENIED:
		p->stale = true;
		break;
	case VST_ERR_NO_SPACE:
		p->nospace = true;
		break;
	case VST_ERR_BUSY:
	case VST_ERR_SHUTTING_DOWN:
	case CL_ST_NOKEY:
		p->again = true;
		break;
	case VST_ERR_CRC_MISMATCH:
		p->again = true;
		if (++p->crc_errors > CL_CRC_RETRIES)
			replica_failed(p, replica, status);
		break;
	case VST_ERR_BAD_REQUEST:
	case VST_ERR_UNSUPPORTED:
		p->fatal = EIO;
		break;
	default:
		replica_failed(p, replica, status);
		break;
	}
	if (!p->outstanding)
		pass_done(p);
}
