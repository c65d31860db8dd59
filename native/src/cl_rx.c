/* Receiving replies: many small ones from one recv, large read data straight into its destination. */
#include <sys/uio.h>
#include "cl_internal.h"

#define REPLY 0x80u
#define READS_PER_TURN 16 /* then other connections have their turn */

/* The xfer answered is off the connection: end it, unless part of it is still being sent. */
static void answered(struct cs *cs, struct xfer *x, const struct vst_frame *hdr, const void *data)
{
	list_del(&x->link);
	cs->ninflight--;
	cs->inflight_bytes -= x->hdr.data_len;
	cs->progress_ms = cs->cl->now_ms;
	if (!list_empty(&cs->waiting) || cs->renew)
		conn_mark(cs);
	if (x->sent) {
		xfer_end(x, hdr->status, hdr, data);
		return;
	}
	/* A refusal overtook the request's data. Nothing but an error can be right here. */
	x->replied = true;
	x->status = hdr->status ? hdr->status : VST_ERR_DISCONNECTED;
	if (!hdr->status)
		cs->broken = true;
	conn_mark(cs);
}

/* The waiting xfer that hdr answers, or NULL: not what was asked. */
static struct xfer *match(struct cs *cs, const struct vst_frame *hdr)
{
	struct xfer *x = xfer_find(cs->cl, hdr->request_id);

	if (!x || x->cs != cs || !x->on_wire || x->replied || x->kind == X_GREETING)
		return NULL;
	if (hdr->type != (x->hdr.type | REPLY))
		return NULL;
	if (hdr->status != 0)
		return hdr->data_len == 0 ? x : NULL;
	if (x->hdr.type == VST_FRAME_TYPE_READ && (hdr->offset != x->hdr.offset || hdr->length != x->hdr.length))
		return NULL;
	if (x->dest && hdr->data_len && hdr->data_len != x->hdr.length)
		return NULL;
	return x;
}

static bool greeting(const struct cs *cs)
{
	return cs->state == CS_HELLO || cs->state == CS_PROVE;
}

/* A whole frame at p. 0 or a status that ends the connection. */
static int whole_frame(struct cs *cs, const struct vst_frame *hdr, uint8_t *p, size_t tag_len)
{
	uint8_t *table = p + sizeof *hdr, *tag = table + hdr->table_len, *data = tag + tag_len;
	struct vst_seg seg = {data, hdr->data_len};

	if (tag_len && vst_open_frame(cs->rx_seal, hdr, table, &seg, 1, tag) < 0)
		return VST_ERR_DISCONNECTED;
	if (greeting(cs))
		return conn_greeted(cs, hdr, data);
	struct xfer *x = match(cs, hdr);
	if (!x)
		return VST_ERR_DISCONNECTED;
	if (x->dest)
		x->table = table;
	answered(cs, x, hdr, data);
	return 0;
}

static int direct_start(struct cs *cs, const struct vst_frame *hdr, const uint8_t *p, size_t have, size_t tag_len)
{
	struct xfer *x = match(cs, hdr);

	if (!x || !x->dest)
		return VST_ERR_DISCONNECTED;
	cs->direct = x;
	cs->direct_hdr = *hdr;
	memcpy(cs->direct_table, p + sizeof *hdr, hdr->table_len);
	memcpy(cs->direct_tag, p + sizeof *hdr + hdr->table_len, tag_len);
	memcpy(x->dest, p + sizeof *hdr + hdr->table_len + tag_len, have);
	cs->direct_got = have;
	return 0;
}

static int direct_finish(struct cs *cs)
{
	struct xfer *x = cs->direct;
	struct vst_seg seg = {x->dest, cs->direct_hdr.data_len};

	cs->direct = NULL;
	if (cs->tag_len && vst_open_frame(cs->rx_seal, &cs->direct_hdr, cs->direct_table, &seg, 1, cs->direct_tag) < 0)
		return VST_ERR_DISCONNECTED;
	x->table = cs->direct_table;
	answered(cs, x, &cs->direct_hdr, x->dest);
	return 0;
}

