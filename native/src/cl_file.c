/* Files: chunk maps, sizes, what the MDS must learn. Calls of other threads become commands of the engine thread. */
#include <time.h>
#include "cl_internal.h"

#define TABLE_MIN 16u

/* --- chunks ------------------------------------------------------------------------------------------------ */

struct chunk *chunk_find(struct vst_file *f, uint32_t index)
{
	if (!f->table_size)
		return NULL;
	for (struct chunk *c = f->table[index & (f->table_size - 1)]; c; c = c->hash_next)
		if (c->index == index)
			return c;
	return NULL;
}

static int table_grow(struct vst_file *f)
{
	uint32_t size = f->table_size ? f->table_size * 2 : TABLE_MIN;
	struct chunk **table = calloc(size, sizeof(*table));

	if (!table)
		return -ENOMEM;
	for (uint32_t i = 0; i < f->table_size; i++)
		while (f->table[i]) {
			struct chunk *c = f->table[i];
			f->table[i] = c->hash_next;
			c->hash_next = table[c->index & (size - 1)];
			table[c->index & (size - 1)] = c;
		}
	free(f->table);
	f->table = table;
	f->table_size = size;
	return 0;
}

struct chunk *chunk_get(struct vst_file *f, uint32_t index)
{
	struct chunk *c = chunk_find(f, index);

	if (c)
		return c;
	if (f->nchunks >= f->table_size && table_grow(f) < 0 && !f->table_size)
		return NULL;
	c = calloc(1, sizeof *c);
	if (!c)
		return NULL;
	c->f = f;
	c->index = index;
	list_init(&c->parked);
	list_init(&c->dirty);
	list_init(&c->first);
	c->hash_next = f->table[index & (f->table_size - 1)];
	f->table[index & (f->table_size - 1)] = c;
	f->nchunks++;
	return c;
}

void chunk_need_map(struct chunk *c, int write, int status)
{
	struct vst_cl_event ev = {
		.kind = VST_EV_NEED_MAP, .index = c->index, .write = (uint32_t)write, .error = status};

	if (c->asked >= 1 + write)
		return;
	c->asked = (uint8_t)(1 + write);
	if (c->map) {
		ev.chunk_id = c->map->chunk_id;
		ev.version = c->map->version;
	}
	event_push(c->f->cl, c->f, &ev);
}

void chunk_drop_map(struct chunk *c, struct cmap *m)
{
	if (!m || c->map != m)
		return;
	c->map = NULL;
	cmap_unref(m);
}

/* The chunk is no part of the file any more (truncated): what it had unsynced needs no sync. */
void chunk_drop(struct chunk *c)
{
	c->hole = false;
	c->failed = false;
	c->nunsynced = 0;
	list_del(&c->dirty);
	list_del(&c->first);
	c->first_chunk_id = 0;
	chunk_drop_map(c, c->map);
	part_wake_chunk(c);
}

/* --- life -------------------------------------------------------------------------------------------------- */

static void run_new(struct vst_cl *cl, struct cmd *c)
{
	list_add(&cl->files, &c->f->link);
	cl_cmd_done(c, 0);
}

/* The end of the chunk that `size` lies in; 0 and borders are ends themselves. */
static uint64_t chunk_border(const struct vst_file *f, uint64_t size)
{
	return (size + f->chunk_bytes - 1) / f->chunk_bytes * f->chunk_bytes;
}

vst_file *vst_file_new(vst_cl *cl, uint64_t ino, uint32_t chunk_bytes, uint64_t size)
{
	struct cmd *c;
	vst_file *f;

	if (chunk_bytes < VST_CHUNK_BYTES_MIN || chunk_bytes > VST_CHUNK_BYTES_MAX || chunk_bytes & (chunk_bytes - 1)) {
		errno = EINVAL;
		return NULL;
	}
	f = calloc(1, sizeof *f);
	c = calloc(1, sizeof *c);
	if (!f || !c) {
		free(f);
		free(c);
		return NULL;
	}
	f->cl = cl;
	f->ino = ino;
	f->chunk_bytes = chunk_bytes;
	atomic_store(&f->size, size);
	f->append_end = size;
	f->tail_end = chunk_border(f, size);
	list_init(&f->link);
	list_init(&f->idle);
	list_init(&f->dirty);
	list_init(&f->first);
	list_init(&f->drains);
	list_init(&f->lease_reqs);
	list_init(&f->lease_parts);
	list_init(&f->ranges);
	list_init(&f->commits);
	f->gather_timer.kind = TIMER_GATHER;
	c->run = run_new;
	c->f = f;
	cl_post(cl, c);
	return f;
}

