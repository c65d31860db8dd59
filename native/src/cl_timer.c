/* Timers of the client engine: a binary heap ordered by time. */
#include "cl_internal.h"

static void place(struct vst_cl *cl, struct timer *t, uint32_t i)
{
	cl->heap[i] = t;
	t->pos = i + 1;
}

static void sift_up(struct vst_cl *cl, uint32_t i)
{
	struct timer *t = cl->heap[i];

	while (i > 0 && cl->heap[(i - 1) / 2]->at_ms > t->at_ms) {
		place(cl, cl->heap[(i - 1) / 2], i);
		i = (i - 1) / 2;
	}
	place(cl, t, i);
}

static void sift_down(struct vst_cl *cl, uint32_t i)
{
	struct timer *t = cl->heap[i];

	for (;;) {
		uint32_t child = 2 * i + 1;
		if (child >= cl->nheap)
			break;
		if (child + 1 < cl->nheap && cl->heap[child + 1]->at_ms < cl->heap[child]->at_ms)
			child++;
		if (cl->heap[child]->at_ms >= t->at_ms)
			break;
		place(cl, cl->heap[child], i);
		i = child;
	}
	place(cl, t, i);
}

/* Arm, or move when armed. -ENOMEM only when newly armed. */
int timer_set(struct vst_cl *cl, struct timer *t, uint64_t at_ms)
{
	if (t->pos) {
		uint64_t before = t->at_ms;
		t->at_ms = at_ms;
		if (at_ms < before)
			sift_up(cl, t->pos - 1);
		else
			sift_down(cl, t->pos - 1);
		return 0;
	}
	if (cl->nheap == cl->heap_size) {
		uint32_t size = cl->heap_size ? cl->heap_size * 2 : 64;
		struct timer **heap = realloc(cl->heap, size * sizeof(*heap));
		if (!heap)
			return -ENOMEM;
		cl->heap = heap;
		cl->heap_size = size;
	}
	t->at_ms = at_ms;
	place(cl, t, cl->nheap++);
	sift_up(cl, cl->nheap - 1);
	return 0;
}

void timer_cancel(struct vst_cl *cl, struct timer *t)
{
	if (!t->pos)
		return;
	uint32_t i = t->pos - 1;
	struct timer *last = cl->heap[--cl->nheap];
	t->pos = 0;
	if (last == t)
		return;
	place(cl, last, i);
	sift_up(cl, i);
	sift_down(cl, last->pos - 1);
}

struct timer *timer_pop(struct vst_cl *cl, uint64_t now_ms)
{
	if (!cl->nheap || cl->heap[0]->at_ms > now_ms)
		return NULL;
	struct timer *t = cl->heap[0];
	timer_cancel(cl, t);
	return t;
}
