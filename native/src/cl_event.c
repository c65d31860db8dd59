/* Events of the client engine for Python: a list with an eventfd.
 * Its length is bounded by what raises events: IO_DONE by CL_REQS_MAX, the NEED_ and FAILED kinds by one for each
 * chunk, file or server. */
#include <unistd.h>
#include "cl_internal.h"

#define FREE_EVENTS_MAX 1024u

void event_push(struct vst_cl *cl, struct vst_file *f, const struct vst_cl_event *ev)
{
	struct event_node *n = NULL;

	pthread_mutex_lock(&cl->event_mu);
	if (ev->kind == VST_EV_BAD_BLOCK && cl->bad_block_events >= CL_BAD_BLOCK_EVENTS_MAX) {
		pthread_mutex_unlock(&cl->event_mu);
		return;
	}
	if (!list_empty(&cl->free_events)) {
		n = list_first(&cl->free_events, struct event_node, link);
		list_del(&n->link);
		cl->nfree_events--;
	}
	pthread_mutex_unlock(&cl->event_mu);
	if (!n)
		n = malloc(sizeof *n);
	if (!n)
		abort(); /* a lost completion would hang its caller for ever: better a visible end */
	n->f = f;
	n->ev = *ev;
	if (f)
		n->ev.ino = f->ino;
	list_init(&n->link);
	pthread_mutex_lock(&cl->event_mu);
	list_add(&cl->events, &n->link);
	cl->bad_block_events += ev->kind == VST_EV_BAD_BLOCK;
	cl->event_pending = true;
	pthread_mutex_unlock(&cl->event_mu);
}

/* Wake the reader once for all events of a turn, and not again before it has found the list empty. */
void event_signal(struct vst_cl *cl)
{
	bool write_it = false;

	pthread_mutex_lock(&cl->event_mu);
	if (cl->event_pending && !cl->event_signalled) {
		cl->event_signalled = true;
		write_it = true;
	}
	cl->event_pending = false;
	pthread_mutex_unlock(&cl->event_mu);
	if (write_it) {
		uint64_t one = 1;
		ssize_t n = write(cl->event_fd, &one, sizeof one);
		(void)n; /* fails only when the counter is at its end: then the reader is awake already */
	}
}

int vst_cl_event_fd(const vst_cl *cl)
{
	return cl->event_fd;
}

int vst_cl_next_event(vst_cl *cl, struct vst_cl_event *ev)
{
	struct event_node *n = NULL;

	pthread_mutex_lock(&cl->event_mu);
	if (list_empty(&cl->events)) {
		if (cl->event_signalled) { /* take the signal, so that the descriptor is readable only when events wait
					    */
			uint64_t count;
			ssize_t got = read(cl->event_fd, &count, sizeof count);
			(void)got; /* EAGAIN when the caller has read it */
			cl->event_signalled = false;
		}
		pthread_mutex_unlock(&cl->event_mu);
		return 0;
	}
	n = list_first(&cl->events, struct event_node, link);
	list_del(&n->link);
	cl->bad_block_events -= n->ev.kind == VST_EV_BAD_BLOCK;
	*ev = n->ev;
	if (cl->nfree_events < FREE_EVENTS_MAX) {
		list_add(&cl->free_events, &n->link);
		cl->nfree_events++;
		n = NULL;
	}
	pthread_mutex_unlock(&cl->event_mu);
	free(n);
	return 1;
}

/* A file ends: nothing may name it any more, except completions, which name their cookie. */
void event_forget(struct vst_cl *cl, struct vst_file *f)
{
	pthread_mutex_lock(&cl->event_mu);
	for (struct link *l = cl->events.next; l != &cl->events;) {
		struct event_node *n = cl_container(l, struct event_node, link);
		l = l->next;
		if (n->f != f || n->ev.kind == VST_EV_IO_DONE)
			continue;
		cl->bad_block_events -= n->ev.kind == VST_EV_BAD_BLOCK;
		list_del(&n->link);
		free(n);
	}
	pthread_mutex_unlock(&cl->event_mu);
}