/* Every whole frame in the buffer. 0 or a status that ends the connection. */
static int parse(struct cs *cs)
{
	while (cs->rend - cs->rpos >= sizeof(struct vst_frame)) {
		uint8_t *p = cs->rbuf + cs->rpos;
		size_t have = cs->rend - cs->rpos, tag_len = cs->state == CS_HELLO ? 0 : cs->tag_len;
		struct vst_frame hdr;
		int err;

		memcpy(&hdr, p, sizeof hdr);
		if (vst_frame_check(&hdr, 1) < 0)
			return VST_ERR_DISCONNECTED;
		size_t head = sizeof hdr + hdr.table_len + tag_len;
		if (have < head)
			return 0;
		if (have < head + hdr.data_len) {
			if (hdr.data_len < CL_DIRECT_MIN || hdr.type != (VST_FRAME_TYPE_READ | REPLY) || greeting(cs))
				return head + hdr.data_len > CL_RBUF_BYTES ? VST_ERR_DISCONNECTED : 0;
			err = direct_start(cs, &hdr, p, have - head, tag_len);
			cs->rpos = cs->rend;
			return err;
		}
		cs->rpos += head + hdr.data_len;
		err = whole_frame(cs, &hdr, p, tag_len);
		if (err)
			return err;
	}
	return 0;
}

/* One receive. >0 bytes, 0 nothing for now, -1 end of the connection. */
static ssize_t receive(struct cs *cs, size_t *asked)
{
	struct iovec iov[2];
	struct msghdr msg = {.msg_iov = iov};

	if (cs->rpos == cs->rend)
		cs->rpos = cs->rend = 0;
	if (cs->direct) {
		iov[msg.msg_iovlen].iov_base = (uint8_t *)cs->direct->dest + cs->direct_got;
		iov[msg.msg_iovlen++].iov_len = cs->direct_hdr.data_len - cs->direct_got;
	} else if (cs->rpos && CL_RBUF_BYTES - cs->rend < CL_RBUF_BYTES / 2) {
		memmove(cs->rbuf, cs->rbuf + cs->rpos, cs->rend - cs->rpos);
		cs->rend -= cs->rpos;
		cs->rpos = 0;
	}
	iov[msg.msg_iovlen].iov_base = cs->rbuf + cs->rend;
	iov[msg.msg_iovlen++].iov_len = CL_RBUF_BYTES - cs->rend;
	*asked = iov[0].iov_len + (msg.msg_iovlen > 1 ? iov[1].iov_len : 0);
	for (;;) {
		ssize_t n = recvmsg(cs->fd, &msg, MSG_DONTWAIT);
		if (n > 0)
			return n;
		if (n < 0 && errno == EINTR)
			continue;
		return n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK) ? 0 : -1;
	}
}

void conn_readable(struct cs *cs)
{
	int status = 0;

	if (!cs->rbuf) {
		cs->rbuf = malloc(CL_RBUF_BYTES);
		if (!cs->rbuf) {
			cs_fail(cs, VST_ERR_DISCONNECTED);
			return;
		}
	}
	for (int i = 0; i < READS_PER_TURN && !status; i++) {
		size_t asked;
		ssize_t n = receive(cs, &asked);
		if (n == 0)
			return;
		if (n < 0) {
			status = VST_ERR_DISCONNECTED;
			break;
		}
		cs->progress_ms = cs->cl->now_ms;
		size_t got = (size_t)n;
		if (cs->direct) {
			size_t rest = cs->direct_hdr.data_len - cs->direct_got, take = got < rest ? got : rest;
			cs->direct_got += take;
			got -= take;
			cs->rend += got;
			if (take == rest)
				status = direct_finish(cs);
		} else {
			cs->rend += got;
		}
		if (!status && !cs->direct)
			status = parse(cs);
		if ((size_t)n < asked && !status)
			return; /* the socket is empty */
	}
	if (status)
		cs_fail(cs, status);
}
