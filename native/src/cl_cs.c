/* Chunk servers as the client sees them: addresses and keys, connecting with back-off, what waits for a connection. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/un.h>
#include <unistd.h>
#include "cl_internal.h"

struct cs *cs_get(struct vst_cl *cl, uint32_t id)
{
	struct cs **slot = &cl->cs[id % CS_HASH];

	for (struct cs *cs = *slot; cs; cs = cs->hash_next)
		if (cs->id == id)
			return cs;
	struct cs *cs = calloc(1, sizeof *cs);
	if (!cs)
		return NULL;
	cs->poll.kind = POLL_CS;
	cs->cl = cl;
	cs->id = id;
	cs->fd = -1;
	cs->state = CS_NOKEY;
	cs->next_slot = 1;
	cs->timer.kind = TIMER_CS;
	list_init(&cs->dirty_link);
	list_init(&cs->waiting);
	list_init(&cs->inflight);
	list_init(&cs->tx);
	list_init(&cs->handles);
	cs->hash_next = *slot;
	*slot = cs;
	return cs;
}

void cs_free(struct cs *cs)
{
	timer_cancel(cs->cl, &cs->timer);
	handles_lost(cs);
	if (cs->fd >= 0)
		close(cs->fd);
	vst_seal_free(cs->tx_seal);
	vst_seal_free(cs->rx_seal);
	free(cs->rbuf);
	free(cs->free_slots);
	explicit_bzero(cs->key, sizeof cs->key);
	free(cs);
}

/* --- addresses --------------------------------------------------------------------------------------------- */

/* "unix:/path", "1.2.3.4:port" or "[v6]:port". 0 or -EINVAL. */
static int parse_address(const char *text, size_t len, struct cs_addr *out)
{
	char s[256];
	char *colon;

	if (len >= sizeof s)
		return -EINVAL;
	memcpy(s, text, len);
	s[len] = 0;
	memset(out, 0, sizeof *out);
	if (strncmp(s, "unix:", 5) == 0) {
		struct sockaddr_un *un = (struct sockaddr_un *)&out->ss;
		if (strlen(s + 5) >= sizeof un->sun_path || !s[5])
			return -EINVAL;
		un->sun_family = AF_UNIX;
		memcpy(un->sun_path, s + 5, strlen(s + 5));
		out->len = sizeof *un;
		return 0;
	}
	colon = strrchr(s, ':');
	if (!colon)
		return -EINVAL;
	*colon = 0;
	char *end;
	unsigned long port = strtoul(colon + 1, &end, 10);
	if (*end || end == colon + 1 || port == 0 || port > 65535)
		return -EINVAL;
	struct sockaddr_in *in = (struct sockaddr_in *)&out->ss;
	struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)&out->ss;
	if (s[0] == '[' && colon > s + 1 && colon[-1] == ']') {
		colon[-1] = 0;
		if (inet_pton(AF_INET6, s + 1, &in6->sin6_addr) != 1)
			return -EINVAL;
		in6->sin6_family = AF_INET6;
		in6->sin6_port = htons((uint16_t)port);
		out->len = sizeof *in6;
		return 0;
	}
	if (inet_pton(AF_INET, s, &in->sin_addr) != 1)
		return -EINVAL;
	in->sin_family = AF_INET;
	in->sin_port = htons((uint16_t)port);
	out->len = sizeof *in;
	return 0;
}

struct access {
	struct cmd c;
	uint32_t cs_id, naddr;
	struct cs_addr addr[CL_ADDRESSES_MAX];
	uint64_t session_id, expiry_ms;
	uint8_t key[32];
};

static void attempt(struct cs *cs);
static void back_off(struct cs *cs);
static void drop_connection(struct cs *cs, int status);

