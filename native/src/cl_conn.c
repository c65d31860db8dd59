/* A connection to a chunk server: greeting, sealing and sending frames in batches, watching for progress. */
#include <sys/random.h>
#include <sys/uio.h>
#include "cl_internal.h"

#define IOV_BATCH 128
#define PARTS_OF_FRAME 4 /* header, table, tag, data */

void conn_mark(struct cs *cs)
{
	if (cs->dirty)
		return;
	cs->dirty = true;
	list_add(&cs->cl->dirty, &cs->dirty_link);
}

/* Seal and put at the end of what is to be sent. The order of sealing is the order of sending: the tags count frames.
 */
void conn_queue(struct cs *cs, struct xfer *x)
{
	struct vst_frame *h = &x->hdr;

	vst_frame_finish(h);
	if (cs->tx_seal && cs->tag_len) {
		void *data = (void *)(uintptr_t)x->data;
		if (cs->ack.auth_mode == VST_AUTH_MODE_SECURE && h->data_len) {
			/* encrypts in place, and the caller's data goes to other replicas too */
			if (!x->bounce) {
				x->bounce = malloc(h->data_len);
				if (x->bounce)
					memcpy(x->bounce, x->data, h->data_len);
			}
			data = x->bounce;
			x->data = data;
		}
		struct vst_seg seg = {data, h->data_len};
		if ((h->data_len && !data) || vst_seal_frame(cs->tx_seal, h, x->table, &seg, 1, x->tag) < 0)
			cs->broken = true;
	}
	x->on_wire = true;
	list_add(&cs->tx, &x->tx_link);
	if (x->kind != X_GREETING) {
		if (!cs->ninflight) {
			cs->progress_ms = cs->tick_ms = cs->cl->now_ms;
			timer_set(cs->cl, &cs->timer, cs->cl->now_ms + cs->cl->cfg.io_timeout_ms / 4 + 1);
		}
		x->sent_ms = cs->cl->now_ms;
		list_add(&cs->inflight, &x->link);
		cs->ninflight++;
		cs->inflight_bytes += h->data_len;
	}
	conn_mark(cs);
}

/* --- greeting ---------------------------------------------------------------------------------------------- */

static void greet(struct cs *cs, uint8_t type, const void *data, uint32_t len)
{
	struct xfer *x = xfer_new(cs->cl, cs, X_GREETING, type);

	if (!x) {
		cs->broken = true;
		conn_mark(cs);
		return;
	}
	x->data = data;
	x->hdr.data_len = len;
	conn_queue(cs, x);
}

void conn_start(struct cs *cs)
{
	cs->state = CS_HELLO;
	cs->tag_len = 0;
	memset(&cs->hello, 0, sizeof cs->hello);
	cs->hello.session_id = cs->session_id;
	cs->hello.expiry_ms = cs->expiry_ms;
	cs->hello.cs_id = cs->id;
	cs->hello.auth_mode = (uint8_t)cs->cl->cfg.auth_mode;
	if (getrandom(cs->hello.nonce, sizeof cs->hello.nonce, 0) != (ssize_t)sizeof cs->hello.nonce)
		cs->broken = true;
	greet(cs, VST_FRAME_TYPE_HELLO, &cs->hello, sizeof cs->hello);
	cs_pollout(cs, false);
}

/* The server's HELLO_ACK: only who knows the key can have made it. */
static int check_ack(struct cs *cs, const void *data)
{
	uint8_t mac[32];

	memcpy(&cs->ack, data, sizeof cs->ack);
	vst_hello_ack_mac(cs->key, &cs->hello, &cs->ack, mac);
	if (!vst_mac_equal(mac, cs->ack.mac, sizeof mac))
		return VST_ERR_DENIED;
	if (cs->ack.cs_id != cs->id)
		return VST_ERR_DISCONNECTED; /* another server took over the address: try the next one */
	if (cs->ack.auth_mode < cs->cl->cfg.auth_mode || cs->ack.auth_mode > VST_AUTH_MODE_SECURE)
		return VST_ERR_UNSUPPORTED;
	cs->tx_seal = vst_seal_new(cs->key, &cs->hello, &cs->ack, 1, cs->ack.auth_mode);
	cs->rx_seal = vst_seal_new(cs->key, &cs->hello, &cs->ack, 0, cs->ack.auth_mode);
	if (!cs->tx_seal || !cs->rx_seal)
		return VST_ERR_DISCONNECTED;
	cs->tag_len = vst_seal_tag_len(cs->tx_seal);
	return 0;
}

int conn_greeted(struct cs *cs, const struct vst_frame *hdr, const void *data)
{
	int status = hdr->status;

	if (status == 0 && cs->state == CS_HELLO && hdr->type == (VST_FRAME_TYPE_HELLO | 0x80)) {
		status = check_ack(cs, data);
		if (status)
			return status;
		cs->state = CS_PROVE;
		vst_prove_mac(cs->key, &cs->hello, &cs->ack, cs->proof);
		greet(cs, VST_FRAME_TYPE_PROVE, cs->proof, sizeof cs->proof);
		return 0;
	}
	if (status == 0 && cs->state == CS_PROVE && hdr->type == (VST_FRAME_TYPE_PROVE | 0x80)) {
		cs->state = CS_READY;
		cs->incarnation = cs->ack.incarnation;
		cs->backoff_ms = 0;
		cs->key_suspect = false;
		timer_cancel(cs->cl, &cs->timer);
		conn_mark(cs);
		return 0;
	}
	return status ? status : VST_ERR_BAD_REQUEST;
}

/* --- sending ----------------------------------------------------------------------------------------------- */

