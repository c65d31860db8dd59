/* State of each block (in the table pages as they stand on disk) and the index of journaled data that is not applied
 * yet. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "cs_internal.h"

static int bit(const uint8_t *map, uint32_t i)
{
	return map[i / 8] >> (i % 8) & 1;
}

static void set_bit(uint8_t *map, uint32_t i, int on)
{
	if (on)
		map[i / 8] = (uint8_t)(map[i / 8] | 1u << i % 8);
	else
		map[i / 8] = (uint8_t)(map[i / 8] & ~(1u << i % 8));
}

static struct vst_table_page *page_of(const struct cs_chunk *c, uint32_t block)
{
	return &c->pages[block / CS_PAGE_BLOCKS];
}

static void page_dirty(struct cs *cs, struct cs_chunk *c, uint32_t page)
{
	c->dirty_pages[page / 64] |= 1ull << page % 64;
	c->header_dirty = 1; /* counts and the bitmap of pages stand there */
	cs_chunk_dirty(cs, c);
}

int cs_tab_state(const struct cs_chunk *c, uint32_t block)
{
	const struct vst_table_page *p = page_of(c, block);
	uint32_t i = block % CS_PAGE_BLOCKS;
	if (bit(p->bad, i))
		return CS_BAD;
	return bit(p->written, i) ? CS_WRITTEN : CS_UNWRITTEN;
}

uint32_t cs_tab_crc(const struct cs_chunk *c, uint32_t block)
{
	return page_of(c, block)->block_crc[block % CS_PAGE_BLOCKS];
}

static void set_state(struct cs *cs, struct cs_chunk *c, uint32_t block, int written, int bad, uint32_t crc)
{
	struct vst_table_page *p = page_of(c, block);
	uint32_t i = block % CS_PAGE_BLOCKS;
	int was_written = bit(p->written, i), was_bad = bit(p->bad, i);

	if (written != was_written) {
		c->written += written ? 1ull : ~0ull;
		cs->n.written_blocks += written ? 1ull : ~0ull;
	}
	if (bad != was_bad)
		c->bad += bad ? 1u : ~0u;
	set_bit(p->written, i, written);
	set_bit(p->bad, i, bad);
	p->block_crc[i] = crc;
	page_dirty(cs, c, block / CS_PAGE_BLOCKS);
}

void cs_tab_write(struct cs *cs, struct cs_chunk *c, uint32_t block, uint32_t crc)
{
	set_state(cs, c, block, 1, 0, crc);
}

void cs_tab_clear(struct cs *cs, struct cs_chunk *c, uint32_t block)
{
	if (cs_tab_state(c, block) != CS_UNWRITTEN)
		set_state(cs, c, block, 0, 0, 0);
}

void cs_tab_bad(struct cs *cs, struct cs_chunk *c, uint32_t block)
{
	if (cs_tab_state(c, block) != CS_BAD)
		set_state(cs, c, block, 1, 1, cs_tab_crc(c, block));
}

void cs_tab_touch(struct cs *cs, struct cs_chunk *c, uint32_t b0, uint32_t b1, uint32_t version)
{
	if (b0 >= b1)
		return;
	if (!c->granule_seq)
		c->granule_seq = calloc(c->ngranules, sizeof *c->granule_seq);
	c->write_seq++;
	for (uint32_t g = b0 / CS_GRANULE_BLOCKS; g <= (b1 - 1) / CS_GRANULE_BLOCKS; g++) {
		/* Without memory for it, cs_granules reports the chunk's sequence for each granule: more is copied than
		 * needed. */
		if (c->granule_seq)
			c->granule_seq[g] = c->write_seq;
		if (cs_tab_mod_version(c, g) < version) {
			c->pages[g / 3].mod_version[g % 3] = version;
			page_dirty(cs, c, g / 3);
		}
	}
}

uint32_t cs_tab_mod_version(const struct cs_chunk *c, uint32_t granule)
{
	return c->pages[granule / 3].mod_version[granule % 3];
}