static void run_set_cs(struct vst_cl *cl, struct cmd *c)
{
	struct access *a = (struct access *)c;
	struct cs *cs = cs_get(cl, a->cs_id);

	if (!cs) {
		cl_cmd_done(c, -ENOMEM);
		return;
	}
	bool same_key = (cs->have_key || cs->refused) && cs->session_id == a->session_id &&
			cs->expiry_ms == a->expiry_ms && memcmp(cs->key, a->key, 32) == 0;
	bool other_session = cs->have_key && cs->session_id != a->session_id; /* its tickets need it */
	bool same_addr = cs->naddr == a->naddr && memcmp(cs->addr, a->addr, sizeof cs->addr) == 0;
	memcpy(cs->addr, a->addr, sizeof cs->addr);
	cs->naddr = a->naddr;
	cs->addr_at = 0;
	cs->local = false;
	for (uint32_t i = 0; i < cs->naddr; i++)
		cs->local |= cs->addr[i].ss.ss_family == AF_UNIX;
	cs->have_key = true;
	cs->session_id = a->session_id;
	cs->expiry_ms = a->expiry_ms;
	memcpy(cs->key, a->key, 32);
	explicit_bzero(a->key, sizeof a->key);
	cs->need_cs_sent = false;
	bool refused_again =
		cs->refused && same_key; /* the server may not know the MDS's new keys yet: not in a tight loop */
	cs->refused = false;
	if (((cs->key_suspect && !same_key) || other_session) && cs->state >= CS_HELLO && cs->state <= CS_READY) {
		cs->key_suspect = false;
		cs->renew = true;
		conn_mark(cs);
	}
	if (!cs->naddr) {
		if (cs->state == CS_NOKEY || cs->state == CS_BACKOFF) {
			cs->state = CS_BACKOFF;
			cs_fail_waiting(cs, VST_ERR_DISCONNECTED);
		}
	} else if (cs->state == CS_NOKEY && refused_again) {
		back_off(cs);
	} else if (cs->state == CS_NOKEY || (cs->state == CS_BACKOFF && !same_addr)) {
		cs->state = CS_IDLE;
		cs->backoff_ms = 0;
		timer_cancel(cl, &cs->timer);
		if (cs->wanted || !list_empty(&cs->waiting))
			attempt(cs);
	}
	cl_cmd_done(c, 0);
}

int vst_cl_set_cs(vst_cl *cl, uint32_t cs_id, const char *addresses, uint64_t session_id, uint64_t expiry_ms,
		  const uint8_t key[32])
{
	struct access *a = calloc(1, sizeof *a);
	const char *p = addresses;

	if (!a)
		return -ENOMEM;
	a->c.run = run_set_cs;
	a->cs_id = cs_id;
	a->session_id = session_id;
	a->expiry_ms = expiry_ms;
	memcpy(a->key, key, 32);
	while (*p) {
		size_t n = strcspn(p, " ");
		if (n) {
			if (a->naddr == CL_ADDRESSES_MAX || parse_address(p, n, &a->addr[a->naddr]) < 0) {
				free(a);
				return -EINVAL;
			}
			a->naddr++;
		}
		p += n + (p[n] == ' ');
	}
	return cl_post(cl, &a->c);
}

/* --- connecting -------------------------------------------------------------------------------------------- */

static void close_fd(struct cs *cs)
{
	if (cs->fd >= 0)
		close(cs->fd); /* leaves the epoll set with it */
	cs->fd = -1;
	cs->polling_out = false;
}

void cs_pollout(struct cs *cs, bool on)
{
	struct epoll_event ev = {.events = EPOLLIN | (on ? (uint32_t)EPOLLOUT : 0u), .data.ptr = &cs->poll};

	if (cs->polling_out == on || cs->fd < 0)
		return;
	cs->polling_out = on;
	if (epoll_ctl(cs->cl->epfd, EPOLL_CTL_MOD, cs->fd, &ev) < 0)
		cs->broken = true;
}

