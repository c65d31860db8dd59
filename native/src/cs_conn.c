/* One connection: bytes in, frames out of them; replies out.  Receiving stops at a gate in front of each request while
 * too much of this connection, or of the memory for requests, is in use: that is how a slow or greedy peer is held. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>
#include "cs_conn.h"

#define IOVS 128

static void link_conn(struct cs *cs, struct cs_conn *conn)
{
	conn->next = cs->conns;
	if (cs->conns)
		cs->conns->prev = conn;
	cs->conns = conn;
	cs->nconns++;
	cs->n.connections = cs->nconns;
}

static void unlink_conn(struct cs *cs, struct cs_conn *conn)
{
	if (conn->prev)
		conn->prev->next = conn->next;
	else
		cs->conns = conn->next;
	if (conn->next)
		conn->next->prev = conn->prev;
	cs->nconns--;
	cs->n.connections = cs->nconns;
}

void cs_conn_want_read(struct cs_conn *conn)
{
	if (conn->in_ready || conn->dead)
		return;
	conn->in_ready = 1;
	conn->ready_next = conn->cs->ready;
	conn->cs->ready = conn;
}

static void want_send(struct cs_conn *conn)
{
	if (conn->in_flush || conn->dead)
		return;
	conn->in_flush = 1;
	conn->flush_next = conn->cs->flush;
	conn->cs->flush = conn;
}

static void readiness(struct cs_watch *w, unsigned events)
{
	struct cs_conn *conn = (struct cs_conn *)w;

	if ((events & CS_EV_OUT) && conn->blocked) {
		conn->blocked = 0;
		want_send(conn);
	}
	conn->over |= (events & CS_EV_END) != 0;
	if (events & CS_EV_IN)
		cs_conn_want_read(conn);
}

static void watch_gone(struct cs_watch *w)
{
	struct cs_conn *conn = (struct cs_conn *)w;

	close(conn->watch.fd);
	conn->gone = 1;
	cs_conn_try_free(conn);
}

void cs_conn_new(struct cs *cs, int fd)
{
	struct cs_conn *conn = calloc(1, sizeof *conn);

	if (!conn) {
		close(fd);
		return;
	}
	conn->cs = cs;
	conn->watch = (struct cs_watch){.fd = fd, .ready = readiness, .gone = watch_gone};
	conn->began_ms = cs_now_ms();
	if (cs_watch_add(cs->ring, &conn->watch) < 0) {
		close(fd);
		free(conn);
		return;
	}
	link_conn(cs, conn);
	cs_conn_want_read(conn);
}

struct cs_handle *cs_conn_handle(struct cs_conn *conn, uint32_t slot, int make)
{
	if (slot >= VST_HANDLES_PER_CONNECTION)
		return NULL;
	struct cs_handle **page = &conn->handles[slot / 256];
	if (!*page && make)
		*page = calloc(256, sizeof **page);
	return *page ? &(*page)[slot % 256] : NULL;
}

void cs_handle_clear(struct cs *cs, struct cs_handle *h)
{
	struct cs_chunk *c = h->c;
	*h = (struct cs_handle){0};
	if (c)
		cs_chunk_unref(cs, c);
}

void cs_conn_close(struct cs_conn *conn)
{
	struct cs *cs = conn->cs;

	if (conn->dead)
		return;
	conn->dead = 1;
	while (conn->out) {
		struct cs_out *o = conn->out;
		conn->out = o->next;
		cs_buf_put(cs, o->buf);
		free(o);
	}
	cs_buf_put(cs, conn->rbuf);
	conn->rbuf = NULL;
	free(conn->stash);
	conn->stash = NULL;
	for (int i = 0; i < 256; i++) {
		for (int k = 0; conn->handles[i] && k < 256; k++)
			cs_handle_clear(cs, &conn->handles[i][k]);
		free(conn->handles[i]);
		conn->handles[i] = NULL;
	}
	vst_seal_free(conn->seal_in);
	vst_seal_free(conn->seal_out);
	conn->seal_in = conn->seal_out = NULL;
	explicit_bzero(conn->key, sizeof conn->key);
	shutdown(conn->watch.fd, SHUT_RDWR);
	cs_watch_del(cs->ring, &conn->watch);
}

void cs_conn_try_free(struct cs_conn *conn)
{
	if (!conn->dead || !conn->gone || conn->inflight || conn->in_ready || conn->in_flush || conn->in_starved)
		return;
	unlink_conn(conn->cs, conn);
	free(conn);
}

/* --- receiving */

static int memory_full(const struct cs *cs)
{
	uint64_t used = cs->used_bytes > cs->index_bytes ? cs->used_bytes - cs->index_bytes : 0;
	return used > CS_REQUEST_BYTES_MAX;
}

int cs_conn_gate(struct cs_conn *conn)
{
	return conn->inflight >= VST_INFLIGHT_PER_CONNECTION || conn->out_bytes > CS_OUT_BYTES_MAX ||
	       memory_full(conn->cs);
}

