/* Who may do what: HELLO, PROVE, and tickets at OPEN. */
#include <errno.h>
#include <string.h>
#include <sys/random.h>
#include "cs_conn.h"

void cs_conn_status(struct cs_conn *conn, const struct vst_frame *f, int status, uint32_t version)
{
	cs_conn_reply(conn, f, status, 0, NULL, 0, NULL, NULL, 0, version);
}

static uint64_t cluster_ms(const struct cs *cs)
{
	return (uint64_t)((int64_t)cs_now_ms() + cs->time_offset_ms);
}

int cs_serving(const struct cs *cs)
{
	return cs->have_time && cs->state == CS_RUNNING && cs_now_ms() < cs->serve_until_ms;
}

/* --- handshake */

static int hello_status(const struct cs *cs, const struct vst_hello *h)
{
	static const uint8_t zero[3];

	if (!cs->have_cs_key || !cs->have_time)
		return VST_ERR_NOT_SERVING;
	if (memcmp(h->reserved, zero, sizeof zero) != 0 || h->auth_mode > VST_AUTH_MODE_SECURE)
		return VST_ERR_BAD_REQUEST;
	if (h->cs_id != cs->cfg.cs_id || h->auth_mode < cs->cfg.min_auth_mode)
		return VST_ERR_DENIED;
	return cluster_ms(cs) < h->expiry_ms ? 0 : VST_ERR_EXPIRED;
}

void cs_proto_hello(struct cs_conn *conn)
{
	struct cs *cs = conn->cs;
	struct vst_frame f = conn->hdr;
	struct vst_hello_ack *a = &conn->ack;

	memcpy(&conn->hello, conn->rdata, sizeof conn->hello);
	int status = hello_status(cs, &conn->hello);
	if (status) {
		cs->n.auth_failures += status == VST_ERR_DENIED;
		cs_conn_status(conn, &f, status, 0);
		return;
	}
	*a = (struct vst_hello_ack){
		.incarnation = cs->cfg.incarnation, .cs_id = cs->cfg.cs_id, .auth_mode = conn->hello.auth_mode};
	if (getrandom(a->nonce, sizeof a->nonce, 0) != sizeof a->nonce) {
		cs_conn_close(conn);
		return;
	}
	vst_session_key(cs->cs_key, conn->hello.session_id, conn->hello.expiry_ms, conn->key);
	vst_hello_ack_mac(conn->key, &conn->hello, a, a->mac);
	/* The answer to HELLO still goes without a tag: the keys count from the next frame on, in both directions. */
	cs_conn_reply(conn, &f, 0, 0, NULL, 0, NULL, a, sizeof *a, 0);
	conn->seal_in = vst_seal_new(conn->key, &conn->hello, a, 1, a->auth_mode);
	conn->seal_out = vst_seal_new(conn->key, &conn->hello, a, 0, a->auth_mode);
	if (!conn->seal_in || !conn->seal_out) {
		cs_conn_close(conn);
		return;
	}
	conn->state = CS_CONN_HELLO;
}

void cs_proto_prove(struct cs_conn *conn)
{
	uint8_t want[32];

	vst_prove_mac(conn->key, &conn->hello, &conn->ack, want);
	if (!vst_mac_equal(want, conn->rdata, sizeof want)) {
		conn->cs->n.auth_failures++;
		cs_conn_close(conn);
		return;
	}
	conn->state = CS_CONN_OPEN;
	cs_conn_status(conn, &conn->hdr, 0, 0);
}

/* --- OPEN */

static int ticket_status(const struct cs_conn *conn, const struct vst_ticket *t)
{
	const struct cs *cs = conn->cs;
	static const uint8_t zero[10];
	uint8_t mac[16];
	const uint8_t *key = NULL;

	for (size_t i = 0; i < sizeof cs->ticket_key / sizeof *cs->ticket_key; i++)
		if (cs->ticket_key[i].used && cs->ticket_key[i].id == t->key_id)
			key = cs->ticket_key[i].key;
	if (!key) /* rotated away, or not here yet */
		return VST_ERR_EXPIRED;
	vst_ticket_mac(key, t, mac);
	if (!vst_mac_equal(mac, t->mac, sizeof mac) || t->session_id != conn->hello.session_id)
		return VST_ERR_DENIED;
	if (memcmp(t->reserved, zero, sizeof zero) != 0 ||
	    (t->mode != VST_TICKET_MODE_READ && t->mode != VST_TICKET_MODE_WRITE) || !cs_chunk_bytes_ok(t->chunk_bytes))
		return VST_ERR_BAD_REQUEST;
	uint64_t now = cluster_ms(cs);
	return now < t->expiry_ms && now < conn->hello.expiry_ms ? 0 : VST_ERR_EXPIRED;
}

