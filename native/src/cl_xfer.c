/* Frames in flight: a slab found by request id, and what happens when one ends. */
#include <errno.h>
#include "cl_internal.h"

#define SLAB_STEP 256u

static int slab_grow(struct vst_cl *cl)
{
	uint32_t n = cl->nxfers + SLAB_STEP;

	if (n > CL_XFERS_MAX)
		return -ENOBUFS;
	struct xfer **slab = realloc(cl->xfers, n * sizeof(*slab));
	if (!slab)
		return -ENOMEM;
	cl->xfers = slab;
	uint32_t *free_ids = realloc(cl->xfers_free, n * sizeof(*free_ids));
	if (!free_ids)
		return -ENOMEM;
	cl->xfers_free = free_ids;
	for (uint32_t i = cl->nxfers; i < n; i++) {
		struct xfer *x = calloc(1, sizeof *x);
		if (!x)
			return cl->nxfers_free ? 0 : -ENOMEM;
		x->id = (1ull << 32) | i;
		cl->xfers[i] = x;
		cl->xfers_free[cl->nxfers_free++] = i;
		cl->nxfers = i + 1;
	}
	return 0;
}

struct xfer *xfer_new(struct vst_cl *cl, struct cs *cs, enum xfer_kind kind, uint8_t type)
{
	if (!cl->nxfers_free && slab_grow(cl) < 0)
		return NULL;
	struct xfer *x = cl->xfers[cl->xfers_free[--cl->nxfers_free]];
	uint64_t id = x->id;

	memset(x, 0, sizeof *x);
	x->id = id;
	x->cs = cs;
	x->kind = kind;
	x->hdr.type = type;
	x->hdr.request_id = id;
	list_init(&x->link);
	list_init(&x->tx_link);
	return x;
}

void xfer_free(struct vst_cl *cl, struct xfer *x)
{
	free(x->bounce);
	free(x->items);
	free(x->slots);
	x->bounce = NULL;
	x->items = NULL;
	x->slots = NULL;
	x->cs = NULL; /* a late reply finds nobody */
	x->id += 1ull << 32;
	cl->xfers_free[cl->nxfers_free++] = (uint32_t)x->id;
}

struct xfer *xfer_find(struct vst_cl *cl, uint64_t id)
{
	uint32_t i = (uint32_t)id;

	if (i >= cl->nxfers || cl->xfers[i]->id != id || !cl->xfers[i]->cs)
		return NULL;
	return cl->xfers[i];
}

/* End it with this status when the loop comes round: for callers that are in the middle of starting it. */
void xfer_fail_later(struct vst_cl *cl, struct xfer *x, int status)
{
	x->status = status;
	list_del(&x->link);
	list_add(&cl->failed, &x->link);
}

static void part_reply(struct xfer *x, int status, const struct vst_frame *hdr, const void *data)
{
	struct part *p = x->part;
	int bad = -1;

	if (x->hdr.type != VST_FRAME_TYPE_READ) {
		write_done(p, x->replica, x->cs->incarnation, status);
		return;
	}
	if (status == 0 && hdr->flags & VST_FRAME_FLAG_HOLE) {
		memset(x->dest, 0, p->len);
	} else if (status == 0) {
		/* in the destination already when it was received there (cl_rx.c) */
		bad = vst_pieces_verify(p->off, p->len, data, x->table);
		if (bad < 0 && data != x->dest)
			memcpy(x->dest, data, p->len);
	}
	read_done(p, x->replica, status, hdr, bad);
}

/* A reply came, or none will. Ends x. */
void xfer_end(struct xfer *x, int status, const struct vst_frame *hdr, const void *data)
{
	struct vst_cl *cl = x->cs->cl;
	struct handle *h = x->handle;

	/* What was sent behind an OPEN that failed is refused for no reason of its own: the OPEN's counts. */
	if (h && status != 0 && x->kind != X_OPEN && x->kind != X_SYNC) {
		if (h->state == HANDLE_OPENING && h->cs && hdr) {
			x->status = status;
			list_add(&h->held, &x->link);
			return;
		}
		if (h->state == HANDLE_FAILED)
			status = h->status;
	}
	switch (x->kind) {
	case X_OPEN:
		handle_opened(h, status);
		break;
	case X_PART:
		part_reply(x, status, hdr, data);
		break;
	case X_SYNC:
		sync_done(x, x->cs->incarnation, status);
		break;
	case X_RAW:
		raw_done(x, status, hdr, data);
		break;
	case X_CLOSE:
	case X_GREETING:
		break;
	}
	if (h)
		handle_put(h);
	xfer_free(cl, x);
}