static void starve(struct cs_conn *conn)
{
	if (conn->in_starved)
		return;
	conn->in_starved = 1;
	conn->starved_next = conn->cs->starved;
	conn->cs->starved = conn;
}

static int header_ok(struct cs_conn *conn)
{
	uint8_t type = conn->hdr.type;

	if (vst_frame_check(&conn->hdr, 0) != 0)
		return 0;
	/* HELLO, then PROVE, then all else. */
	if (conn->state == CS_CONN_NEW)
		return type == VST_FRAME_TYPE_HELLO;
	if (conn->state == CS_CONN_HELLO)
		return type == VST_FRAME_TYPE_PROVE;
	return type != VST_FRAME_TYPE_HELLO && type != VST_FRAME_TYPE_PROVE;
}

static void drop(struct cs_conn *conn)
{
	conn->cs->n.bad_frames++;
	cs_conn_close(conn);
}

/* The buffer for the frame's data: that of a WRITE lies as it will lie in its blocks. */
static int prepare(struct cs_conn *conn)
{
	uint32_t skip = conn->hdr.type == VST_FRAME_TYPE_WRITE ? (uint32_t)(conn->hdr.offset % CS_BLOCK) : 0;

	conn->head_need = conn->hdr.table_len + (conn->seal_in ? (uint32_t)vst_seal_tag_len(conn->seal_in) : 0);
	conn->head_got = conn->data_got = 0;
	conn->rdata = NULL;
	if (conn->hdr.data_len == 0)
		return 0;
	conn->rbuf = cs_buf_get(conn->cs, (uint64_t)skip + conn->hdr.data_len);
	if (!conn->rbuf)
		return -ENOMEM;
	conn->rdata = conn->rbuf->data + skip;
	return 0;
}

static uint32_t take(void *to, uint32_t *got, uint32_t need, const uint8_t *p, size_t n)
{
	uint32_t k = need - *got;
	if (k > n)
		k = (uint32_t)n;
	if (k)
		memcpy((uint8_t *)to + *got, p, k);
	*got += k;
	return k;
}

/* Give bytes to the parser: how many it took (all, unless the connection stalls or dies). */
static size_t feed(struct cs_conn *conn, const uint8_t *p, size_t n)
{
	size_t used = 0;

	while (!conn->dead) {
		switch ((enum cs_stage)conn->stage) {
		case CS_STAGE_HEADER:
			used += take(&conn->hdr, &conn->hdr_got, sizeof conn->hdr, p + used, n - used);
			if (conn->hdr_got && !conn->frame_ms)
				conn->frame_ms = cs_now_ms();
			if (conn->hdr_got < sizeof conn->hdr)
				return used;
			if (!header_ok(conn)) {
				drop(conn);
				return used;
			}
			conn->stage = CS_STAGE_GATE;
			break;
		case CS_STAGE_GATE:
			if (cs_conn_gate(conn) || prepare(conn) < 0) {
				starve(conn);
				return used;
			}
			conn->stage = CS_STAGE_HEAD;
			break;
		case CS_STAGE_HEAD:
			used += take(conn->head, &conn->head_got, conn->head_need, p + used, n - used);
			if (conn->head_got < conn->head_need)
				return used;
			conn->stage = CS_STAGE_DATA;
			break;
		case CS_STAGE_DATA:
			used += take(conn->rdata, &conn->data_got, conn->hdr.data_len, p + used, n - used);
			if (conn->data_got < conn->hdr.data_len)
				return used;
			conn->stage = CS_STAGE_HEADER;
			conn->hdr_got = 0;
			conn->frame_ms = 0;
			cs_proto_frame(conn);
			cs_buf_put(conn->cs, conn->rbuf);
			conn->rbuf = NULL;
			break;
		}
	}
	return used;
}

/* What was received before the connection stalled. 1: all of it is taken. */
static int feed_stash(struct cs_conn *conn)
{
	if (conn->stage == CS_STAGE_GATE)
		feed(conn, NULL, 0);
	if (!conn->stash || conn->dead || conn->in_starved)
		return !conn->stash && !conn->dead && !conn->in_starved;
	conn->stash_at += (uint32_t)feed(conn, conn->stash + conn->stash_at, conn->stash_len - conn->stash_at);
	if (conn->dead || conn->stash_at < conn->stash_len)
		return 0;
	free(conn->stash);
	conn->stash = NULL;
	return !conn->in_starved;
}

static int keep(struct cs_conn *conn, const uint8_t *p, size_t n)
{
	conn->stash = malloc(n);
	if (!conn->stash)
		return -ENOMEM;
	memcpy(conn->stash, p, n);
	conn->stash_len = (uint32_t)n;
	conn->stash_at = 0;
	return 0;
}

