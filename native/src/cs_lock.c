/* Ranges of blocks in use.  A range waits for every conflicting one that came before it, held or waiting, so nobody
 * starves. */
#include "cs_internal.h"

static int conflict(const struct cs_lock *a, const struct cs_lock *b)
{
	return (a->exclusive || b->exclusive) && a->b0 < b->b1 && b->b0 < a->b1;
}

static int blocked(const struct cs_locks *l, const struct cs_lock *lk, const struct cs_lock *until)
{
	for (const struct cs_lock *o = l->held; o; o = o->next)
		if (conflict(o, lk))
			return 1;
	for (const struct cs_lock *o = l->head; o != until; o = o->next)
		if (conflict(o, lk))
			return 1;
	return 0;
}

static void hold(struct cs_locks *l, struct cs_lock *lk)
{
	lk->held = 1;
	lk->prev = NULL;
	lk->next = l->held;
	if (l->held)
		l->held->prev = lk;
	l->held = lk;
}

int cs_lock_get(struct cs_locks *l, struct cs_lock *lk)
{
	if (!blocked(l, lk, NULL)) {
		hold(l, lk);
		return 1;
	}
	lk->held = 0;
	lk->next = NULL;
	lk->prev = l->tail;
	if (l->tail)
		l->tail->next = lk;
	else
		l->head = lk;
	l->tail = lk;
	return 0;
}

static void unlink_waiting(struct cs_locks *l, struct cs_lock *lk)
{
	if (lk->prev)
		lk->prev->next = lk->next;
	else
		l->head = lk->next;
	if (lk->next)
		lk->next->prev = lk->prev;
	else
		l->tail = lk->prev;
}

void cs_lock_put(struct cs_locks *l, struct cs_lock *lk)
{
	if (lk->prev)
		lk->prev->next = lk->next;
	else
		l->held = lk->next;
	if (lk->next)
		lk->next->prev = lk->prev;
	/* A callback may take and put ranges here too, so the search begins anew after each. */
	for (struct cs_lock *w = l->head; w;) {
		if (blocked(l, w, w)) {
			w = w->next;
			continue;
		}
		unlink_waiting(l, w);
		hold(l, w);
		w->granted(w);
		w = l->head;
	}
}