void file_free_now(struct vst_file *f)
{
	event_forget(f->cl, f);
	if (f->nbinds)
		fuse_unbind_file(f);
	for (uint32_t i = 0; i < f->table_size; i++)
		while (f->table[i]) {
			struct chunk *c = f->table[i];
			f->table[i] = c->hash_next;
			chunk_drop_map(c, c->map);
			free(c);
		}
	while (!list_empty(&f->drains)) {
		struct drain *d = list_first(&f->drains, struct drain, link);
		list_del(&d->link);
		free(d);
	}
	free(f->table);
	list_del(&f->link);
	list_del(&f->idle);
	free(f);
}

/* A file that someone waits to free ends with its last request. */
void file_check_idle(struct vst_file *f)
{
	struct cmd *c = f->free_waiter;

	if (c && !f->nreqs && list_empty(&f->idle))
		list_add(&f->cl->idle, &f->idle); /* not here: callers may still look at f */
}

void file_idle(struct vst_file *f)
{
	struct cmd *c = f->free_waiter;

	if (f->nreqs)
		return;
	file_free_now(f);
	cl_cmd_done(c, 0);
}

static void run_free(struct vst_cl *cl, struct cmd *c)
{
	struct vst_file *f = c->f;

	(void)cl;
	behind_close(f);
	f->free_waiter = c;
	if (!f->nreqs)
		file_idle(f);
}

void vst_file_free(vst_file *f)
{
	struct cmd c = {.run = run_free, .f = f};

	if (f)
		cl_call(f->cl, &c);
}

/* --- maps -------------------------------------------------------------------------------------------------- */

struct set_chunk {
	struct cmd c;
	uint32_t index, version, flags, ncs;
	uint64_t chunk_id;
	int for_write;
	uint32_t cs_ids[VST_REPLICAS_MAX];
	uint8_t ticket[sizeof(struct vst_ticket)];
};

/* A server that left the map and comes back was filled by recovery: what it had acknowledged before no longer counts.
 */
static void prune_unsynced(struct chunk *c, const struct cmap *m)
{
	uint32_t kept = 0;

	for (uint32_t i = 0; i < c->nunsynced; i++)
		for (uint32_t k = 0; k < m->n; k++)
			if (m->rep[k].cs->id == c->unsynced[i].cs_id) {
				c->unsynced[kept++] = c->unsynced[i];
				break;
			}
	c->nunsynced = kept;
}

static void run_set_chunk(struct vst_cl *cl, struct cmd *cmd)
{
	struct set_chunk *s = (struct set_chunk *)cmd;
	struct chunk *c = chunk_get(cmd->f, s->index);
	struct cmap *m = NULL;
	int err = 0;

	if (c && s->ncs)
		m = cmap_new(cl, s->chunk_id, s->version, s->flags, s->for_write, s->cs_ids, s->ncs, s->ticket);
	if (!c || (s->ncs && !m)) {
		err = -ENOMEM;
	} else if (m && c->map && c->map->chunk_id == m->chunk_id && m->version < c->map->version) {
		cmap_unref(m); /* an answer that was overtaken */
	} else {
		chunk_drop_map(c, c->map);
		c->map = m;
		c->hole = !m;
		c->failed = false;
		if (m)
			prune_unsynced(c, m);
		if (m && c->first_chunk_id && c->first_chunk_id != m->chunk_id)
			c->first_chunk_id = 0;
	}
	if (c) {
		c->asked = 0;
		part_wake_chunk(c);
	}
	cl_cmd_done(cmd, err);
}

