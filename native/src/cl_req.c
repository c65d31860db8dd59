/* Requests and their parts: admission, cutting, running, ending. */
#include <stdio.h>
#include <time.h>
#include "cl_internal.h"

#define POOL_MAX 1024u
#define IO_FLAGS (REQ_DURABLE | REQ_APPEND | REQ_TAIL)

static bool stopping(const struct vst_cl *cl)
{
	return atomic_load_explicit(&cl->stopping, memory_order_relaxed);
}

/* --- requests ---------------------------------------------------------------------------------------------- */

/* Engine thread; other threads use calloc. */
struct req *req_new(struct vst_cl *cl, struct vst_file *f, int op)
{
	struct req *r;

	if (cl->nfree_reqs) {
		r = list_first(&cl->free_reqs, struct req, link);
		list_del(&r->link);
		cl->nfree_reqs--;
		memset(r, 0, sizeof *r);
	} else {
		r = calloc(1, sizeof *r);
		if (!r)
			return NULL;
	}
	r->f = f;
	r->op = op;
	return r;
}

void req_free(struct vst_cl *cl, struct req *r)
{
	if (cl->nfree_reqs >= POOL_MAX) {
		free(r);
		return;
	}
	list_init(&r->link);
	list_add(&cl->free_reqs, &r->link);
	cl->nfree_reqs++;
}

/* Hand the result to whoever asked, and forget the request. */
static void deliver(struct req *r, int64_t result)
{
	struct vst_file *f = r->f;
	struct vst_cl *cl = f->cl;
	struct vst_cl_event ev = {.kind = VST_EV_IO_DONE, .cookie = r->cookie, .result = result};

	switch (r->done_kind) {
	case DONE_EVENT:
		event_push(cl, f, &ev);
		atomic_fetch_sub(&cl->nreqs, 1);
		break;
	case DONE_WAITER:
		r->waiter->result = result;
		sem_post(&r->waiter->sem);
		break;
	case DONE_FUSE:
		fuse_complete(r, result);
		break;
	case DONE_TAIL:
		f->tail_error = (int)-result;
		break;
	}
	if (r->behind)
		behind_done(r);
	lease_uncount(r); /* after the answer: DRAINED says that all answers are out */
	PARK(r, cl, false);
	COUNT(cl, inflight, -1);
	req_free(cl, r);
	f->nreqs--;
	file_check_idle(f);
}

void req_prepare(struct req *r)
{
	list_init(&r->link);
	list_init(&r->order);
	list_init(&r->ready);
	r->f->nreqs++;
	r->losses_told = r->f->losses_told;
	r->writes = r->op == VST_IO_WRITE || r->op == VST_IO_PUNCH;
	r->t0_ns = cl_clock_ns();
	COUNT(r->f->cl, inflight, 1);
}

void req_begin(struct req *r)
{
	struct vst_cl *cl = r->f->cl;

	behind_close(r->f);
	req_prepare(r);
	if (stopping(cl))
		req_end_early(r, ESHUTDOWN);
	else if (lease_admit(r))
		req_admitted(r);
}

/* A write behind the end makes what lies between part of the file. In the last chunk that may be data of a writer that
 * died before it told the size: it is cleared first, in the order of ranges. */
static int clear_gap(struct req *r)
{
	struct vst_file *f = r->f;
	struct req *tail = req_new(f->cl, f, VST_IO_PUNCH);

	if (!tail)
		return ENOMEM;
	tail->off = f->append_end;
	tail->len = (r->off < f->tail_end ? r->off : f->tail_end) - f->append_end;
	tail->flags = REQ_TAIL;
	tail->done_kind = DONE_TAIL;
	r->behind_gap = true;
	r->lo = tail->off & ~(uint64_t)(VST_BLOCK_BYTES - 1);
	req_begin(tail);
	return 0;
}

static void touch(struct req *r)
{
	struct vst_file *f = r->f;

	if (f->ntouched < 0)
		return;
	if (f->ntouched == (int)CL_TOUCHED_MAX) {
		f->ntouched = -1;
		return;
	}
	f->touched[2 * f->ntouched] = r->lo;
	f->touched[2 * f->ntouched + 1] = r->hi;
	f->ntouched++;
}

/* It has the lease it needs: fix its range and take its place among the others. */
void req_admitted(struct req *r)
{
	struct vst_file *f = r->f;
	uint64_t end_max = (uint64_t)f->chunk_bytes << 32;

	if (end_max > INT64_MAX)
		end_max = INT64_MAX;
	if (r->op == VST_IO_WRITE && r->flags & REQ_APPEND)
		r->off = f->append_end;
	if (r->op == VST_IO_WRITE && (r->off >= end_max || r->len > end_max - r->off)) {
		req_end_early(r, EFBIG);
		return;
	}
	if (r->op == VST_IO_READ || r->op == VST_IO_PUNCH) {
		if (r->off > end_max)
			r->off = end_max;
		if (r->len > end_max - r->off)
			r->len = end_max - r->off;
	}
	r->lo = r->off & ~(uint64_t)(VST_BLOCK_BYTES - 1);
	if (r->op == VST_IO_WRITE && r->off > f->append_end && f->append_end < f->tail_end && r->len) {
		int error = clear_gap(r);
		if (error) {
			req_end_early(r, error);
			return;
		}
	}
	if (r->op == VST_IO_WRITE && r->off + r->len > f->append_end)
		f->append_end = r->off + r->len;
	r->hi = (r->off + r->len + VST_BLOCK_BYTES - 1) & ~(uint64_t)(VST_BLOCK_BYTES - 1);
	if (r->behind && r->touch)
		touch(r); /* answered: the kernel has it in its cache */
	range_add(r);
}

