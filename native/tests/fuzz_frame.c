/* Bytes from the network through the header check and what a receiver does next: no crash, no length beyond its bound.
 * The header CRC is put right, since a random one would end every try at once. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include "vstor/crc32c.h"
#include "vstor/frame.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct vst_frame f;

	if (size < sizeof f + 1)
		return 0;
	int is_reply = data[0] & 1, mend = data[0] & 2;
	memcpy(&f, data + 1, sizeof f);
	data += 1 + sizeof f;
	size -= 1 + sizeof f;
	if (mend)
		vst_frame_finish(&f);
	if (vst_frame_check(&f, is_reply) != 0)
		return 0;
	if (f.table_len > VST_TABLE_BYTES_MAX || f.data_len > VST_IO_BYTES_MAX || (!is_reply && f.status != 0))
		abort();
	uint8_t type = f.type & 0x7F;
	if (f.table_len && f.table_len / 4 != vst_pieces(f.offset, f.length))
		abort();
	if (type == VST_FRAME_TYPE_WRITE && !is_reply && f.offset + f.length > VST_CHUNK_BYTES_MAX)
		abort();
	if (f.table_len && (size_t)f.table_len + f.data_len <= size) {
		/* table first, at any alignment; exact-size copies so that a read past the end is seen */
		uint8_t *table = malloc(f.table_len + 1), *body = malloc(f.data_len);
		if (!table || !body)
			abort();
		memcpy(table + 1, data, f.table_len);
		memcpy(body, data + f.table_len, f.data_len);
		int bad = vst_pieces_verify(f.offset, f.length, body, (const uint32_t *)(const void *)(table + 1));
		if (bad >= (int)(f.table_len / 4))
			abort();
		free(table);
		free(body);
	}
	return 0;
}
