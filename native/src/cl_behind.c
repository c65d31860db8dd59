/* Write-behind: a buffered write of a holder of EXCLUSIVE is answered when it is in this process's memory (DESIGN §5).
 *
 * Until it is on all replicas it keeps its place among the ranges of the file and counts as running for the lease:
 * reads of the range wait for it, SYNC and FLUSH wait for it, a recall is answered after it.  So other clients, and
 * this one, see what they would have seen; a program that wants more asks with fsync, as everywhere.  Small writes are
 * gathered for CL_BEHIND_MS: neighbours become one request.  Whatever else comes for the file closes the gathering
 * first (behind_close). A write that fails after its answer is told by the next SYNC or close of the file, once; until
 * then writes are answered when they are done.  It fails when the lease was lost under it: somebody else may have
 * written since. */
#include "fuse_internal.h"

static bool room(const struct vst_file *f, uint64_t off, uint64_t len)
{
	const struct vst_cl *cl = f->cl;
	uint64_t end_max = (uint64_t)f->chunk_bytes << 32;

	if (end_max > INT64_MAX)
		end_max = INT64_MAX;
	return off <= end_max && len <= end_max - off && f->nbehind < CL_BEHIND_REQS_MAX &&
	       cl->behind_bytes + len <= CL_BEHIND_BYTES_MAX;
}

/* A write behind the end, where something must be cleared first (clear_gap): that takes its time. */
static bool leaves_gap(const struct vst_file *f, uint64_t off)
{
	return off > f->append_end && f->append_end < f->tail_end;
}

static bool may_answer(struct vst_file *f, uint64_t off, uint64_t len)
{
	return len && f->mode == VST_LEASE_EXCLUSIVE && lease_valid(f->cl) && !f->behind_error &&
	       f->losses == f->losses_told && !leaves_gap(f, off) &&
	       !atomic_load_explicit(&f->cl->stopping, memory_order_relaxed) && room(f, off, len);
}

void behind_close(struct vst_file *f)
{
	struct req *g = f->gather;

	if (!g)
		return;
	f->gather = NULL;
	timer_cancel(f->cl, &f->gather_timer);
	req_admitted(g);
}

/* Memory for n more bytes in the gathering. false: it is full. */
static bool extend(struct fuse *fu, struct req *g, uint64_t n)
{
	void *buf;

	if (g->fuse_class == BUF_BIG)
		return g->len + n <= FUSE_WRITE_MAX;
	if (g->len + n <= FUSE_SMALL_BYTES)
		return true;
	buf = fuse_buf_get(fu, BUF_BIG);
	if (!buf)
		return false;
	memcpy(buf, g->buf, g->len);
	fuse_buf_put(fu, g->fuse_buf, BUF_SMALL);
	g->fuse_buf = buf;
	g->buf = buf;
	g->fuse_class = BUF_BIG;
	return true;
}

void behind_write(struct fuse *fu, struct req *r)
{
	struct vst_file *f = r->f;
	struct req *g = f->gather;

	if (!may_answer(f, r->off, r->len)) {
		req_begin(r);
		return;
	}
	req_written(r);
	if (r->off + r->len > f->append_end)
		f->append_end = r->off + r->len;
	fuse_answer_req(r, (int64_t)r->len); /* when it is heard, size and times are so */
	f->cl->behind_bytes += r->len;
	if (g && r->off == g->off + g->len && r->fuse_class == BUF_SMALL && extend(fu, g, r->len)) {
		memcpy(g->buf + g->len, r->buf, r->len);
		g->len += r->len;
		fuse_buf_put(fu, r->fuse_buf, BUF_SMALL);
		req_free(f->cl, r);
		if (g->len == FUSE_WRITE_MAX)
			behind_close(f);
		return;
	}
	behind_close(f);
	r->behind = true;
	req_prepare(r);
	lease_admit(r); /* may_answer has looked: it is let in, and counts for a recall from now on */
	f->nbehind++;
	if (r->fuse_class == BUF_SMALL && timer_set(f->cl, &f->gather_timer, f->cl->now_ms + CL_BEHIND_MS) == 0)
		f->gather = r;
	else
		req_admitted(r);
}

void behind_done(struct req *r)
{
	struct vst_file *f = r->f;

	f->nbehind--;
	f->cl->behind_bytes -= r->len;
	if (r->error && !f->behind_error)
		f->behind_error = r->error;
}

/* The lease is lost: none of it may be written any more. */
void behind_revoke(struct vst_file *f)
{
	for (struct link *l = f->lease_parts.next; l != &f->lease_parts;) {
		struct part *p = cl_container(l, struct part, link);
		l = l->next;
		if (!p->req->behind)
			continue;
		p->on_lease = false;
		p->req->lease_parked--;
		part_queue(p); /* part_run ends it */
	}
}
