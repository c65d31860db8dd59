/* Leases: what a file may do now, and when what it did before has drained. */
#include "cl_internal.h"

bool lease_valid(struct vst_cl *cl)
{
	return cl->now_ms < atomic_load_explicit(&cl->lease_until, memory_order_relaxed);
}

static int mode_needed(const struct req *r)
{
	if (r->op == VST_IO_SYNC || r->op == VST_IO_FLUSH)
		return VST_LEASE_NONE; /* what was written under a lease may be made durable after it */
	return r->writes ? VST_LEASE_EXCLUSIVE : VST_LEASE_SHARED;
}

static void need_lease(struct vst_file *f, int write)
{
	struct vst_cl_event ev = {.kind = VST_EV_NEED_LEASE, .write = (uint32_t)write};

	if (f->asked_lease >= 1 + write)
		return;
	f->asked_lease = (uint8_t)(1 + write);
	event_push(f->cl, f, &ev);
}

/* From here on it counts for drains. */
static void count(struct req *r)
{
	if (r->counted)
		return;
	r->counted = true;
	r->epoch = r->f->epoch;
	r->f->active++;
}

bool lease_admit(struct req *r)
{
	int mode = mode_needed(r);

	if (mode != VST_LEASE_NONE && (r->f->mode < mode || !lease_valid(r->f->cl))) {
		list_add(&r->f->lease_reqs, &r->link);
		PARK(r, r->f->cl, true);
		need_lease(r->f, r->writes);
		return false;
	}
	PARK(r, r->f->cl, false);
	count(r);
	return true;
}

static void forget_maps(struct vst_file *f)
{
	for (uint32_t i = 0; i < f->table_size; i++)
		for (struct chunk *c = f->table[i]; c; c = c->hash_next)
			if (list_empty(&c->dirty) && list_empty(&c->parked)) {
				c->hole = false;
				chunk_drop_map(c, c->map);
			}
}

static void drained(struct vst_file *f, struct drain *d)
{
	struct vst_cl_event ev = {.kind = VST_EV_DRAINED, .cookie = d->token};

	list_del(&d->link);
	free(d);
	if (f->mode == VST_LEASE_NONE)
		forget_maps(f);
	event_push(f->cl, f, &ev);
}

void lease_uncount(struct req *r)
{
	struct vst_file *f = r->f;

	if (!r->counted)
		return;
	r->counted = false;
	f->active--;
	for (struct link *l = f->drains.next; l != &f->drains;) {
		struct drain *d = cl_container(l, struct drain, link);
		l = l->next;
		if (r->epoch < d->epoch && --d->remaining == 0)
			drained(f, d);
	}
}

/* The lease was taken away since the request was admitted: it may not go on under the old one. */
bool lease_revoked(const struct req *r)
{
	return r->counted && r->epoch < r->f->revoked;
}

/* The lease ended under a part: it waits for a new one. When the whole request waits it is no longer one of "the
 * earlier ones": it will run under the new lease or not at all. */
void lease_park_part(struct part *p)
{
	struct req *r = p->req;

	p->on_lease = true;
	list_del(&p->link);
	list_add(&r->f->lease_parts, &p->link);
	PARK(p, r->f->cl, true);
	r->lease_parked++;
	/* What was answered already stays one of the earlier ones: a recall must not overtake it. */
	if (r->lease_parked == r->parts && !r->behind)
		lease_uncount(r);
	need_lease(r->f, r->writes);
}

/* Where the end was when a gap was to be cleared is old news under another lease: what lies before the end of now is
 * somebody's data. False: nothing is left to clear. */
static bool clip_gap(struct part *p)
{
	struct req *r = p->req;
	uint64_t start = (uint64_t)p->chunk->index * r->f->chunk_bytes + p->off, size = atomic_load(&r->f->size);

	if (r->done_kind != DONE_TAIL || r->epoch >= r->f->revoked || size <= start)
		return true;
	if (size - start >= p->len)
		return false;
	p->off += (uint32_t)(size - start);
	p->len -= (uint32_t)(size - start);
	return true;
}

/* An append has its place since it was admitted. When the lease was lost since and the file has grown, that place may
 * be another client's by now: it fails, which its caller can tell from what was done. */
static int append_error(const struct req *r)
{
	bool passed = r->op == VST_IO_WRITE && r->flags & REQ_APPEND && atomic_load(&r->f->size) > r->off;
	return passed && r->epoch < r->f->revoked ? EIO : 0;
}

void lease_wake(struct vst_file *f)
{
	struct link parts, reqs;

	f->asked_lease = 0;
	list_move_all(&f->lease_parts, &parts);
	while (!list_empty(&parts)) {
		struct part *p = list_first(&parts, struct part, link);
		struct req *r = p->req;
		list_del(&p->link);
		if ((f->mode < mode_needed(r) && !r->behind) || !lease_valid(f->cl)) {
			list_add(&f->lease_parts, &p->link);
			need_lease(f, r->writes);
			continue;
		}
		int error = append_error(r);
		bool left = !error && clip_gap(p);
		p->on_lease = false;
		r->lease_parked--;
		if (lease_revoked(r)) /* other parts of it are still under way */
			lease_uncount(r);
		count(r);
		if (left)
			part_queue(p);
		else
			part_done(p, error);
	}
	list_move_all(&f->lease_reqs, &reqs);
	while (!list_empty(&reqs)) {
		struct req *r = list_first(&reqs, struct req, link);
		list_del(&r->link);
		if (lease_admit(r))
			req_admitted(r);
	}
}

void lease_wake_all(struct vst_cl *cl)
{
	list_each(l, &cl->files)
	{
		struct vst_file *f = cl_container(l, struct vst_file, link);
		if (!list_empty(&f->lease_parts) || !list_empty(&f->lease_reqs))
			lease_wake(f);
		f->asked_lease = list_empty(&f->lease_parts) && list_empty(&f->lease_reqs) ? 0 : f->asked_lease;
	}
}

/* Maps belong to a lease. What waits for one would wait for ever: without a lease none is given. */
static void revoke(struct vst_file *f)
{
	f->revoked = ++f->epoch;
	for (uint32_t i = 0; i < f->table_size; i++)
		for (struct chunk *c = f->table[i]; c; c = c->hash_next) {
			c->hole = false;
			chunk_drop_map(c, c->map);
			part_wake_chunk(c);
		}
	behind_revoke(f);
}

static void run_set_lease(struct vst_cl *cl, struct cmd *c)
{
	struct vst_file *f = c->f;
	int before = f->mode, mode = (int)c->n;

	(void)cl;
	behind_close(f);
	f->mode = mode;
	if (mode < before || c->a) {
		struct drain *d = calloc(1, sizeof *d);
		if (!d)
			abort(); /* a recall that never drains would hold up every other client */
		list_init(&d->link);
		d->epoch = ++f->epoch;
		d->token = c->a;
		d->remaining = f->active;
		list_add(&f->drains, &d->link);
		if (!d->remaining)
			drained(f, d);
	}
	if (mode == VST_LEASE_NONE && !c->a)
		revoke(f);
	if (mode >= before)
		lease_wake(f);
	cl_cmd_done(c, 0);
}

int vst_file_set_lease(vst_file *f, int mode, uint64_t token)
{
	struct cmd *c;

	if (mode < VST_LEASE_NONE || mode > VST_LEASE_EXCLUSIVE)
		return -EINVAL;
	c = calloc(1, sizeof *c);
	if (!c)
		return -ENOMEM;
	c->run = run_set_lease;
	c->f = f;
	c->n = (uint32_t)mode;
	c->a = token;
	return cl_post(f->cl, c);
}
