/* Listening sockets and the lists of connections that have something to do. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
#include "cs_conn.h"

#define BACKLOG 1024

struct cs_listener {
	struct cs_watch watch; /* first */
	struct cs_listener *next;
	struct cs *cs;
	char *path; /* unix socket, unlinked at the end */
	uint8_t added, gone, again;
};

static void accept_all(struct cs_listener *l)
{
	struct cs *cs = l->cs;

	l->again = 0;
	for (;;) {
		int fd = accept4(l->watch.fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
		if (fd < 0) {
			if (errno == EINTR || errno == ECONNABORTED)
				continue;
			/* Out of descriptors: no new edge will come for those who wait already, so the timer tries
			 * again. */
			l->again = errno != EAGAIN;
			return;
		}
		if (cs->nconns >= VST_CONNECTIONS_MAX || cs->state != CS_RUNNING) {
			close(fd);
			continue;
		}
		int one = 1;
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one,
			   sizeof one); /* not for a unix socket, which needs none */
		setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one);
		cs_conn_new(cs, fd);
	}
}

static void acceptable(struct cs_watch *w, unsigned events)
{
	(void)events;
	accept_all((struct cs_listener *)w);
}

static void listener_gone(struct cs_watch *w)
{
	((struct cs_listener *)w)->gone = 1;
}

static int add_watch(struct cs *cs, struct cs_listener *l)
{
	l->gone = 0;
	l->watch.ready = acceptable;
	l->watch.gone = listener_gone;
	int rc = cs_watch_add(cs->ring, &l->watch);
	l->added = rc == 0;
	return rc;
}

/* --- making sockets */

static int parse(const char *addr, uint16_t port, struct sockaddr_storage *ss, socklen_t *len)
{
	memset(ss, 0, sizeof *ss);
	if (strncmp(addr, "unix:", 5) == 0) {
		struct sockaddr_un *un = (struct sockaddr_un *)ss;
		if (strlen(addr + 5) == 0 || strlen(addr + 5) >= sizeof un->sun_path)
			return -EINVAL;
		un->sun_family = AF_UNIX;
		strcpy(un->sun_path, addr + 5);
		*len = sizeof *un;
		return 0;
	}
	struct sockaddr_in *in = (struct sockaddr_in *)ss;
	struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)ss;
	if (inet_pton(AF_INET, addr, &in->sin_addr) == 1) {
		in->sin_family = AF_INET;
		in->sin_port = htons(port);
		*len = sizeof *in;
		return 0;
	}
	if (inet_pton(AF_INET6, addr, &in6->sin6_addr) == 1) {
		in6->sin6_family = AF_INET6;
		in6->sin6_port = htons(port);
		*len = sizeof *in6;
		return 0;
	}
	return -EINVAL;
}

static void remove_stale(const char *path)
{
	struct stat st;
	if (lstat(path, &st) == 0 && S_ISSOCK(st.st_mode))
		unlink(path);
}

static int bound_port(int fd, uint16_t *port)
{
	struct sockaddr_storage ss;
	socklen_t len = sizeof ss;

	if (getsockname(fd, (struct sockaddr *)&ss, &len) < 0)
		return -errno;
	if (ss.ss_family == AF_INET)
		*port = ntohs(((struct sockaddr_in *)&ss)->sin_port);
	else if (ss.ss_family == AF_INET6)
		*port = ntohs(((struct sockaddr_in6 *)&ss)->sin6_port);
	return 0;
}