int vst_file_set_chunk(vst_file *f, uint32_t index, uint64_t chunk_id, uint32_t version, uint32_t flags, int for_write,
		       const uint32_t *cs_ids, uint32_t ncs, const uint8_t *ticket)
{
	struct set_chunk *s;

	if (ncs > VST_REPLICAS_MAX)
		return -EINVAL;
	s = calloc(1, sizeof *s);
	if (!s)
		return -ENOMEM;
	s->c.run = run_set_chunk;
	s->c.f = f;
	s->index = index;
	s->chunk_id = chunk_id;
	s->version = version;
	s->flags = flags;
	s->for_write = for_write;
	s->ncs = ncs;
	if (ncs) {
		memcpy(s->cs_ids, cs_ids, ncs * sizeof *cs_ids);
		memcpy(s->ticket, ticket, sizeof s->ticket);
	}
	return cl_post(f->cl, &s->c);
}

static void run_drop(struct vst_cl *cl, struct cmd *cmd)
{
	struct vst_file *f = cmd->f;

	(void)cl;
	for (uint32_t i = 0; i < f->table_size; i++)
		for (struct chunk *c = f->table[i]; c; c = c->hash_next)
			if (c->index >= cmd->n)
				chunk_drop(c);
	cl_cmd_done(cmd, 0);
}

void vst_file_drop_chunks(vst_file *f, uint32_t from_index)
{
	struct cmd *c = calloc(1, sizeof *c);

	if (!c)
		abort(); /* keeping maps that must be forgotten could show another file's data */
	c->run = run_drop;
	c->f = f;
	c->n = from_index;
	cl_post(f->cl, c);
}

static void run_forget(struct vst_cl *cl, struct cmd *cmd)
{
	struct vst_file *f = cmd->f;

	(void)cl;
	for (uint32_t i = 0; i < f->table_size; i++)
		for (struct chunk *c = f->table[i]; c; c = c->hash_next)
			if (c->index >= cmd->n && c->index - cmd->n < cmd->a) {
				c->hole = false;
				chunk_drop_map(c, c->map);
				part_wake_chunk(c);
			}
	cl_cmd_done(cmd, 0);
}

void vst_file_forget_maps(vst_file *f, uint32_t from_index, uint32_t count)
{
	struct cmd *c = calloc(1, sizeof *c);

	if (!c)
		abort(); /* keeping maps that must be forgotten could show another file's data */
	c->run = run_forget;
	c->f = f;
	c->n = from_index;
	c->a = count;
	cl_post(f->cl, c);
}

static void fail_parts(struct link *head, int error)
{
	struct link parts;

	list_move_all(head, &parts);
	while (!list_empty(&parts)) {
		struct part *p = list_first(&parts, struct part, link);
		list_del(&p->link);
		timer_cancel(p->req->f->cl, &p->timer);
		if (p->on_lease) {
			p->on_lease = false;
			p->req->lease_parked--;
		}
		part_done(p, error);
	}
}

static void run_fail(struct vst_cl *cl, struct cmd *cmd)
{
	struct vst_file *f = cmd->f;
	int error = (int)cmd->a;
	struct chunk *c;

	(void)cl;
	if (cmd->n == UINT32_MAX) {
		struct link reqs;
		f->asked_lease = 0;
		fail_parts(&f->lease_parts, error);
		list_move_all(&f->lease_reqs, &reqs);
		while (!list_empty(&reqs)) {
			struct req *r = list_first(&reqs, struct req, link);
			list_del(&r->link);
			req_end_early(r, error);
		}
	} else if ((c = chunk_find(f, cmd->n)) != NULL) {
		c->asked = 0;
		/* Answered, also for those that still wait for the other replicas (cl_write.c); who meets the failed
		 * one from now on reports it again. */
		c->fail_seq++;
		c->fail_error = error;
		c->failed = false;
		if (c->map)
			c->map->failed_mask = 0;
		fail_parts(&c->parked, error);
	}
	cl_cmd_done(cmd, 0);
}

void vst_file_fail(vst_file *f, uint32_t index, int error)
{
	struct cmd *c = calloc(1, sizeof *c);

	if (!c)
		abort(); /* the requests would wait for ever */
	c->run = run_fail;
	c->f = f;
	c->n = index;
	c->a = (uint64_t)(error > 0 ? error : EIO);
	cl_post(f->cl, c);
}

/* --- size and what was written ----------------------------------------------------------------------------- */

uint64_t vst_file_size(vst_file *f)
{
	return atomic_load(&f->size);
}