void req_queue(struct req *r)
{
	if (r->queued)
		return;
	r->queued = true;
	list_add(&r->f->cl->run_reqs, &r->link);
}

/* Parked for the lease, or never let in: it has no place among the ranges. */
void req_end_early(struct req *r, int error)
{
	deliver(r, -error);
}

static void start(struct req *r)
{
	struct vst_file *f = r->f;
	uint64_t size = atomic_load(&f->size),
		 limit = r->op == VST_IO_PUNCH && f->append_end > size ? f->append_end : size;

	r->started = true;
	if (r->behind_gap && f->tail_error)
		r->error = f->tail_error;
	if (r->op == VST_IO_READ || (r->op == VST_IO_PUNCH && !(r->flags & REQ_TAIL)))
		r->len = r->off >= limit ? 0 : r->len > limit - r->off ? limit - r->off : r->len;
	r->next = r->off;
	if (r->op == VST_IO_SYNC)
		sync_begin(r);
}

/* The next part of a READ, WRITE or PUNCH. */
static void cut(struct req *r)
{
	struct vst_file *f = r->f;
	uint32_t index = (uint32_t)(r->next / f->chunk_bytes), off = (uint32_t)(r->next % f->chunk_bytes);
	uint64_t len = r->off + r->len - r->next;
	struct chunk *c = chunk_get(f, index);
	struct part *p = c ? part_new(r, c) : NULL;

	if (!p) {
		r->error = ENOMEM;
		return;
	}
	if (len > f->chunk_bytes - off)
		len = f->chunk_bytes - off;
	/* at borders of io_bytes_max, so that no block is shared by two frames */
	if (r->op != VST_IO_PUNCH && len > VST_IO_BYTES_MAX - off % VST_IO_BYTES_MAX)
		len = VST_IO_BYTES_MAX - off % VST_IO_BYTES_MAX;
	p->off = off;
	p->len = (uint32_t)len;
	p->buf = r->buf ? r->buf + (r->next - r->off) : NULL;
	r->next += len;
	part_queue(p);
}

void req_run(struct req *r)
{
	if (!r->started)
		start(r);
	if (r->op == VST_IO_SYNC)
		sync_group(r);
	else if (r->op != VST_IO_FLUSH)
		while (!r->error && r->parts < CL_PARTS_PER_REQ && r->next < r->off + r->len)
			cut(r);
	if (!r->parts)
		req_finish(r);
}

/* --- ends -------------------------------------------------------------------------------------------------- */