static int open_socket(struct cs *cs, const struct cs_addr *a)
{
	int one = 1, fd = socket(a->ss.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	struct epoll_event ev = {.events = EPOLLIN | EPOLLOUT, .data.ptr = &cs->poll};

	if (fd < 0)
		return -errno;
	if (a->ss.ss_family != AF_UNIX)
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	if ((connect(fd, (const struct sockaddr *)&a->ss, a->len) < 0 && errno != EINPROGRESS) ||
	    epoll_ctl(cs->cl->epfd, EPOLL_CTL_ADD, fd, &ev) < 0) {
		int err = -errno;
		close(fd);
		return err;
	}
	cs->fd = fd;
	cs->polling_out = true;
	return 0;
}

static void back_off(struct cs *cs)
{
	cs->state = CS_BACKOFF;
	cs->backoff_ms = cs->backoff_ms ? cs->backoff_ms * 2 : CL_BACKOFF_MIN_MS;
	if (cs->backoff_ms > CL_BACKOFF_MAX_MS)
		cs->backoff_ms = CL_BACKOFF_MAX_MS;
	timer_set(cs->cl, &cs->timer, cs->cl->now_ms + cs->backoff_ms);
}

/* From the address at hand on; the state that follows is CONNECTING, BACKOFF or NOKEY. */
static void attempt(struct cs *cs)
{
	struct vst_cl *cl = cs->cl;

	cs->wanted = false;
	if (!cs->have_key) {
		cs_need_key(cs);
		return;
	}
	for (; cs->addr_at < cs->naddr; cs->addr_at++) {
		if (open_socket(cs, &cs->addr[cs->addr_at]) < 0)
			continue;
		cs->state = CS_CONNECTING;
		timer_set(cl, &cs->timer, cl->now_ms + cl->cfg.connect_timeout_ms);
		return;
	}
	cs->addr_at = 0;
	back_off(cs);
	cs_fail_waiting(cs, VST_ERR_DISCONNECTED);
}

/* No key, or it was refused: ask, and keep what waits for a while. */
void cs_need_key(struct cs *cs)
{
	struct vst_cl_event ev = {.kind = VST_EV_NEED_CS, .cs_id = cs->id};

	cs->state = CS_NOKEY;
	if (!list_empty(&cs->waiting) && !cs->timer.pos)
		timer_set(cs->cl, &cs->timer, cs->cl->now_ms + CL_KEY_WAIT_MS);
	if (cs->need_cs_sent)
		return;
	cs->need_cs_sent = true;
	event_push(cs->cl, NULL, &ev);
}

void cs_suspect_key(struct cs *cs)
{
	struct vst_cl_event ev = {.kind = VST_EV_NEED_CS, .cs_id = cs->id};

	if (cs->key_suspect)
		return;
	cs->key_suspect = true;
	if (cs->need_cs_sent)
		return;
	cs->need_cs_sent = true;
	event_push(cs->cl, NULL, &ev);
}

void cs_want(struct cs *cs)
{
	cs->wanted = true;
	if (cs->state == CS_IDLE)
		attempt(cs);
	else if (cs->state == CS_NOKEY)
		cs_need_key(cs);
}

void cs_submit(struct cs *cs, struct xfer *x)
{
	if (atomic_load_explicit(&cs->cl->stopping, memory_order_relaxed)) {
		xfer_fail_later(cs->cl, x, VST_ERR_SHUTTING_DOWN);
		return;
	}
	list_add(&cs->waiting, &x->link);
	switch (cs->state) {
	case CS_READY:
		conn_mark(cs);
		break;
	case CS_IDLE:
		attempt(cs);
		break;
	case CS_NOKEY:
		if (cs->have_key && !cs->naddr)
			cs_fail_waiting(cs, VST_ERR_DISCONNECTED);
		else
			cs_need_key(cs);
		break;
	case CS_BACKOFF:
		if (!cs->naddr)
			cs_fail_waiting(cs, VST_ERR_DISCONNECTED);
		break;
	case CS_CONNECTING:
	case CS_HELLO:
	case CS_PROVE:
		break;
	}
}

void cs_fail_waiting(struct cs *cs, int status)
{
	while (!list_empty(&cs->waiting))
		xfer_fail_later(cs->cl, list_first(&cs->waiting, struct xfer, link), status);
}

/* Every xfer on the connection ends with this status; the caller says what becomes of the server. */
static void drop_connection(struct cs *cs, int status)
{
	struct vst_cl *cl = cs->cl;

	close_fd(cs);
	timer_cancel(cl, &cs->timer);
	vst_seal_free(cs->tx_seal);
	vst_seal_free(cs->rx_seal);
	cs->tx_seal = cs->rx_seal = NULL;
	cs->rpos = cs->rend = 0;
	cs->direct = NULL;
	cs->broken = cs->renew = false;
	cs->tx_off = 0;
	handles_lost(cs);
	while (!list_empty(&cs->tx)) {
		struct xfer *x = list_first(&cs->tx, struct xfer, tx_link);
		list_del(&x->tx_link);
		if (x->kind == X_GREETING)
			xfer_free(cl, x);
		else if (x->replied) /* its answer came before all of it was sent */
			xfer_fail_later(cl, x, x->status);
	}
	while (!list_empty(&cs->inflight))
		xfer_fail_later(cl, list_first(&cs->inflight, struct xfer, link), status);
	cs->ninflight = 0;
	cs->inflight_bytes = 0;
}

/* The connection is of no use any more. What waits for it ends too: waiting would help nobody. */
void cs_fail(struct cs *cs, int status)
{
	bool was_ready = cs->state == CS_READY;

	if (cs->fd < 0)
		return;
	drop_connection(cs, status);
	if (was_ready) {
		if (!atomic_load(&cs->cl->stopping))
			COUNT(cs->cl, reconnects, 1);
		cs->addr_at = 0;
		cs->backoff_ms = 0;
		cs_fail_waiting(cs, status);
		back_off(cs); /* a short one: a server that just stopped is not back at once */
		return;
	}
	/* Not even greeted: another address, or back off. */
	if (status == VST_ERR_EXPIRED || status == VST_ERR_DENIED) {
		cs->have_key = false;
		cs->refused = true;
		cs->addr_at = 0;
		cs_need_key(cs);
		return;
	}
	cs->addr_at++;
	attempt(cs);
}

void cs_renew(struct cs *cs)
{
	drop_connection(cs, VST_ERR_EXPIRED);
	cs->state = CS_IDLE;
	cs->addr_at = 0;
	if (cs->wanted || !list_empty(&cs->waiting))
		attempt(cs);
}

void cs_timer(struct cs *cs)
{
	switch (cs->state) {
	case CS_CONNECTING:
	case CS_HELLO:
	case CS_PROVE:
		cs_fail(cs, VST_ERR_TIMED_OUT);
		break;
	case CS_BACKOFF:
		cs->state = CS_IDLE;
		if (cs->wanted || !list_empty(&cs->waiting))
			attempt(cs);
		break;
	case CS_NOKEY:
		cs->need_cs_sent = false; /* the next that wants it asks again */
		cs_fail_waiting(cs, CL_ST_NOKEY);
		break;
	case CS_READY:
		conn_tick(cs);
		break;
	case CS_IDLE:
		break;
	}
}

void cs_event(struct cs *cs, uint32_t events)
{
	if (cs->fd < 0)
		return;
	if (cs->state == CS_CONNECTING) {
		int err = 0;
		socklen_t len = sizeof err;
		if (!(events & (EPOLLOUT | EPOLLERR | EPOLLHUP)))
			return;
		if (getsockopt(cs->fd, SOL_SOCKET, SO_ERROR, &err, &len) < 0 || err) {
			cs_fail(cs, VST_ERR_DISCONNECTED);
			return;
		}
		conn_start(cs);
		return;
	}
	if (events & EPOLLOUT)
		conn_mark(cs);
	if (events & (EPOLLIN | EPOLLERR | EPOLLHUP))
		conn_readable(cs);
}
