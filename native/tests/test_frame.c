/* Frame headers of tests/golden/frames.hex, CRC tables, and what a single flipped bit does. */
#include <errno.h>
#include "check.h"
#include "vstor/frame.h"

static void golden_headers(void)
{
	static char line[16384];
	unsigned good = 0, bad = 0;
	FILE *f = golden_open("frames.hex");

	while (fgets(line, sizeof line, f)) {
		char key[64];
		struct vst_frame h;
		if (line[0] == '#' || sscanf(line, "%63s", key) != 1 || strncmp(key, "write_", 6) == 0)
			continue;
		CHECK_EQ(golden_hex("frames.hex", key, (uint8_t *)&h, sizeof h), sizeof h);
		int as_request = vst_frame_check(&h, 0), as_reply = vst_frame_check(&h, 1);
		if (strncmp(key, "ok_request_", 11) == 0) {
			CHECK_EQ(as_request, 0);
			CHECK_EQ(as_reply, -EINVAL);
			good++;
		} else if (strncmp(key, "ok_reply_", 9) == 0) {
			CHECK_EQ(as_reply, 0);
			CHECK_EQ(as_request, -EINVAL);
			good++;
		} else {
			if (as_request == 0 || as_reply == 0) {
				fprintf(stderr, "%s passes\n", key);
				exit(1);
			}
			bad++;
		}
		if (strcmp(key, "bad_version") == 0)
			CHECK_EQ(as_request, -EPROTONOSUPPORT);
		if (strcmp(key, "bad_magic") == 0 || strcmp(key, "bad_crc") == 0)
			CHECK_EQ(as_request, -EBADMSG);
		if (strcmp(key, "bad_data_len") == 0)
			CHECK_EQ(as_request, -EMSGSIZE);
	}
	fclose(f);
	CHECK(good >= 9 && bad >= 15);
}

static void write_frame(void)
{
	struct vst_frame golden, h = {.type = VST_FRAME_TYPE_WRITE, .flags = VST_FRAME_FLAG_DURABLE, .request_id = 42};
	uint8_t raw_table[64];
	uint32_t table[16];
	size_t len = 6000;
	uint64_t offset = 4096 * 3 + 100;
	uint8_t *data = guarded(len);

	CHECK_EQ(golden_hex("frames.hex", "ok_request_write", (uint8_t *)&golden, sizeof golden), sizeof golden);
	CHECK_EQ(golden_hex("frames.hex", "write_data", data, len), len);
	size_t table_len = golden_hex("frames.hex", "write_table", raw_table, sizeof raw_table);
	h.handle = 7;
	h.offset = offset;
	h.length = h.data_len = (uint32_t)len;
	h.table_len = vst_pieces(offset, (uint32_t)len) * 4;
	h.chunk_version = 5;
	h.chunk_id = 77;
	vst_frame_finish(&h);
	CHECK(memcmp(&h, &golden, sizeof h) == 0);
	CHECK_EQ(h.table_len, table_len);
	vst_pieces_crc(offset, (uint32_t)len, data, table);
	CHECK(memcmp(table, raw_table, table_len) == 0);
	CHECK_EQ(vst_pieces_verify(offset, (uint32_t)len, data, table), -1);
	data[len - 1] ^= 1;
	CHECK_EQ(vst_pieces_verify(offset, (uint32_t)len, data, table), 1);
	data[3995] ^= 0x80;
	CHECK_EQ(vst_pieces_verify(offset, (uint32_t)len, data, table), 0);
	guarded_free(data, len);
}

static void pieces(void)
{
	CHECK_EQ(vst_pieces(0, 0), 0);
	CHECK_EQ(vst_pieces(0, 1), 1);
	CHECK_EQ(vst_pieces(4095, 1), 1);
	CHECK_EQ(vst_pieces(4095, 2), 2);
	CHECK_EQ(vst_pieces(1, VST_IO_BYTES_MAX), 257);
	CHECK(257 * 4 <= VST_TABLE_BYTES_MAX);
}

/* A single flipped bit anywhere is noticed. */
static void bit_flips(void)
{
	struct vst_frame h;
	uint8_t *raw = (uint8_t *)&h;

	golden_hex("frames.hex", "ok_request_write", raw, sizeof h);
	for (size_t bit = 0; bit < sizeof h * 8; bit++) {
		raw[bit / 8] ^= (uint8_t)(1u << (bit % 8));
		CHECK(vst_frame_check(&h, 0) < 0);
		raw[bit / 8] ^= (uint8_t)(1u << (bit % 8));
	}
	CHECK_EQ(vst_frame_check(&h, 0), 0);
}

int main(void)
{
	golden_headers();
	write_frame();
	pieces();
	bit_flips();
	return 0;
}
