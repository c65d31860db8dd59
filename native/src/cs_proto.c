/* What each frame means: requests on handles and their replies. */
#include <stdlib.h>
#include <string.h>
#include "cs_conn.h"
#include "vstor/crc32c.h"

struct netreq {
	struct cs_req req;
	struct cs_conn *conn;
	struct vst_frame hdr;
	uint32_t table[VST_IO_BYTES_MAX / VST_BLOCK_BYTES + 1];
};

/* --- requests on handles */

static int request_status(struct cs_conn *conn, const struct vst_frame *f, const struct cs_handle *h)
{
	if (!h)
		return VST_ERR_BAD_REQUEST;
	if (!h->c)
		return h->status ? h->status : VST_ERR_BAD_REQUEST;
	if (!cs_serving(conn->cs))
		return VST_ERR_NOT_SERVING;
	if (f->chunk_id != h->c->id)
		return VST_ERR_BAD_REQUEST;
	int status = cs_chunk_status(h->c, h->version);
	if (!status && f->chunk_version != h->version)
		status = VST_ERR_STALE;
	if (status)
		return status;
	int writes = f->type == VST_FRAME_TYPE_WRITE || f->type == VST_FRAME_TYPE_PUNCH;
	if (writes && h->mode != VST_TICKET_MODE_WRITE)
		return VST_ERR_DENIED;
	if (f->offset > h->c->chunk_bytes || f->length > h->c->chunk_bytes - f->offset)
		return VST_ERR_BAD_REQUEST;
	return 0;
}

static void count_time(struct cs *cs, const struct cs_req *req)
{
	uint64_t ns = cs_now_ns() - req->start_ns, *sum, *max;

	if (req->op == CS_READ || req->op == CS_HASH) {
		cs->n.reads++;
		sum = &cs->n.read_ns_sum;
		max = &cs->n.read_ns_max;
	} else if (req->op == CS_SYNC) {
		cs->n.syncs++;
		sum = &cs->n.sync_ns_sum;
		max = &cs->n.sync_ns_max;
	} else {
		cs->n.writes += req->op == CS_WRITE;
		cs->n.punches += req->op == CS_PUNCH;
		sum = &cs->n.write_ns_sum;
		max = &cs->n.write_ns_max;
	}
	*sum += ns;
	if (ns > *max)
		*max = ns;
}

/* CRC of each piece: of a whole block the stored one, which the client made. */
static uint32_t piece_table(const struct cs_req *req, uint32_t *table)
{
	uint32_t n = vst_pieces(req->off, (uint32_t)req->len), last = n - 1;
	const uint8_t *p = req->buf->data;

	vst_pieces_crc(req->off, 0, p, table);
	for (uint32_t i = 0; i < n; i++) {
		uint32_t from = i == 0 ? (uint32_t)(req->off % CS_BLOCK) : 0;
		uint32_t to = i == last ? (uint32_t)((req->off + req->len - 1) % CS_BLOCK + 1) : CS_BLOCK;
		uint32_t block = (uint32_t)(req->off / CS_BLOCK) + i;
		if (from != 0 || to != CS_BLOCK)
			table[i] = vst_crc32c(0, p + (size_t)i * CS_BLOCK + from, to - from);
		else
			table[i] = cs_tab_state(req->c, block) == CS_UNWRITTEN ? vst_crc32c_zero_block()
									       : cs_tab_crc(req->c, block);
	}
	return n;
}

static void read_reply(struct netreq *nr)
{
	struct cs_req *req = &nr->req;

	if (req->hole) {
		cs_conn_reply(nr->conn, &nr->hdr, 0, VST_FRAME_FLAG_HOLE, NULL, 0, NULL, NULL, 0, req->version);
		return;
	}
	uint32_t pieces = piece_table(req, nr->table);
	struct cs_buf *buf = req->buf;
	req->buf = NULL;
	cs_conn_reply(nr->conn, &nr->hdr, 0, 0, nr->table, pieces, buf, buf->data + req->off % CS_BLOCK,
		      (uint32_t)req->len, req->version);
}

