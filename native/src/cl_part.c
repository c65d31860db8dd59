/* Parts: where they wait and how they come to run. */
#include "cl_internal.h"

#define POOL_MAX 1024u

struct part *part_new(struct req *r, struct chunk *c)
{
	struct vst_cl *cl = r->f->cl;
	struct part *p;

	if (cl->nfree_parts) {
		p = list_first(&cl->free_parts, struct part, link);
		list_del(&p->link);
		cl->nfree_parts--;
		memset(p, 0, sizeof *p);
	} else {
		p = calloc(1, sizeof *p);
		if (!p)
			return NULL;
	}
	p->req = r;
	p->chunk = c;
	p->timer.kind = TIMER_PART;
	list_init(&p->link);
	r->parts++;
	return p;
}

static bool stopping(const struct part *p)
{
	return atomic_load_explicit(&p->req->f->cl->stopping, memory_order_relaxed);
}

void part_queue(struct part *p)
{
	timer_cancel(p->req->f->cl, &p->timer);
	PARK(p, p->req->f->cl, false);
	list_del(&p->link);
	list_add(&p->req->f->cl->run_parts, &p->link);
}

void part_run(struct part *p)
{
	struct req *r = p->req;

	if (stopping(p)) {
		part_done(p, ESHUTDOWN);
		return;
	}
	if (r->error) { /* another part failed for good: the rest is of no use */
		part_done(p, 0);
		return;
	}
	if (r->behind && lease_revoked(r)) { /* somebody else may have written since it was answered */
		part_done(p, EIO);
		return;
	}
	if (r->op != VST_IO_SYNC && (!lease_valid(r->f->cl) || lease_revoked(r))) {
		lease_park_part(p);
		return;
	}
	if (r->op == VST_IO_READ)
		read_start(p);
	else if (r->op == VST_IO_SYNC)
		sync_start(p);
	else
		write_start(p);
}

void part_done(struct part *p, int error)
{
	struct req *r = p->req;
	struct vst_cl *cl = r->f->cl;

	timer_cancel(cl, &p->timer);
	PARK(p, cl, false);
	list_del(&p->link);
	if (p->map)
		cmap_unref(p->map);
	if (p->table != p->inline_table)
		free(p->table);
	if (cl->nfree_parts < POOL_MAX) {
		list_add(&cl->free_parts, &p->link);
		cl->nfree_parts++;
	} else {
		free(p);
	}
	r->parts--;
	if (error && !r->error)
		r->error = error;
	req_queue(r);
}

/* The chunk's map for this pass. */
void part_take_map(struct part *p)
{
	struct cmap *m = p->chunk->map;

	m->refs++;
	if (p->map)
		cmap_unref(p->map);
	p->map = m;
}

/* Wait for an answer from Python (vst_file_set_chunk, vst_file_fail). */
void part_park(struct part *p)
{
	if (stopping(p) || p->req->error) { /* nobody would wake it: its request has failed already */
		part_queue(p);
		return;
	}
	list_del(&p->link);
	list_add(&p->chunk->parked, &p->link);
	PARK(p, p->req->f->cl, true);
}

static uint64_t delay_ms(const struct part *p)
{
	uint64_t ms = (uint64_t)CL_RETRY_MIN_MS << (p->attempts < 7 ? p->attempts : 7);
	return ms < CL_RETRY_MAX_MS ? ms : CL_RETRY_MAX_MS;
}

static void attempt(struct part *p)
{
	COUNT(p->req->f->cl, retries, 1);
	if (p->attempts < UINT8_MAX)
		p->attempts++;
	/* The first times a new map is tried at once. If that did not help, no answer from Python is to make this a
	 * tight loop. */
	p->not_before_ms = p->attempts > 2 ? p->req->f->cl->now_ms + delay_ms(p) : 0;
}

void part_backoff(struct part *p)
{
	attempt(p);
	part_park(p);
}

/* An answer that does not help (a hole for a writer) is waited for with back-off the next times. */
void part_park_for_map(struct part *p)
{
	if (p->asked_map)
		part_backoff(p);
	else
		part_park(p);
	p->asked_map = true;
}

void part_retry(struct part *p)
{
	struct vst_cl *cl = p->req->f->cl;

	attempt(p);
	part_park(p);
	if (!stopping(p) && timer_set(cl, &p->timer, cl->now_ms + delay_ms(p)) < 0)
		part_queue(p);
}

void part_timer(struct part *p)
{
	part_queue(p);
}

void part_wake_chunk(struct chunk *c)
{
	struct link parts;

	list_move_all(&c->parked, &parts);
	while (!list_empty(&parts)) {
		struct part *p = list_first(&parts, struct part, link);
		struct vst_cl *cl = p->req->f->cl;
		list_del(&p->link);
		if (p->not_before_ms > cl->now_ms && !stopping(p) && timer_set(cl, &p->timer, p->not_before_ms) == 0)
			list_add(&c->parked, &p->link);
		else
			part_queue(p);
	}
}
