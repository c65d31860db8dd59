/* fsync of a file: one SYNC frame to each chunk server that has unsynced data of it, and the proof that what it had
 * acknowledged before is still there: a server that restarted since then may have lost it (B15). */
#include "cl_internal.h"

void sync_begin(struct req *r)
{
	r->seq = r->f->ack_seq;
	list_each(l, &r->f->dirty)
	{
		struct part *p = part_new(r, cl_container(l, struct chunk, dirty));
		if (!p) {
			r->error = ENOMEM;
			return;
		}
		part_queue(p);
	}
}

/* Ready parts gather on the request; when all that can have been looked at they go out together (sync_group). */
void sync_start(struct part *p)
{
	if (list_empty(&p->chunk->dirty)) { /* truncated away, or another SYNC was faster */
		part_done(p, 0);
		return;
	}
	if (!write_map_ready(p))
		return;
	part_take_map(p);
	p->ok = p->bad = p->changed = 0;
	p->stale = p->again = false;
	list_add(&p->req->ready, &p->link);
	req_queue(p->req);
}

static void send_frame(struct xfer *x, bool first_try)
{
	x->data = x->slots;
	x->hdr.data_len = x->nitems * (uint32_t)sizeof(*x->slots);
	if (x->cs->state == CS_BACKOFF && first_try)
		xfer_fail_later(x->cs->cl, x, VST_ERR_DISCONNECTED);
	else
		cs_submit(x->cs, x);
}

/* The frame under construction for cs, with room for one more. NULL: no memory. */
static struct xfer *frame_for(struct link *frames, struct cs *cs, bool alone)
{
	struct xfer *x;

	list_each(l, frames)
	{
		x = cl_container(l, struct xfer, link);
		if (x->cs == cs && x->nitems < VST_SYNC_HANDLES_MAX && !alone && !x->items[0].part->alone)
			return x;
	}
	x = xfer_new(cs->cl, cs, X_SYNC, VST_FRAME_TYPE_SYNC);
	if (!x)
		return NULL;
	x->items = malloc(VST_SYNC_HANDLES_MAX * sizeof(*x->items));
	x->slots = malloc(VST_SYNC_HANDLES_MAX * sizeof(*x->slots));
	if (!x->items || !x->slots) {
		xfer_free(cs->cl, x);
		return NULL;
	}
	list_add(frames, &x->link);
	return x;
}

void sync_group(struct req *r)
{
	struct link frames, parts;
	bool first_try = true;

	list_init(&frames);
	list_move_all(&r->ready, &parts);
	while (!list_empty(&parts)) {
		struct part *p = list_first(&parts, struct part, link);
		list_del(&p->link);
		first_try &= p->attempts == 0;
		for (uint32_t i = 0; i < p->map->n; i++) {
			struct xfer *x = frame_for(&frames, p->map->rep[i].cs, p->alone);
			if (!x) {
				p->again = true;
				continue;
			}
			x->items[x->nitems++] = (struct sync_item){.part = p, .replica = i};
			p->outstanding++;
		}
		if (!p->outstanding)
			part_retry(p);
	}
	while (!list_empty(&frames)) {
		struct xfer *x = list_first(&frames, struct xfer, link);
		list_del(&x->link);
		send_frame(x, first_try);
	}
}

/* The incarnation that acknowledged the first unsynced write of the chunk on this server; 0: it has none to its name.
 */
static uint64_t recorded(const struct chunk *c, uint32_t cs_id)
{
	for (uint32_t i = 0; i < c->nunsynced; i++)
		if (c->unsynced[i].cs_id == cs_id)
			return c->unsynced[i].incarnation;
	return 0;
}

static bool any_kept(const struct part *p)
{
	for (uint32_t i = 0; i < p->map->n; i++)
		if (p->ok & (1u << i) && recorded(p->chunk, p->map->rep[i].cs->id))
			return true;
	return false;
}

static void clean(struct chunk *c)
{
	list_del(&c->dirty);
	c->nunsynced = 0;
}

static void pass_done(struct part *p)
{
	struct chunk *c = p->chunk;
	uint32_t all = (1u << p->map->n) - 1;

	if (p->ok == all) {
		if (c->ack_seq <= p->req->seq)
			clean(c);
		part_done(p, 0);
		return;
	}
	if (p->changed && !p->bad && !p->stale && !p->again) {
		if (!any_kept(p)) { /* acknowledged data is gone: say so once, as the kernel does */
			clean(c);
			part_done(p, EIO);
			return;
		}
		for (uint32_t i = 0; i < p->map->n; i++)
			if (p->changed & (1u << i))
				replica_failed(p, i, VST_ERR_DISCONNECTED);
	}
	if (p->stale) {
		if (c->map == p->map)
			chunk_need_map(c, 1, VST_ERR_STALE);
		chunk_drop_map(c, p->map);
		part_backoff(p);
		if (c->map)
			part_wake_chunk(c);
	} else if (p->bad) {
		part_backoff(p);
		if (c->map != p->map)
			part_wake_chunk(c);
	} else {
		part_retry(p);
	}
}

static void item_done(struct xfer *x, struct sync_item *it, uint64_t incarnation, int status)
{
	struct part *p = it->part;
	uint32_t bit = 1u << it->replica;
	bool about_connection = status == VST_ERR_DISCONNECTED || status == VST_ERR_TIMED_OUT;

	p->outstanding--;
	if (status == 0) {
		uint64_t before = recorded(p->chunk, x->cs->id);
		*(before && before != incarnation ? &p->changed : &p->ok) |= bit;
	} else if (status == VST_ERR_STALE || status == VST_ERR_EXPIRED || status == VST_ERR_DENIED) {
		if (status == VST_ERR_EXPIRED)
			cs_suspect_key(x->cs);
		p->stale = true;
	} else if (status == VST_ERR_BUSY || status == VST_ERR_SHUTTING_DOWN || status == CL_ST_NOKEY) {
		p->again = true;
	} else if (x->nitems > 1 && !about_connection && !it->handle) {
		p->again = p->alone = true;
	} else {
		replica_failed(p, it->replica, status);
	}
	if (!p->outstanding)
		pass_done(p);
}

void sync_done(struct xfer *x, uint64_t incarnation, int status)
{
	for (uint32_t i = 0; i < x->nitems; i++) {
		struct sync_item *it = &x->items[i];
		struct handle *h = it->handle;
		int item_status = status;
		if (h && status != 0 && h->state == HANDLE_FAILED) {
			item_status = h->status; /* this chunk could not be opened */
		} else if (h && status != 0 && h->state == HANDLE_OPENING && h->cs) {
			item_status = VST_ERR_BUSY; /* why, the answer to OPEN will tell */
		} else if (status != 0 && x->nitems > 1) {
			it->handle = NULL; /* another chunk of the frame may be the reason: asked again alone */
		}
		item_done(x, it, incarnation, item_status);
		if (h)
			handle_put(h);
	}
}