static void request_done(struct cs_req *req)
{
	struct netreq *nr = (struct netreq *)req;
	struct cs_conn *conn = nr->conn;
	struct cs *cs = req->cs;

	conn->inflight--;
	count_time(cs, req);
	if (conn->dead) {
		; /* nobody to tell */
	} else if (req->status) {
		cs_conn_status(conn, &nr->hdr, req->status, req->c ? req->c->version : 0);
	} else if (req->op == CS_READ) {
		read_reply(nr);
	} else if (req->op == CS_HASH) {
		cs_conn_reply(conn, &nr->hdr, 0, 0, NULL, 0, NULL, req->hash, sizeof req->hash, req->version);
	} else {
		cs_conn_status(conn, &nr->hdr, 0, req->version);
	}
	cs_buf_put(cs, req->buf);
	if (req->op == CS_SYNC) {
		for (uint32_t i = 0; i < req->sync_count; i++)
			cs_chunk_unref(cs, req->sync_set[i]);
		free(req->sync_set);
	}
	free(nr);
	cs_conn_try_free(conn);
}

static struct netreq *new_request(struct cs_conn *conn, uint8_t op, struct cs_chunk *c)
{
	struct netreq *nr = malloc(sizeof *nr);

	if (!nr)
		return NULL;
	memset(&nr->req, 0, sizeof nr->req);
	nr->conn = conn;
	nr->hdr = conn->hdr;
	nr->req.cs = conn->cs;
	nr->req.c = c;
	nr->req.op = op;
	nr->req.done = request_done;
	nr->req.off = conn->hdr.offset;
	nr->req.len = conn->hdr.length;
	nr->req.version = c ? c->version : 0;
	nr->req.durable = conn->hdr.flags & VST_FRAME_FLAG_DURABLE ? 1 : 0;
	nr->req.start_ns = cs_now_ns();
	conn->inflight++;
	return nr;
}

static int take_data(struct cs_conn *conn, struct netreq *nr)
{
	const struct vst_frame *f = &conn->hdr;

	memcpy(nr->table, conn->head, f->table_len);
	if (vst_pieces_verify(f->offset, f->length, conn->rdata, nr->table) >= 0) {
		conn->cs->n.crc_errors++;
		return VST_ERR_CRC_MISMATCH;
	}
	nr->req.buf = conn->rbuf;
	nr->req.table = nr->table;
	conn->rbuf = NULL;
	return 0;
}

static void io_request(struct cs_conn *conn, uint8_t op)
{
	struct vst_frame f = conn->hdr;
	struct cs_handle *h = cs_conn_handle(conn, f.handle, 0);
	int status = request_status(conn, &f, h);

	if (status) {
		conn->cs->n.stale_refused += status == VST_ERR_STALE;
		cs_conn_status(conn, &f, status, h && h->c ? h->c->version : 0);
		return;
	}
	struct netreq *nr = new_request(conn, op, h->c);
	if (!nr) {
		cs_conn_status(conn, &f, VST_ERR_BUSY, h->c->version);
		return;
	}
	status = op == CS_WRITE ? take_data(conn, nr) : 0;
	if (status || (h->c->unborn && (op == CS_READ || op == CS_HASH))) {
		nr->req.status = status;
		nr->req.hole = 1;
		if (op == CS_HASH) /* of zeros: made by the way all others go */
			cs_req_start(&nr->req);
		else
			request_done(&nr->req);
		return;
	}
	cs_req_start(&nr->req);
}

static int add_chunk(struct cs_conn *conn, struct netreq *nr, uint32_t slot)
{
	struct cs_handle *h = cs_conn_handle(conn, slot, 0);

	if (!h || !h->c)
		return h && h->status ? h->status : VST_ERR_BAD_REQUEST;
	int status = cs_chunk_status(h->c, h->version);
	if (!status) {
		h->c->refs++;
		nr->req.sync_set[nr->req.sync_count++] = h->c;
	}
	return status;
}

static void sync_request(struct cs_conn *conn)
{
	struct vst_frame f = conn->hdr;
	uint32_t n = f.data_len / 4;
	struct netreq *nr = new_request(conn, CS_SYNC, NULL);
	int status = nr ? cs_serving(conn->cs) ? 0 : VST_ERR_NOT_SERVING : VST_ERR_BUSY;

	if (nr && n && !(nr->req.sync_set = calloc(n, sizeof(struct cs_chunk *))))
		status = VST_ERR_BUSY;
	for (uint32_t i = 0; i < n && !status; i++) {
		uint32_t slot;
		memcpy(&slot, conn->rdata + 4 * (size_t)i, sizeof slot);
		status = add_chunk(conn, nr, slot);
	}
	if (!nr) {
		cs_conn_status(conn, &f, status, 0);
		return;
	}
	if (status) {
		conn->cs->n.stale_refused += status == VST_ERR_STALE;
		nr->req.status = status;
		request_done(&nr->req);
		return;
	}
	cs_sync_add(&nr->req);
}

