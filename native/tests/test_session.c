/* Keys, macs and protected frames of tests/golden/session.hex; what a changed byte, order or direction does. */
#include <errno.h>
#include "check.h"
#include "vstor/frame.h"
#include "vstor/session.h"

static struct {
	uint8_t cs_key[32], k[32], prove[32], ticket_key[32];
	struct vst_hello hello;
	struct vst_hello_ack ack;
	struct vst_ticket ticket;
	struct vst_frame frame;
	uint8_t table[64], data[6000];
} g;

static void load(void)
{
	const char *s = "session.hex", *f = "frames.hex";
	CHECK_EQ(golden_hex(s, "cs_key", g.cs_key, 32), 32);
	CHECK_EQ(golden_hex(s, "session_key", g.k, 32), 32);
	CHECK_EQ(golden_hex(s, "prove", g.prove, 32), 32);
	CHECK_EQ(golden_hex(s, "ticket_key", g.ticket_key, 32), 32);
	CHECK_EQ(golden_hex(s, "hello", (uint8_t *)&g.hello, sizeof g.hello), sizeof g.hello);
	CHECK_EQ(golden_hex(s, "hello_ack", (uint8_t *)&g.ack, sizeof g.ack), sizeof g.ack);
	CHECK_EQ(golden_hex(s, "ticket", (uint8_t *)&g.ticket, sizeof g.ticket), sizeof g.ticket);
	CHECK_EQ(golden_hex(f, "ok_request_write", (uint8_t *)&g.frame, sizeof g.frame), sizeof g.frame);
	CHECK_EQ(golden_hex(f, "write_table", g.table, sizeof g.table), g.frame.table_len);
	CHECK_EQ(golden_hex(f, "write_data", g.data, sizeof g.data), g.frame.data_len);
}

static void keys_and_macs(void)
{
	uint8_t out[32];

	CHECK_EQ(g.hello.session_id, 0x1122334455667788);
	vst_session_key(g.cs_key, g.hello.session_id, g.hello.expiry_ms, out);
	CHECK(vst_mac_equal(out, g.k, 32));
	vst_hello_ack_mac(g.k, &g.hello, &g.ack, out);
	CHECK(vst_mac_equal(out, g.ack.mac, 32));
	vst_prove_mac(g.k, &g.hello, &g.ack, out);
	CHECK(vst_mac_equal(out, g.prove, 32));
	vst_ticket_mac(g.ticket_key, &g.ticket, out);
	CHECK(vst_mac_equal(out, g.ticket.mac, 16));
	g.ticket.chunk_version++;
	vst_ticket_mac(g.ticket_key, &g.ticket, out);
	CHECK(!vst_mac_equal(out, g.ticket.mac, 16));
	g.ticket.chunk_version--;
}

/* Frame number 1 of client to server, in two segments; PROVE was number 0. */
static void golden_frame(int mode, const char *tag_key)
{
	uint8_t tag[16], expected[16], sealed[6000];
	struct vst_seg none = {g.data, 0}, seg[2] = {{sealed, 1001}, {sealed + 1001, sizeof sealed - 1001}};
	vst_seal *out = vst_seal_new(g.k, &g.hello, &g.ack, 1, mode),
		 *in = vst_seal_new(g.k, &g.hello, &g.ack, 1, mode);
	struct vst_frame prove = {.type = VST_FRAME_TYPE_PROVE};

	CHECK(out && in);
	CHECK_EQ(vst_seal_tag_len(out), 16);
	vst_frame_finish(&prove);
	CHECK_EQ(vst_seal_frame(out, &prove, NULL, &none, 1, tag), 0);
	CHECK_EQ(vst_open_frame(in, &prove, NULL, &none, 1, tag), 0);
	memcpy(sealed, g.data, sizeof sealed);
	CHECK_EQ(vst_seal_frame(out, &g.frame, g.table, seg, 2, tag), 0);
	CHECK_EQ(golden_hex("session.hex", tag_key, expected, 16), 16);
	CHECK(memcmp(tag, expected, 16) == 0);
	if (mode == VST_AUTH_MODE_SECURE) {
		static uint8_t cipher[6000];
		CHECK_EQ(golden_hex("session.hex", "secure_data", cipher, sizeof cipher), sizeof cipher);
		CHECK(memcmp(sealed, cipher, sizeof cipher) == 0);
	} else {
		CHECK(memcmp(sealed, g.data, sizeof sealed) == 0);
	}
	CHECK_EQ(vst_open_frame(in, &g.frame, g.table, seg, 2, tag), 0);
	CHECK(memcmp(sealed, g.data, sizeof sealed) == 0);
	vst_seal_free(out);
	vst_seal_free(in);
}

/* One frame from a fresh sender to a fresh receiver after `spoil` changed something: refused, without it accepted. */
static int one_frame(int mode, int spoil)
{
	uint8_t tag[16], copy[6000], table[64];
	struct vst_frame frame = g.frame;
	struct vst_seg seg = {copy, sizeof copy};
	vst_seal *out = vst_seal_new(g.k, &g.hello, &g.ack, spoil != 4, mode);
	vst_seal *in = vst_seal_new(g.k, &g.hello, &g.ack, 1, mode);

	memcpy(copy, g.data, sizeof copy);
	memcpy(table, g.table, sizeof table);
	if (spoil == 5) /* a frame was lost before */
		CHECK_EQ(vst_seal_frame(out, &frame, table, &seg, 0, tag), 0);
	CHECK_EQ(vst_seal_frame(out, &frame, table, &seg, 1, tag), 0);
	copy[17] ^= (uint8_t)(spoil == 1);
	table[2] ^= (uint8_t)(spoil == 2);
	frame.handle ^= (uint32_t)(spoil == 3);
	tag[15] ^= (uint8_t)(spoil == 6);
	int result = vst_open_frame(in, &frame, table, &seg, 1, tag);
	vst_seal_free(out);
	vst_seal_free(in);
	return result;
}

int main(void)
{
	uint8_t tag[16] = {0};

	load();
	keys_and_macs();
	golden_frame(VST_AUTH_MODE_SIGN, "sign_tag");
	golden_frame(VST_AUTH_MODE_SECURE, "secure_tag");
	for (int mode = VST_AUTH_MODE_SIGN; mode <= VST_AUTH_MODE_SECURE; mode++) {
		CHECK_EQ(one_frame(mode, 0), 0);
		for (int spoil = 1; spoil <= 6; spoil++)
			CHECK_EQ(one_frame(mode, spoil), -EBADMSG);
	}
	vst_seal *crc = vst_seal_new(g.k, &g.hello, &g.ack, 1, VST_AUTH_MODE_CRC);
	CHECK(crc && vst_seal_tag_len(crc) == 0);
	CHECK_EQ(vst_open_frame(crc, &g.frame, g.table, NULL, 0, tag), 0);
	vst_seal_free(crc);
	CHECK(vst_seal_new(g.k, &g.hello, &g.ack, 1, 9) == NULL);
	return 0;
}
