/* READ, WRITE, FSYNC, FLUSH, FALLOCATE(punch) and LSEEK of bound handles: requests of the engine, answered when they
 * end. */
#include <fcntl.h>
#include <linux/falloc.h>
#include <unistd.h>
#include "fuse_internal.h"

static struct req *begin(struct fuse *fu, const struct fuse_in_header *in, struct bind *b, int op)
{
	struct req *r = req_new(fu->cl, b->f, op);

	if (!r) {
		fuse_answer(fu, in->unique, ENOMEM, NULL, 0);
		return NULL;
	}
	r->done_kind = DONE_FUSE;
	r->cookie = in->unique;
	r->fuse_op = in->opcode;
	return r;
}

static void refuse(struct fuse *fu, struct req *r, int error)
{
	fuse_answer(fu, r->cookie, error, NULL, 0);
	req_free(fu->cl, r);
}

static void do_read(struct fuse *fu, const struct fuse_in_header *in, struct bind *b)
{
	const struct fuse_read_in *a = (const void *)(in + 1);
	struct req *r = begin(fu, in, b, VST_IO_READ);

	if (!r)
		return;
	if (a->size > FUSE_WRITE_MAX) {
		refuse(fu, r, EINVAL);
		return;
	}
	r->fuse_class = a->size <= FUSE_SMALL_BYTES ? BUF_SMALL : BUF_BIG;
	r->fuse_buf = fuse_buf_get(fu, (enum buf_class)r->fuse_class);
	if (!r->fuse_buf) {
		refuse(fu, r, ENOMEM);
		return;
	}
	r->buf = r->fuse_buf;
	r->off = a->offset;
	r->len = a->size;
	r->touch = !(b->flags & BIND_DIRECT);
	req_begin(r);
}

/* Not what wants to be somewhere when it is answered, nor appends, whose place is known only then, nor pages written
 * back, for which nobody waits. */
static bool behind_allowed(const struct bind *b, const struct fuse_write_in *a)
{
	return !(b->flags & (BIND_DIRECT | BIND_SYNC | BIND_APPEND)) && !(a->flags & (O_DSYNC | O_DIRECT)) &&
	       !(a->write_flags & FUSE_WRITE_CACHE);
}

/* The data stays where the kernel put it, unless it is small: then the large buffer is worth more than a copy. */
static bool do_write(struct fuse *fu, const struct fuse_in_header *in, struct bind *b)
{
	const struct fuse_write_in *a = (const void *)(in + 1);
	size_t head = sizeof *in + sizeof *a;
	struct req *r;

	if (a->write_flags & FUSE_WRITE_KILL_SUIDGID && b->flags & BIND_SUID)
		return false;
	r = begin(fu, in, b, VST_IO_WRITE);
	if (!r)
		return true;
	if (in->len - head < a->size || !(b->flags & BIND_WRITABLE)) {
		refuse(fu, r, in->len - head < a->size ? EINVAL : EBADF);
		return true;
	}
	if (a->size <= FUSE_SMALL_BYTES) {
		r->fuse_class = BUF_SMALL;
		r->fuse_buf = fuse_buf_get(fu, BUF_SMALL);
		if (!r->fuse_buf) {
			refuse(fu, r, ENOMEM);
			return true;
		}
		r->buf = r->fuse_buf;
		memcpy(r->buf, fu->reading + head, a->size);
	} else {
		r->fuse_class = BUF_BIG;
		r->fuse_buf = fu->reading;
		r->buf = fu->reading + head;
		fu->reading = NULL;
	}
	r->off = r->asked_off = a->offset;
	r->len = a->size;
	r->touch = !(b->flags & BIND_DIRECT);
	/* Pages written back have their place; only what write(2) brings is appended. */
	if (b->flags & BIND_APPEND && !(a->write_flags & FUSE_WRITE_CACHE))
		r->flags |= REQ_APPEND;
	if (b->flags & BIND_SYNC || a->flags & O_DSYNC)
		r->flags |= REQ_DURABLE;
	if (behind_allowed(b, a))
		behind_write(fu, r);
	else
		req_begin(r);
	return true;
}

static void do_simple(struct fuse *fu, const struct fuse_in_header *in, struct bind *b, int op)
{
	struct req *r = begin(fu, in, b, op);
	if (r)
		req_begin(r);
}

static bool do_fallocate(struct fuse *fu, const struct fuse_in_header *in, struct bind *b)
{
	const struct fuse_fallocate_in *a = (const void *)(in + 1);
	struct req *r;

	if (a->mode != (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE) || (in->uid && b->flags & BIND_SUID))
		return false;
	r = begin(fu, in, b, VST_IO_PUNCH);
	if (!r)
		return true;
	if (!(b->flags & BIND_WRITABLE) || a->offset > INT64_MAX || a->length > INT64_MAX) {
		refuse(fu, r, b->flags & BIND_WRITABLE ? EINVAL : EBADF);
		return true;
	}
	r->off = a->offset;
	r->len = a->length;
	r->touch = !(b->flags & BIND_DIRECT);
	req_begin(r);
	return true;
}