/* Give the xfer what it needs of this connection: its handles. 0 or -errno. */
static int prepare(struct cs *cs, struct xfer *x)
{
	int err;

	if (x->kind == X_SYNC) {
		for (uint32_t i = 0; i < x->nitems; i++) {
			struct sync_item *it = &x->items[i];
			struct cmap *m = it->part->map;
			err = handle_get(cs, m, &m->rep[it->replica], &it->handle);
			if (err)
				return err;
			x->slots[i] = it->handle->slot;
		}
		return 0;
	}
	struct cmap *m = x->part ? x->part->map : x->raw->map;
	err = handle_get(cs, m, &m->rep[x->replica], &x->handle);
	if (err)
		return err;
	x->hdr.handle = x->handle->slot;
	if (x->kind == X_RAW && x->slots)
		x->slots[0] = x->handle->slot;
	x->hdr.chunk_id = m->chunk_id;
	x->hdr.chunk_version = m->version;
	return 0;
}

static void pump(struct cs *cs)
{
	while (!list_empty(&cs->waiting) && !cs->broken) {
		struct xfer *x = list_first(&cs->waiting, struct xfer, link);
		if (cs->ninflight >= CL_FRAMES_PER_CONN)
			return;
		if (cs->ninflight && cs->inflight_bytes + x->hdr.data_len > CL_BYTES_PER_CONN)
			return;
		list_del(&x->link);
		if (prepare(cs, x) < 0)
			xfer_fail_later(cs->cl, x, VST_ERR_BUSY);
		else
			conn_queue(cs, x);
	}
}

static int add_iov(struct iovec *iov, int n, const void *base, size_t len, size_t *skip)
{
	if (*skip >= len) {
		*skip -= len;
		return n;
	}
	iov[n].iov_base = (char *)(uintptr_t)base + *skip;
	iov[n].iov_len = len - *skip;
	*skip = 0;
	return n + 1;
}

static size_t frame_bytes(const struct cs *cs, const struct xfer *x)
{
	size_t tag = x->hdr.type == VST_FRAME_TYPE_HELLO ? 0 : cs->tag_len;
	return sizeof x->hdr + x->hdr.table_len + tag + x->hdr.data_len;
}

static int build_iov(struct cs *cs, struct iovec *iov)
{
	size_t skip = cs->tx_off;
	int n = 0;

	list_each(l, &cs->tx)
	{
		struct xfer *x = cl_container(l, struct xfer, tx_link);
		size_t tag = x->hdr.type == VST_FRAME_TYPE_HELLO ? 0 : cs->tag_len;
		if (n + PARTS_OF_FRAME > IOV_BATCH)
			break;
		n = add_iov(iov, n, &x->hdr, sizeof x->hdr, &skip);
		n = add_iov(iov, n, x->table, x->hdr.table_len, &skip);
		n = add_iov(iov, n, x->tag, tag, &skip);
		n = add_iov(iov, n, x->data, x->hdr.data_len, &skip);
	}
	return n;
}

static void sent(struct cs *cs, size_t n)
{
	cs->progress_ms = cs->cl->now_ms;
	cs->tx_off += n;
	while (!list_empty(&cs->tx)) {
		struct xfer *x = list_first(&cs->tx, struct xfer, tx_link);
		size_t len = frame_bytes(cs, x);
		if (cs->tx_off < len)
			return;
		cs->tx_off -= len;
		list_del(&x->tx_link);
		x->sent = true;
		if (x->kind == X_GREETING)
			xfer_free(cs->cl, x);
		else if (x->replied)
			xfer_end(x, x->status, NULL, NULL);
	}
}

/* Send what is queued; what fits is taken from the waiting first. */
void conn_flush(struct cs *cs)
{
	struct iovec iov[IOV_BATCH];

	if (cs->fd < 0 || cs->state == CS_CONNECTING)
		return;
	if (cs->state == CS_READY && cs->renew && !cs->ninflight) {
		cs_renew(cs);
		return;
	}
	if (cs->state == CS_READY && !cs->renew)
		pump(cs);
	while (!list_empty(&cs->tx) && !cs->broken) {
		struct msghdr msg = {.msg_iov = iov, .msg_iovlen = (size_t)build_iov(cs, iov)};
		ssize_t n = sendmsg(cs->fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
			cs_pollout(cs, true);
			break;
		}
		if (n < 0) {
			cs->broken = true;
			break;
		}
		sent(cs, (size_t)n);
	}
	if (cs->broken) {
		cs_fail(cs, VST_ERR_DISCONNECTED);
		return;
	}
	if (list_empty(&cs->tx))
		cs_pollout(cs, false);
}

/* Is the server alive? Watches the connection, not each request: while answers come, a deep queue is only slow. */
void conn_tick(struct cs *cs)
{
	struct vst_cl *cl = cs->cl;
	uint64_t timeout = cl->cfg.io_timeout_ms, now = cl->now_ms;

	if (now - cs->tick_ms > timeout) /* this process was stopped: the server has had no chance to be heard */
		cs->progress_ms = now;
	cs->tick_ms = now;
	list_each(l, &cs->inflight)
	{
		struct xfer *x = cl_container(l, struct xfer, link);
		uint64_t factor = x->kind == X_SYNC || (x->raw && x->hdr.type != VST_FRAME_TYPE_READ)
					  ? CL_SYNC_TIMEOUT_FACTOR
					  : 1;
		uint64_t since = x->sent_ms > cs->progress_ms ? x->sent_ms : cs->progress_ms;
		if (now - since > timeout * factor || now - x->sent_ms > timeout * CL_HARD_TIMEOUT_FACTOR * factor) {
			cs_fail(cs, VST_ERR_TIMED_OUT);
			return;
		}
	}
	if (cs->ninflight)
		timer_set(cl, &cs->timer, now + timeout / 4 + 1);
}