static int open_socket(const char *addr, uint16_t *port)
{
	struct sockaddr_storage ss;
	socklen_t len;
	int one = 1, rc = parse(addr, *port, &ss, &len);

	if (rc < 0)
		return rc;
	int fd = socket(ss.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	if (ss.ss_family == AF_UNIX)
		remove_stale(addr + 5);
	else
		setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	if (ss.ss_family == AF_INET6)
		setsockopt(fd, IPPROTO_IPV6, 26 /* IPV6_V6ONLY */, &one, sizeof one);
	if (bind(fd, (struct sockaddr *)&ss, len) < 0 || listen(fd, BACKLOG) < 0)
		rc = -errno;
	if (rc == 0)
		rc = bound_port(fd, port);
	if (rc < 0) {
		close(fd);
		return rc;
	}
	return fd;
}

static void start_listen(struct cs *cs, struct cs_cmd *cmd)
{
	struct cs_listener *l = cmd->out;
	int rc = cs->state == CS_RUNNING ? add_watch(cs, l) : 0;

	if (rc == 0) {
		l->next = cs->listeners;
		cs->listeners = l;
	}
	cs_cmd_done(cs, cmd, rc);
}

int vst_cs_listen(vst_cs *handle, const char *addr, uint16_t *port)
{
	struct cs *cs = (struct cs *)handle;
	int fd = open_socket(addr, port);

	if (fd < 0)
		return fd;
	struct cs_listener *l = calloc(1, sizeof *l);
	if (!l || (strncmp(addr, "unix:", 5) == 0 && !(l->path = strdup(addr + 5)))) {
		free(l);
		close(fd);
		return -ENOMEM;
	}
	l->cs = cs;
	l->watch.fd = fd;
	struct cs_cmd cmd = {.start = start_listen, .out = l};
	int rc = cs_call(cs, &cmd);
	if (rc < 0) {
		free(l->path);
		free(l);
		close(fd);
	}
	return rc;
}

/* --- the engine's calls */

int cs_server_start(struct cs *cs)
{
	if (!cs->scratch && !(cs->scratch = malloc(CS_SCRATCH_BYTES)))
		return -ENOMEM;
	for (struct cs_listener *l = cs->listeners; l; l = l->next) {
		int rc = add_watch(cs, l);
		if (rc < 0)
			return rc;
		accept_all(l);
	}
	return 0;
}

void cs_server_stop(struct cs *cs)
{
	for (struct cs_listener *l = cs->listeners; l; l = l->next)
		if (l->added)
			cs_watch_del(cs->ring, &l->watch);
}

int cs_server_quiet(struct cs *cs)
{
	for (struct cs_conn *c = cs->conns; c; c = c->next)
		if (!c->dead && (c->inflight || c->out))
			return 0;
	return 1;
}

void cs_server_close(struct cs *cs)
{
	for (struct cs_conn *c = cs->conns, *next; c; c = next) {
		next = c->next;
		cs_conn_close(c);
	}
}

int cs_server_gone(struct cs *cs)
{
	for (struct cs_listener *l = cs->listeners; l; l = l->next)
		if (l->added && !l->gone)
			return 0;
	return cs->conns == NULL;
}

void cs_server_free(struct cs *cs)
{
	for (struct cs_listener *l; (l = cs->listeners);) {
		cs->listeners = l->next;
		close(l->watch.fd);
		if (l->path)
			unlink(l->path);
		free(l->path);
		free(l);
	}
}

void cs_net_ready(struct cs *cs)
{
	struct cs_conn *list = cs->starved;

	/* Those whose request had to wait: may it go on? */
	cs->starved = NULL;
	while (list) {
		struct cs_conn *c = list;
		list = c->starved_next;
		c->in_starved = 0;
		if (c->dead) {
			cs_conn_try_free(c);
		} else if (cs_conn_gate(c)) {
			c->in_starved = 1;
			c->starved_next = cs->starved;
			cs->starved = c;
		} else {
			cs_conn_want_read(c);
		}
	}
	list = cs->ready;
	cs->ready = NULL;
	while (list) {
		struct cs_conn *c = list;
		list = c->ready_next;
		c->in_ready = 0;
		if (c->dead)
			cs_conn_try_free(c);
		else if (cs->state == CS_RUNNING)
			cs_conn_read(c);
	}
}

void cs_net_flush(struct cs *cs)
{
	struct cs_conn *list = cs->flush;

	cs->flush = NULL;
	while (list) {
		struct cs_conn *c = list;
		list = c->flush_next;
		c->in_flush = 0;
		if (c->dead)
			cs_conn_try_free(c);
		else
			cs_conn_send(c);
	}
}

void cs_net_timer(struct cs *cs, uint64_t now_ms)
{
	if (now_ms - cs->timer_ms < 100)
		return;
	cs->timer_ms = now_ms;
	for (struct cs_listener *l = cs->listeners; l; l = l->next)
		if (l->again && cs->state == CS_RUNNING)
			accept_all(l);
	for (struct cs_conn *c = cs->conns, *next; c; c = next) {
		next = c->next;
		if (c->dead)
			continue;
		/* now_ms is of the start of this turn: what began later in it is younger than nothing. */
		int slow_hello = c->state != CS_CONN_OPEN && now_ms > c->began_ms + CS_HANDSHAKE_MS;
		/* Not one that waits for this server. */
		int slow_frame = c->frame_ms && !c->in_starved && now_ms > c->frame_ms + CS_FRAME_MS;
		if (slow_hello || slow_frame)
			cs_conn_close(c);
	}
}