/* Of a file of one chunk.  Needs the size, so a lease: an empty READ. Everything below the size counts as data, which
 * POSIX allows. */
static void do_lseek(struct fuse *fu, const struct fuse_in_header *in, struct bind *b)
{
	const struct fuse_lseek_in *a = (const void *)(in + 1);
	struct req *r = begin(fu, in, b, VST_IO_READ);

	if (!r)
		return;
	if (a->whence != SEEK_DATA && a->whence != SEEK_HOLE) {
		refuse(fu, r, EINVAL);
		return;
	}
	r->asked_off = a->offset;
	r->seek_hole = a->whence == SEEK_HOLE;
	req_begin(r);
}

/* Smallest body of a request, so that reading its struct stays inside the message; the field fh is the first of each.
 */
static uint32_t body_min(uint32_t opcode)
{
	switch (opcode) {
	case FUSE_READ:
		return sizeof(struct fuse_read_in);
	case FUSE_WRITE:
		return sizeof(struct fuse_write_in);
	case FUSE_FSYNC:
		return sizeof(struct fuse_fsync_in);
	case FUSE_FLUSH:
		return sizeof(struct fuse_flush_in);
	case FUSE_FALLOCATE:
		return sizeof(struct fuse_fallocate_in);
	case FUSE_LSEEK:
		return sizeof(struct fuse_lseek_in);
	default:
		return 0;
	}
}

bool fuse_data(struct fuse *fu, const struct fuse_in_header *in)
{
	uint32_t min = body_min(in->opcode);
	struct bind *b;
	uint64_t fh;

	if (!min)
		return false;
	if (in->len - sizeof *in < min) {
		fuse_answer(fu, in->unique, EINVAL, NULL, 0);
		return true;
	}
	memcpy(&fh, in + 1, sizeof fh);
	b = fuse_bind_find(fu, fh);
	if (!b)
		return false;
	switch (in->opcode) {
	case FUSE_READ:
		do_read(fu, in, b);
		return true;
	case FUSE_WRITE:
		return do_write(fu, in, b);
	case FUSE_FSYNC:
		do_simple(fu, in, b, VST_IO_SYNC);
		return true;
	case FUSE_FLUSH:
		if (b->f->flush_slow)
			return false;
		do_simple(fu, in, b, VST_IO_FLUSH);
		return true;
	case FUSE_FALLOCATE:
		return do_fallocate(fu, in, b);
	default:
		/* In a larger file, or one whose size is not known, there may be holes: Python asks for the maps. */
		if (b->f->mode == VST_LEASE_NONE || atomic_load(&b->f->size) > b->f->chunk_bytes)
			return false;
		do_lseek(fu, in, b);
		return true;
	}
}

static void append_moved(struct req *r, int64_t result)
{
	struct vst_cl_event ev = {.kind = VST_EV_APPEND_MOVED, .offset = r->asked_off, .result = result};

	if (result > 0 && r->flags & REQ_APPEND && r->off != r->asked_off)
		event_push(r->f->cl, r->f, &ev);
}

/* To the kernel. */
void fuse_answer_req(struct req *r, int64_t result)
{
	struct vst_cl *cl = r->f->cl;
	struct fuse *fu = cl->fuse;
	struct fuse_write_out wrote = {0};
	struct fuse_lseek_out at = {0};
	struct iovec body = {NULL, 0};
	int error = result < 0 ? (int)-result : 0;
	uint64_t size = atomic_load(&r->f->size);

	if (r->fuse_op == FUSE_READ) {
		body = (struct iovec){r->buf, error ? 0 : (size_t)result};
	} else if (r->fuse_op == FUSE_WRITE) {
		append_moved(r, result);
		wrote.size = error ? 0 : (uint32_t)result;
		body = (struct iovec){&wrote, sizeof wrote};
	} else if (r->fuse_op == FUSE_LSEEK) {
		if (!error && r->asked_off >= size)
			error = ENXIO;
		at.offset = r->seek_hole ? size : r->asked_off;
		body = (struct iovec){&at, sizeof at};
	}
	fuse_answer(fu, r->cookie, error, &body, body.iov_len ? 1 : 0);
}

void fuse_complete(struct req *r, int64_t result)
{
	if (r->behind) { /* answered long ago */
		fuse_buf_put(r->f->cl->fuse, r->fuse_buf, (enum buf_class)r->fuse_class);
		return;
	}
	fuse_answer_req(r, result);
	fuse_buf_put(r->f->cl->fuse, r->fuse_buf, (enum buf_class)r->fuse_class);
}
