/* Life of a request: counted in flight, chunk loaded, range held, executed, finished. */
#include <errno.h>
#include <stdlib.h>
#include "cs_internal.h"

#define REFUSAL_AGE_MS 10u /* how old the free space may be that a write is refused for */

void cs_req_begin(struct cs_req *req)
{
	req->counted = 1;
	req->c->inflight++;
	req->cs->inflight++;
}

static void wake_drained(struct cs *cs, struct cs_chunk *c)
{
	struct cs_req *w = c->drain_waiters;

	if (c->inflight)
		return;
	if (w) {
		c->drain_waiters = w->next;
		w->ready(w);
	} else if (!c->refs && !c->loading) {
		if (c->gone)
			cs_chunk_free(cs, c);
		else if (c->unborn)
			cs_chunk_drop_unborn(cs, c);
	}
}

void cs_req_finish(struct cs_req *req, int status)
{
	struct cs *cs = req->cs;
	struct cs_chunk *c = req->c;

	req->status = status;
	if (req->flocked)
		cs_lock_put(&c->flocks, &req->flock);
	if (req->locked)
		cs_lock_put(&c->locks, &req->lock);
	req->flocked = req->locked = 0;
	for (int i = 0; i < 2; i++) {
		cs_buf_put(cs, req->edge[i]);
		req->edge[i] = NULL;
	}
	if (req->crc != req->crc_small)
		free(req->crc);
	req->crc = NULL;
	int counted = req->counted;
	req->counted = 0;
	if (counted)
		cs->inflight--;
	req->done(req); /* before the count of the chunk: an order that waits for it is answered after this */
	if (counted && c) {
		c->inflight--;
		wake_drained(cs, c);
	}
}

void cs_drain(struct cs_req *req, void (*ready)(struct cs_req *req))
{
	struct cs_chunk *c = req->c;

	if (!c->inflight && !c->drain_waiters) {
		ready(req);
		return;
	}
	req->ready = ready;
	req->next = NULL;
	struct cs_req **p = &c->drain_waiters;
	while (*p)
		p = &(*p)->next;
	*p = req;
}

/* What waits in the journal will need its place in the files too. */
static int room(const struct cs *cs)
{
	return cs->free_bytes >= cs->index_bytes && cs->free_bytes - cs->index_bytes >= cs->cfg.reserve_bytes;
}

int cs_may_write(struct cs *cs, const struct cs_req *req)
{
	if (cs->j.error || req->c->sick)
		return VST_ERR_IO_ERROR;
	if (req->local || req->op != CS_WRITE)
		return 0;
	if (room(cs))
		return 0;
	cs_look_at_space(cs, cs_now_ms(), REFUSAL_AGE_MS); /* something may just have been deleted */
	if (room(cs))
		return 0;
	if (!cs->no_space_told) {
		cs->no_space_told = 1;
		cs_report(cs, VST_CS_EV_NO_SPACE, req->c->id, 0, ENOSPC);
	}
	return VST_ERR_NO_SPACE;
}