static void stat_request(struct cs_conn *conn, const struct cs_chunk *c)
{
	struct vst_chunk_stat s = {.chunk_id = c->id,
				   .chunk_version = c->version,
				   .chunk_bytes = c->chunk_bytes,
				   .written_blocks = c->written,
				   .write_seq = c->write_seq,
				   .incarnation = conn->cs->cfg.incarnation,
				   .bad_blocks = c->bad};
	cs_conn_reply(conn, &conn->hdr, 0, 0, NULL, 0, NULL, &s, sizeof s, c->version);
}

/* GRANULES: the table must be in memory. */
static void granules_ready(struct cs_req *req)
{
	cs_req_finish(req, 0);
}

static void granules_done(struct cs_req *req)
{
	struct netreq *nr = (struct netreq *)req;
	struct cs_conn *conn = nr->conn;
	struct cs *cs = req->cs;
	uint32_t len = req->c->ngranules * 16;
	struct cs_buf *b = req->status || conn->dead ? NULL : cs_buf_get(cs, len);

	conn->inflight--;
	if (b) {
		cs_granules_fill(req->c, (uint64_t *)(void *)b->data, req->c->ngranules);
		cs_conn_reply(conn, &nr->hdr, 0, 0, NULL, 0, b, b->data, len, req->version);
	} else if (!conn->dead) {
		cs_conn_status(conn, &nr->hdr, req->status ? req->status : VST_ERR_BUSY, req->c->version);
	}
	free(nr);
	cs_conn_try_free(conn);
}

static void info_request(struct cs_conn *conn)
{
	struct vst_frame f = conn->hdr;
	struct cs_handle *h = cs_conn_handle(conn, f.handle, 0);
	int status = request_status(conn, &f, h);

	if (status) {
		cs_conn_status(conn, &f, status, h && h->c ? h->c->version : 0);
		return;
	}
	if (f.type == VST_FRAME_TYPE_STAT) {
		stat_request(conn, h->c);
		return;
	}
	struct netreq *nr = new_request(conn, CS_READ, h->c);
	if (!nr) {
		cs_conn_status(conn, &f, VST_ERR_BUSY, h->c->version);
		return;
	}
	nr->req.done = granules_done;
	cs_req_begin(&nr->req);
	cs_chunk_ready(&nr->req, granules_ready);
}

static void close_handle(struct cs_conn *conn)
{
	struct cs_handle *h = cs_conn_handle(conn, conn->hdr.handle, 0);

	if (h)
		cs_handle_clear(conn->cs, h);
	cs_conn_status(conn, &conn->hdr, h ? 0 : VST_ERR_BAD_REQUEST, 0);
}

static int open_sealed(struct cs_conn *conn)
{
	if (!conn->seal_in)
		return 0;
	struct vst_seg seg = {conn->rdata, conn->hdr.data_len};
	return vst_open_frame(conn->seal_in, &conn->hdr, conn->head, &seg, conn->hdr.data_len ? 1 : 0,
			      conn->head + conn->hdr.table_len);
}

void cs_proto_frame(struct cs_conn *conn)
{
	struct cs *cs = conn->cs;

	if (open_sealed(conn) < 0) {
		cs->n.auth_failures++;
		cs_conn_close(conn);
		return;
	}
	cs->n.requests++;
	switch ((enum vst_frame_type)conn->hdr.type) {
	case VST_FRAME_TYPE_HELLO:
		cs_proto_hello(conn);
		break;
	case VST_FRAME_TYPE_PROVE:
		cs_proto_prove(conn);
		break;
	case VST_FRAME_TYPE_OPEN:
		cs_proto_open_chunk(conn);
		break;
	case VST_FRAME_TYPE_CLOSE:
		close_handle(conn);
		break;
	case VST_FRAME_TYPE_READ:
		io_request(conn, CS_READ);
		break;
	case VST_FRAME_TYPE_WRITE:
		io_request(conn, CS_WRITE);
		break;
	case VST_FRAME_TYPE_PUNCH:
		io_request(conn, CS_PUNCH);
		break;
	case VST_FRAME_TYPE_HASH:
		io_request(conn, CS_HASH);
		break;
	case VST_FRAME_TYPE_SYNC:
		sync_request(conn);
		break;
	case VST_FRAME_TYPE_STAT:
	case VST_FRAME_TYPE_GRANULES:
		info_request(conn);
		break;
	case VST_FRAME_TYPE_PING:
		cs_conn_reply(conn, &conn->hdr, 0, 0, NULL, 0, NULL, conn->rdata, conn->hdr.data_len, 0);
		break;
	}
}