uint32_t cs_granules_fill(const struct cs_chunk *c, uint64_t *pairs, uint32_t npairs)
{
	uint32_t n = c->ngranules < npairs ? c->ngranules : npairs;
	for (uint32_t g = 0; g < n; g++) {
		pairs[2 * g] = cs_tab_mod_version(c, g);
		pairs[2 * g + 1] = c->granule_seq ? c->granule_seq[g] : c->write_seq;
	}
	return n;
}

void cs_tab_recount(struct cs *cs, struct cs_chunk *c)
{
	uint64_t written = 0;
	uint32_t bad = 0;
	for (uint32_t b = 0; b < c->nblocks; b++) {
		int s = cs_tab_state(c, b);
		written += s != CS_UNWRITTEN;
		bad += s == CS_BAD;
	}
	cs->n.written_blocks += written - c->written;
	if (written != c->written || bad != c->bad)
		cs_chunk_header_dirty(cs, c);
	c->written = written;
	c->bad = bad;
}

struct cs_ent *cs_index_get(const struct cs_chunk *c, uint32_t block)
{
	if (!c->index_count)
		return NULL;
	const struct cs_granule *g = c->index[block / CS_GRANULE_BLOCKS];
	return g ? g->ent[block % CS_GRANULE_BLOCKS] : NULL;
}

/* A buffer counts whole as long as one of its blocks is referred to. */
static void hold(struct cs *cs, struct cs_buf *b)
{
	if (b->index_refs++ == 0)
		cs->index_bytes += b->cap;
	cs_buf_ref(b);
}

static void release(struct cs *cs, struct cs_buf *b)
{
	if (--b->index_refs == 0)
		cs->index_bytes -= b->cap;
	cs_buf_put(cs, b);
}

int cs_index_put(struct cs *cs, struct cs_chunk *c, uint32_t block, struct cs_buf *buf, const uint8_t *data,
		 uint32_t crc, uint64_t seq)
{
	if (!c->index)
		c->index = calloc(c->ngranules, sizeof *c->index);
	if (!c->index)
		return -ENOMEM;
	struct cs_granule **g = &c->index[block / CS_GRANULE_BLOCKS];
	if (!*g)
		*g = calloc(1, sizeof **g);
	if (!*g)
		return -ENOMEM;
	struct cs_ent **slot = &(*g)->ent[block % CS_GRANULE_BLOCKS], *e = *slot;
	hold(cs, buf);
	if (e) {
		release(cs, e->buf);
	} else {
		e = *slot = calloc(1, sizeof *e);
		if (!e) {
			release(cs, buf);
			return -ENOMEM;
		}
		(*g)->count++;
		c->index_count++;
	}
	*e = (struct cs_ent){.buf = buf, .data = data, .seq = seq, .block = block, .crc = crc};
	cs_chunk_dirty(cs, c);
	return 0;
}

void cs_index_drop(struct cs *cs, struct cs_chunk *c, uint32_t block)
{
	struct cs_ent *e = cs_index_get(c, block);
	if (!e)
		return;
	struct cs_granule **g = &c->index[block / CS_GRANULE_BLOCKS];
	(*g)->ent[block % CS_GRANULE_BLOCKS] = NULL;
	if (--(*g)->count == 0) {
		free(*g);
		*g = NULL;
	}
	c->index_count--;
	release(cs, e->buf);
	free(e);
}

void cs_index_drop_all(struct cs *cs, struct cs_chunk *c)
{
	for (uint32_t b = 0; (b = cs_index_next(c, b)) < c->nblocks; b++)
		cs_index_drop(cs, c, b);
	free(c->index);
	c->index = NULL;
}

uint32_t cs_index_next(const struct cs_chunk *c, uint32_t block)
{
	if (!c->index_count)
		return c->nblocks;
	while (block < c->nblocks) {
		const struct cs_granule *g = c->index[block / CS_GRANULE_BLOCKS];
		if (!g) {
			block = (block / CS_GRANULE_BLOCKS + 1) * CS_GRANULE_BLOCKS;
			continue;
		}
		if (g->ent[block % CS_GRANULE_BLOCKS])
			return block;
		block++;
	}
	return c->nblocks;
}