/* What a request must find at any time: the chunk is there, a full replica, at this version, and no order changes that
 * now. */
int cs_chunk_status(const struct cs_chunk *c, uint32_t version)
{
	if (c->gone)
		return VST_ERR_NO_CHUNK;
	if (c->version != version || c->fenced || (c->flags & VST_CHUNK_FLAG_SYNCING))
		return VST_ERR_STALE;
	return 0;
}

static int bind_handle(struct cs_conn *conn, struct cs_handle *h, const struct vst_ticket *t, uint32_t *version)
{
	struct cs *cs = conn->cs;
	struct cs_chunk *c = cs_chunk_find(cs, t->chunk_id);

	if (!c && (t->flags & VST_TICKET_FLAG_CREATE)) {
		const struct cs_floor *f = cs_floor_slot(cs, t->chunk_id);
		if (f->chunk_id == t->chunk_id && t->chunk_version < f->version) {
			*version = f->version;
			return VST_ERR_STALE;
		}
		c = cs_chunk_new(cs, t->chunk_id, t->chunk_bytes, t->chunk_version, 0);
		if (!c)
			return VST_ERR_BUSY;
		c->unborn = 1; /* its CREATE record goes in front of the first write */
	}
	if (!c)
		return VST_ERR_NO_CHUNK;
	/* Nothing is written to it: a void chunk may be opened at a newer version, as the MDS raised it without
	 * telling. */
	if (c->unborn && (t->flags & VST_TICKET_FLAG_CREATE) && !c->inflight && t->chunk_version > c->version)
		c->version = t->chunk_version;
	*version = c->version;
	int status = c->chunk_bytes != t->chunk_bytes ? VST_ERR_BAD_REQUEST : cs_chunk_status(c, t->chunk_version);
	if (status)
		return status;
	c->refs++;
	h->c = c;
	h->version = t->chunk_version;
	h->key_id = t->key_id;
	h->mode = t->mode;
	return 0;
}

void cs_proto_open_chunk(struct cs_conn *conn)
{
	struct cs *cs = conn->cs;
	struct vst_frame f = conn->hdr;
	struct vst_ticket t;
	uint32_t version = 0;
	struct cs_handle *h = cs_conn_handle(conn, f.handle, 1);

	memcpy(&t, conn->rdata, sizeof t);
	if (!h) {
		cs_conn_status(conn, &f, VST_ERR_BAD_REQUEST, 0);
		return;
	}
	cs_handle_clear(cs, h);
	int status = cs_serving(cs) ? ticket_status(conn, &t) : VST_ERR_NOT_SERVING;
	if (!status && f.chunk_id && f.chunk_id != t.chunk_id)
		status = VST_ERR_BAD_REQUEST;
	if (!status)
		status = bind_handle(conn, h, &t, &version);
	h->status = status;
	cs->n.auth_failures += status == VST_ERR_DENIED;
	cs->n.stale_refused += status == VST_ERR_STALE;
	cs_conn_status(conn, &f, status, version);
}

/* Requests that began go on; those that come find the handle without a chunk. */
static void expire_handles(struct cs_conn *conn, uint32_t below)
{
	for (int i = 0; i < 256; i++)
		for (int k = 0; conn->handles[i] && k < 256; k++) {
			struct cs_handle *h = &conn->handles[i][k];
			if (!h->c || h->key_id >= below)
				continue;
			cs_handle_clear(conn->cs, h);
			h->status = VST_ERR_EXPIRED;
		}
}

static void start_forget_keys(struct cs *cs, struct cs_cmd *cmd)
{
	for (size_t i = 0; i < sizeof cs->ticket_key / sizeof *cs->ticket_key; i++)
		if (cs->ticket_key[i].used && cs->ticket_key[i].id < cmd->version)
			explicit_bzero(&cs->ticket_key[i], sizeof cs->ticket_key[i]);
	for (struct cs_conn *c = cs->conns; c; c = c->next)
		if (!c->dead)
			expire_handles(c, cmd->version);
	cs_cmd_done(cs, cmd, 0);
}

int vst_cs_forget_ticket_keys(vst_cs *cs, uint32_t below)
{
	struct cs_cmd cmd = {.start = start_forget_keys, .version = below};
	return cs_call((struct cs *)cs, &cmd);
}