void req_written(struct req *r)
{
	struct vst_file *f = r->f;
	uint64_t end = r->off + r->len;
	struct timespec t;

	clock_gettime(CLOCK_REALTIME, &t);
	f->dirty_mtime_ns = (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
	if (r->op == VST_IO_WRITE && r->len) {
		if (end > atomic_load(&f->size)) {
			atomic_store(&f->size, end);
			f->meta_seq++;
		}
		if (end > f->dirty_end)
			f->dirty_end = end;
	}
	atomic_store(&f->untaken, true);
	fuse_attr_written(f);
}

/* Where the next append goes: behind the size and all writes under way. A failed write leaves no gap. */
void req_append_end(struct vst_file *f)
{
	uint64_t end = atomic_load(&f->size);

	list_each(l, &f->ranges)
	{
		struct req *r = cl_container(l, struct req, order);
		if (r->op == VST_IO_WRITE && r->off + r->len > end)
			end = r->off + r->len;
	}
	f->append_end = end;
}

static void count_max(uint64_t *max, uint64_t ns)
{
	if (ns > __atomic_load_n(max, __ATOMIC_RELAXED))
		__atomic_store_n(max, ns, __ATOMIC_RELAXED);
}

static void count_io(struct req *r)
{
	struct vst_cl *cl = r->f->cl;
	uint64_t ns = cl_clock_ns() - r->t0_ns;

	switch (r->op) {
	case VST_IO_READ:
		COUNT(cl, reads, 1);
		COUNT(cl, bytes_read, r->len);
		COUNT(cl, read_ns_sum, ns);
		count_max(&cl->n.read_ns_max, ns);
		break;
	case VST_IO_WRITE:
		COUNT(cl, writes, 1);
		COUNT(cl, bytes_written, r->len);
		COUNT(cl, write_ns_sum, ns);
		count_max(&cl->n.write_ns_max, ns);
		break;
	case VST_IO_SYNC:
		COUNT(cl, syncs, 1);
		COUNT(cl, sync_ns_sum, ns);
		count_max(&cl->n.sync_ns_max, ns);
		break;
	default:
		break;
	}
}

static int64_t result_of(const struct req *r)
{
	if (r->error)
		return -r->error;
	return r->op == VST_IO_READ || r->op == VST_IO_WRITE ? (int64_t)r->len : 0;
}

static bool wants_commit(const struct req *r)
{
	if (r->error || r->f->meta_seq == r->f->committed_seq || stopping(r->f->cl))
		return false;
	return r->op == VST_IO_SYNC || (r->op == VST_IO_WRITE && r->flags & REQ_DURABLE);
}

/* Every SYNC under way when writes were lost says so, or the next one. */
static void tell_loss(struct req *r)
{
	if (r->op != VST_IO_SYNC)
		return;
	if (r->f->losses != r->losses_told && !r->error)
		r->error = EIO;
	if (r->error)
		r->f->losses_told = r->f->losses;
}

void req_finish(struct req *r)
{
	struct vst_file *f = r->f;

	tell_loss(r);
	if (r->writes && !r->error && !r->behind)
		req_written(r);
	if (r->touch && !r->error && !r->behind)
		touch(r);
	range_remove(r);
	if (r->writes && r->error)
		req_append_end(f);
	/* What failed after its answer is told once, by who asks. */
	if (f->behind_error && (r->op == VST_IO_SYNC || (r->op == VST_IO_FLUSH && r->done_kind == DONE_FUSE))) {
		r->error = r->error ? r->error : f->behind_error;
		f->behind_error = 0;
	}
	count_io(r);
	if (wants_commit(r)) {
		struct vst_cl_event ev = {.kind = VST_EV_COMMIT, .cookie = f->cl->next_commit++};
		r->commit_cookie = ev.cookie;
		r->seq = f->meta_seq;
		lease_uncount(
			r); /* its I/O is done; a recall must not wait for a commit that may wait for the recall */
		list_add(&f->commits, &r->link);
		event_push(f->cl, f, &ev);
		return;
	}
	deliver(r, result_of(r));
}

void req_committed(struct req *r, int error)
{
	list_del(&r->link);
	if (!error && r->seq > r->f->committed_seq)
		r->f->committed_seq = r->seq;
	if (error)
		r->error = error;
	tell_loss(r);
	deliver(r, result_of(r));
}

/* --- the callers' side ------------------------------------------------------------------------------------- */

struct submission {
	struct cmd c;
	struct req *r;
};

static void run_submit(struct vst_cl *cl, struct cmd *c)
{
	(void)cl;
	req_begin(((struct submission *)c)->r);
	cl_cmd_done(c, 0);
}

static struct submission *prepare(vst_file *f, int op, uint64_t off, uint64_t len, void *buf, uint32_t flags)
{
	struct submission *s = calloc(1, sizeof *s);
	struct req *r = calloc(1, sizeof *r);

	if (!s || !r) {
		free(s);
		free(r);
		return NULL;
	}
	r->f = f;
	r->op = op;
	r->off = off;
	r->len = len;
	r->buf = buf;
	r->flags = flags;
	s->r = r;
	s->c.run = run_submit;
	return s;
}

static int check_args(int op, uint64_t off, uint64_t len, const void *buf, uint32_t flags)
{
	if (op < VST_IO_READ || op > VST_IO_FLUSH || flags & ~IO_FLAGS || off > INT64_MAX || len > INT64_MAX)
		return -EINVAL;
	return (op == VST_IO_READ || op == VST_IO_WRITE) && len && !buf ? -EINVAL : 0;
}

int vst_file_submit(vst_file *f, int op, uint64_t off, uint64_t len, void *buf, uint32_t flags, uint64_t cookie)
{
	struct submission *s;
	int err = check_args(op, off, len, buf, flags);

	if (err)
		return err;
	if (stopping(f->cl))
		return -ESHUTDOWN;
	if (atomic_fetch_add(&f->cl->nreqs, 1) >= CL_REQS_MAX) {
		atomic_fetch_sub(&f->cl->nreqs, 1);
		return -EAGAIN;
	}
	s = prepare(f, op, off, len, buf, flags);
	if (!s) {
		atomic_fetch_sub(&f->cl->nreqs, 1);
		return -ENOMEM;
	}
	s->r->done_kind = DONE_EVENT;
	s->r->cookie = cookie;
	return cl_post(f->cl, &s->c);
}

int64_t vst_file_io(vst_file *f, int op, uint64_t off, uint64_t len, void *buf, uint32_t flags)
{
	struct waiter w;
	struct submission *s;
	int err = check_args(op, off, len, buf, flags);

	if (err)
		return err;
	if (stopping(f->cl))
		return -ESHUTDOWN;
	s = prepare(f, op, off, len, buf, flags);
	if (!s)
		return -ENOMEM;
	sem_init(&w.sem, 0, 0);
	s->r->done_kind = DONE_WAITER;
	s->r->waiter = &w;
	cl_post(f->cl, &s->c);
	while (sem_wait(&w.sem) < 0)
		;
	sem_destroy(&w.sem);
	return w.result;
}
