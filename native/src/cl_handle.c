/* Chunk maps and the handles under which their chunks are open on connections. */
#include "cl_internal.h"

struct cmap *cmap_new(struct vst_cl *cl, uint64_t chunk_id, uint32_t version, uint32_t flags, int for_write,
		      const uint32_t *cs_ids, uint32_t n, const uint8_t *ticket)
{
	if (n == 0 || n > VST_REPLICAS_MAX)
		return NULL;
	struct cmap *m = calloc(1, sizeof *m);
	if (!m)
		return NULL;
	m->refs = 1;
	m->chunk_id = chunk_id;
	m->version = version;
	m->flags = flags;
	m->for_write = for_write != 0;
	m->n = n;
	m->rotor = (uint32_t)(chunk_id * 2654435761u); /* clients and chunks start at different replicas */
	memcpy(m->ticket, ticket, sizeof m->ticket);
	for (uint32_t i = 0; i < n; i++) {
		m->rep[i].cs = cs_get(cl, cs_ids[i]);
		if (!m->rep[i].cs) {
			free(m);
			return NULL;
		}
	}
	return m;
}

static void handle_forget(struct handle *h) /* nobody will look it up again */
{
	if (h->rep) {
		h->rep->handle = NULL;
		h->rep = NULL;
	}
}

static void handle_free(struct handle *h)
{
	struct cs *cs = h->cs;

	handle_forget(h);
	list_del(&h->lru);
	if (cs) {
		cs->nhandles--;
		cs->free_slots[cs->nfree++] = h->slot;
	}
	free(h);
}

/* Tell the server, when the chunk is open there, and free. The slot may be used again at once: the server takes frames
 * of these kinds in order. */
static void handle_close(struct handle *h)
{
	struct cs *cs = h->cs;

	if (cs && cs->state == CS_READY && h->state == HANDLE_OPEN) {
		struct xfer *x = xfer_new(cs->cl, cs, X_CLOSE, VST_FRAME_TYPE_CLOSE);
		if (!x) { /* cannot say so: keep the slot out of use, the connection's end frees it */
			handle_forget(h);
			cs->nhandles--;
			list_del(&h->lru);
			free(h);
			return;
		}
		x->hdr.handle = h->slot;
		x->hdr.chunk_id = h->chunk_id;
		conn_queue(cs, x);
	}
	handle_free(h);
}

void cmap_unref(struct cmap *m)
{
	if (--m->refs)
		return;
	for (uint32_t i = 0; i < m->n; i++) {
		struct handle *h = m->rep[i].handle;
		if (!h)
			continue;
		handle_forget(h);
		if (h->refs == 0)
			handle_close(h);
	}
	free(m);
}

/* Room for one more on the connection: a slot number, the oldest idle one closed if need be. 0 none. */
static uint32_t slot_get(struct cs *cs)
{
	if (!cs->free_slots) {
		cs->free_slots = malloc(CL_HANDLES_PER_CONN * sizeof(*cs->free_slots));
		if (!cs->free_slots)
			return 0;
	}
	if (cs->nfree)
		return cs->free_slots[--cs->nfree];
	if (cs->next_slot <= CL_HANDLES_PER_CONN)
		return cs->next_slot++;
	list_each(l, &cs->handles)
	{
		struct handle *h = cl_container(l, struct handle, lru);
		if (h->refs)
			continue;
		handle_close(h);
		return cs->nfree ? cs->free_slots[--cs->nfree] : 0;
	}
	return 0;
}

/* The handle of this replica on the running connection, with a reference; a new one is opened by a frame queued in
 * front. */
int handle_get(struct cs *cs, struct cmap *m, struct rep *rep, struct handle **out)
{
	struct handle *h = rep->handle;

	if (!h) {
		struct xfer *x = xfer_new(cs->cl, cs, X_OPEN, VST_FRAME_TYPE_OPEN);
		if (!x)
			return -ENOBUFS;
		uint32_t slot = slot_get(cs);
		h = slot ? calloc(1, sizeof *h) : NULL;
		if (!h) {
			if (slot)
				cs->free_slots[cs->nfree++] = slot;
			xfer_free(cs->cl, x);
			return -ENOBUFS;
		}
		h->cs = cs;
		h->rep = rep;
		h->slot = slot;
		h->chunk_id = m->chunk_id;
		h->refs = 1; /* of the OPEN */
		list_init(&h->held);
		list_init(&h->lru);
		rep->handle = h;
		cs->nhandles++;
		x->handle = h;
		x->hdr.handle = slot;
		x->hdr.chunk_id = m->chunk_id;
		x->hdr.chunk_version = m->version;
		x->hdr.data_len = sizeof m->ticket;
		x->bounce = malloc(sizeof m->ticket); /* the map may go before the frame has */
		if (!x->bounce) {
			h->refs = 0;
			handle_free(h);
			xfer_free(cs->cl, x);
			return -ENOMEM;
		}
		memcpy(x->bounce, m->ticket, sizeof m->ticket);
		x->data = x->bounce;
		conn_queue(cs, x);
	}
	list_del(&h->lru);
	list_add(&cs->handles, &h->lru);
	h->refs++;
	*out = h;
	return 0;
}

void handle_put(struct handle *h)
{
	if (--h->refs || h->rep)
		return;
	handle_close(h);
}

void handle_opened(struct handle *h, int status)
{
	struct link held;

	if (h->state != HANDLE_OPENING)
		return;
	h->state = status == 0 ? HANDLE_OPEN : HANDLE_FAILED;
	h->status = status;
	if (status != 0)
		handle_forget(h);
	list_move_all(&h->held, &held);
	while (!list_empty(&held)) {
		struct xfer *x = list_first(&held, struct xfer, link);
		list_del(&x->link);
		xfer_end(x, x->status, NULL, NULL);
	}
}

/* The connection is gone and with it what was open there. */
void handles_lost(struct cs *cs)
{
	while (!list_empty(&cs->handles)) {
		struct handle *h = list_first(&cs->handles, struct handle, lru);
		list_del(&h->lru);
		handle_forget(h);
		h->cs = NULL;
		if (h->refs == 0)
			free(h); /* else with the last xfer */
	}
	cs->nhandles = 0;
	cs->nfree = 0;
	cs->next_slot = 1; /* 0 means none */
}