static void run_set_size(struct vst_cl *cl, struct cmd *c)
{
	(void)cl;
	behind_close(c->f);
	atomic_store(&c->f->size, c->a);
	req_append_end(c->f);
	c->f->tail_end = chunk_border(c->f, c->a);
	if (c->f->dirty_end > c->a)
		c->f->dirty_end = c->a;
	cl_cmd_done(c, 0);
}

void vst_file_set_size(vst_file *f, uint64_t size)
{
	struct cmd c = {.run = run_set_size, .f = f, .a = size};

	cl_call(f->cl, &c); /* so that vst_file_size and what follows see it */
}

static void run_take_dirty(struct vst_cl *cl, struct cmd *c)
{
	struct vst_file *f = c->f;
	uint32_t n = 0, *indexes = (uint32_t *)c->r;

	(void)cl;
	*(uint64_t *)(uintptr_t)c->p = f->dirty_end;
	*(uint64_t *)c->q = f->dirty_mtime_ns;
	f->dirty_end = 0;
	while (n < c->n && !list_empty(&f->first)) {
		struct chunk *chunk = list_first(&f->first, struct chunk, first);
		list_del(&chunk->first);
		indexes[n++] = chunk->index;
	}
	if (list_empty(&f->first)) {
		f->taken_seq = f->meta_seq;
		f->dirty_mtime_ns = 0;
		atomic_store(&f->untaken, false);
	}
	cl_cmd_done(c, n);
}

uint32_t vst_file_take_dirty(vst_file *f, uint64_t *end, uint64_t *mtime_ns, uint32_t *indexes, uint32_t max)
{
	struct cmd c = {.run = run_take_dirty, .f = f, .p = end, .q = mtime_ns, .r = indexes, .n = max};

	*end = *mtime_ns = 0;
	if (!atomic_load(&f->untaken)) /* by far the most calls: without a turn of the engine */
		return 0;
	return (uint32_t)cl_call(f->cl, &c);
}

static void run_unsynced(struct vst_cl *cl, struct cmd *c)
{
	(void)cl;
	cl_cmd_done(c, list_empty(&c->f->dirty) && !c->f->nbehind ? 0 : 1);
}

int vst_file_unsynced(vst_file *f)
{
	struct cmd c = {.run = run_unsynced, .f = f};

	return (int)cl_call(f->cl, &c);
}

static void run_note_lost(struct vst_cl *cl, struct cmd *c)
{
	(void)cl;
	c->f->losses++;
	cl_cmd_done(c, 0);
}

void vst_file_note_lost(vst_file *f)
{
	struct cmd c = {.run = run_note_lost, .f = f};

	cl_call(f->cl, &c);
}

static void run_committed(struct vst_cl *cl, struct cmd *c)
{
	int64_t result = -ENOENT;

	(void)cl;
	if (!c->a) { /* of what was taken last */
		if (!c->b && c->f->taken_seq > c->f->committed_seq)
			c->f->committed_seq = c->f->taken_seq;
		cl_cmd_done(c, 0);
		return;
	}
	list_each(l, &c->f->commits)
	{
		struct req *r = cl_container(l, struct req, link);
		if (r->commit_cookie != c->a)
			continue;
		req_committed(r, (int)c->b);
		result = 0;
		break;
	}
	cl_cmd_done(c, result);
}

int vst_file_committed(vst_file *f, uint64_t cookie, int error)
{
	struct cmd c = {.run = run_committed, .f = f, .a = cookie, .b = (uint64_t)(error > 0 ? error : 0)};

	return (int)cl_call(f->cl, &c);
}

static void run_touched(struct vst_cl *cl, struct cmd *c)
{
	struct vst_file *f = c->f;
	int n = f->ntouched;

	(void)cl;
	f->ntouched = 0;
	if (n < 0 || (uint32_t)n > c->n) {
		cl_cmd_done(c, -EOVERFLOW);
		return;
	}
	memcpy(c->q, f->touched, (size_t)n * 2 * sizeof(uint64_t));
	cl_cmd_done(c, n);
}

int vst_file_take_touched(vst_file *f, uint64_t *pairs, uint32_t npairs)
{
	struct cmd c = {.run = run_touched, .f = f, .q = pairs, .n = npairs};

	return (int)cl_call(f->cl, &c);
}
