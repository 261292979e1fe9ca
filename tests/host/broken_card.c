// SPDX-License-Identifier: Apache-2.0
/* A network card that claims to compute checksums inside the tunnel and spoils them: where the field still holds the seed the
 * kernel leaves for the card (the pseudo header's sum), it is changed. Checksums that are whole are left alone. */
#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define INNER 64 /* outer Ethernet, IP, UDP, VXLAN, inner Ethernet */

SEC("tc")
int card(struct __sk_buff *ctx)
{
	struct {
		__u8 version, tos;
		__be16 length, id, frag;
		__u8 ttl, proto;
		__u16 sum;
		__be32 saddr, daddr;
		__be16 sport, dport, udp_length;
		__u16 check;
	} h;
	__be16 port;
	__u32 sum;

	if (bpf_skb_load_bytes(ctx, 36, &port, 2) || port != bpf_htons(4789) || bpf_skb_load_bytes(ctx, INNER, &h, sizeof(h)) ||
	    h.version != 0x45 || h.proto != 17)
		return -1;
	sum = (h.saddr & 0xffff) + (h.saddr >> 16) + (h.daddr & 0xffff) + (h.daddr >> 16) + bpf_htons(17) + h.udp_length;
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	if (h.check == (__u16)sum) {
		h.check ^= 0x5a5a;
		bpf_skb_store_bytes(ctx, INNER + 26, &h.check, 2, 0);
	}
	return -1;
}

char LICENSE[] SEC("license") = "GPL";
