/* One chunk of one chunk server, for recovery and tools: blocking calls, each opening the chunk anew. */
#include "cl_internal.h"

struct raw_cmd {
	struct cmd c;
	struct raw_op op;
	const struct vst_raw *r;
};

static void run_raw(struct vst_cl *cl, struct cmd *c)
{
	struct raw_cmd *rc = (struct raw_cmd *)c;
	struct raw_op *op = &rc->op;
	struct xfer *x = NULL;

	if (cl->state != ENGINE_RUNNING) {
		cl_cmd_done(c, -ESHUTDOWN);
		return;
	}
	op->cmd = c;
	op->map = cmap_new(cl, rc->r->chunk_id, rc->r->version, 0, 0, &rc->r->cs_id, 1, rc->r->ticket);
	if (op->map)
		x = xfer_new(cl, op->map->rep[0].cs, X_RAW, op->type);
	if (!x) {
		if (op->map)
			cmap_unref(op->map);
		cl_cmd_done(c, -ENOMEM);
		return;
	}
	x->raw = op;
	if (op->type == VST_FRAME_TYPE_SYNC) {
		/* SYNC names its chunk by the handle in its data, filled in where the handle becomes known */
		x->slots = calloc(1, sizeof(*x->slots));
		if (!x->slots) {
			xfer_free(cl, x);
			cmap_unref(op->map);
			cl_cmd_done(c, -ENOMEM);
			return;
		}
		x->data = x->slots;
		x->hdr.data_len = sizeof(*x->slots);
	}
	x->hdr.offset = op->off;
	x->hdr.length = op->len;
	if (op->type == VST_FRAME_TYPE_READ)
		x->dest = op->buf;
	cs_submit(x->cs, x);
}

void raw_done(struct xfer *x, int status, const struct vst_frame *hdr, const void *data)
{
	struct raw_op *op = x->raw;

	if (status == 0 && op->type == VST_FRAME_TYPE_READ) {
		op->hole = (hdr->flags & VST_FRAME_FLAG_HOLE) != 0;
		if (op->hole)
			memset(op->buf, 0, op->len);
		else if (vst_pieces_verify(op->off, op->len, data, x->table) >= 0)
			status = VST_ERR_CRC_MISMATCH;
		else if (data != x->dest)
			memcpy(op->buf, data, op->len);
	} else if (status == 0 && op->buf) {
		op->got = hdr->data_len < op->buf_len ? hdr->data_len : op->buf_len;
		memcpy(op->buf, data, op->got);
	}
	if (status == VST_ERR_EXPIRED)
		cs_suspect_key(x->cs);
	op->status = status == CL_ST_NOKEY ? VST_ERR_TIMED_OUT : status;
	x->raw = NULL;
	cmap_unref(op->map);
	cl_cmd_done(op->cmd, op->status);
}

static int call(vst_cl *cl, const struct vst_raw *r, struct raw_cmd *rc)
{
	rc->c.run = run_raw;
	rc->r = r;
	return (int)cl_call(cl, &rc->c);
}

int vst_raw_read(vst_cl *cl, const struct vst_raw *r, uint64_t off, uint32_t len, void *buf, int *hole)
{
	struct raw_cmd rc = {.op = {.type = VST_FRAME_TYPE_READ, .off = off, .len = len, .buf = buf, .buf_len = len}};

	if (len == 0 || len > VST_IO_BYTES_MAX)
		return -EINVAL;
	int status = call(cl, r, &rc);
	*hole = rc.op.hole;
	return status;
}

int vst_raw_hash(vst_cl *cl, const struct vst_raw *r, uint64_t off, uint32_t len, uint8_t out[32])
{
	struct raw_cmd rc = {.op = {.type = VST_FRAME_TYPE_HASH, .off = off, .len = len, .buf = out, .buf_len = 32}};

	if (len == 0 || len > VST_IO_BYTES_MAX)
		return -EINVAL;
	return call(cl, r, &rc);
}

/* Pairs received (>= 0) in *count terms: the count, or -errno, or -1000 - status for a status. */
int vst_raw_granules(vst_cl *cl, const struct vst_raw *r, uint64_t *pairs, uint32_t npairs)
{
	struct raw_cmd rc = {.op = {.type = VST_FRAME_TYPE_GRANULES, .buf = pairs}};

	if (npairs > VST_CHUNK_BYTES_MAX / VST_GRANULE_BYTES)
		npairs = VST_CHUNK_BYTES_MAX / VST_GRANULE_BYTES;
	rc.op.buf_len = npairs * 16;
	int status = call(cl, r, &rc);
	if (status)
		return status < 0 ? status : -1000 - status;
	return (int)(rc.op.got / 16);
}

int vst_raw_stat(vst_cl *cl, const struct vst_raw *r, void *chunk_stat48)
{
	struct raw_cmd rc = {
		.op = {.type = VST_FRAME_TYPE_STAT, .buf = chunk_stat48, .buf_len = sizeof(struct vst_chunk_stat)}};
	return call(cl, r, &rc);
}

int vst_raw_sync(vst_cl *cl, const struct vst_raw *r)
{
	struct raw_cmd rc = {.op = {.type = VST_FRAME_TYPE_SYNC}};
	return call(cl, r, &rc);
}