void cs_conn_read(struct cs_conn *conn)
{
	struct cs *cs = conn->cs;
	size_t budget = CS_READ_BUDGET;

	if (conn->in_starved || !feed_stash(conn))
		return;
	while (budget) {
		struct iovec v[2] = {{NULL, 0}, {cs->scratch, CS_SCRATCH_BYTES}};
		if (conn->stage == CS_STAGE_DATA) { /* data straight to its place */
			v[0].iov_base = conn->rdata + conn->data_got;
			v[0].iov_len = conn->hdr.data_len - conn->data_got;
		}
		struct msghdr m = {.msg_iov = v, .msg_iovlen = 2};
		ssize_t n = recvmsg(conn->watch.fd, &m, MSG_DONTWAIT);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return;
		if (n <= 0) {
			cs_conn_close(conn);
			return;
		}
		size_t direct = (size_t)n < v[0].iov_len ? (size_t)n : v[0].iov_len, rest = (size_t)n - direct;
		budget -= (size_t)n < budget ? (size_t)n : budget;
		conn->data_got += (uint32_t)direct;
		size_t used = feed(conn, cs->scratch, rest);
		if (conn->dead)
			return;
		if (used < rest && keep(conn, cs->scratch + used, rest - used) < 0) {
			cs_conn_close(conn);
			return;
		}
		if (conn->in_starved)
			return;
		/* Less than asked for: the socket was empty, and what comes next is told. Not so its end, if that came
		 * with this. */
		if ((size_t)n < v[0].iov_len + v[1].iov_len && !conn->over)
			return;
	}
	cs_conn_want_read(conn);
}

/* --- sending */

void cs_conn_reply(struct cs_conn *conn, const struct vst_frame *req, int status, uint16_t flags, const uint32_t *table,
		   uint32_t pieces, struct cs_buf *buf, const void *data, uint32_t data_len, uint32_t version)
{
	uint32_t table_len = pieces * 4, tag_len = conn->seal_out ? (uint32_t)vst_seal_tag_len(conn->seal_out) : 0;
	uint32_t head_len = (uint32_t)sizeof(struct vst_frame) + table_len + tag_len, inline_len = buf ? 0 : data_len;
	struct cs_out *o = conn->dead ? NULL : calloc(1, sizeof *o + head_len + inline_len);

	if (!o) {
		cs_buf_put(conn->cs, buf);
		if (!conn->dead) /* without a reply the peer must see the connection end */
			cs_conn_close(conn);
		return;
	}
	struct vst_frame f = {
		.type = (uint8_t)(req->type | 0x80),
		.flags = flags,
		.request_id = req->request_id,
		.handle = req->handle,
		.status = status,
		.offset = req->offset,
		.length = req->length,
		.table_len = table_len,
		.data_len = data_len,
		.chunk_version = version,
		.chunk_id = req->chunk_id,
	};
	vst_frame_finish(&f);
	memcpy(o->head, &f, sizeof f);
	if (table_len)
		memcpy(o->head + sizeof f, table, table_len);
	o->head_len = head_len;
	o->buf = buf;
	o->data = data;
	o->data_len = data_len;
	if (inline_len) {
		memcpy(o->head + head_len, data, data_len);
		o->data = o->head + head_len;
	}
	if (tag_len) {
		struct vst_seg seg = {(void *)(uintptr_t)o->data, data_len};
		if (vst_seal_frame(conn->seal_out, &f, o->head + sizeof f, &seg, data_len ? 1 : 0,
				   o->head + sizeof f + table_len) < 0) {
			cs_buf_put(conn->cs, buf);
			free(o);
			cs_conn_close(conn);
			return;
		}
	}
	if (conn->out)
		conn->out_tail->next = o;
	else
		conn->out = o;
	conn->out_tail = o;
	conn->out_bytes += head_len + data_len;
	want_send(conn);
}

static int add_iov(struct iovec *v, int n, const void *base, uint32_t len, uint32_t *skip)
{
	if (*skip >= len) {
		*skip -= len;
		return n;
	}
	v[n].iov_base = (void *)((uintptr_t)base + *skip);
	v[n].iov_len = len - *skip;
	*skip = 0;
	return n + 1;
}

static void sent(struct cs_conn *conn, size_t n)
{
	conn->out_bytes -= n;
	while (n) {
		struct cs_out *o = conn->out;
		size_t left = (size_t)o->head_len + o->data_len - o->sent;
		if (n < left) {
			o->sent += (uint32_t)n;
			return;
		}
		n -= left;
		conn->out = o->next;
		cs_buf_put(conn->cs, o->buf);
		free(o);
	}
}

void cs_conn_send(struct cs_conn *conn)
{
	while (conn->out) {
		struct iovec v[IOVS];
		int k = 0;
		for (struct cs_out *o = conn->out; o && k + 2 <= IOVS; o = o->next) {
			uint32_t skip = o->sent;
			k = add_iov(v, k, o->head, o->head_len, &skip);
			k = add_iov(v, k, o->data, o->data_len, &skip);
		}
		struct msghdr m = {.msg_iov = v, .msg_iovlen = (size_t)k};
		ssize_t n = sendmsg(conn->watch.fd, &m, MSG_DONTWAIT | MSG_NOSIGNAL);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN) {
			conn->blocked = 1;
			cs_watch_want_out(conn->cs->ring, &conn->watch);
			return;
		}
		if (n < 0) {
			cs_conn_close(conn);
			return;
		}
		sent(conn, (size_t)n);
	}
}
